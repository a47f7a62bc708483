"""Every format into every other, bit for bit, and a report that is true of what lies on disk.

Sources are written by `hf_folders`, by hand, by flax and by TensorFlow; results are read by
safetensors, tensorstore and Orbax, or once more turned into Hugging Face's files.
"""

import dataclasses
import functools
import hashlib
import json
import re
import shutil
from pathlib import Path

import flax.serialization
import flax.traverse_util
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from helpers import hf_folders, torch_pickles as pickles
from helpers.trees import assert_same_bits
from safetensors.numpy import load_file

from t5jax.checkpoint.trees import load_tree
from t5jax.models.config import T5Config
from t5jax.models.t5 import abstract_params
from t5jax.pretrained import native, source
from t5jax.pretrained.convert import convert_checkpoint
from t5jax.pretrained.open import find_tokenizer, open_checkpoint
from t5jax.pretrained.source import CheckpointSource
from t5jax.tokenizers.sentencepiece import train_tokenizer

MESH_TF = Path(__file__).parents[1] / "fixtures" / "mesh_tf"
CONFIG = hf_folders.CONFIG | {
    "num_decoder_layers": 1,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
    # What a T5X checkpoint does not say.
    "relative_attention_max_distance": 128,
}
SOURCES = ["hf", "hf bfloat16", "bin", "t5x", "mesh_tf", "t5jax"]
TARGETS = {
    "hf": {"to": "hf"},
    "hf shards": {"to": "hf", "max_shard_bytes": 9000},
    "t5x": {"to": "t5x"},
    "t5x scanned": {"to": "t5x", "scan_layers": True},
    "t5jax": {"to": "t5jax"},
}
BLOCK = re.compile(r"(encoder|decoder)\.block\.([0-9]+)\.layer\.([012])\.(.*)\.weight")


@pytest.fixture(scope="module", autouse=True)
def shapes_once():
    """Tracing the same few models again and again would be half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (source, native):
            patch.setattr(module, "abstract_params", functools.cache(abstract_params))
        yield


def run(path, destination, **options):
    return convert_checkpoint(path, destination, **options).report


def t5x_name(name: str) -> str:
    """Of a tensor of Hugging Face, by T5X's network.py."""
    others = {
        "shared.weight": "token_embedder/embedding",
        "lm_head.weight": "decoder/logits_dense/kernel",
        "encoder.final_layer_norm.weight": "encoder/encoder_norm/scale",
        "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
    }
    if name in others:
        return others[name]
    matched = BLOCK.fullmatch(name)
    assert matched is not None
    stack, block, layer, rest = matched.groups()
    if rest.endswith("relative_attention_bias"):
        return f"{stack}/relpos_bias/rel_embedding"
    last = layer == ("1" if stack == "encoder" else "2")
    kind = "mlp" if last else {"0": "self_attention", "1": "encoder_decoder_attention"}[layer]
    kind = "attention" if stack == "encoder" and not last else kind
    norm = {"attention": "attention", "encoder_decoder_attention": "cross_attention"}
    if rest == "layer_norm":
        return f"{stack}/layers_{block}/pre_{norm.get(kind, kind)}_layer_norm/scale"
    part = rest.split(".")[1]
    part = {"q": "query", "k": "key", "v": "value", "o": "out"}.get(part, part)
    return f"{stack}/layers_{block}/{kind}/{part}/kernel"


