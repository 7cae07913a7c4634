"""Renames, locks and syncs are in trainer/storage alone, which imports nothing else of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
STORAGE = CHECKOUT / "trainer" / "storage"
KEPT = {"rename", "renames", "flock", "lockf", "fsync", "fdatasync"}  # as methods or functions
OURS = ("trainer", "parallel", "launch")


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every use in a module. `x.replace(y)` with one argument is a path's, not a string's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "fcntl"):
            yield from ((node.lineno, name.name) for name in node.names if name.name in KEPT | {"replace"})
        if isinstance(node, ast.Attribute):
            module = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in KEPT or (module, node.attr) in (("os", "replace"), ("shutil", "move")):
                yield node.lineno, node.attr
        match node:
            case ast.Call(func=ast.Attribute(attr="replace"), args=[_], keywords=[]):
                yield node.lineno, "replace"


def test_no_other_package_renames_locks_or_syncs() -> None:
    found = []
    for package in OURS:
        for file in sorted((CHECKOUT / package).rglob("*.py")):
            if STORAGE not in file.parents:
                tree = ast.parse(file.read_text())
                found += [f"{file.relative_to(CHECKOUT)}:{line}: {name}" for line, name in uses(tree)]
    assert not found


def test_the_search_finds_what_it_looks_for() -> None:
    text = "os.replace(a, b)\npath.replace(b)\na.rename(b)\nfcntl.flock(f, 2)\nos.fsync(f)\nfrom os import fsync\n"
    text += "text.replace('a', 'b')\nreplace(config, steps=1)\ndataclasses.replace(config, steps=1)\n"
    assert sorted({line for line, _ in uses(ast.parse(text))}) == [1, 2, 3, 4, 5, 6]


def test_storage_imports_nothing_else_of_ours() -> None:
    for file in STORAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            ours = [name for name in names if name.split(".")[0] in OURS]
            assert all(name.startswith("trainer.storage.") for name in ours), (file, ours)


def test_storage_starts_without_torch() -> None:
    modules = ", ".join(f"trainer.storage.{file.stem}" for file in STORAGE.glob("[a-z]*.py"))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print('torch' in sys.modules)"],
        capture_output=True, text=True, cwd=CHECKOUT, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"
