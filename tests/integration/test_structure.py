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

ROOT = Path(__file__).parents[2]
HEAVY = {"jax", "flax", "optax", "orbax", "datasets", "pyarrow", "grain", "matplotlib", "tyro"}
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(t5jax.__path__, "t5jax.") if not module.ispkg
)
PACKAGES = [
    "t5jax",
    *sorted(m.name for m in pkgutil.walk_packages(t5jax.__path__, "t5jax.") if m.ispkg),
]
NEED_NO_JAX = ("t5jax.data", "t5jax.evaluation", "t5jax.tokenizers")


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
        "import t5jax.models.config",
        "import t5jax.data",
        "from t5jax.data import Task",
        "import t5jax.generation",
        *(f"import {package}" for package in PACKAGES[1:]),
    ],
)
def test_import_loads_no_heavy_library(statement):
    loaded = loaded_by(statement)
    assert "t5jax" in loaded
    assert not loaded & HEAVY


def test_modules_that_need_no_jax_load_none():
    modules = [name for name in MODULES if name.startswith(NEED_NO_JAX)]
    assert modules
    assert "jax" not in loaded_by(f"import {', '.join(modules)}")


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


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_exist_and_complete(name):
    package = importlib.import_module(name)
    assert set(package.__all__) - {"__version__"} <= set(dir(package))
    for public in package.__all__:
        assert not public.startswith("_") or public == "__version__"
        assert getattr(package, public) is not None


def test_attributes_are_what_they_name():
    from t5jax import loading
    from t5jax.models.config import T5Config

    assert t5jax.load is loading.load
    assert t5jax.T5Config is T5Config
    assert t5jax.pretrain is importlib.import_module("t5jax.recipes.pretrain").pretrain
    assert t5jax.pretrain is t5jax.recipes.pretrain


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="laod"):
        t5jax.laod  # noqa: B018
    assert not hasattr(t5jax, "laod")
