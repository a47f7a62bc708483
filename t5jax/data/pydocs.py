"""Default corpus: the documentation of Python packages that are always installed with t5jax.

It holds the language topics of `pydoc` and the docstrings of the standard library, numpy, jax and
pandas: about 8 MB of technical English. Source files are parsed, never imported, so reading them
runs no code and starts no JAX backend. Other installed packages can be read in the same way.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

PACKAGES = ("numpy", "jax", "pandas")
DOCUMENT_CHARS = 2000  # about 500 tokens, the length of T5's own training examples
MIN_WORDS = 5
# Tests, vendored packages, generated tables, and site-packages inside the standard library.
_SKIPPED_FOLDERS = {
    "_vendor",
    "dist-packages",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "internal_test_util",
    "lib2to3",
    "site-packages",
    "test",
    "testing",
    "tests",
    "turtledemo",
}
_TOPICS = "python/pydoc_data/topics.py"
_READER = 1  # part of the fingerprint; bump it when a change in this file changes the documents
Source = tuple[str, Path]


class Documented(NamedTuple):
    """Definition with its docstring.

    Attributes:
      kind: kind of the definition.
      name: name after `class` or `def`; "" for a module.
      text: docstring, without indentation.
    """

    kind: Literal["module", "class", "function"]
    name: str
    text: str


def installed() -> list[str]:
    """List the top-level packages and modules of all installed distributions, sorted by name."""
    return sorted(filter(str.isidentifier, importlib.metadata.packages_distributions()))


def roots(packages: Sequence[str] | None = None) -> dict[str, Path]:
    """Locate packages and the standard library.

    Args:
      packages: top-level names; defaults to those of the default corpus.
    Returns:
      The folder of each package by name, "python" for the standard library. Packages that are not
      installed, or are not folders, are skipped.
    """
    folders = {"python": Path(sysconfig.get_path("stdlib"))}
    for package in PACKAGES if packages is None else packages:
        spec = importlib.util.find_spec(package)  # a top-level name: imports nothing
        if spec is not None and spec.submodule_search_locations:
            folders[package] = Path(spec.submodule_search_locations[0])
    return folders


def sources(roots: dict[str, Path]) -> list[Source]:
    """List the modules to read, in a pseudo-random order that is the same on every machine.

    Modules are sorted by the SHA-256 of their names, so any stretch of the corpus samples all
    packages. The documents of a module are contiguous: holding out the end separates whole modules,
    which share less text than two halves of one page.

    Args:
      roots: folder of each package by name, from `roots()`.
    Returns:
      (name, path) pairs, with names of the form "package/path/inside.py".
    """
    modules = []
    for package, root in roots.items():
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
            for file in files:
                is_test = file.startswith("test_") or file.endswith("_test.py")
                if file.endswith(".py") and not is_test:
                    path = Path(folder, file)
                    modules.append((f"{package}/{path.relative_to(root).as_posix()}", path))
    return sorted(modules, key=lambda source: hashlib.sha256(source[0].encode()).digest())


def fingerprint(sources: Iterable[Source]) -> str:
    """Compute a cache key from the names and sizes of the sources, without reading them.

    Args:
      sources: (name, path) pairs, from `sources()`.
    Returns:
      16 hexadecimal digits, which change if a module is added, removed or edited to another size.
    """
    digest = hashlib.sha256(f"reader {_READER}".encode())
    for name, path in sources:
        digest.update(f"\n{name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def documents(sources: Iterable[Source]) -> Iterator[str]:
    """Iterate over documents: consecutive docstrings of a module, about `DOCUMENT_CHARS` together.

    Docstrings of fewer than `MIN_WORDS` words are dropped, and so are duplicates up to whitespace:
    numpy, jax and pandas repeat many, which would leak training text into a held-out set.

    Args:
      sources: (name, path) pairs, from `sources()`.
    Yields:
      Documents in the order of the sources, with an empty line between docstrings.
    """
    seen = set()
    for name, path in sources:
        run, run_chars = [], 0
        for text in _topics(path) if name == _TOPICS else docstrings(path):
            words = text.split()
            normal = " ".join(words)
            if len(words) < MIN_WORDS or normal in seen:
                continue
            seen.add(normal)
            run.append(text)
            run_chars += len(text)
            if run_chars >= DOCUMENT_CHARS:
                yield "\n\n".join(run)
                run, run_chars = [], 0
        if run:
            yield "\n\n".join(run)


def docstrings(path: Path) -> Iterator[str]:
    """Iterate over the docstrings of a source file in order.

    Args:
      path: Python file; a file that this Python cannot parse has no docstrings.
    Yields:
      Docstrings of the module and of all classes and functions in it, without indentation.
    """
    return (definition.text for definition in documented(path))


def documented(path: Path) -> Iterator[Documented]:
    """Iterate over the definitions of a source file that have docstrings, in order.

    Args:
      path: Python file; a file that this Python cannot parse has no definitions.
    Yields:
      The module, and all classes and functions in it, including nested ones.
    """
    unvisited: list[ast.AST] = [_parse(path)]
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                text = text.encode(errors="ignore").decode()  # a lone surrogate cannot be stored
                yield Documented(_kind(node), getattr(node, "name", ""), text)
        # Only statements contain definitions; most of a tree is expressions.
        below = (ast.stmt, ast.excepthandler, ast.match_case)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, below)]
        unvisited.extend(reversed(children))


def _kind(node: ast.AST) -> Literal["module", "class", "function"]:
    if isinstance(node, ast.Module):
        return "module"
    return "class" if isinstance(node, ast.ClassDef) else "function"


def _topics(path: Path) -> Iterator[str]:
    """Read the texts of `pydoc_data.topics`, a module that is one dictionary literal."""
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in the files
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # ValueError: null bytes, in older Pythons
            return ast.Module(body=[], type_ignores=[])
