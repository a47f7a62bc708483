import re
from pathlib import Path

import pytest

from t5jax.cli.convert import parse_size

MESH_TF = Path(__file__).parents[1] / "fixtures" / "mesh_tf"


def test_convert_prints_what_was_done(tmp_path, t5jax):
    status, out, _ = t5jax("convert", MESH_TF, tmp_path / "out", "--to", "hf")
    assert status == 0
    lines = out.splitlines()
    count = 38
    assert lines[0].startswith(f"read     {count} tensors, 12,576 bytes, from {MESH_TF}")
    assert lines[1] == f"wrote    {count} tensors, 12,576 bytes, to {tmp_path / 'out'}"
    assert lines[2].startswith(f"renamed  {count}, such as ")
    assert "ignored  encoder/rms_norm/scale_slot_m and 4 more: not a model parameter" in lines
    assert lines[-1].startswith(f"report   {tmp_path / 'out'}/conversion.json")
    assert all(re.match(r"[a-z]+ +", line)[0] == line[:9] for line in lines)  # type: ignore


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("5 GB", 5 * 10**9),
        (" 1.5MB ", 1_500_000),
        ("300k", 300_000),
        ("2TB", 2 * 10**12),
        ("17", 17),
        ("17b", 17),
    ],
)
def test_parse_size_counts_in_powers_of_1000(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.0GB", "-5GB", "GB", "5 G B", "5GiB", "1e9", "5,5GB", ".5GB", "५GB", "inf", "0.2"],
)
def test_parse_size_refuses_what_is_no_size(text):
    with pytest.raises(ValueError, match=f"max_shard_size must be a size such as .*{text}'"):
        parse_size(text)
