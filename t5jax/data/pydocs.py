"""Default corpus: the documentation of Python packages that are always installed with t5jax.

The language topics of `pydoc` and the docstrings of the standard library, numpy, jax and pandas:
about 8 MB of technical English.  Source files are parsed, never imported, so that reading them
runs no code and starts no JAX backend.  Other installed packages can be read in the same way.
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
# Tests, copies of other packages, generated tables; site-packages holds everything else installed.
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
_READER = 1  # part of the fingerprint: raise it when a change in this file changes the documents
Source = tuple[str, Path]


class Documented(NamedTuple):
    """A definition with its docstring.

    Attributes:
      name: The name after `class` or `def`; "" for a module.
      text: The docstring, without indentation.
    """

    kind: Literal["module", "class", "function"]
    name: str
    text: str


def installed() -> list[str]:
    """List the installed packages in alphabetical order, without the standard library.

    These are the top-level folders and modules of all distributions.
    """
    return sorted(filter(str.isidentifier, importlib.metadata.packages_distributions()))


def roots(packages: Sequence[str] | None = None) -> dict[str, Path]:
    """Locate packages and the standard library.

    Args:
      packages: top-level names; those of the default corpus if None.
    Returns:
      The folder of each package by name, "python" for the standard library; a package that is not
      installed, or not a folder, is left out.
    """
    folders = {"python": Path(sysconfig.get_path("stdlib"))}
    for package in PACKAGES if packages is None else packages:
        spec = importlib.util.find_spec(package)  # a name without a parent: imports nothing
        if spec is not None and spec.submodule_search_locations:
            folders[package] = Path(spec.submodule_search_locations[0])
    return folders


def sources(roots: dict[str, Path]) -> list[Source]:
    """List the modules to read, in an arbitrary order that is the same on every machine.

    They are ordered by the SHA-256 of their names.  Any stretch of the corpus is then a sample of
    all packages, and the documents of one module stay together: cutting off the end separates
    modules, which share less text than two halves of one page.

    Args:
      roots: the folder of each package by name, as `roots()` returns it.
    Returns:
      (name, path) pairs, the name being "package/path/inside.py".
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
    """Compute a key of the corpus of these sources from names and sizes, without reading files.

    Args:
      sources: (name, path) pairs, as `sources()` returns them.
    Returns:
      16 hexadecimal digits, which change if a module is added, removed or edited to another size.
    """
    digest = hashlib.sha256(f"reader {_READER}".encode())
    for name, path in sources:
        digest.update(f"\n{name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def documents(sources: Iterable[Source]) -> Iterator[str]:
    """Read documents: runs of consecutive docstrings of one module, about `DOCUMENT_CHARS` long.

    A docstring of fewer than `MIN_WORDS` words is dropped, and so is one seen before, whatever its
    spacing: numpy, jax and pandas repeat many, and a repetition would leak training text into a
    held-out set.

    Args:
      sources: (name, path) pairs, as `sources()` returns them.
    Yields:
      documents in the order of the sources, an empty line between two docstrings.
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
    """Read the docstrings of a source file in their order.

    Args:
      path: a Python file; one that this Python cannot parse has no docstrings.
    Yields:
      docstrings of the module and of all classes and functions in it, without indentation.
    """
    return (definition.text for definition in documented(path))


def documented(path: Path) -> Iterator[Documented]:
    """Read the definitions of a source file that have docstrings, in their order.

    Args:
      path: a Python file; one that this Python cannot parse defines nothing.
    Yields:
      the module, and all classes and functions in it, wherever they are defined.
    """
    unvisited: list[ast.AST] = [_parse(path)]
    while unvisited:
        node = unvisited.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                text = text.encode(errors="ignore").decode()  # a lone surrogate cannot be stored
                yield Documented(_kind(node), getattr(node, "name", ""), text)
        # Definitions are only below statements, and most of a tree is expressions.
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
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # ValueError: null bytes, in older Pythons
            return ast.Module(body=[], type_ignores=[])
