"""Questions as a run opens them: what is held out is not trained on, and every character has a token."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from tests.trainer.rl.toy import toy_config
from trainer.config.mixture import QuestionSourceConfig
from trainer.corpora.questions.toy import open_toy_questions
from trainer.data.errors import DataError
from trainer.data.questions.stream import open_questions


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return open_toy_questions(toy_config(tmp_path_factory.mktemp("toy") / "run").data, lambda _: None)


def opened(tmp_path, toy, *, tokenizer=None, **files):
    """Open sources by name, each with the rows of its file and, behind a `/`, of its held-out file."""
    sources = {}
    for name, rows in files.items():
        parts = rows if isinstance(rows, tuple) else (rows,)
        for part, some in zip(("path", "heldout"), parts, strict=False):
            lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in some]
            (tmp_path / f"{name}.{part}").write_text("\n".join(lines))
        heldout = f"{name}.heldout" if len(parts) > 1 else ""
        sources[name] = QuestionSourceConfig(path=f"{name}.path", heldout=heldout)
    data = toy_config(tmp_path / "run").data
    data.root, data.questions, data.tokenizer = str(tmp_path), sources, str(tokenizer or toy.tokenizer)
    return open_questions(data, seed=0, weights=None, kept=None)[0].questions


def some(first, count):
    return [(f"{number}=", str(number)) for number in range(first, first + count)]


def test_the_first_of_several_answers_is_the_label(tmp_path, toy):
    (tmp_path / "run").mkdir()
    found = opened(tmp_path, toy, a=([("1=", ["12", "21"])], some(5, 1)))
    (one,) = found.train
    assert found.tokenizer.decode([*one.answer]) == "12"
    assert one.record.answer == ["12", "21"]


@pytest.mark.parametrize("source", ["a", "b"])
def test_a_question_that_is_held_out_is_trained_on_from_no_source(tmp_path, toy, source):
    files = {"a": (some(0, 9), some(20, 3)), "b": (some(40, 9), some(60, 3))}
    files[source] = ([*files[source][0], ("21=", "another")], files[source][1])
    files[source][0][-1] = ("21=", "12")
    with pytest.raises(DataError) as caught:
        opened(tmp_path, toy, **files)
    assert caught.value.where == f"{tmp_path}/{source}.path:10"
    assert caught.value.value == f"{tmp_path}/a.heldout:2"


def test_the_trained_file_is_not_held_out(tmp_path, toy):
    (tmp_path / "again").symlink_to(tmp_path / "a.path")
    (tmp_path / "a.path").write_text(json.dumps({"prompt": "1=", "answer": "1"}))
    for other in ("a.path", "./a.path", "again"):
        data = toy_config(tmp_path / "run").data
        data.root, data.tokenizer = str(tmp_path), toy.tokenizer
        data.questions = {"a": QuestionSourceConfig(path="a.path", heldout=other)}
        with pytest.raises(DataError) as caught:
            open_questions(data, seed=0, weights=None, kept=None)
        assert caught.value.where == "data.questions.a.heldout"


def without_unknown(tmp_path, kind):
    """Save a tokenizer that leaves unknown characters out (BPE) or raises for them (words). Returns its file."""
    vocabulary = {token: number for number, token in enumerate(["<|endofdocument|>", *"0123456789="])}
    made = models.BPE(vocabulary, []) if kind == "BPE" else models.WordLevel(vocabulary)
    found = tokenizers.Tokenizer(made)
    found.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    found.add_special_tokens(["<|endofdocument|>"])
    found.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("kind", ["unknown", "BPE", "words"])
@pytest.mark.parametrize("row", [("1ü=", "1"), ("1=", "ü"), ("1=", "ü?")])
def test_characters_that_the_tokenizer_does_not_know_are_refused(tmp_path, toy, kind, row):
    tokenizer = None if kind == "unknown" else without_unknown(tmp_path, kind)
    assert len(opened(tmp_path, toy, tokenizer=tokenizer, a=(some(0, 3), some(20, 3))).train) == 3
    with pytest.raises(DataError) as caught:
        opened(tmp_path, toy, tokenizer=tokenizer, a=([*some(0, 2), row], some(20, 3)))
    assert caught.value.where == f"{tmp_path}/a.path:3"
    if kind != "words":
        assert "ü" in caught.value.value
