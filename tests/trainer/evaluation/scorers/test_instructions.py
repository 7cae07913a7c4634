"""IFBench's constraints: the same verdicts as OpenCompass 0.5.4's code, for every constraint and answer.

Where a constraint asks nltk's data, or packages for emojis and syllables, both sides get the stand-ins below: the rules
around them are compared.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.evaluation.scorers.peer import INSTALLED, stand_ins
from tests.trainer.evaluation.scorers.rows_instructions import ANSWERS, CONSTRAINTS
from tests.trainer.weights.peers.environments import require
from trainer.evaluation.scorers.instructions import follow, text

STORED = Path(__file__).parent / "published_instructions.json"


def emoji() -> types.ModuleType:
    module = types.ModuleType("emoji")
    module.is_emoji = lambda character: character == "😀"  # type: ignore[attr-defined]
    return module


def syllapy() -> types.ModuleType:
    module = types.ModuleType("syllapy")
    module.count = lambda word: len(re.findall("[aeiouy]+", word)) or 1  # type: ignore[attr-defined]
    return module


def nltk() -> dict[str, types.ModuleType]:
    """nltk with a tokenizer, a tagger and a list of stop words that need no data."""
    package, corpus, tokenize = (types.ModuleType(name) for name in ("nltk", "nltk.corpus", "nltk.tokenize"))

    class RegexpTokenizer:
        def __init__(self, pattern: str) -> None:
            self.tokenize = re.compile(pattern).findall

    class Words:
        def words(self, language: str) -> list[str]:
            return ["the", "is", "it", "of", "and", "on"]

    members = {
        "word_tokenize": lambda one: re.findall(r"\w+|[^\w\s]", one),
        "pos_tag": lambda tokens: [(one, "VB" if one in ("Write", "say") else "NN") for one in tokens],
        "ngrams": lambda sequence, n: [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)],
        "tokenize": tokenize,
        "corpus": corpus,
    }
    package.__dict__.update(members)
    tokenize.__dict__["RegexpTokenizer"] = RegexpTokenizer
    corpus.__dict__["stopwords"] = Words()
    return {"nltk": package, "nltk.corpus": corpus, "nltk.tokenize": tokenize}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, module in {"emoji": emoji(), "syllapy": syllapy(), **nltk()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return


def ours() -> dict[str, list[str]]:
    """For each constraint `s` (strict), `l` (loose only) or `-` of each answer."""
    found = {}
    for place, (name, given) in enumerate(CONSTRAINTS):
        scores = [follow.score(answer, [name], [given]) for answer in ANSWERS]
        found[f"{place} {name}"] = ["s" if one["strict"][0] else "l" if one["loose"][0] else "-" for one in scores]
        assert all(one["loose"][0] or not one["strict"][0] for one in scores)
    return found


@pytest.mark.usefixtures("packages")
def test_verdicts_are_those_of_opencompass() -> None:
    assert {name for name, _ in CONSTRAINTS} == set(follow.CHECKS)
    assert len(follow.CHECKS) == 58
    stored = json.loads(STORED.read_text())
    assert {name: "".join(verdicts) for name, verdicts in ours().items()} == stored
    for name, verdicts in stored.items():
        assert "-" in verdicts, name
        assert "s" in verdicts, name


def theirs(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    import importlib

    require("opencompass")
    folder = types.ModuleType("opencompass.datasets.IFBench")
    folder.__path__ = [str(INSTALLED / "opencompass/datasets/IFBench")]
    for name, module in {**stand_ins(), folder.__name__: folder}.items():
        monkeypatch.setitem(sys.modules, name, module)
    library = importlib.import_module("opencompass.datasets.IFBench.evaluation_lib")
    found = {}
    for place, (name, given) in enumerate(CONSTRAINTS):
        verdicts = ""
        for answer in ANSWERS:
            asked = library.InputExample(key=0, instruction_id_list=[name], prompt="", kwargs=[dict(given)])
            strict, loose = (
                getattr(library, f"test_instruction_following_{kind}")(asked, answer).follow_all_instructions
                for kind in ("strict", "loose")
            )
            verdicts += "s" if strict else "l" if loose else "-"
        found[f"{place} {name}"] = verdicts
    for name in [name for name in sys.modules if name.startswith("opencompass.datasets.IFBench.")]:
        monkeypatch.delitem(sys.modules, name)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_opencompass_gives_the_stored_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert theirs(monkeypatch) == json.loads(STORED.read_text())


def test_sentences_end_at_marks_but_not_in_names_and_numbers() -> None:
    told = 'Dr. Who left at 3.14 p.m. on site.org... He said "no." Then? Yes!'
    assert text.sentences(told) == ["Dr. Who left at 3.14 p.m. on site.org...", 'He said "no".', "Then?", "Yes!"]
    assert text.sentences("") == []


def test_an_unknown_constraint_is_an_error() -> None:
    with pytest.raises(KeyError):
        follow.follows("a", "format:rhyme", {})


def test_a_constraint_without_its_argument_is_a_fault_of_the_row() -> None:
    """It was a wrong answer, whatever the model said."""
    with pytest.raises(follow.ArgumentError):
        follow.score("1 ... 2 ... 3", ["format:list"], [{"sep": None}])
