"""How long a training step takes to compile, by the number of layers.

python benchmarks/depth.py [--model t5-small] [--depths 4 24] [--topology v5e:2x4] [--rounds 3]

Layers are one loop, so that a deep model is the same program as a shallow one; on a CPU up to 12
layers are written out unless there is --remat.  Nothing is run;
a TPU slice need not be there, but needs `pip install libtpu`.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from t5jax.models import ComputePolicy, T5Config
from t5jax.parallel import MeshConfig
from t5jax.planning import Workload, lower_step, slice_devices


def compile_seconds(options: argparse.Namespace, depth: int, devices: Sequence[Any]) -> float:
    """Seconds to trace, lower and compile a step of a model as deep as that."""
    config = T5Config.preset(options.model)
    config = config.replace(num_encoder_layers=depth, num_decoder_layers=depth)
    task = Workload(
        config=config,
        policy=ComputePolicy(dtype="bfloat16", remat=options.remat),
        mesh=MeshConfig(),
        batch_size=2 * len(devices),
        input_length=512,
        target_length=114,
    )
    jax.clear_caches()
    start = time.perf_counter()
    lower_step(task, devices).program.compile()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="t5-small")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--topology", default=None, help="instead of this machine's first device")
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    devices = jax.devices()[:1] if options.topology is None else slice_devices(options.topology)
    seconds: dict[int, list[float]] = {depth: [] for depth in options.depths}
    for _ in range(options.rounds):
        for depth, taken in seconds.items():
            taken.append(compile_seconds(options, depth, devices))
    medians = {depth: statistics.median(taken) for depth, taken in seconds.items()}
    first = medians[options.depths[0]]
    for depth, median in medians.items():
        print(f"{depth:3} layers  {median:6.1f} s  {median / first:5.2f}")


if __name__ == "__main__":
    main()
