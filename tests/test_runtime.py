import platform
import subprocess
import sys

import pytest

from t5jax import runtime
from t5jax.runtime import keep_memory

# Page faults of the calmest of some calls that need 64 MiB of temporaries each.
_PROGRAM = """
import resource, sys
import jax
import jax.numpy as jnp
from t5jax.runtime import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()

@jax.jit
def step(x):
    return jax.lax.optimization_barrier(jnp.outer(x, x)) @ x

x = jnp.arange(4096.0)
faults = []
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_keep_memory_spares_steps_their_page_faults(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("T5JAX_KEEP_MEMORY", raising=False)

    def faults(how: str) -> int:
        command = [sys.executable, "-c", _PROGRAM, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # 64 MiB are 16,384 pages of 4 KiB; a system may give larger ones.
    given_back = faults("give back")
    if given_back < 10_000:
        pytest.skip(f"steps pay only {given_back} page faults here")
    assert faults("keep") < 1_000


def test_keep_memory_can_be_declined(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("T5JAX_KEEP_MEMORY", "0")

    assert not keep_memory()


def test_keep_memory_leaves_hosts_of_accelerators_alone(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(runtime.importlib.metadata, "entry_points", lambda group: ["cuda"])

    assert not keep_memory()
