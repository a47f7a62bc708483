import pytest

from t5jax.profiling.hardware import CHIPS, chip_of_kind, chip_of_topology, topologies


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
    ],
)
def test_of_kind_knows_what_jax_calls_a_device(kind, name):
    chip = chip_of_kind(kind)
    assert chip is not None
    assert chip.name == name


def test_of_kind_of_others_is_none():
    assert chip_of_kind("cpu") is None


def test_of_kind_is_never_ambiguous():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)


def test_chips_need_many_operations_for_a_byte():
    """Figures in one unit: bfloat16 chips since 2020 do 100 to 700 operations for a byte of HBM."""
    for chip in CHIPS.values():
        assert 100 < chip.flops / chip.hbm_bandwidth < 700, chip
        assert 2 < chip.hbm_bandwidth / chip.link_bandwidth < 13, chip
        assert 2**30 < chip.hbm_bytes < 2**38, chip


@pytest.mark.parametrize("name", [*topologies(), "v5p:12x12x20", "v4:4x12x4"])
def test_of_topology_knows_slices(name):
    assert name.startswith(chip_of_topology(name).name + ":")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:16x16", "did you mean 'v5e:16x16'"),
        ("H100:8", "chips are v4, v5e, v5p, v6e, tpu7x; choose one of these."),
        ("A100:2x2", "chips are v4, v5e, v5p, v6e, tpu7x; choose one of these."),
        ("", "such as 'v5e:16x16', got ''"),
        ("v5e", "slice of v5e, got 'v5e'; choose from 1x1, 2x2"),
        ("v5e:3x7", "choose from 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16."),
        ("v5e:32x32", "got 'v5e:32x32'"),
        ("v5p:4x4", "or any axes divisible by 4"),
        ("v5p:4x4x4x", "got 'v5p:4x4x4x'"),
        ("v5p:0x4x4", "got 'v5p:0x4x4'"),
        ("v5p:4x4x40", "got 'v5p:4x4x40'"),
    ],
)
def test_of_topology_refuses_what_is_not_there(name, message):
    with pytest.raises(ValueError, match="topology must be") as error:
        chip_of_topology(name)
    assert message in str(error.value)
