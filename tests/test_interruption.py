import signal
import subprocess
import sys
import textwrap
import time

import pytest

from t5jax.interruption import StopRequest, handle_signals, stop_request


def start(body: str) -> subprocess.Popen:
    """Starts a command that prints `ready` when it may be interrupted."""
    code = f"""
import dataclasses, gc, sys, time
from t5jax.cli import run_command
from t5jax.interruption import stop_request

@dataclasses.dataclass
class Options:
    pass

def ready():
    print("ready", flush=True)

def main(_):
{textwrap.indent(textwrap.dedent(body), "    ")}

run_command(Options, main, arguments=[])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_ends_a_command(number, status):
    process = start("ready(); time.sleep(60)")
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (status, "\ninterrupted\n")


def test_first_signal_lets_a_command_clean_up():
    process = start(
        """
        with stop_request().cleaned():
            try:
                ready(); time.sleep(60)
            finally:
                print("clean")
        """
    )
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (143, "clean\n", "interrupted\n")


def test_signal_lost_in_a_callback_of_the_collector_ends_the_command():
    # As JAX's: what it raises is ignored.
    process = start(
        """
        gc.callbacks.append(lambda phase, info: time.sleep(1.0))
        with stop_request().cleaned():
            ready()
            while True:
                gc.collect()
        """
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.endswith("interrupted\n")


def test_signal_during_work_outside_python_ends_the_command():
    # One call into C, which Python cannot interrupt.
    process = start("import ctypes; ready(); ctypes.CDLL(None).usleep(60_000_000)")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143


def test_error_that_a_library_makes_of_an_interruption_is_one():
    process = start(
        """
        with stop_request().cleaned():
            ready()
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                raise ImportError("interrupted while importing")
        """
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "interrupted\n")


LOOP = """
request = stop_request()
with request.deferred() as stopping:
    ready()
    while not stopping():
        time.sleep(0.01)
    with request.waiting_for("the checkpoint of step 7"):
        time.sleep({seconds})
print("saved")
"""


def test_deferred_signal_is_left_to_the_loop():
    process = start(LOOP.format(seconds=0))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "saved\n")
    assert err == "\nstopping after this step; press Ctrl-C again to abort\n"


def test_slow_stop_says_what_it_waits_for():
    process = start(LOOP.format(seconds=6))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "saved\n")
    assert "waiting for the checkpoint of step 7; press Ctrl-C again to abort\n" in err, err


def test_second_signal_ends_the_process_at_once():
    process = start(LOOP.format(seconds=60))
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)  # sooner, it would repeat the first
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert err.endswith("aborted\n")


def test_signal_that_a_loop_has_not_seen_ends_the_command():
    process = start(
        """
        with stop_request().deferred():
            ready()
            time.sleep(0.5)
        time.sleep(60)
        """
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_forked_process_handles_signals_as_usual():
    process = start(
        """
        import multiprocessing, os, signal
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()
        ready()
        time.sleep(1)
        print(child.exitcode)
        """
    )
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, f"{-signal.SIGTERM}\n", "")


def test_handlers_are_those_of_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with handle_signals() as request:
        assert stop_request() is request
        with handle_signals() as inner:
            assert inner is request
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert stop_request() is not request
    assert isinstance(stop_request(), StopRequest)


def test_thread_that_does_not_end_delays_no_exit():
    process = start(
        """
        import threading
        threading.Thread(target=time.sleep, args=(60,)).start()
        with stop_request().deferred() as stopping:
            ready()
            while not stopping():
                time.sleep(0.01)
        """
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=6) == 0
