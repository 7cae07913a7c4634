"""The word lint: what it reports, what it lets pass, and at which line."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "words.py"


@pytest.fixture(scope="module")
def words():
    spec = importlib.util.spec_from_file_location("words", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["words"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["words"]


@pytest.mark.parametrize(
    "text",
    [
        "The user is told.",
        "a run begins",
        "x is no multiple of y",
        "files of which two are lost",
        "it goes on",
        "asked by nobody",
        "for who calls it",
        "the file that stands there",
        "it lies in runs/",
        "not known to be free",
        "in the way of another",
        "It lasts for ever",
        "is\nno multiple",
    ],
)
def test_banned_words_are_found(words, text):
    assert len(list(words.check_text("a.md", text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "there is no file",
        "it is no longer there",
        "T stands for tokens",
        "people who read",
        "BEGIN; COMMIT;",
        "the standard library",
        "continues",
        "started",
    ],
)
def test_plain_words_pass(words, text):
    assert not list(words.check_text("a.md", text))


def test_python_is_read_by_its_parts(words):
    source = '''"""Which files."""
x = told  # a name that is used, not defined here

# a comment that
# tells something
def begin_gather():
    """Return None."""
    return f"{x} goes on"


def gather(): ...
class Gathered:
    def _gathered(self): ...
class _Gather: ...
class Saved: ...
def save() -> Saved: ...
'''
    found = sorted((finding.line, finding.found) for finding in words.check_python("a.py", source))
    assert found == [
        (1, '"""Which'),
        (5, "tells"),
        (6, "begin_gather"),
        (8, "goes on"),
        (11, "gather/_gathered"),
        (14, "_Gather/Gathered"),
    ]
