"""Processes are threads here, each with its own links; test_distributed.py has real ones."""

import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.launched_runs import free_port

from t5jax.parallel.rendezvous import Group, RunAborted, join_group, split_address


def join_all(indices: list[int], *, count: int, timeout: float = 5.0) -> list:
    """The group of each index, or what its `join` raised."""
    address = f"127.0.0.1:{free_port()}"

    def one(index: int):
        try:
            return join_group(address, count=count, index=index, timeout=timeout)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(len(indices)) as pool:
        return list(pool.map(one, indices))


@pytest.fixture
def raised(monkeypatch) -> queue.Queue[str]:
    """What the threads that watch raise."""
    messages: queue.Queue[str] = queue.Queue()

    def hook(failure: threading.ExceptHookArgs) -> None:
        assert isinstance(failure.exc_value, RunAborted)
        messages.put(str(failure.exc_value))

    monkeypatch.setattr(threading, "excepthook", hook)
    return messages


def watched(indices: list[int], *, count: int) -> list[Group]:
    groups = join_all(indices, count=count)
    for group in groups:
        group.watch()
    return groups


def test_join_waits_for_all():
    groups = join_all([2, 0, 1], count=3)
    assert [(group.index, group.count) for group in groups] == [(2, 3), (0, 3), (1, 3)]


def test_join_says_in_every_process_which_are_missing():
    errors = join_all([0, 2], count=4, timeout=1.0)
    for error in errors:
        assert isinstance(error, TimeoutError)
        assert "all 4 processes must join within 1 s, but processes 1, 3 did not" in str(error)


def test_join_says_when_process_0_is_missing():
    [error] = join_all([1], count=2, timeout=0.5)
    assert isinstance(error, TimeoutError)
    assert "process 1 of 2 waited 0.5 s for process 0 at 127.0.0.1:" in str(error)


def test_join_refuses_two_of_one_index_and_other_counts():
    for error in join_all([0, 1, 1], count=3):
        assert isinstance(error, ValueError)
        assert "index is taken" in str(error)


def test_join_refuses_other_counts():
    address = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        joins = [
            pool.submit(join_group, address, count=count, index=index, timeout=5.0)
            for index, count in ((0, 2), (1, 3))
        ]
    for join in joins:
        with pytest.raises(ValueError, match="got index 1 of 3 in a run of 2"):
            join.result()


def test_join_ignores_strangers():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(join_group, f"127.0.0.1:{port}", count=2, index=0, timeout=20.0)
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                continue
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        second = pool.submit(join_group, f"127.0.0.1:{port}", count=2, index=1, timeout=20.0)
        assert (first.result().index, second.result().index) == (0, 1)
        stranger.close()


@pytest.mark.parametrize("gone", [0, 1])
def test_watch_tells_everybody_of_one_that_is_gone(gone, raised):
    groups = watched([0, 1, 2], count=3)
    groups[gone].close()
    reasons = [groups[index].failure(timeout=5.0) for index in {0, 1, 2} - {gone}]
    for index, reason in zip({0, 1, 2} - {gone}, reasons, strict=True):
        assert reason.startswith(f"process {gone} of 3 is gone, so process {index} ends too")
    assert {raised.get(timeout=5) for _ in reasons} == set(reasons)


def test_watch_passes_on_why_one_failed(raised):
    groups = watched([0, 1, 2], count=3)
    assert groups[2].fail(ValueError("no")) == "process 2 of 3 failed: ValueError: no"
    for group in groups[:2]:
        assert group.failure(timeout=5.0).startswith("process 2 of 3 failed: ValueError: no, so")


def test_watch_says_nothing_of_those_that_leave(raised):
    groups = watched([0, 1], count=2)
    for group in groups:
        group.leave()
    for group in groups:
        group.close()
    assert [group.failure(timeout=0.3) for group in groups] == [None, None]
    assert raised.empty()


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:0", "host:70000", "host:x"])
def test_split_address_refuses_what_is_none(address):
    with pytest.raises(ValueError, match="must be host:port of process 0"):
        split_address(address)


def test_split_address_takes_names_and_both_kinds_of_numbers():
    assert split_address("a.b:80") == ("a.b", 80)
    assert split_address("[::1]:80") == ("::1", 80)
