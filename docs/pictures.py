"""Draw the pictures of the documentation into `docs/images`.

    python docs/pictures.py [RUN]

RUN is the folder of a finished `python scripts/pretrain.py`; without it, its loss is not drawn.
"""

import json
import sys
import typing
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import t5jax
from t5jax.data.objectives import SpanCorruptionConfig
from t5jax.data.objectives.span_corruption import noise_mask
from t5jax.models.layers import relative_position_bucket
from t5jax.optim.schedules import ScheduleName

# The same drawing gives the same file, with text as text.
matplotlib.rcParams.update({"svg.hashsalt": "t5jax", "svg.fonttype": "none", "font.size": 9})


def draw_loss(run: Path, folder: Path) -> None:
    """Draw the training and held-out loss of a pre-training run."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=3)
    axes.set(xlabel="step", ylabel="nats per target token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, folder / "pretraining_loss.svg")


def draw_masks(folder: Path) -> None:
    """Draw the noise masks of one text in several epochs."""
    config = SpanCorruptionConfig(density=0.15, mean_span=3.0)
    masks = [noise_mask(114, config=config, rng=np.random.default_rng([0, i])) for i in range(6)]
    figure = Figure(figsize=(6.4, 1.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.stack(masks), aspect="auto", cmap="Blues", vmin=0, vmax=1.3)
    axes.set(xlabel="token", ylabel="epoch", yticks=range(6), yticklabels=range(1, 7))
    _save(figure, folder / "noise_masks.svg")


def draw_buckets(folder: Path) -> None:
    """Draw the relative-position buckets of encoder and decoder."""
    offsets = np.arange(-160, 161)
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.subplots()
    for label, bidirectional in (("encoder", True), ("decoder", False)):
        buckets = relative_position_bucket(
            offsets, bidirectional=bidirectional, num_buckets=32, max_distance=128
        )
        axes.step(offsets, buckets, where="mid", label=label, linewidth=1)
    axes.set(xlabel="key position - query position", ylabel="bucket")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, folder / "position_buckets.svg")


def draw_schedules(folder: Path) -> None:
    """Draw the learning rate schedules, each with a peak of 0.01."""
    steps = jnp.arange(0, 10_001, 50)
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.subplots()
    for name in typing.get_args(ScheduleName):
        rate = 0.01 * 1000**0.5 if name == "rsqrt" else 0.01
        config = t5jax.optim.ScheduleConfig(name=name, learning_rate=rate, warmup_steps=1000)
        schedule = t5jax.optim.learning_rate_schedule(config, total_steps=10_000)
        axes.plot(steps, [schedule(step) for step in steps], label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, folder / "schedules.svg")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None})


def draw_all(folder: Path, *, run: Path | None) -> None:
    """Draw all pictures; that of the loss only if there is a run."""
    draw_masks(folder)
    draw_buckets(folder)
    draw_schedules(folder)
    if run is not None:
        draw_loss(run, folder)


if __name__ == "__main__":
    draw_all(Path(__file__).parent / "images", run=Path(sys.argv[1]) if sys.argv[1:] else None)
