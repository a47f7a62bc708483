"""The TPU's kernels, interpreted, against dense attention; and compiled for TPUs where one can."""

import pytest
from helpers.dense_attention import check

from t5jax.ops.pallas_attention import pallas_attend


def interpreted(q, k, v, bias, segments):
    return pallas_attend(q, k, v, segments=segments, bias=bias, block=128, interpret=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["padding", "segments"])
@pytest.mark.parametrize("lengths", [(37, 37), (150, 270), (270, 150)])
def test_attend_and_gradients_equal_dense(lengths, kind, causal):
    check(interpreted, *lengths, kind=kind, causal=causal)
