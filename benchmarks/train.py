"""A training step of t5jax beside one of PyTorch transformers, in turns.

python benchmarks/train.py [--model t5-small] [--rounds 5] [--json train.json]

Same sizes, same shapes, Adafactor, dropout 0.1, random weights.  PyTorch runs eagerly: in float32,
and in bfloat16 by autocast, as its users train.  Each has a process of its own, which sleeps while
the other takes its step; t5jax keeps its memory between steps, as `scripts/pretrain.py` does, and
PyTorch does what it does by default, or with --keep-memory the same.
Needs `pip install torch transformers`.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from t5jax.models import ComputePolicy, T5Config, is_stacked
from t5jax.optim import OptimizerConfig, ScheduleConfig, learning_rate_schedule, make_optimizer
from t5jax.parallel import MeshConfig, make_mesh, shard_batch
from t5jax.runtime import keep_memory
from t5jax.training import StepConfig, init_state, make_train_step

THREADS = os.cpu_count() or 1
WARM_UP = 3
BARS = {"float32": 1.4, "bfloat16": 1.3}


def make_batch(options: argparse.Namespace, vocab_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.integers(2, vocab_size, (options.batch_size, options.input_length), np.int32)
    targets = rng.integers(2, vocab_size, (options.batch_size, options.target_length), np.int32)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones(targets.shape, np.float32),
    }


def ours(options: argparse.Namespace, dtype: str) -> Callable[[], float]:
    """A function that makes one step and returns its loss."""
    config = T5Config.preset(options.model, dropout_rate=0.1)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    rate = ScheduleConfig(name="constant", learning_rate=1e-3, warmup_steps=0)
    tx = make_optimizer(
        OptimizerConfig(name=options.optimizer, schedule=rate),
        total_steps=100,
        stacked=is_stacked,
    )
    step_options = StepConfig(vocab_chunks=options.vocab_chunks)
    step = make_train_step(
        config,
        tx,
        policy=ComputePolicy(dtype=dtype, remat=options.remat),
        schedule=learning_rate_schedule(rate, total_steps=100),
        mesh=mesh,
        options=step_options,
        seed=0,
    )
    held = [init_state(config, tx, mesh=mesh, seed=0, options=step_options)]
    batch = shard_batch(make_batch(options, config.vocab_size), mesh=mesh)

    def run() -> float:
        held[0], metrics = step(held[0], batch)
        return float(metrics["loss"])

    return run


def torchs(options: argparse.Namespace, dtype: str) -> Callable[[], float]:
    """The same of PyTorch."""
    found = T5Config.preset(options.model)
    config = transformers.T5Config(
        vocab_size=found.vocab_size,
        d_model=found.d_model,
        d_ff=found.d_ff,
        d_kv=found.d_kv,
        num_heads=found.num_heads,
        num_layers=found.num_encoder_layers,
        num_decoder_layers=found.num_decoder_layers,
        feed_forward_proj="gated-gelu" if found.gated_ff else "relu",
        tie_word_embeddings=found.tie_embeddings,
        dropout_rate=0.1,
    )
    torch.manual_seed(0)
    network = transformers.T5ForConditionalGeneration(config).train()
    adafactor = transformers.optimization.Adafactor(
        network.parameters(), lr=1e-3, relative_step=False, scale_parameter=True
    )
    batch = make_batch(options, config.vocab_size)
    inputs, decoder_inputs, targets = (
        torch.tensor(batch[name].astype(np.int64))
        for name in ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    )

    def run() -> float:
        adafactor.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            result = network(input_ids=inputs, decoder_input_ids=decoder_inputs, labels=targets)
        result.loss.backward()
        adafactor.step()
        return result.loss.item()

    return run


def serve(side: str, options: argparse.Namespace, dtype: str, pipe: Connection) -> None:
    """Takes a step for every message, and answers with its seconds; ends when the pipe does."""
    if side == "t5jax" or options.keep_memory:
        keep_memory()
    if side == "t5jax":
        run = ours(options, dtype)
    else:
        torch.set_num_threads(THREADS)
        run = torchs(options, dtype)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            start = time.perf_counter()
            run()
            pipe.send(time.perf_counter() - start)


def measure(options: argparse.Namespace, dtype: str) -> dict[str, float]:
    """Median seconds of each, taken in turns, the first steps left out."""
    spawned = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    for side in ("t5jax", "PyTorch"):
        pipes[side], theirs = spawned.Pipe()
        children.append(
            spawned.Process(target=serve, args=(side, options, dtype, theirs), daemon=True)
        )
        children[-1].start()
        theirs.close()
    times: dict[str, list[float]] = {side: [] for side in pipes}
    for _ in range(WARM_UP + options.rounds):
        for side, pipe in pipes.items():
            pipe.send("step")
            times[side].append(pipe.recv())
    for pipe, child in zip(pipes.values(), children, strict=True):
        pipe.close()
        child.join()
    return {side: statistics.median(taken[WARM_UP:]) for side, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="t5-small")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--input-length", type=int, default=512)
    parser.add_argument("--target-length", type=int, default=114)
    parser.add_argument("--dtypes", nargs="+", default=list(BARS))
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument(
        "--optimizer",
        default="adafactor",
        choices=("adafactor", "adamw", "muon"),
        help="of t5jax; PyTorch has Adafactor",
    )
    parser.add_argument("--vocab-chunks", type=int, default=None)
    parser.add_argument("--keep-memory", action="store_true", help="for PyTorch, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("train.json"))
    options = parser.parse_args()
    print(
        f"{options.model}, {options.batch_size} x {options.input_length} -> "
        f"{options.target_length}: seconds a step, {THREADS} threads, medians of "
        f"{options.rounds} rounds"
    )
    print(f"{'':10}{'t5jax':>9}{'PyTorch':>9}   ratio  bar")
    results = {}
    for dtype in options.dtypes:
        seconds = measure(options, dtype)
        ratio = seconds["PyTorch"] / seconds["t5jax"]
        results[dtype] = {**seconds, "ratio": ratio}
        print(
            f"{dtype:10}{seconds['t5jax']:9.2f}{seconds['PyTorch']:9.2f}{ratio:8.2f}"
            f"  >= {BARS[dtype]}",
            flush=True,
        )
    report = {
        "machine": platform.platform(),
        "versions": {m.__name__: m.__version__ for m in (jax, torch, transformers)},
        "options": {name: str(value) for name, value in vars(options).items()},
        "seconds": results,
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
