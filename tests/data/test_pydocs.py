import ast
import importlib.util
import inspect
import random
import subprocess
import sys

import pytest

from t5jax.data import pydocs
from t5jax.data.pydocs import DOCUMENT_CHARS, PACKAGES, documented, fingerprint, installed

MODULE = '''\
# -*- coding: latin-1 -*-
"""Module documentation, with an accent: \xe9.

    Indented further.
"""

class Outer:
    """Outer class

    Attributes:
        one: first
    """

    class Inner:
        "Inner class on a single line."

    @property
    def value(self):
        r"""A raw \\d docstring
        that continues."""

    async def wait(self):
        """Asynchronous method."""

    def without(self):
        "not", "a docstring"

if True:
    def branch():
        """Defined in a branch."""
else:
    def branch():
        """Never defined, but written."""

try:
    def attempt():
        """Defined in a try block."""
except ImportError:
    def rescue():
        """Defined in a handler."""

match text := 0:
    case 0:
        def case():
            """Defined in a case."""

text = """Not a docstring, because it is assigned to a name."""

def last():
    f"""Not a docstring, because {text} is filled in."""
'''


@pytest.fixture
def package(tmp_path):
    """Write source files of a package; returns the sources in it."""

    def package(files):
        for name, text in files.items():
            path = tmp_path / "package" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return pydocs.sources({"package": tmp_path / "package"})

    return package


def module_of(docstrings):
    """A module with a function for each docstring."""
    functions = (f"def f{i}():\n    {text!r}\n" for i, text in enumerate(docstrings))
    return "\n".join(functions)


