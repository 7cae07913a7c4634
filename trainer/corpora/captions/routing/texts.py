"""Texts about a subject: the documentation that the wheels of a package carry.

A wheel is read as the zip archive that it is: nothing in it is installed, imported or executed. Docstrings are found in
the syntax trees of its modules, and the description in its metadata. What only programmers write (names of arguments,
types, examples of calls, markup) is taken out, and so are the package's own names, so that a model learns words of the
subject.
"""

from __future__ import annotations

import ast
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.data.errors import DataError
from trainer.data.hashing import text_key

WORDS = 120  # of one text; longer documentation is several texts
FEWEST = 8  # words
LARGEST = 4 << 20  # bytes of a file in a wheel; larger ones are tables
SKIPPED = {
    *("tests", "test", "testing"),
    *("_vendor", "vendor", "_vendored", "vendored", "extern", "externals", "third_party"),  # other packages
}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

WORD = re.compile(r"[^\W\d_]{2,}")
UNDERLINE = re.compile(r"^\s*([-=~^*#\"'.])\1{2,}\s*$")
# a line that is code or markup: a call's example, a directive, a table's rule, an argument with its type
NOT_PROSE = re.compile(
    r"^\s*(?:>>>|\.\.\.|\.\. |[|+]|\$ |In \[|Out\[|@|:\w[^:]*:|"
    r"\w[\w, *.]* ?: ?\S+(?: or \S+| of \S+|, \S+)*$)"
)
SECTION = re.compile(
    r"^\s*(?:(?:other )?parameters|arguments|args|kwargs|keyword args|keyword arguments|returns?|yields?|raises|"
    r"attributes|methods|examples?|see also|notes?|references?|usage|warns|warnings)\s*:?\s*$",
    re.IGNORECASE,
)
MARKUP = (
    (re.compile(r":[a-z:]+:`~?([^`<]*)(?:<[^`]*>)?`"), r"\1"),  # roles
    (re.compile(r"<[^<>\n]{1,200}>"), " "),  # HTML, and addresses of links
    (re.compile(r"\b(?:https?|ftp)://\S+|\bdoi:\S+|\S+@\S+\.\w+"), " "),
    (re.compile(r"\\[A-Za-z]+"), " "),  # TeX
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # links of Markdown
    (re.compile(r"[`*$|{}\\]+"), " "),
)  # fmt: skip
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])|\n\s*\n")


@dataclass(frozen=True)
class Text:
    """A text as a crop has it: its first sentence in place of the caption, the rest in place of the text around it."""

    caption: str
    context: str


def package_texts(wheel: Path) -> list[Text]:
    """The different texts of a wheel in the order of a hash of each, so that the first ones are of all its files.

    Raises DataError for a file that is not a wheel; OSError.
    """
    found = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = _own_names(archive, wheel)
            for documentation in _documentation(archive):
                for text in split(documentation, names):
                    found[text_key(text.caption, text.context)] = text
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # not zip, another compression, encrypted
        remedy = "name a wheel (.whl)"
        raise DataError(f"{wheel} cannot be read ({error}); {remedy}", where=str(wheel), allowed=remedy) from error
    return [found[key] for key in sorted(found)]


def _documentation(archive: zipfile.ZipFile) -> Iterator[str]:
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename)
        if entry.file_size > LARGEST or not SKIPPED.isdisjoint(path.parts) or path.name.startswith("test_"):
            continue
        if path.suffix == ".py":
            yield from docstrings(archive.read(entry).decode("utf-8", "replace"))
        elif path.name == "METADATA" and path.parent.suffix == ".dist-info":
            yield archive.read(entry).decode("utf-8", "replace").partition("\n\n")[2]


def _own_names(archive: zipfile.ZipFile, wheel: Path) -> frozenset[str]:
    """Words of the distribution's and its top folders' names, in lower case."""
    tops = {PurePosixPath(name).parts[0] for name in archive.namelist() if name}
    names = [wheel.name.partition("-")[0], *(top for top in tops if not top.endswith((".dist-info", ".data")))]
    return frozenset(word.lower() for name in names for word in WORD.findall(name.removesuffix(".py")))


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module, without running it; nothing for a text that is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # stray backslashes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (found := ast.get_docstring(node)):
            yield found


def prose(documentation: str) -> str:
    """The sentences of a docstring or a description, without code, names of arguments and markup."""
    lines, code = [], -1  # code: the indent of the line that announced a block of code, -1 outside one
    for line in documentation.expandtabs().splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= code:
            code = -1
        if code >= 0 or UNDERLINE.match(line) or SECTION.match(line) or NOT_PROSE.match(line):
            lines.append("" if not line.strip() else "\0")
            continue
        if line.rstrip().endswith("::"):
            code = indent
        lines.append(line.strip())
    text = "\n".join(line for line in lines if line != "\0")
    for pattern, instead in MARKUP:
        text = pattern.sub(instead, text)
    return text


def split(documentation: str, names: frozenset[str] = frozenset()) -> Iterator[Text]:
    """Texts of FEWEST to about WORDS words. names: words that are left out, in lower case."""
    sentences: list[str] = []
    words = 0
    for sentence in SENTENCE.split(prose(documentation)):
        kept = WORD.sub(lambda word: "" if word[0].lower() in names else word[0], sentence)
        count = len(WORD.findall(kept))
        if not count:
            continue
        if sentences and words + count > WORDS:
            yield from _text(sentences, words)
            sentences, words = [], 0
        sentences.append(" ".join(kept.split()))
        words += count
    yield from _text(sentences, words)


def _text(sentences: list[str], words: int) -> Iterator[Text]:
    if words >= FEWEST:
        yield Text(sentences[0], " ".join(sentences[1:]))
