import json
from pathlib import Path

import numpy as np
import pytest
from helpers import hf_folders

from t5jax.tokenizers.sentencepiece import train_tokenizer

MESH_TF = Path(__file__).parents[1] / "fixtures" / "mesh_tf"


@pytest.fixture
def folder(tmp_path):
    vocabulary = train_tokenizer(["a bee sees a bee"], vocab_size=10, num_sentinels=5)
    tensors = hf_folders.random_tensors(hf_folders.CONFIG)
    tensors = {
        name: value.astype(np.float16) if "encoder" in name else value
        for name, value in tensors.items()
    }
    hf_folders.write(tmp_path / "model", hf_folders.CONFIG, tensors)
    vocabulary.save(tmp_path / "model")
    return tmp_path / "model"


def test_inspect_prints_aligned_lines(folder, t5jax):
    shapes = hf_folders.shapes(hf_folders.CONFIG)
    half = sum(int(np.prod(shape)) for name, shape in shapes.items() if "encoder" in name)
    single = sum(int(np.prod(shape)) for name, shape in shapes.items() if "encoder" not in name)
    status, out, _ = t5jax("inspect", folder)
    lines = out.splitlines()
    assert status == 0
    assert "layers        encoder 2, decoder 3" in lines
    assert "tokenizer     kind SentencePieceTokenizer, ids 15, sentinels 5" in lines
    assert "special ids   padding 0, end 1, decoder start 0, unknown 2" in lines
    assert f"parameters    {half + single:,}" in lines
    assert f"types         float32 {single:,}, float16 {half:,}" in lines
    assert not any(line.startswith("notes") for line in lines)
    assert all(line[12:14] == "  " and line[14] != " " for line in lines)


def test_inspect_prints_every_note_on_a_line_of_its_own(t5jax):
    lines = t5jax("inspect", MESH_TF)[1].splitlines()
    ignored = next(i for i, line in enumerate(lines) if line.startswith("ignored"))
    assert lines[ignored].endswith(
        "encoder/rms_norm/scale_slot_m and 4 more: not a model parameter"
    )
    assert lines[-1].startswith(f"{'':14}the activation is assumed")


def test_inspect_finds_a_subfolder_and_prints_json(folder, t5jax):
    status, out, _ = t5jax("inspect", folder.parent, "--subfolder", "model", "--json")
    assert status == 0
    assert json.loads(out)["sizes"]["d_model"] == hf_folders.CONFIG["d_model"]
