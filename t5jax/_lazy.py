"""Packages whose names are imported when they are first used."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazy_loader


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the `__getattr__`, `__dir__` and `__all__` of a package from its stub.

    `__init__.pyi` imports every name that other packages use; its `__all__` lists the public ones,
    which `dir` shows.  Type checkers read the same file.

    Args:
      package: `__name__` of the package.
      file: `__file__` of the package.
    Returns:
      The three attributes.
    """
    load, _, _ = lazy_loader.attach_stub(package, file)
    public: list[str] = []
    for node in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            public = ast.literal_eval(node.value)
    return load, lambda: list(public), public
