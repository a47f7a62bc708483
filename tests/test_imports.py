"""The package's shape: who may import whom, how long files are, and what `import t5jax` costs."""

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import t5jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "t5jax"
MAX_LINES = 400

# From bottom to top; a module imports from its own level and from those below.
LEVELS = {
    "data": "config tokenizer fast_tokenizer denoise corpus pydocs textfiles batches files runlog "
    "chips flops rollcall stopwatch nearest skips predictions tasks mixture metrics "
    "metrics.bootstrap metrics.pairs metrics.matches metrics.edits metrics.overlap metrics.labels "
    "metrics.numbers",
    "math": "masks blockwise tpu_attention attention loss freeze guard products optimizer schedule "
    "sharding placement processes heap profiling checkpoint hlo decode decode.beam decode.choose "
    "decode.automaton decode.loop decode.rules decode.truncate",
    "net": "layers blocks stacks stepper model",
    "state": "pretrained pretrained.arrays pretrained.names pretrained.source pretrained.evidence "
    "pretrained.safetensors_file pretrained.tensor_pickle pretrained.torch_file pretrained.shards "
    "pretrained.json_file "
    "pretrained.msgpack_file pretrained.tf_bundle pretrained.zarr_folder pretrained.sentence "
    "pretrained.folder pretrained.hf pretrained.hf_config pretrained.hf_save pretrained.t5x "
    "pretrained.t5x_save pretrained.mesh_tf pretrained.hub",
    "task": "train fit strategy constraints options buckets generate score writer pieces answers "
    "quantize reader text2text loading infill runfolder runs ingredients baselines pretrain "
    "convert inspect programs bulk workload estimate search plan evaluate averaging trial "
    "recipe material finetuning",
    "app": "cli",
}
LEVEL = {f"t5jax.{m}": i for i, names in enumerate(LEVELS.values()) for m in names.split()}
LEVEL["t5jax"] = len(LEVELS)  # shows what is public, so nothing inside may import from it
DATA, MATH = range(2)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """Full names of all that a module imports anywhere: modules, and names taken out of them."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{module} must import by absolute names, see line {node.lineno}"
            )
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for name in imports(module):
        if name.split(".")[0] == "t5jax":
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


def test_modules_each_have_a_level():
    assert set(MODULES) == set(LEVEL), "list new modules in LEVELS, and take out old ones"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_downwards(module):
    above = {name for name in own_imports(module) if LEVEL[name] > LEVEL[module]}
    assert not above, f"{module} must not import from a higher level"


def test_modules_do_not_import_in_circles():
    graph = {module: own_imports(module) - {module} for module in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("module", [m for m in MODULES if LEVEL.get(m) == DATA])
def test_data_module_is_without_jax(module):
    assert not libraries(module) & {"jax", "jaxlib", "flax", "optax", "orbax"}


@pytest.mark.parametrize("module", [m for m in MODULES if LEVEL.get(m) == MATH])
def test_math_module_knows_nothing_of_t5(module):
    assert "t5jax.config" not in own_imports(module)
    assert "T5Config" not in MODULES[module].read_text()


def test_flax_is_imported_by_the_network_alone():
    users = {module for module in MODULES if "flax" in libraries(module)}
    assert users == {"t5jax.layers", "t5jax.blocks", "t5jax.stacks", "t5jax.stepper", "t5jax.model"}


@pytest.mark.parametrize("folder", ["t5jax", "scripts", "examples", "benchmarks"])
def test_files_fit_in_one_sitting(folder):
    lengths = {p: len(p.read_text().splitlines()) for p in (ROOT / folder).rglob("*.py")}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}
    assert not long, f"files must have at most {MAX_LINES} lines; split them by noun"


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_test_file(module):
    if module == "t5jax":
        return  # this one
    tree = ast.parse(MODULES[module].read_text())
    if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
        assert (ROOT / "tests" / f"test_{module.rpartition('.')[2]}.py").is_file()


def run(code: str) -> dict:
    """What a fresh interpreter prints as JSON."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_import_t5jax_loads_no_heavy_library():
    loaded = run("import json, sys, t5jax; print(json.dumps(sorted(sys.modules)))")
    tops = {name.split(".")[0] for name in loaded}
    heavy = {"jax", "flax", "optax", "orbax", "datasets", "pyarrow", "grain", "matplotlib", "tyro"}
    assert "t5jax" in tops
    assert not tops & heavy


def test_import_data_modules_loads_no_jax():
    data = [module for module in MODULES if LEVEL.get(module) == DATA]
    loaded = run(f"import json, sys, {', '.join(data)}; print(json.dumps(sorted(sys.modules)))")
    assert set(data) <= set(loaded)
    assert "jax" not in loaded


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


def test_t5jax_attributes_are_what_they_name():
    from t5jax import loading, text2text
    from t5jax.config import T5Config

    assert t5jax.load is loading.load
    assert t5jax.T5Config is T5Config
    assert t5jax.text2text is text2text
    assert set(t5jax.__all__) <= set(dir(t5jax))
    for name in t5jax.__all__:
        assert getattr(t5jax, name) is not None


def test_t5jax_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 't5jax' has no attribute 'laod'"):
        t5jax.laod  # noqa: B018
    assert not hasattr(t5jax, "laod")