def test_docstrings_are_those_that_inspect_finds(tmp_path):
    path = tmp_path / "module.py"
    path.write_bytes(MODULE.encode("latin-1"))
    spec = importlib.util.spec_from_file_location("module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outer = module.Outer
    before = [module, outer, outer.Inner, outer.value, outer.wait, module.branch]
    assert list(pydocs.docstrings(path)) == [
        *map(inspect.getdoc, before),
        "Never defined, but written.",
        inspect.getdoc(module.attempt),
        "Defined in a handler.",
        inspect.getdoc(module.case),
    ]


def test_documented_tells_kinds_and_names(tmp_path):
    path = tmp_path / "module.py"
    path.write_bytes(MODULE.encode("latin-1"))
    names = [(kind, name) for kind, name, _ in documented(path)]
    assert names == [
        ("module", ""),
        ("class", "Outer"),
        ("class", "Inner"),
        *(("function", name) for name in ("value", "wait", "branch", "branch")),
        *(("function", name) for name in ("attempt", "rescue", "case")),
    ]


def test_docstrings_runs_no_code(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""Documentation of a module that exits."""\nraise SystemExit\n')
    assert list(pydocs.docstrings(path)) == ["Documentation of a module that exits."]


@pytest.mark.parametrize("source", [b"def broken(:", b"'''text\x00'''", b"'''\xff'''", b""])
def test_docstrings_of_a_file_that_is_no_python_are_none(tmp_path, source):
    path = tmp_path / "module.py"
    path.write_bytes(source)
    assert list(pydocs.docstrings(path)) == []


@pytest.mark.filterwarnings("error")
def test_docstrings_gives_no_warnings_about_other_peoples_code(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""An invalid \\d escape."""\nassert (1, "always true")\n')
    assert list(pydocs.docstrings(path)) == ["An invalid \\d escape."]


def test_docstrings_can_be_encoded(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""A lone \\ud800 surrogate."""')
    assert list(pydocs.docstrings(path)) == ["A lone  surrogate."]


def test_documents_drops_short_and_repeated_docstrings(package):
    sources = package(
        {
            "a.py": module_of(["One two three four five.", "One two three four."]),
            "b.py": module_of(["One  two three\n\nfour five.", "This one is a new one."]),
            "c.py": module_of(["One two three four five."]),
        }
    )
    words = " ".join(" ".join(pydocs.documents(sources)).split())
    first, second = "One two three four five.", "This one is a new one."
    assert words in (f"{first} {second}", f"{second} {first}")


def test_documents_are_runs_of_one_module_in_order(package):
    rng = random.Random(0)
    modules = {
        f"m{i}.py": [f"{i} {j} " + "word " * rng.randint(5, 300) for j in range(20)]
        for i in range(3)
    }
    sources = package({name: module_of(docstrings) for name, docstrings in modules.items()})
    read = {}
    for document in pydocs.documents(sources):
        read.setdefault(f"m{document[0]}.py", []).append(document)
    assert list(read) == [path.name for _, path in sources]
    for name, documents in read.items():
        expected = [inspect.cleandoc(text) for text in modules[name]]
        assert "\n\n".join(documents) == "\n\n".join(expected)
        for document in documents[:-1]:
            lengths = [len(text) for text in document.split("\n\n")]
            assert sum(lengths[:-1]) < DOCUMENT_CHARS <= sum(lengths)


def test_sources_leaves_out_tests_and_copies_of_other_packages(package):
    sources = package(
        dict.fromkeys(
            [
                "a.py",
                "b/c.py",
                "b/latest.py",
                "data.txt",
                "d.pyi",
                "test_a.py",
                "a_test.py",
                "tests/e.py",
                "b/test/f.py",
                "site-packages/other/g.py",
                "_vendor/h.py",
            ],
            "",
        )
    )
    assert sorted(name for name, _ in sources) == [
        "package/a.py",
        "package/b/c.py",
        "package/b/latest.py",
    ]


def test_sources_come_in_the_same_order_on_every_machine(tmp_path):
    names = [f"{folder}/m{i}.py" for folder in ("x", "y/z") for i in range(20)]
    orders = []
    for machine in ("one", "two"):
        roots = {package: tmp_path / machine / package for package in ("p", "q")}
        for package, name in [(package, name) for package in roots for name in names]:
            path = roots[package] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        orders.append([name for name, _ in pydocs.sources(roots)])
        names.reverse()
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(f"{package}/{name}" for package in "pq" for name in names)
    for part in (orders[0][:20], orders[0][-20:]):  # 20 of 80: each package has 10 by chance
        assert 4 <= sum(name.startswith("p/") for name in part) <= 16


def test_fingerprint_changes_with_the_modules_and_not_with_their_place(tmp_path, package):
    before = fingerprint(package({"a.py": "", "b.py": ""}))
    assert fingerprint(package({})) == before
    (tmp_path / "package").rename(tmp_path / "moved")
    moved = pydocs.sources({"package": tmp_path / "moved"})
    assert fingerprint(moved) == before
    seen = {before}
    for name, text in (("a.py", "1"), ("c.py", ""), ("c.py", "1")):
        (tmp_path / "moved" / name).write_text(text)
        seen.add(fingerprint(pydocs.sources({"package": tmp_path / "moved"})))
    (tmp_path / "moved" / "c.py").rename(tmp_path / "moved" / "d.py")
    seen.add(fingerprint(pydocs.sources({"package": tmp_path / "moved"})))
    (tmp_path / "moved" / "b.py").unlink()
    seen.add(fingerprint(pydocs.sources({"package": tmp_path / "moved"})))
    assert len(seen) == 6


def test_roots_are_where_python_finds_the_packages():
    roots = pydocs.roots()
    assert list(roots) == ["python", *PACKAGES]
    assert roots["python"].samefile(importlib.util.find_spec("inspect").origin.rpartition("/")[0])
    for package in PACKAGES:
        assert (roots[package] / "__init__.py").samefile(importlib.util.find_spec(package).origin)


def test_roots_leaves_out_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(pydocs, "PACKAGES", ("numpy", "no_such_package"))
    assert list(pydocs.roots()) == ["python", "numpy"]


def test_roots_of_other_packages_are_those_asked_for():
    assert list(pydocs.roots(["numpy", "no_such_package", "six"])) == ["python", "numpy"]
    assert list(pydocs.roots([])) == ["python"]


def test_installed_are_what_pip_installed():
    packages = installed()
    assert {"numpy", "jax", "pandas", "pytest", "_pytest"} <= set(packages)
    assert not {"inspect", "os", "numpy.linalg", "dist-packages"} & set(packages)
    assert packages == sorted(set(packages))


def test_documents_hold_the_topics_of_pydoc():
    from pydoc_data.topics import topics

    sources = [source for source in pydocs.sources(pydocs.roots()) if "pydoc_data" in source[0]]
    words = " ".join(" ".join(pydocs.documents(sources)).split())
    assert "Assert statements are a convenient way to insert debugging assertions" in words
    for text in topics.values():
        if text.count(" ") > 100:
            assert " ".join(text.split()) in words


def test_documents_hold_the_docstrings_of_real_modules():
    import fractions

    import numpy.linalg

    wanted = {"python/fractions.py", "numpy/linalg/_linalg.py"}
    sources = [source for source in pydocs.sources(pydocs.roots()) if source[0] in wanted]
    assert len(sources) == 2
    text = "\n\n".join(pydocs.documents(sources))
    for item in (fractions.Fraction, fractions.Fraction.limit_denominator, numpy.linalg.svd):
        assert inspect.getdoc(item) in text


def test_sources_are_enough_to_learn_from():
    sources = pydocs.sources(pydocs.roots())
    assert len(sources) > 1000
    docstrings = [text for _, path in sources[::50] for text in pydocs.docstrings(path)]
    parsed = [ast.parse(path.read_bytes()) for _, path in sources[::50]]
    definitions = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for tree in parsed for node in ast.walk(tree) if isinstance(node, definitions)]
    assert sorted(docstrings) == sorted(filter(None, map(ast.get_docstring, nodes)))
    assert sum(map(len, docstrings)) > 50_000  # one fiftieth of at least 2.5 MB


def test_documents_imports_none_of_the_packages():
    code = f"""
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("pydocs", {pydocs.__file__!r})
pydocs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pydocs)
assert len(list(itertools.islice(pydocs.documents(pydocs.sources(pydocs.roots())), 20))) == 20
assert not {{"jax", "numpy", "pandas", "pydoc_data"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
