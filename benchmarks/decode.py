"""Tokens a second of t5jax, PyTorch transformers and CTranslate2, side by side in one process.

    pip install -e . torch transformers ctranslate2
    python benchmarks/decode.py                       # a random t5-small; some ten minutes
    python benchmarks/decode.py --model my-folder     # any Hugging Face folder of T5's family

Every system reads the same ids from the same weights and is made to write 64 tokens.  Calls are
interleaved, one of each system a round, and medians are compared: what slows the machine slows all.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NEW_TOKENS = 64
THREADS = os.cpu_count() or 1


class Cell(NamedTuple):
    """One row of the table; a batch is counted once, whatever its beams."""

    batch: int
    length: int
    beams: int


CELLS = {
    "B1 S64": Cell(1, 64, 1),
    "B8 S128": Cell(8, 128, 1),
    "B32 S128": Cell(32, 128, 1),
    "B8 S128 beam 4": Cell(8, 128, 4),
}
# What each precision is measured against, and what a ratio must reach.
BARS = {
    "float32": dict.fromkeys(CELLS, 1.3),
    "bfloat16": dict.fromkeys(list(CELLS)[1:], 1.2),
    "int8": {"B1 S64": 1.3},
}


def make_model(folder: Path) -> None:
    """A t5-small with random weights."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_ff=2048,
        num_layers=6,
        num_heads=8,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)


def inputs(cell: Cell, vocab_size: int) -> np.ndarray:
    rng = np.random.default_rng(cell.batch)
    ids = rng.integers(3, min(vocab_size, 32000), (cell.batch, cell.length)).astype(np.int32)
    ids[:, -1] = 1
    return ids


# One function for each system: (cell, ids) -> a call that writes NEW_TOKENS tokens for every row.


def t5jax_calls(folder: Path, precision: str) -> Callable[[Cell, np.ndarray], Callable[[], Any]]:
    import t5jax

    options = {"weights": "int8"} if precision == "int8" else {"dtype": precision}
    t5 = t5jax.load(folder, **options)

    def prepare(cell, ids):
        return lambda: t5.generate_ids(
            ids,
            encoder_mask=np.ones(ids.shape, bool),
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            num_beams=cell.beams,
        )

    return prepare


def transformers_calls(folder: Path, precision: str):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(THREADS)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()

    def prepare(cell, ids):
        tokens = torch.from_numpy(ids).long()
        mask = torch.ones_like(tokens)

        def call():
            with torch.inference_mode():
                return model.generate(
                    tokens,
                    attention_mask=mask,
                    num_beams=cell.beams,
                    do_sample=False,
                    min_new_tokens=NEW_TOKENS,
                    max_new_tokens=NEW_TOKENS,
                )

        return call

    return prepare


def ctranslate2_calls(folder: Path, precision: str):
    import ctranslate2
    from ctranslate2.converters import transformers as converters
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    kind = type(model.config).__name__

    class Loader(type(converters._MODEL_LOADERS[kind])):
        """Writes a vocabulary of numbers, so that no tokenizer is needed."""

        def get_vocabulary(self, model, tokenizer):
            return [f"<{i}>" for i in range(model.config.vocab_size)]

        def set_config(self, config, model, tokenizer):
            config.bos_token = config.decoder_start_token = "<0>"
            config.eos_token, config.unk_token = "<1>", "<2>"

    spec = Loader()(model, None)
    spec.validate()
    spec.optimize(quantization=precision)
    with tempfile.TemporaryDirectory() as converted:
        spec.save(converted)
        translator = ctranslate2.Translator(
            converted, device="cpu", compute_type=precision, intra_threads=THREADS
        )

    def prepare(cell, ids):
        rows = [[f"<{i}>" for i in row] for row in ids]
        return lambda: translator.translate_batch(
            rows,
            beam_size=cell.beams,
            min_decoding_length=NEW_TOKENS,
            max_decoding_length=NEW_TOKENS,
            max_batch_size=0,
        )

    return prepare


SYSTEMS = {
    "float32": {
        "t5jax": t5jax_calls,
        "transformers": transformers_calls,
        "ctranslate2": ctranslate2_calls,
    },
    "bfloat16": {"t5jax": t5jax_calls, "transformers": transformers_calls},
    "int8": {"t5jax": t5jax_calls, "ctranslate2": ctranslate2_calls},
}


def read_bandwidth(array: np.ndarray) -> Callable[[], Any]:
    """A call that reads an array once, with all threads, as fast as the machine can."""
    import torch

    torch.set_num_threads(THREADS)
    tensor = torch.from_numpy(array)
    return lambda: tensor.sum()


