"""Another tokenizer: rows of embedding and LM head go where their token is, and what is new has a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram

from parallel.errors import UserError
from tests.trainer.weights.directories import Checkpoint
from tests.trainer.weights.upcycle.sources import checkpoint_of, expanded, opened
from trainer.weights.hf_read import from_huggingface
from trainer.weights.upcycle import rows
from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.placement import Expansion
from trainer.weights.upcycle.vocabulary import tokens_of, vocabulary_of

# As from Intern-S1 to Intern-S1-Pro: text tokens keep their ids, behind them special ones go elsewhere, new ones come.
TEXT = [f"t{i}" for i in range(30)]
OLD_SPECIAL = ["<eos>", "<img>", "</img>", "<IMG_CONTEXT>", "<gone>", "<SMILES>"]
NEW_SPECIAL = ["<eos>", "<|ts|>", "<SMILES>", "<TS_CONTEXT>", "<img>", "</img>", "<IMG_CONTEXT>"]
TOKENIZER_JSON = "a tokenizer.json in the format of Hugging Face's tokenizers library"
LISTED = "AttributeError(\"'list' object has no attribute 'items'\")"
ROWS, ASKED = 40, {"factor": 2, "groups": 4}


def slow(directory: Path, special: list[str], listed: str = "added_tokens.json") -> Path:
    """vocab.json, and added tokens in a file of their own or in tokenizer_config.json."""
    directory.mkdir(exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TEXT)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    added = {token: len(TEXT) + i for i, token in enumerate(special)}
    if listed == "added_tokens.json":
        (directory / listed).write_text(json.dumps(added))
    else:
        decoder = {str(i): {"content": token, "special": True} for token, i in added.items()}
        (directory / listed).write_text(json.dumps({"added_tokens_decoder": decoder}))
    return directory


def fast(directory: Path, special: list[str]) -> Path:
    """tokenizer.json, by the tokenizers library."""
    directory.mkdir(exist_ok=True)
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(TEXT)}, []))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text("new")
    return directory


def source_with(directory: Path, **config: Any) -> Checkpoint:
    made = checkpoint_of(directory, vocab_size=ROWS, num_layers=1)
    made.config["text_config"].update(config)
    return made


@pytest.mark.parametrize("listed", ["added_tokens.json", "tokenizer_config.json"])
def test_every_kind_of_tokenizer_gives_its_tokens(tmp_path, listed):
    expected = {token: i for i, token in enumerate([*TEXT, *OLD_SPECIAL])}
    assert tokens_of(slow(tmp_path / "slow", OLD_SPECIAL, listed)) == expected
    assert tokens_of(fast(tmp_path / "fast", OLD_SPECIAL)) == expected
    Tokenizer(Unigram([(token, -1.0) for token in TEXT])).save(str(tmp_path / "fast" / "tokenizer.json"))
    assert tokens_of(tmp_path / "fast") == {token: i for i, token in enumerate(TEXT)}


def with_ids(directory: Path, ids: dict[str, int]) -> Path:
    """The ids of added tokens as a file may have them, in tokenizer.json and in tokenizer_config.json."""
    file = json.loads((directory / "tokenizer.json").read_text())
    for token in file["added_tokens"]:
        token["id"] = ids[token["content"]]
    (directory / "tokenizer.json").write_text(json.dumps(file))
    decoder = {str(number): {"content": token, "special": True} for token, number in ids.items()}
    config = {"added_tokens_decoder": decoder, "eos_token": ["<eos>"], "bos_token": 3}  # neither is read here
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    "ids",
    [
        {token: 130 + number for number, token in enumerate(NEW_SPECIAL)},  # a gap before all
        {token: 30 + number + 100 * (number > 3) for number, token in enumerate(NEW_SPECIAL)},  # one between them
        {token: 30 + number for number, token in enumerate(NEW_SPECIAL)},
    ],
)
def test_added_tokens_have_the_ids_that_the_library_gives_them(tmp_path, ids):
    """Whatever the file says: a corpus of this tokenizer has these ids, and so has transformers."""
    path = source_with(tmp_path / "source").write()
    slow(path, OLD_SPECIAL)
    target = with_ids(fast(tmp_path / "tokenizer", NEW_SPECIAL), ids)
    library = Tokenizer.from_file(str(target / "tokenizer.json"))
    given = {token: library.token_to_id(token) for token in [*TEXT, *NEW_SPECIAL]}
    assert tokens_of(target) == given
    found = vocabulary_of(opened(path), Expansion(**ASKED, vocabulary=str(target)))
    assert found is not None
    old = tokens_of(path)
    assert {token: found.rows[row] for token, row in given.items() if token in old} == {
        token: old[token] for token in given if token in old
    }
    assert len(found.rows) == max(given.values()) + 1


def test_ids_of_the_vocabulary_itself_may_have_gaps(tmp_path):
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    ids = {token: number + 70 * (number >= 20) for number, token in enumerate(TEXT)}
    tokenizer = Tokenizer(BPE(ids, []))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    assert tokens_of(directory) == {**ids, "<eos>": tokenizer.token_to_id("<eos>")}


@pytest.mark.parametrize("block", [100, 1 << 20])
def test_rows_move_with_their_tokens(tmp_path, monkeypatch, block):
    monkeypatch.setattr(rows, "BLOCK_BYTES", block)  # 100: less than a row, so one at a time
    path = source_with(tmp_path / "source", eos_token_id=30).write()
    slow(path, OLD_SPECIAL)
    target = fast(tmp_path / "tokenizer", NEW_SPECIAL)
    made, _ = expanded(path, tmp_path / "out", **ASKED, vocabulary=str(target), vocab_size=45)
    assert made.model.vocab_size == 45
    before, after = from_huggingface(path), from_huggingface(tmp_path / "out")
    old = {token: i for i, token in enumerate([*TEXT, *OLD_SPECIAL])}
    for table in ("embed", "lm_head"):
        a, b = getattr(before, table), getattr(after, table)
        assert b.shape == (45, 32)
        mean, rms = a[:36].mean(0), a[:36].square().mean().sqrt()  # rows 36 to 39 have no token
        fresh = []
        for i, token in enumerate([*TEXT, *NEW_SPECIAL, *["(none)"] * 8]):
            if token in old:
                assert torch.equal(b[i], a[old[token]]), token
            else:
                fresh.append(b[i] - mean)
        z = torch.stack(fresh) / (1e-2 * rms)
        assert z.shape == (10, 32)
        assert z.square().mean().sqrt().item() == pytest.approx(1, abs=0.2)
        assert len(z.unique(dim=0)) == 10
    assert made.facts["vocabulary"] == {
        "rows": 45, "rows_new": 10, "tokens": 37, "tokens_at_their_id": 31, "tokens_moved": 4, "tokens_new": 2,
        "tokens_left_out": 1,
    }  # fmt: skip


def test_without_noise_new_rows_are_the_mean(tmp_path):
    path = source_with(tmp_path / "source").write()
    made, _ = expanded(path, tmp_path / "out", factor=1, groups=1, noise=0.0, vocab_size=43)
    before, after = from_huggingface(path), from_huggingface(tmp_path / "out")
    assert torch.equal(after.embed[:ROWS], before.embed)
    torch.testing.assert_close(after.lm_head[ROWS:], before.lm_head.mean(0).expand(3, -1))
    assert made.facts["vocabulary"]["rows_new"] == 3
    # The logits of the tokens that were there are what they were, those of new ones their mean.
    ids = torch.arange(20).view(1, -1)
    with torch.no_grad():
        old, new = (model.logits(model(ids).hidden) for model in (before, after))
    assert torch.equal(new[..., :ROWS], old)
    torch.testing.assert_close(new[..., ROWS:], old.mean(-1, keepdim=True).expand(-1, -1, 3))


def test_ids_and_files_that_name_tokens_go_along(tmp_path):
    made = source_with(tmp_path / "source", eos_token_id=[30, 34], bos_token_id=5, pad_token_id=None)
    made.config["image_token_id"], made.config["lost_token_id"] = 33, 34
    path = made.write()
    slow(path, OLD_SPECIAL)
    (path / "chat_template.jinja").write_text("old")
    (path / "preprocessor_config.json").write_text("{}")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [30, 34]}))
    target = fast(tmp_path / "tokenizer", NEW_SPECIAL)
    result, _ = expanded(path, tmp_path / "out", **ASKED, vocabulary=str(target))
    text = result.config["text_config"]
    assert (text["eos_token_id"], text["bos_token_id"], text["pad_token_id"]) == ([30], 5, None)
    assert (result.config["image_token_id"], result.config["lost_token_id"]) == (36, None)
    assert text["vocab_size"] == 37
    template, dropped, lost = result.facts["warnings"]
    assert all(datum in template for datum in ("chat_template.jinja", str(target), str(path)))
    assert all(datum in dropped for datum in ("generation_config.json", str(target)))
    assert all(datum in lost for datum in ("config.json", "lost_token_id=34", str(target)))
    here = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json"} < here
    assert not here & {"vocab.json", "merges.txt", "added_tokens.json", "generation_config.json"}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "new"
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 30, "temperature": 1.0}))
    (path / "tokenizer_SMILES.model").write_bytes(b"")
    again, _ = expanded(path, tmp_path / "again", **ASKED, vocabulary=str(target))
    assert (tmp_path / "again" / "generation_config.json").is_file()
    assert not (tmp_path / "again" / "tokenizer_SMILES.model").exists()
    _, pieces, lost = again.facts["warnings"]
    assert all(datum in pieces for datum in ("tokenizer_SMILES.model", " 4 rows"))
    assert "lost_token_id=34" in lost


@pytest.mark.parametrize(
    ("asked", "where", "value", "allowed"),
    [
        ({"vocab_size": 39}, "--vocab-size", 39, "40 or more, or --vocabulary"),
        ({"vocabulary": "tokenizer", "vocab_size": 36}, "--vocab-size", 36, "37 or more"),
        ({"vocabulary": "nowhere"}, "nowhere", None, ("tokenizer.json", "vocab.json")),
        ({"vocabulary": "broken"}, "broken/tokenizer.json", None, "a JSON object"),
        ({"vocabulary": "odd"}, "odd/tokenizer.json", None, TOKENIZER_JSON),
        ({"vocabulary": "none"}, "none", None, "a tokenizer with tokens and whole numbers as ids"),
        ({"vocabulary": "listed"}, "listed", LISTED, "the directory of a tokenizer"),
    ],
)
def test_vocabularies_that_do_not_suit_are_refused_in_one_line(tmp_path, monkeypatch, asked, where, value, allowed):
    path = source_with(tmp_path / "source").write()
    slow(path, OLD_SPECIAL)
    monkeypatch.chdir(tmp_path)
    fast(Path("tokenizer"), NEW_SPECIAL)
    empty = Tokenizer(BPE()).to_str()
    for name, text in (("broken", "{"), ("odd", "{}"), ("none", empty), ("listed", empty)):
        Path(name).mkdir()
        (Path(name) / "tokenizer.json").write_text(text)
    Path("listed/tokenizer_config.json").write_text('{"added_tokens_decoder": ["<eos>"]}')
    with pytest.raises(UserError) as refused:
        vocabulary_of(opened(path), Expansion(**ASKED, **asked))
    error = refused.value
    assert (error.where, error.value, error.allowed) == (where, value, allowed)
    assert len(error.lines) == 1


def test_a_source_whose_tokenizer_has_more_ids_than_rows_is_refused(tmp_path):
    path = checkpoint_of(tmp_path / "source", vocab_size=32, num_layers=1).write()
    slow(path, OLD_SPECIAL)
    asked = Expansion(**ASKED, vocabulary=str(fast(tmp_path / "tokenizer", NEW_SPECIAL)))
    with pytest.raises(UpcycleError) as refused:
        vocabulary_of(opened(path), asked)
    assert (refused.value.where, refused.value.value, refused.value.allowed) == (str(path), 35, "ids below 32")
