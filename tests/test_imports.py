"""What importing t5jax costs, and that its public names are there.

Which package may import which is checked by import-linter; see `[tool.importlinter]` in
pyproject.toml.
"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import t5jax

ROOT = Path(__file__).parents[1]
HEAVY = {"jax", "flax", "optax", "orbax", "datasets", "pyarrow", "grain", "matplotlib", "tyro"}
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(t5jax.__path__, "t5jax.") if not module.ispkg
)


def run(code: str) -> list:
    """Return what a fresh interpreter prints as JSON."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def loaded_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    return {name.split(".")[0] for name in run(code)}


@pytest.mark.parametrize(
    "statement",
    [
        "import t5jax",
        "from t5jax import T5Config",
        "from t5jax import Task",
    ],
)
def test_import_loads_no_heavy_library(statement):
    loaded = loaded_by(statement)
    assert "t5jax" in loaded
    assert not loaded & HEAVY


def test_import_of_every_module_starts_no_backend():
    code = f"""
import json, jax, t5jax
from jax._src import xla_bridge
before = list(xla_bridge._backends)
import {", ".join(MODULES)}
after = list(xla_bridge._backends)
jax.devices()
print(json.dumps([before, after, list(xla_bridge._backends)]))
"""
    before, after, started = run(code)
    assert before == after == []
    assert started  # or the attribute says nothing


@pytest.mark.parametrize("name", ["t5jax"])
def test_public_names_exist_and_complete(name):
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert not public.startswith("_") or public == "__version__"
        assert getattr(package, public) is not None


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="laod"):
        t5jax.laod  # noqa: B018
    assert not hasattr(t5jax, "laod")
