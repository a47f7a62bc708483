"""Downloads from an imitation of the hub on this machine: what it serves, breaks off and refuses.

The client reads its environment when imported, so it runs in processes of its own; each loads
several models, and the tests look at what became of them.
"""

import hashlib
import http.server
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import hf_folders

from t5jax.tokenizers.sentencepiece import train_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = re.compile(
    r"(/api/models)?/(?P<repo>[^?]+?)/(?P<kind>revision|tree|resolve)/(?P<revision>[^/?]+)"
    r"(/(?P<file>[^?]+))?([?].*)?"
)
# The client keeps what it gets in pieces of 10 MiB, and asks again for what lies behind them.
PIECE = 10 << 20
BROKEN_AT = PIECE + 1000
LARGE = {**hf_folders.CONFIG, "vocab_size": 180_000}

CLIENT = """
import json, sys
import numpy as np, t5jax
for name, revision, subfolder in json.loads(sys.argv[1]):
    try:
        t5 = t5jax.load(name, revision=revision, subfolder=subfolder)
    except Exception as error:
        found = {"errors": [c.__name__ for c in type(error).__mro__], "message": str(error)}
    else:
        table = np.asarray(t5.params["token_embedder"]["embedding"])
        found = {"vocab_size": t5.config.vocab_size, "sum": int(table.view("u4").sum(dtype="u8"))}
        found["ids"] = t5.tokenizer and t5.tokenizer.encode("a hub")
    print(json.dumps(found))
"""


class Imitation(NamedTuple):
    """A running server, and what it was asked."""

    address: str
    repositories: dict[str, dict[str, bytes]]
    """Content of every file of every repository."""
    requests: dict[str, list[tuple[str, str, str | None]]]
    """For each repository: method, file or revision, and range."""
    broken: set[str]
    """Repositories whose weights have been broken off once."""


def etag(data):
    return hashlib.sha256(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as huggingface.co does, to the requests that a download makes."""

    protocol_version = "HTTP/1.1"
    hub: Imitation

    def do_GET(self):
        self.respond()

    def do_HEAD(self):
        self.respond()

    def log_message(self, *args):
        pass

    def respond(self):
        found = PATH.fullmatch(self.path)
        if found is None:
            self.refuse(404, None)
            return
        repo, kind, revision, file = found.group("repo", "kind", "revision", "file")
        is_api = kind != "resolve"
        self.hub.requests[repo].append((self.command, file or kind, self.headers.get("Range")))
        files = self.hub.repositories.get(repo)
        if repo == "owner/failing":
            self.refuse(500, None)
        elif files is None:
            self.refuse(401, "RepoNotFound")  # private or absent: strangers are not told which
        elif repo == "owner/gated" and not is_api:
            self.refuse(403, "GatedRepo")
        elif revision not in ("main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            self.send_json({"id": repo, "sha": COMMIT, "siblings": siblings})
        elif kind == "tree":
            self.send_json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                    for name, data in files.items()
                ]
            )
        elif file in files:
            self.send_file(repo, files[file])
        else:
            self.refuse(404, "EntryNotFound")

    def refuse(self, status, code):
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, repo, data):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(data) <= BROKEN_AT or repo in self.hub.broken:
            self.wfile.write(data[start:])
            return
        self.hub.broken.add(repo)
        self.wfile.write(data[:BROKEN_AT])
        self.close_connection = True
        if repo == "owner/reset":
            # Without lingering, closing resets the connection: an error of another class.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer(
        ["a hub has models, and a model has a hub"], vocab_size=20, num_sentinels=9
    )


@pytest.fixture(scope="module")
def tensors():
    return {
        "tiny": hf_folders.random_tensors(hf_folders.CONFIG, seed=1),
        "large": hf_folders.random_tensors(LARGE, seed=2),
    }


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tensors, vocabulary):
    root = tmp_path_factory.mktemp("models")
    tiny = hf_folders.write(root / "tiny", hf_folders.CONFIG, tensors["tiny"])
    vocabulary.save(tiny)
    # What else lies in real repositories; reading it would be slow, and pickles can run code.
    for name in ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "README.md"):
        (tiny / name).write_bytes(b"not to be downloaded")
    (tiny / "onnx").mkdir()
    (tiny / "onnx" / "model.safetensors").write_bytes(b"nor this")
    sharded = hf_folders.write(root / "sharded", hf_folders.CONFIG, tensors["tiny"], num_shards=3)
    large = hf_folders.write(root / "large", LARGE, tensors["large"])
    bare = root / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(hf_folders.CONFIG))
    malicious = root / "malicious"
    malicious.mkdir()
    (malicious / "config.json").write_text(json.dumps(hf_folders.CONFIG))
    (malicious / "pytorch_model.bin").write_bytes(pickle.dumps(Malice(str(root / "executed"))))
    flax = root / "flax"
    hf_folders.write_flax(flax / "text_encoder", hf_folders.CONFIG, tensors["tiny"])
    contents = {
        folder: {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        for folder in (tiny, sharded, large, bare, malicious, flax)
    }
    repositories = {
        "owner/tiny": contents[tiny],
        "owner/gated": contents[tiny],
        "owner/sharded": contents[sharded],
        "owner/broken": contents[large],
        "owner/reset": contents[large],
        "owner/bare": contents[bare],
        "owner/pickle": contents[malicious],
        "owner/flax": contents[flax],
    }
    handler = type("Handler", (Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    handler.hub = Imitation(address, repositories, defaultdict(list), set())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler.hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def load_all(home, address, models, **environment) -> dict[Any, dict[str, Any]]:
    """What became of each `name` or `(name, revision, subfolder)`, in one process of its own."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_ETAG_TIMEOUT": "3",
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        "JAX_PLATFORMS": "cpu",
        **environment,
    }
    calls = [model if isinstance(model, tuple) else (model,) for model in models]
    padded = [(*call, *[None] * (3 - len(call))) for call in calls]
    command = [sys.executable, "-c", CLIENT, json.dumps(padded)]
    done = subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(models, lines, strict=True))


