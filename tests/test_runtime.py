import ctypes
import subprocess
import sys

import pytest

from t5jax import runtime
from t5jax.runtime import keep_memory

# Bytes in blocks that are mapped on their own while an array lives, and free bytes in the heap
# after it, both before and after the settings.
_PROGRAM = """
import ctypes
import numpy as np
from t5jax.runtime import keep_memory

libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
libc.mallinfo2.restype = type(
    "mallinfo2",
    (ctypes.Structure,),
    {"_fields_": [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks "
                  "fsmblks uordblks fordblks keepcost".split()]},
)

def arrays():
    # 64 MiB, which glibc maps on its own by default; freed on return.
    array = np.ones(8 << 20)
    mapped = libc.mallinfo2().hblkhd
    del array
    return mapped, libc.mallinfo2().fordblks

print(*arrays())
print(keep_memory())
print(*arrays())
"""


@pytest.fixture
def cpu_with_glibc(monkeypatch):
    """A host with CPUs alone; returns the calls of a mallopt that accepts everything."""
    calls = {}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("T5JAX_KEEP_MEMORY", raising=False)
    monkeypatch.setattr(
        runtime, "_mallopt", lambda: lambda name, value: calls.update({name: value}) or 1
    )
    return calls


def test_keep_memory_sets_malloc(cpu_with_glibc):
    """The numbers of M_TRIM_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX in glibc's malloc.h."""
    assert keep_memory()
    assert cpu_with_glibc == {-1: -1, -4: 0, -8: 1}


def test_keep_memory_says_if_a_setting_is_refused(cpu_with_glibc, monkeypatch):
    calls = []
    monkeypatch.setattr(
        runtime, "_mallopt", lambda: lambda name, value: calls.append(name) or int(name != -4)
    )
    assert not keep_memory()
    assert len(calls) == 3


def test_keep_memory_does_nothing_without_glibc(cpu_with_glibc, monkeypatch):
    monkeypatch.setattr(runtime, "_mallopt", lambda: None)
    assert not keep_memory()


def test_keep_memory_can_be_declined(cpu_with_glibc, monkeypatch):
    monkeypatch.setenv("T5JAX_KEEP_MEMORY", "0")
    assert not keep_memory()
    assert not cpu_with_glibc


def test_keep_memory_leaves_hosts_of_accelerators_alone(cpu_with_glibc, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(runtime.importlib.metadata, "entry_points", lambda group: ["cuda"])
    assert not keep_memory()
    assert not cpu_with_glibc


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_glibc_applies_the_settings(monkeypatch):
    """By glibc's counters: a large array is mapped on its own before, kept in the heap after."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("T5JAX_KEEP_MEMORY", raising=False)
    command = [sys.executable, "-c", _PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    before, accepted, after = result.stdout.splitlines()
    assert accepted == "True"
    size = 64 << 20
    mapped, kept = map(int, before.split())
    assert mapped >= size
    assert kept < size
    mapped, kept = map(int, after.split())
    assert mapped < size
    assert kept >= size
