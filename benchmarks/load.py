"""Time and memory of loading a checkpoint, beside transformers.

    pip install -e '.[parity]' && python benchmarks/load.py

Writes a random model of t5-large's shape (2.95 GB of float32) to a temporary folder, or takes
`--model FOLDER`.  Times are medians of interleaved calls in one process, the file in the page
cache; memory is the peak of a process of its own that does nothing else.

`from_pretrained` maps the file and reads nothing of it until a weight is used, so that it is given
twice: as it returns, and with every page of its weights read once, which is what a first answer
needs.  t5jax stacks layers and transposes kernels, so it has read and written everything when it
returns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PEAK = """
import sys, numpy, jax
from t5jax import pretrained
jax.devices()
dtype = numpy.dtype(jax.numpy.dtype(sys.argv[2]))
params = pretrained.load(sys.argv[1], dtype=dtype)[1]
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(size, int(peak) * 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face folder to load")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or write_model(Path(temporary))
        figures = {"memory": memory(folder), "seconds": seconds(folder, options.repeats)}
    for dtype, row in figures["memory"].items():
        shares = f"{row['peak'] / row['result']:.2f} x the result"
        shares += f", {row['peak'] / row['file']:.2f} x the file"
        print(f"peak memory, {dtype:9} {row['peak'] / 1e9:6.2f} GB = {shares}")
    ours = figures["seconds"]["t5jax"]
    for name, value in figures["seconds"].items():
        print(f"{name:32} {value:6.2f} s   {value / ours:5.2f} x t5jax")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def write_model(folder: Path) -> Path:
    """A T5 of t5-large's shape, in Hugging Face's layout."""
    from t5jax.models import T5Config, abstract_params
    from t5jax.pretrained import Weights
    from t5jax.pretrained.hf import save_hf

    config = T5Config.preset("t5-large")
    shapes = Weights.from_params(abstract_params(config)).shapes
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 22, np.float32)

    def read(path: str) -> np.ndarray:
        return np.resize(noise, shapes[path]) * np.float32(0.03)

    weights = Weights(shapes, dict.fromkeys(shapes, np.dtype(np.float32)), read)
    save_hf(folder / "model", config, weights, None)
    return folder / "model"


def memory(folder: Path) -> dict[str, dict[str, int]]:
    """Bytes of the result, of the file, and of the process at its peak, by type."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    found = {}
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, "-c", PEAK, str(folder), dtype]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        result, peak = map(int, output.split())
        found[dtype] = {"result": result, "file": size, "peak": peak}
    return found


def seconds(folder: Path, repeats: int) -> dict[str, float]:
    """Median times, interleaved; the first round is not counted."""
    import jax
    import torch
    import transformers

    from t5jax.pretrained import load_pretrained

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def theirs(dtype=torch.float32):
        return transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype)

    def touched(dtype=torch.float32):
        with torch.no_grad():
            return sum(float(p.view(-1)[::1024].float().sum()) for p in theirs(dtype).parameters())

    def ours(dtype=np.float32):
        return jax.block_until_ready(load_pretrained(folder, dtype=np.dtype(dtype))[1])

    calls = {
        "t5jax": ours,
        "transformers, mapped": theirs,
        "transformers, pages read": touched,
        "t5jax, to bfloat16": lambda: ours(jax.numpy.bfloat16),
        "transformers, to bfloat16": lambda: theirs(torch.bfloat16),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


if __name__ == "__main__":
    main()
