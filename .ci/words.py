"""Checks the English of code and documents against the words that docs/words.md bans.

    python .ci/words.py   print file:line and the words to use for every banned word, and exit with 1 if there is one

In Python files it reads docstrings, comments, strings and the names that are defined; in Markdown, YAML, shell and make
files every line.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = {".ci/words.py", "docs/words.md", "tests/test_words.py", "LICENSE"}  # these have to spell the banned words
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ""}


@dataclass(frozen=True)
class Ban:
    pattern: re.Pattern[str]
    instead: str


def _ban(pattern: str, instead: str) -> Ban:
    return Ban(re.compile(pattern, re.IGNORECASE), instead)


BANS = [
    _ban(r"\b(tell|tells|told|telling)\b", "report, print, log, return; distinguish (for 'tell apart')"),
    _ban(r"\b(begin|begins|begun|began|beginning)\b", "start, started; open"),
    # "there is no X" is plain English; "X is no Y" is not
    _ban(
        r"(?<!there )\b(is|are|was|were)\s+no\b(?!\s+(longer|more|less|fewer|better|worse))",
        "is not a, has no, does not",
    ),
    _ban(r"\bof\s+which\b", "whose, that, or two sentences"),
    _ban(r"\bnobody('s)?\b", "no process, no caller, unused"),
    _ban(
        r"\bwhoever\b|\b(for|by|to) who\b|(?<!people )(?<!users )(?<!readers )(?<!anyone )(?<!somebody )(?<!someone )"
        r"(?<!those )\bwho (calls|pads|reads|writes|holds|has|needs|wants|sends|makes|gets|is)\b",
        "the caller, the module that, the rank that",
    ),
    _ban(
        r"\b(stands|stood)\b(?! for\b| in for\b)|\b(files?|it|they|that|which|directory|directories|rows|bytes|names?"
        r"|numbers?|values?) stand\b",
        "is, are",
    ),
    _ban(r"\b(lie|lies)\b", "is, are"),
    _ban(r"\b(go|goes|going|went|gone) on\b", "continue, resume, happen"),
    _ban(r"\bnot known to be\b", "may not be"),
    _ban(r"\bin (the|each other's|its|their|one another's) way\b(?! that\b)", "block, conflict with, interfere with"),
    _ban(r"\bfor ever\b", "forever"),
]
OPENERS = re.compile(r"^(What|Which|Of|Whether|Where|How|Who|Why)\b")
OPENER_INSTEAD = "open a docstring with a verb or a noun phrase: 'Return True if', 'The ranks that'"
NAME_INSTEAD = "the same words as prose, start_x / finish_x for pairs, and no two names that differ by a tense"
NAMES = re.compile(r"(^|_)(begin|begins|begun|began|told|tell|tells|nobody|whoever|lies|goes_on|go_on|for_ever)(_|$)")


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found!r}: use {self.instead}"


def check_text(path: str, text: str) -> Iterator[Finding]:
    """Findings of a text that starts at line 1 of the file `path`."""
    return _check(path, text, lambda offset: 1 + text.count("\n", 0, offset))


def _check(path: str, text: str, line_of: Callable[[int], int]) -> Iterator[Finding]:
    for ban in BANS:
        for match in ban.pattern.finditer(text):
            if not (match.group().isupper() and len(match.group()) > 1):  # BEGIN in SQL, certificates and the like
                yield Finding(path, line_of(match.start()), " ".join(match.group().split()), ban.instead)


def check_python(path: str, source: str) -> Iterator[Finding]:
    """Findings in comments, strings, docstrings' first words and defined names."""
    prose = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    block, lines = "", []  # comments or strings that follow each other, as sentences run over their ends
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in prose:
            text = token.string.removeprefix("#") + "\n"
            block += text
            lines += [token.start[0] + text.count("\n", 0, i) for i in range(len(text))]
        elif block and token.type not in (tokenize.NL, tokenize.NEWLINE):
            yield from _check(path, block, lines.__getitem__)
            block, lines = "", []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        opener = OPENERS.match(ast.get_docstring(node) or "")
        if opener:
            yield Finding(path, node.body[0].lineno, f'"""{opener.group()}', OPENER_INSTEAD)
        if not isinstance(node, ast.Module) and NAMES.search(node.name):
            yield Finding(path, node.lineno, node.name, NAME_INSTEAD)
    for kind in (ast.ClassDef, ast.FunctionDef | ast.AsyncFunctionDef):  # apart: `save` may return a `Saved`
        defined = {node.name.strip("_"): node for node in ast.walk(tree) if isinstance(node, kind)}
        for name, node in defined.items():
            for twin in {f"{name}ed", f"{name}d", f"{name}{name[-1:]}ed"} & defined.keys():
                yield Finding(path, node.lineno, f"{node.name}/{defined[twin].name}", NAME_INSTEAD)


def check_file(path: str) -> list[Finding]:
    text = (ROOT / path).read_text()
    found = check_python(path, text) if path.endswith(".py") else check_text(path, text)
    return sorted(set(found), key=lambda finding: finding.line)


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        path
        for path in listed.split("\0")
        if path
        and path not in OWN
        and Path(path).suffix in SUFFIXES
        and (ROOT / path).is_file()
        and not path.endswith("py.typed")
    ]


def main() -> int:
    found = [finding for path in tracked_files() for finding in check_file(path)]
    for finding in found:
        print(finding)
    if found:
        print(f"error: {len(found)} banned words; docs/words.md has the words to use", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
