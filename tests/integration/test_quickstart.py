"""The notebook runs from top to bottom, with whatever model it is given, and draws its pictures."""

import os
import re
import sys
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from t5jax.models.config import T5Config
from t5jax.models.t5 import init_params
from t5jax.text2text import Text2Text

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
CONFIG = T5Config(
    vocab_size=97,
    d_model=8,
    d_ff=8,
    d_kv=4,
    num_heads=3,
    num_encoder_layers=2,
    num_decoder_layers=2,
    relative_buckets=8,
    relative_max_distance=12,
)


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def executed(notebook, model: Path, workplace: Path):
    """Runs all cells in a process of this interpreter; a cell that fails is an error."""
    # Without folders of kernels there is but ipykernel's own, which starts `sys.executable`.
    manager = KernelManager(
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        connection_file=str(workplace / "kernel.json"),
    )
    environment = {
        **os.environ,
        "T5JAX_MODEL": str(model),
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(workplace / "ipython"),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    environment.pop("MPLBACKEND", None)  # pictures are to come out in the notebook
    client = NotebookClient(notebook, km=manager, timeout=120)
    return client.execute(cleanup_kc=True, cwd=str(workplace), env=environment)


def outputs(notebook, kind: str) -> dict[str, str]:
    """By cell, what it shows of a MIME type."""
    return {
        cell.id: output.data[kind]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {})
    }


def add(notebook, source: str) -> None:
    """Appends a cell of the test's own, with the id "check"."""
    notebook.cells.append(nbformat.v4.new_code_cell(source, id="check"))


def save_model(folder: Path, config: T5Config, tokenizer) -> dict:
    params = init_params(config, jax.random.key(0))
    Text2Text(config, params, tokenizer).save(folder)
    return params


@pytest.mark.slow
def test_quickstart_runs_and_draws(notebook, english, tmp_path):
    save_model(tmp_path / "model", CONFIG, english)
    add(
        notebook,
        "np.testing.assert_allclose(answer.cross_attention.sum(axis=-1), 1, rtol=1e-5)  # float32\n"
        "import sys; sys.prefix, t5jax.__file__",
    )
    done = executed(notebook, tmp_path / "model", tmp_path)
    assert set(outputs(done, "image/png")) == {"layers", "heads", "bias"}
    ran = outputs(done, "text/plain")["check"]
    assert ran == repr((sys.prefix, str(ROOT / "t5jax" / "__init__.py")))


# The query's own distance has the first row of a table, near distances have one each, all that is
# far shares the last; in the encoder, the upper half serves later keys.  (arXiv:1910.10683, 2.1)
CHECK_BIAS = """
tables = np.load("tables.npz")
for offset, row in {0: 0, -1: 1, -12: 3, 1: 5, 12: 7}.items():
    np.testing.assert_array_equal(encoder_bias[:, offsets == offset][:, 0], tables["encoder"][row])
for offset, row in {0: 0, -1: 1, -2: 2, -3: 3, -12: 7}.items():
    np.testing.assert_array_equal(decoder_bias[:, offset - 1], tables["decoder"][row])
"""


@pytest.mark.parametrize("per_layer", [False, True], ids=["shared", "per_layer"])
def test_quickstart_bias_is_that_of_the_parameters(notebook, english, tmp_path, per_layer):
    config = CONFIG.replace(relative_bias_per_layer=per_layer)
    params = save_model(tmp_path / "model", config, english)
    tables = {
        stack: params[stack]["layers"]["relative_bias"]["embedding"][0]
        if per_layer
        else params[stack]["relative_bias"]["embedding"]
        for stack in ("encoder", "decoder")
    }
    np.savez(tmp_path / "tables.npz", **jax.tree.map(np.asarray, tables))
    notebook.cells = [cell for cell in notebook.cells if cell.id in ("load", "bias")]
    add(notebook, CHECK_BIAS)
    assert "bias" in outputs(executed(notebook, tmp_path / "model", tmp_path), "image/png")


def test_quickstart_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_quickstart_links_lead_somewhere(notebook):
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert targets
    for target in targets:
        assert (NOTEBOOK.parent / target).exists(), target