@pytest.fixture(scope="module")
def online(hub, home):
    """Everything at once, with an empty cache."""
    models = [
        "owner/tiny",
        "owner/sharded",
        "owner/broken",
        "owner/reset",
        "owner/gated",
        "owner/failing",
        "owner/bare",
        "owner/pickle",
        ("owner/flax", None, "text_encoder"),
        "owner/absent",
        "runs/defualt",
        "./runs/defualt",
        "x/y/z",
        ("owner/tiny", "v1"),
        ("owner/tiny", "v2"),
    ]
    return load_all(home, hub.address, models)


@pytest.fixture(scope="module")
def unreachable(online, home):
    """With the cache that `online` filled, and nobody at the hub's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    return load_all(home, address, ["owner/tiny", "owner/sharded", "owner/absent", "owner/reset"])


@pytest.fixture(scope="module")
def offline(online, hub, home):
    """With the cache that `online` filled, and told not to ask the hub; last, what it was asked."""
    before = sum(map(len, hub.requests.values()))
    models = ["owner/tiny", ("owner/tiny", "v1"), "owner/absent", "./runs/defualt"]
    found = load_all(home, hub.address, models, HF_HUB_OFFLINE="1")
    return found, sum(map(len, hub.requests.values())) - before


def bits(table):
    return int(table.view(np.uint32).sum(dtype=np.uint64))


def assert_one_sentence(found, kind, pattern):
    assert kind in found["errors"], found
    assert re.search(pattern, found["message"]), found["message"]
    assert "\n" not in found["message"]
    assert len(found["message"]) < 400


def test_load_downloads_model_and_tokenizer(online, tensors, vocabulary):
    found = online["owner/tiny"]
    assert found["vocab_size"] == 97
    assert found["sum"] == bits(tensors["tiny"]["shared.weight"])
    assert found["ids"] == vocabulary.encode("a hub")


def test_load_downloads_every_shard(online, tensors):
    assert online["owner/sharded"]["sum"] == bits(tensors["tiny"]["shared.weight"])
    assert online["owner/sharded"]["ids"] is None


def test_load_takes_a_revision(online):
    assert online["owner/tiny", "v1"] == online["owner/tiny"]


def test_download_leaves_pickles_and_other_files_where_they_are(online, hub, home):
    asked = {file for method, file, _ in hub.requests["owner/tiny"] if method == "GET"}
    wanted = {"config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"}
    assert asked == {"revision", "tree"} | wanted
    snapshot = home / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    assert {str(p.relative_to(snapshot)) for p in snapshot.rglob("*")} == wanted


def test_download_fetches_nothing_twice(online, hub):
    fetched = [file for method, file, _ in hub.requests["owner/tiny"] if method == "GET"]
    assert fetched.count("model.safetensors") == 1  # of two loads, by two names of one revision


def test_download_goes_on_where_the_connection_broke(online, hub, tensors):
    ranges = [r for method, file, r in hub.requests["owner/broken"] if file == "model.safetensors"]
    assert ranges == [None, None, f"bytes={PIECE}-"]  # HEAD, GET, and GET again
    assert online["owner/broken"]["sum"] == bits(tensors["large"]["shared.weight"])


def test_download_reports_a_reset_connection(online):
    assert_one_sentence(online["owner/reset"], "ConnectionError", "^owner/reset .*reset by peer")


def test_download_refuses_a_gated_model(online):
    assert_one_sentence(online["owner/gated"], "FileNotFoundError", "gated: .*hf auth login")


def test_download_refuses_a_model_without_weights(online):
    pattern = "^owner/bare must have weights in safetensors, torch or Flax files"
    assert_one_sentence(online["owner/bare"], "ValueError", pattern)


def test_download_takes_other_weights_where_there_are_no_safetensors(online, hub, tensors):
    found = online["owner/flax", None, "text_encoder"]
    assert found["sum"] == bits(tensors["tiny"]["shared.weight"])
    asked = {file for method, file, _ in hub.requests["owner/flax"] if method == "GET"}
    assert asked - {"revision", "tree"} == {
        "text_encoder/config.json",
        "text_encoder/flax_model.msgpack",
    }


def test_load_executes_no_pickle(online, hub, tmp_path_factory):
    assert_one_sentence(online["owner/pickle"], "ValueError", r"pytorch_model\.bin")
    assert not list(tmp_path_factory.getbasetemp().glob("models*/executed"))


def test_download_reports_a_failing_hub(online):
    assert_one_sentence(online["owner/failing"], "ConnectionError", "^owner/failing .*500")


@pytest.mark.parametrize("name", ["owner/absent", "runs/defualt"])
def test_load_of_an_unknown_name_says_that_it_is_neither_folder_nor_model(online, name):
    pattern = f"^{name} is neither a local folder nor a model on the hub"
    assert_one_sentence(online[name], "FileNotFoundError", pattern)


@pytest.mark.parametrize("name", ["./runs/defualt", "x/y/z"])
def test_load_of_a_mistyped_path_does_not_ask_the_hub(online, hub, name):
    pattern = f"^{re.escape(name)} must be an existing folder or a hub id"
    assert_one_sentence(online[name], "FileNotFoundError", pattern)
    assert not any("defualt" in repo for repo in hub.requests if repo != "runs/defualt")
    assert "x/y/z" not in hub.requests


def test_load_of_an_unknown_revision_names_it(online):
    assert_one_sentence(online["owner/tiny", "v2"], "FileNotFoundError", "no revision 'v2'")


@pytest.mark.parametrize("name", ["owner/tiny", "owner/sharded"])
def test_load_works_from_the_cache_when_the_hub_is_down(unreachable, online, name):
    assert unreachable[name] == online[name]


@pytest.mark.parametrize("name", ["owner/absent", "owner/reset"])
def test_load_of_what_is_not_in_the_cache_needs_the_hub(unreachable, name):
    assert_one_sentence(unreachable[name], "ConnectionError", f"^{name} .*check the path")


def test_load_works_from_the_cache_when_offline(offline, online):
    found, requests = offline
    assert found["owner/tiny"] == found["owner/tiny", "v1"] == online["owner/tiny"]
    assert requests == 0


def test_load_when_offline_says_so(offline):
    found, _ = offline
    assert_one_sentence(found["owner/absent"], "ConnectionError", "HF_HUB_OFFLINE is set")
    assert_one_sentence(found["./runs/defualt"], "FileNotFoundError", "existing folder")
