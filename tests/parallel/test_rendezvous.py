"""Processes are threads here, each with its own connections; real ones are in test_processes.py."""

import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.launched_runs import free_port

from t5jax.parallel.rendezvous import Group, join_group, split_address


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


def watched(groups: list[Group]) -> list[queue.Queue]:
    heard = [queue.Queue() for _ in groups]
    for group, reports in zip(groups, heard, strict=True):
        group.watch(reports.put)
    return heard


def test_join_waits_for_all():
    groups = join_all([2, 0, 1], count=3)
    assert [(group.index, group.count) for group in groups] == [(2, 3), (0, 3), (1, 3)]


def test_join_says_in_every_process_which_are_missing():
    errors = join_all([0, 2], count=4, timeout=1.0)
    for error in errors:
        assert isinstance(error, TimeoutError)
        assert "all 4 processes must join within 1 s, and processes 1, 3 did not" in str(error)


def test_join_says_when_process_0_is_missing():
    [error] = join_all([1], count=2, timeout=0.5)
    assert isinstance(error, TimeoutError)
    assert "process 1 of 2 waited 0.5 s for process 0 at 127.0.0.1:" in str(error)


def test_join_refuses_two_of_one_index_and_other_counts():
    errors = join_all([0, 1, 1], count=3)
    assert all(isinstance(error, ValueError) for error in errors[:1])
    assert "and has that one already" in str(errors[0])


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
def test_watch_tells_everybody_of_one_that_is_gone(gone):
    groups = join_all([0, 1, 2], count=3)
    heard = watched(groups)
    groups[gone].close()
    for index in {0, 1, 2} - {gone}:
        assert heard[index].get(timeout=5) == f"process {gone} of 3 is gone"


def test_watch_passes_on_why_one_failed():
    groups = join_all([0, 1, 2], count=3)
    heard = watched(groups)
    groups[2].fail("ValueError: no")
    for index in (0, 1):
        assert heard[index].get(timeout=5) == "process 2 of 3 failed: ValueError: no"


def test_watch_says_nothing_of_those_that_leave():
    groups = join_all([0, 1], count=2)
    heard = watched(groups)
    for group in groups:
        group.leave()
    for group in groups:
        group.close()
    with pytest.raises(queue.Empty):
        heard[0].get(timeout=0.3)


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:0", "host:70000", "host:x"])
def test_split_address_refuses_what_is_none(address):
    with pytest.raises(ValueError, match="must be host:port of process 0"):
        split_address(address)


def test_split_address_takes_names_and_both_kinds_of_numbers():
    assert split_address("a.b:80") == ("a.b", 80)
    assert split_address("[::1]:80") == ("::1", 80)