def decoder_bytes(folder: Path) -> int:
    """Bytes of float32 weights that one token reads: the decoder but for its cross-attention's keys
    and values, and the output layer."""
    config = json.loads((folder / "config.json").read_text())
    d_model, joined = config["d_model"], config["num_heads"] * config["d_kv"]
    gated = config.get("feed_forward_proj", "relu").startswith("gated")
    layer = 6 * d_model * joined + (2 + gated) * d_model * config["d_ff"]
    layers = config.get("num_decoder_layers", config["num_layers"])
    return 4 * (layers * layer + config["vocab_size"] * d_model)


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, one of each a round."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.3)  # other libraries' threads spin on for a while
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


_FIRST_CALL = """
import sys, time
import numpy as np
from t5jax.runtime import enable_compilation_cache
enable_compilation_cache(sys.argv[2])
import t5jax
t5 = t5jax.load(sys.argv[1], dtype="float32")
ids = np.random.default_rng(0).integers(3, 300, (1, 64)).astype(np.int32)
begun = time.perf_counter()
t5.generate_ids(ids, encoder_mask=ids > 0, max_new_tokens=64)
print(time.perf_counter() - begun)
"""


def first_calls(folder: Path) -> dict[str, float]:
    """Seconds of the first `generate` of a process: all compiled anew, and with kept programs."""
    with tempfile.TemporaryDirectory() as kept:
        command = [sys.executable, "-c", _FIRST_CALL, str(folder), kept]
        cold, warm = (
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(2)
        )
    return {"cold": cold, "warm": warm}


def run_cells(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    memory = np.ones(64 << 20, np.float32)
    results = []
    for precision in options.precisions:
        systems = {name: make(folder, precision) for name, make in SYSTEMS[precision].items()}
        for name in options.cells:
            cell = CELLS[name]
            ids = inputs(cell, vocab_size)
            calls = {system: make(cell, ids) for system, make in systems.items()}
            if precision == "float32" and cell.batch == 1:
                calls["bandwidth"] = read_bandwidth(memory)
            seconds = measure(calls, options.rounds)
            reading = seconds.pop("bandwidth", None)
            rates = {s: cell.batch * NEW_TOKENS / t for s, t in seconds.items()}
            best = max(rate for system, rate in rates.items() if system != "t5jax")
            result = {
                "precision": precision,
                "cell": name,
                "tokens_per_second": rates,
                "ratio": rates["t5jax"] / best,
                "bar": BARS[precision].get(name),
            }
            if reading:
                bandwidth = memory.nbytes / reading
                used = decoder_bytes(folder) * rates["t5jax"]
                result |= {"read_bandwidth": bandwidth, "of_bandwidth": used / bandwidth}
            results.append(result)
            print(row(result), flush=True)
        systems.clear()
        gc.collect()
    return results


def row(result: dict[str, Any]) -> str:
    rates = result["tokens_per_second"]
    shown = "".join(f"{rates.get(name, float('nan')):14.1f}" for name in COLUMNS)
    bar = f">= {result['bar']}" if result["bar"] else ""
    line = f"{result['precision']:10}{result['cell']:16}{shown}{result['ratio']:8.2f}  {bar}"
    if "of_bandwidth" in result:
        line += f"   {result['of_bandwidth']:.0%} of {result['read_bandwidth'] / 1e9:.1f} GB/s"
    return line


COLUMNS = ("t5jax", "transformers", "ctranslate2")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--precisions", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("decode.json"))
    options = parser.parse_args()
    # Nothing is downloaded, and nothing is said of it.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        if options.model is None:
            make_model(folder)
        first = first_calls(folder)
        cold, warm = first["cold"], first["warm"]
        print(f"first call of generate: {cold:.2f} s cold, {warm:.2f} s with kept programs")
        print(f"tokens a second, {THREADS} threads, medians of {options.rounds} rounds")
        print(f"{'':26}{''.join(f'{name:>14}' for name in COLUMNS)}   ratio  bar")
        results = run_cells(folder, options)
    machine = {"machine": platform.platform(), "processor": cpu_name(), "threads": THREADS}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    report = {**machine, "versions": versions, "first_call": first, "cells": results}
    options.json.write_text(json.dumps(report, indent=1) + "\n")


PACKAGES = ("jax", "jaxlib", "torch", "transformers", "ctranslate2")


def cpu_name() -> str:
    """The processor, by its flags where its name says little."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in found.items()}
    fast = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}
    flags = sorted(fast & set(fields.get("flags", "").split()))
    return f"{fields.get('model name', platform.processor())} ({', '.join(flags)})"


if __name__ == "__main__":
    main()
