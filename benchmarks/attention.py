"""Plain against blockwise attention: time and memory of an encoder's forward and backward pass.

    python benchmarks/attention.py                       # a minute
    python benchmarks/attention.py --lengths 8192 --no-time

Sizes are those of t5-small.  Calls are interleaved, one of each way a round, and medians compared.
Memory is what XLA reserves for intermediate results; nothing is run for it.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from t5jax.models import ComputePolicy, T5Config, abstract_params, bind, init_params

WAYS = ("plain", "blockwise")


def gradient(way: str, *, length: int, batch: int, remat: str):
    """The compiled gradient of a sum over encoder states, and what it takes."""
    config = T5Config.preset("t5-small", num_decoder_layers=0)
    policy = ComputePolicy(attention=way, remat=remat)

    def total(params, tokens):
        model = bind(config, params, policy=policy)
        states = model.encode(tokens, encoder_mask=tokens != config.pad_id)
        return jnp.sum(jnp.square(states))

    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return config, jax.jit(jax.grad(total)).lower(abstract_params(config), tokens).compile()


def medians(runs: dict, *, config: T5Config, length: int, batch: int, rounds: int) -> dict:
    """Seconds a call."""
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 3, 32000, jnp.int32)
    seconds = {way: [] for way in runs}
    for i in range(rounds + 1):
        for way, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(params, tokens))
            if i:  # The first call warms up.
                seconds[way].append(time.perf_counter() - start)
    return {way: statistics.median(values) for way, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-time", action="store_true", help="memory only")
    args = parser.parse_args()
    print(f"{'length':>7} {'way':>10} {'MiB':>9} {'of plain':>9} {'seconds':>9} {'of plain':>9}")
    for length in args.lengths:
        sizes = {"length": length, "batch": args.batch}
        made = {way: gradient(way, remat=args.remat, **sizes) for way in WAYS}
        runs = {way: run for way, (_, run) in made.items()}
        memory = {w: r.memory_analysis().temp_size_in_bytes / 2**20 for w, r in runs.items()}
        seconds = dict.fromkeys(WAYS, float("nan"))
        if not args.no_time:
            config = made["plain"][0]
            seconds = medians(runs, config=config, rounds=args.rounds, **sizes)
        for way in WAYS:
            print(
                f"{length:7} {way:>10} {memory[way]:9.1f} {memory[way] / memory['plain']:9.1%} "
                f"{seconds[way]:9.3f} {seconds[way] / seconds['plain']:9.2f}"
            )


if __name__ == "__main__":
    main()
