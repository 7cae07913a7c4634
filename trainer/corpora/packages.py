"""The toy sources of general text: files that a Python installation already has on its disk.

A source yields documents, grouped by origin (a file, a molecule). All documents of an origin are in the same split. The
origins come in the order of a hash of their names, so that a cap on the size takes an even sample.
"""

import ast
import importlib.metadata
import os
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Generic, TypeVar

from trainer.corpora.extras import install
from trainer.data.errors import DataError
from trainer.data.hashing import text_key

MIN_DOCSTRING = 400  # characters; shorter ones are mostly a single sentence
MAX_DOCUMENT = 16_000  # characters
NOT_CODE = {  # directories and files of the standard library
    *("site-packages", "dist-packages", "lib-dynload", "__pycache__"),  # not the standard library
    *("test", "tests", "idle_test", "__phello__"),  # tests
    *("encodings", "pydoc_data"),  # tables and rendered help
    *("sitecustomize.py", "usercustomize.py", "_distutils_system_mod.py"),  # a distribution's own
}
NOT_PROSE = {"tests", "testing", "_testing", "conftest.py"}
MADE_AT_BUILD = re.compile(r"_sysconfigdata|^config-\d")  # have paths of the machine that built the interpreter


@dataclass(frozen=True)
class Document:
    origin: str
    text: str


D = TypeVar("D")  # the documents of a source: `Document`, or one with images or signals
Files = list[tuple[str, Path]]  # (name that is the same on every machine, path on this one)


@dataclass(frozen=True)
class Source(Generic[D]):
    name: str
    packages: tuple[str, ...]  # distributions that must be installed
    licence: str
    files: Callable[[], Files]  # the files that `read` reads, in a fixed order; their content enters the corpus' hash
    read: Callable[[], Iterator[D]]


def installed_version(package: str) -> str:
    """Version of a distribution. Raises DataError with the command that installs it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        remedy = install(package)
        raise DataError(
            f"this source is made from the package '{package}', which is not installed: {remedy}",
            where=package,
            allowed=remedy,
        ) from None


def package_files(package: str, suffix: str) -> Files:
    """(name, path) of the installed files of a distribution with this suffix; nothing is imported."""
    installed_version(package)
    files = importlib.metadata.files(package)
    found = [(f.as_posix(), Path(str(f.locate()))) for f in files or [] if f.suffix == suffix]
    if not found:
        raise DataError(
            f"package '{package}' lists no {suffix} files: reinstall it",
            where=package,
            value=suffix,
            allowed="reinstall it",
        )
    return found


def _hash_order(files: Files) -> Files:
    return sorted(files, key=lambda item: (text_key(item[0]), item[0]))


def _read_source_file(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):  # another encoding, or a listed file that a packager removed
        return None


def split_text(text: str) -> Iterator[str]:
    """A long text in parts of at most MAX_DOCUMENT characters, cut between top-level definitions or paragraphs."""
    while len(text) > MAX_DOCUMENT:
        for boundary in ("\n\n\n", "\n\n", "\n"):
            end = text.rfind(boundary, MAX_DOCUMENT // 2, MAX_DOCUMENT)
            if end > 0:
                break
        else:
            end = MAX_DOCUMENT - 1
        yield text[: end + 1]
        text = text[end + 1 :].lstrip("\n")
    yield text


def code_files() -> Files:
    """Modules of the running interpreter's standard library; tests and tables left out."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = []
    for folder, inside, names in os.walk(root):
        # Not entered at all: site-packages can hold a hundred times as many files.
        inside[:] = [name for name in inside if name not in NOT_CODE and not MADE_AT_BUILD.search(name)]
        for name in names:
            if name.endswith(".py") and name not in NOT_CODE and not MADE_AT_BUILD.search(name):
                path = Path(folder, name)
                modules.append((path.relative_to(root).as_posix(), path))
    if not modules:
        remedy = "use an interpreter with its standard library"
        raise DataError(f"{root} has no Python files; {remedy}", where=str(root), allowed=remedy)
    return _hash_order(modules)


def read_code() -> Iterator[Document]:
    """The standard library's modules, long ones in parts."""
    for name, path in code_files():
        text = _read_source_file(path)
        if text and text.strip():
            for part in split_text(text.strip() + "\n"):
                yield Document(name, part)


def docstrings(source: str) -> list[str]:
    """Dedented docstrings of MIN_DOCSTRING characters or more in Python source, numpy's `add_newdoc` included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # stray backslashes in other people's strings
        tree = ast.parse(source)
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "add_newdoc":
            strings = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))
            found.extend(textwrap.dedent(string).strip() for string in strings)
    return [text + "\n" for text in found if len(text) >= MIN_DOCSTRING]


def _docstring_files(packages: Sequence[str]) -> Files:
    """Python files of packages, without their tests."""
    files = [item for package in packages for item in package_files(package, ".py")]
    return _hash_order([(name, path) for name, path in files if NOT_PROSE.isdisjoint(PurePath(name).parts)])


def _read_docstrings(packages: Sequence[str]) -> Iterator[Document]:
    """Long docstrings of installed packages, parsed from their source files without importing them."""
    for name, path in _docstring_files(packages):
        for text in docstrings(_read_source_file(path) or ""):
            for part in split_text(text):
                yield Document(name, part)


def _docstring_source(name: str, packages: tuple[str, ...], licence: str) -> Source[Document]:
    return Source(name, packages, licence, partial(_docstring_files, packages), partial(_read_docstrings, packages))


SOURCES = (
    Source("code", (), "CPython standard library (PSF-2.0)", code_files, read_code),
    _docstring_source(
        "prose",
        ("numpy", "scipy", "pandas", "fluids", "chemicals"),
        "numpy, scipy, pandas (BSD-3-Clause), fluids, chemicals (MIT)",
    ),
    _docstring_source("mathematics", ("mpmath",), "mpmath (BSD-3-Clause)"),  # functions, series, worked examples
)
