"""Public names: what `__all__` of every package lists, and what each owes its reader."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5jax

PACKAGES = [
    "t5jax",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(t5jax.__path__, "t5jax.")
        if module.ispkg and module.name != "t5jax.cli"
    ),
]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(t5jax.__path__, "t5jax.")
    if not module.ispkg and not module.name.startswith("t5jax.cli")
)
_NO_VERB = re.compile(r"(What|Which|How|Whether|Where|When|Of|As)\b")


def public_names() -> list[tuple[str, str]]:
    """Package and name of each public class and function, under its first package."""
    names = {}
    for package in PACKAGES[1:]:
        for name in importlib.import_module(package).__all__:
            value = getattr(importlib.import_module(package), name)
            if callable(value) and typing.get_origin(value) is None:
                names.setdefault(id(value), (package, name))
    top = [("t5jax", "Text2Text"), ("t5jax", "load"), ("t5jax", "export_hf")]
    return sorted([*names.values(), *top])


def own_methods(cls: type) -> Iterator[tuple[str, typing.Any]]:
    """Public methods that a class defines itself."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        own = inspect.isfunction(function) and function.__module__ == cls.__module__
        if own and not name.startswith("_"):
            yield name, function


def function_faults(function: typing.Any, *, example: bool) -> Iterator[str]:
    doc = inspect.getdoc(function) or ""
    function = inspect.unwrap(function)
    parameters = [
        name for name in inspect.signature(function).parameters if name not in ("self", "cls")
    ]
    if not doc:
        yield "no docstring"
        return
    if _NO_VERB.match(doc):
        yield f"first line starts with {doc.split()[0]}"
    if parameters and "\nArgs:" not in doc:
        yield "no Args"
    for name in parameters:
        if "\nArgs:" in doc and not re.search(rf"^  \*{{0,2}}{name}[,:]", doc, re.MULTILINE):
            yield f"Args lack {name}"
    source = textwrap.dedent(inspect.getsource(function))
    returned = ast.parse(source).body[0].returns
    nothing = isinstance(returned, ast.Constant) and returned.value is None
    described = nothing or re.search(r"\n(Returns|Yields):", doc)
    if not described and (parameters or example):
        yield "no Returns"
    if re.search(r"^\s+raise \w", source, re.MULTILINE) and "\nRaises:" not in doc:
        yield "no Raises"
    if example and "\nExamples:\n  >>>" not in doc:
        yield "no example"


def class_faults(cls: type) -> Iterator[str]:
    doc = cls.__dict__.get("__doc__") or ""
    doc = inspect.cleandoc(doc)
    if not doc or doc.startswith(f"{cls.__name__}("):
        yield "no docstring"
        return
    if _NO_VERB.match(doc):
        yield f"first line starts with {doc.split()[0]}"
    protocol = getattr(cls, "_is_protocol", False)
    if "\nExamples:\n  >>>" not in doc and not issubclass(cls, Exception):
        yield "no example"
    fields = []
    if dataclasses.is_dataclass(cls) or hasattr(cls, "_fields") or typing.is_typeddict(cls):
        fields = [name for name in inspect.get_annotations(cls) if name[0] != "_"]
    for name in fields:
        if not re.search(rf"^  {name}[,:]", doc, re.MULTILINE):
            yield f"Attributes lack {name}"
    init = cls.__dict__.get("__init__")
    if not (dataclasses.is_dataclass(cls) or protocol) and inspect.isfunction(init):
        names = [name for name in inspect.signature(init).parameters if name != "self"]
        for name in names:
            described = f"{doc}\n{inspect.getdoc(init) or ''}"
            if not re.search(rf"^  {name}[,:]", described, re.MULTILINE):
                yield f"neither class nor __init__ describes {name}"
    for name, method in own_methods(cls):
        for fault in function_faults(method, example=False):
            yield f"{name}: {fault}"


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_shows_the_public_names_and_each_can_be_imported(package):
    module = importlib.import_module(package)
    assert sorted(dir(module)) == sorted(set(module.__all__))
    for name in module.__all__:
        getattr(module, name)


def test_reference_lists_the_public_names():
    pages = Path(__file__).parents[1].glob("docs/reference/*.md")
    listed = re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in pages), re.MULTILINE)
    public = {
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
        if not inspect.ismodule(getattr(importlib.import_module(package), name))
    }
    assert sorted(listed) == sorted(public - {"t5jax.__version__"})


@pytest.mark.parametrize(("package", "name"), public_names())
def test_public_name_is_documented(package, name):
    value = getattr(importlib.import_module(package), name)
    check = class_faults(value) if inspect.isclass(value) else function_faults(value, example=True)
    assert not list(check)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, t5, tiny_config, tiny_params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = {"t5jax": t5jax, "jax": jax, "jnp": jnp, "np": np}
    names |= {"t5": t5, "config": tiny_config, "params": tiny_params}
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options)
    for test in doctest.DocTestFinder().find(importlib.import_module(module), extraglobs=names):
        runner.run(test)
    assert not runner.failures