def write_t5x(path: Path, tensors) -> Path:
    """As T5X writes small checkpoints: flax's msgpack, everything below target."""
    target: dict = {}
    for name, value in tensors.items():
        *parts, last = t5x_name(name).split("/")
        inner = target
        for part in parts:
            inner = inner.setdefault(part, {})
        straight = name == "shared.weight" or value.ndim == 1
        inner[last] = value if straight else np.ascontiguousarray(value.T)
    state = {"param_states": {"m": np.ones(3, np.float32)}, "step": np.int32(7)}
    tree = {"version": 3, "optimizer": {"target": target, "state": state}}
    file = path / "checkpoint_7" / "checkpoint"
    file.parent.mkdir(parents=True)
    file.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def write_bin(path: Path, tensors) -> Path:
    pickled, storages = {}, {}
    for i, (name, value) in enumerate(tensors.items()):
        strides = [s // value.itemsize for s in value.strides]
        of = pickles.storage(str(i), value.size)
        pickled[name] = pickles.tensor(of, pickles.sizes(*value.shape), pickles.sizes(*strides))
        storages[str(i)] = value.tobytes()
    pickles.write_zip(path / "pytorch_model.bin", pickles.state_dict(pickled), storages)
    return path


def mesh_tensors() -> dict[str, np.ndarray]:
    """What the files of TensorFlow hold, by Hugging Face's names."""
    found = {}
    for name, value in np.load(MESH_TF / "expected.npz").items():
        if "slot" in name or name == "global_step":
            continue
        name = re.sub(r"(block|layer)_0*([0-9]+)", r"\1/\2", name.removesuffix("/kernel"))
        name = name.replace("rms_norm/scale", "layer_norm").replace("decoder/logits", "lm_head")
        name = name.replace("coder/layer_norm", "coder/final_layer_norm").replace("/", ".")
        name = name.removesuffix(".embedding")
        found[f"{name}.weight"] = value if value.ndim == 1 or name == "shared" else value.T
    return found


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer(["a bee sees a bee"], vocab_size=10, num_sentinels=5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, vocabulary):
    """Path and tensors, by Hugging Face's names, of every source."""
    root = tmp_path_factory.mktemp("sources")
    tensors = hf_folders.random_tensors(CONFIG, gated=True, head=True)
    odd = np.array([np.nan, -0.0, np.inf, 1e-45, 3.4e38], np.float32)
    tensors["decoder.block.0.layer.2.DenseReluDense.wo.weight"][3, :5] = odd
    narrow = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    (root / "bin").mkdir()
    (root / "bin" / "config.json").write_text(json.dumps(CONFIG))
    found = {
        "hf": (hf_folders.write(root / "hf", CONFIG, tensors, num_shards=2), tensors),
        "hf bfloat16": (hf_folders.write(root / "narrow", CONFIG, narrow), narrow),
        "bin": (write_bin(root / "bin", tensors), tensors),
        "t5x": (write_t5x(root / "t5x", tensors), tensors),
        "mesh_tf": (shutil.copytree(MESH_TF, root / "mesh_tf"), mesh_tensors()),
    }
    run(root / "hf", root / "t5jax", to="t5jax")
    found["t5jax"] = root / "t5jax", tensors
    for path, _ in found.values():
        vocabulary.save(path)
    return found


@pytest.fixture(scope="module")
def converted(tmp_path_factory, sources):
    """Folder and report of a conversion, made once."""
    root = tmp_path_factory.mktemp("converted")

    @functools.cache
    def make(kind, target):
        out = root / f"{kind}-{target}"
        report = run(sources[kind][0], out, **TARGETS[target])
        assert not [p for p in root.iterdir() if p.name.startswith(".")]
        return out, report

    return make


def hf_tensors(path) -> dict[str, np.ndarray]:
    files = sorted(path.glob("model*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def stored_tensors(path, to) -> dict[str, np.ndarray]:
    """What lies on disk, by the names there, read without t5jax where a library can."""
    if to == "hf":
        return hf_tensors(path)
    if to == "t5x":
        found = {}
        for array in (path / "checkpoint_0").glob("target.*"):
            spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{array}/"}}
            name = array.name.removeprefix("target.").replace(".", "/")
            found[name] = np.asarray(tensorstore.open(spec).result().read().result())
        return found
    abstract = abstract_params(T5Config.from_file(path / "config.json"))
    params = load_tree(path / "params", abstract)
    return {"/".join(k): np.asarray(v) for k, v in flax.traverse_util.flatten_dict(params).items()}


# Bits.


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", SOURCES)
def test_convert_keeps_all_bits(tmp_path, sources, converted, vocabulary, kind, target):
    path, tensors = sources[kind]
    out, report = converted(kind, target)
    if target == "t5x":
        straight = {n: n == "shared.weight" or x.ndim == 1 for n, x in tensors.items()}
        theirs = {t5x_name(n): x if straight[n] else x.T for n, x in tensors.items()}
        assert_same_bits(stored_tensors(out, "t5x"), theirs)
    elif target in ("t5x scanned", "t5jax"):
        back = run(out, tmp_path / "back", to="hf")
        assert back["config"] == report["config"]
        assert_same_bits(hf_tensors(tmp_path / "back"), tensors)
    else:
        assert_same_bits(hf_tensors(out), tensors)
        config = open_checkpoint(out).config
        assert dataclasses.asdict(config) == report["config"]
    carried = find_tokenizer(out)
    assert carried is not None
    assert carried.fingerprint == vocabulary.fingerprint
    assert (out / "spiece.model").read_bytes() == (path / "spiece.model").read_bytes()


@pytest.mark.parametrize("target", ["hf", "t5x scanned", "t5jax"])
def test_convert_rounds_to_bfloat16_if_told_to(tmp_path, sources, target):
    """To the nearest, and of two to the even one; the oracle does so by hand."""
    path, tensors = sources["mesh_tf"]
    report = run(path, tmp_path / "out", dtype="bfloat16", **TARGETS[target])
    assert {tensor["dtype"] for tensor in report["tensors"]} == {"bfloat16"}
    assert report["bytes"] == 2 * report["parameters"]
    found = tmp_path / "out"
    if target != "hf":
        run(found, tmp_path / "back", to="hf")
        found = tmp_path / "back"
    rounded = {}
    for name, value in tensors.items():
        bits = np.ascontiguousarray(value).view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded[name] = bits.astype(np.uint16).view(ml_dtypes.bfloat16)
    assert_same_bits(hf_tensors(found), rounded)


def test_convert_widens_to_float32_if_told_to(tmp_path, sources):
    path, tensors = sources["hf bfloat16"]
    run(path, tmp_path / "out", to="hf", dtype="float32")
    wide = {
        n: (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        for n, x in tensors.items()
    }
    assert_same_bits(hf_tensors(tmp_path / "out"), wide)


@pytest.mark.parametrize("kind", ["hf", "t5x", "t5jax"])
def test_convert_leaves_out_the_decoder_if_told_to(tmp_path, sources, kind):
    path, tensors = sources[kind]
    report = run(path, tmp_path / "out", to="hf", encoder_only=True)
    assert set(report["ignored"].values()) >= {"decoder only"}
    encoder = {n: x for n, x in tensors.items() if n.startswith(("encoder.", "shared."))}
    assert_same_bits(hf_tensors(tmp_path / "out"), encoder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["T5EncoderModel"]
    assert report["config"]["num_decoder_layers"] == 0


# The report.


@pytest.mark.parametrize("kind", ["hf", "mesh_tf"])
@pytest.mark.parametrize("target", TARGETS)
def test_report_is_true_of_what_lies_on_disk(sources, converted, kind, target):
    path, tensors = sources[kind]
    out, report = converted(kind, target)
    assert json.loads((out / "conversion.json").read_text()) == json.loads(json.dumps(report))
    to = TARGETS[target]["to"]
    stored = stored_tensors(out, to)
    told = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert len(told) == len(report["tensors"])
    assert told.keys() == stored.keys()
    for name, value in stored.items():
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        assert told[name]["sha256"] == digest, name
        assert tuple(told[name]["shape"]) == value.shape
        assert told[name]["dtype"] == value.dtype.name
    count = sum(value.size for value in tensors.values())
    assert report["parameters"] == count
    assert report["bytes"] == 4 * count
    assert (report["to"], report["dtype"]) == (to, "keep")
    assert str(path) in report["source"]
    # Every tensor of the source is one of ours or ignored, and every path of ours was written.
    assert {tensor["path"] for tensor in report["tensors"]} == report["renamed"].keys()
    theirs = [name for names in report["renamed"].values() for name in names]
    held = np.load(MESH_TF / "expected.npz").files if kind == "mesh_tf" else tensors
    assert sorted([*theirs, *report["ignored"]]) == sorted(held)


def test_report_says_why_tensors_are_ignored(tmp_path, converted):
    _, report = converted("mesh_tf", "hf")
    assert report["ignored"]["encoder/rms_norm/scale_slot_m"] == "not a model parameter"
    assert report["ignored"]["global_step"] == "not a model parameter"
    assert any("the activation is assumed to be gelu_tanh" in note for note in report["notes"])
    tensors = hf_folders.random_tensors(hf_folders.CONFIG)
    tensors |= {
        name: tensors["shared.weight"].copy()
        for name in ("lm_head.weight", "encoder.embed_tokens.weight")
    }
    hf_folders.write(tmp_path / "in", hf_folders.CONFIG, tensors)
    report = run(tmp_path / "in", tmp_path / "tied", to="hf")
    assert report["ignored"] == {
        "lm_head.weight": "same as shared.weight",
        "encoder.embed_tokens.weight": "same as shared.weight",
    }


def test_run_prints_nothing_and_reports_its_progress(tmp_path, sources, capsys):
    seen = []
    run(sources["mesh_tf"][0], tmp_path / "out", to="hf", progress=lambda *x: seen.append(x))
    assert capsys.readouterr() == ("", "")
    assert {total for _, total in seen} == {12_576}
    assert sum(count for count, _ in seen) == 12_576


# Options.


@pytest.mark.parametrize("to", ["hf", "t5jax"])
def test_options_refuse_scanned_layers_but_for_t5x(to):
    with pytest.raises(ValueError, match=f"scan_layers must not be set for {to}"):
        run("a", "b", to=to, scan_layers=True)


# Where it is written.


def test_run_refuses_an_existing_destination_and_replaces_it_if_told_to(tmp_path, sources):
    out = tmp_path / "out"
    run(sources["mesh_tf"][0], out, to="t5x")
    with pytest.raises(FileExistsError, match=f"^{out} must be a new or an empty folder"):
        run(sources["hf"][0], out, to="hf")
    assert (out / "checkpoint_0").is_dir()
    for to in ("hf", "t5jax", "hf"):
        run(sources["hf"][0], out, to=to, overwrite=True)
        assert open_checkpoint(out).config.vocab_size == 97
        assert not (out / "checkpoint_0").exists()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("to", ["hf", "t5x", "t5jax"])
def test_run_never_replaces_what_is_not_a_model(tmp_path, sources, to):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="must be a saved model to be overwritten"):
        run(sources["hf"][0], tmp_path / "out", to=to, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_run_writes_below_home(tmp_path, sources, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(sources["mesh_tf"][0], "~/models/out", to="hf")
    assert (tmp_path / "models" / "out" / "conversion.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models"]
    run("~/models/out", "~/models/ours", to="t5jax")
    assert (tmp_path / "models" / "ours" / "conversion.json").is_file()


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("given", "destination"),
    [
        ("model", "model"),
        ("model", "model/../model"),
        ("model", "."),
        ("model/model.safetensors", "model"),
        ("model", "link"),
        ("link", "model"),
        ("links", "model"),
        ("links", "links"),
        ("sentence", "sentence"),
        ("sentence", "sentence/0_Transformer"),
        ("sentence", "sentence/2_Dense"),
    ],
)
def test_run_never_replaces_its_source(tmp_path, monkeypatch, given, destination, overwrite):
    """The copy may hold less: another type, no decoder, one step of many, no model card."""
    monkeypatch.chdir(tmp_path)
    tensors = hf_folders.random_tensors(CONFIG, gated=True, head=True)
    hf_folders.write(tmp_path / "model", CONFIG, tensors)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "model").iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    encoder = tmp_path / "sentence" / "0_Transformer"
    hf_folders.write(encoder, CONFIG, hf_folders.random_tensors(CONFIG, gated=True, decoder=False))
    hf_folders.write_sentence_layers(
        tmp_path / "sentence", np.ones((4, 16), np.float32), transformer="0_Transformer"
    )
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="the destination must not contain the source") as caught:
        run(given, destination, to="hf", dtype="bfloat16", overwrite=overwrite)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 4


def test_run_never_replaces_a_subfolder_that_is_its_source(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG, gated=True, head=True)
    hf_folders.write(tmp_path / "pipe" / "encoder", CONFIG, tensors)
    before = snapshot(tmp_path)
    for destination in ("pipe", "pipe/encoder"):
        with pytest.raises(ValueError, match="the destination must not contain the source"):
            run(
                tmp_path / "pipe",
                tmp_path / destination,
                to="hf",
                subfolder="encoder",
                overwrite=True,
            )
    assert snapshot(tmp_path) == before


def test_run_writes_beside_and_below_its_source(tmp_path):
    tensors = hf_folders.random_tensors(CONFIG, gated=True, head=True)
    hf_folders.write(tmp_path / "model", CONFIG, tensors)
    for out in (tmp_path / "model" / "hf", tmp_path / "model-2"):
        run(tmp_path / "model", out, to="hf")
        assert_same_bits(hf_tensors(out), tensors)
    assert_same_bits(hf_tensors(tmp_path / "model"), tensors)


# Failures.


@pytest.mark.parametrize(
    ("target", "error"), [("hf", OSError), *((target, KeyboardInterrupt) for target in TARGETS)]
)
def test_run_leaves_nothing_if_it_is_interrupted(tmp_path, sources, monkeypatch, target, error):
    count, read = 0, CheckpointSource._part

    def part(self, *arguments):
        nonlocal count
        count += 1
        if count > 5:
            raise error("stop")
        return read(self, *arguments)

    monkeypatch.setattr(CheckpointSource, "_part", part)
    with pytest.raises(error, match="stop"):
        run(sources["hf"][0], tmp_path / "a" / "out", **TARGETS[target])
    assert not list(tmp_path.rglob("*out*"))


@pytest.mark.parametrize("bias", [None, np.arange(4, dtype=np.float32)])
def test_run_leaves_nothing_if_the_destination_cannot_hold_the_model(tmp_path, bias):
    config = CONFIG | {"num_decoder_layers": 0}
    tensors = hf_folders.random_tensors(CONFIG, gated=True, decoder=False)
    hf_folders.write(tmp_path / "in", config, tensors)
    weight = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    hf_folders.write_sentence_layers(tmp_path / "in", weight, bias=bias)
    with pytest.raises(ValueError, match="must be a plain T5"):
        run(tmp_path / "in", tmp_path / "out", to="t5x")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
    report = run(tmp_path / "in", tmp_path / "out", to="hf")
    written = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
    assert written["linear.weight"].tobytes() == weight.tobytes()
    assert ("linear.bias" in written) == (bias is not None)
    told = {tensor["name"]: tensor["sha256"] for tensor in report["tensors"]}
    assert told["2_Dense/linear.weight"] == hashlib.sha256(weight.tobytes()).hexdigest()


@pytest.mark.parametrize(
    "options", [{"to": "hf"}, {"to": "t5x", "dtype": "bfloat16"}, {"to": "t5jax"}]
)
def test_run_refuses_a_folder_of_ours_whose_weights_changed(tmp_path, sources, options):
    """As loading it does."""
    shutil.copytree(sources["t5jax"][0], tmp_path / "in")
    checksum = tmp_path / "in" / "params.checksum"
    checksum.write_text(f"{int(checksum.read_text()) ^ 1}\n")
    with pytest.raises(ValueError, match="is damaged"):
        run(tmp_path / "in", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


def test_run_refuses_a_source_that_is_none(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="must contain a model"):
        run(tmp_path / "in", tmp_path / "out", to="hf")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
