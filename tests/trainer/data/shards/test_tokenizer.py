"""Loading a tokenizer.json of others: what its last user left in it, ids with gaps, and what is refused."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from trainer.data.errors import DataError
from trainer.data.shards.tokenizer import Tokenizer, read_tokenizer

WORDS = "iron boils at high heat and melts"


def plain(**changes: object) -> tokenizers.Tokenizer:
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    found = tokenizers.Tokenizer(models.BPE({**alphabet, "<end>": 256}, [], **changes))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.add_special_tokens(["<end>"])
    return found


@pytest.mark.parametrize("left", ["truncation", "padding", "padding to a length", "both"])
def test_what_the_last_call_left_in_the_file_is_not_applied(tmp_path: Path, left: str):
    saved, expected = plain(), plain().encode(WORDS).ids
    if left in ("truncation", "both"):
        saved.enable_truncation(max_length=5, stride=1)
    if left in ("padding", "padding to a length", "both"):
        saved.enable_padding(pad_id=7, length=64 if left == "padding to a length" else None)
    saved.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path, "<end>")
    assert loaded.encode(WORDS) == expected
    assert loaded.encode_all(["at", WORDS]) == [plain().encode("at").ids, expected]
    assert read_tokenizer(tmp_path / "tokenizer.json").encode(WORDS).ids == expected


def test_merges_dropped_at_random_are_refused(tmp_path: Path):
    plain(dropout=0.25).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError) as caught:
        Tokenizer.load(tmp_path, "<end>")
    assert (caught.value.where, caught.value.value) == (str(tmp_path / "tokenizer.json"), 0.25)


@pytest.mark.parametrize(("name", "at"), [("vocabulary", "z"), ("end", "<end>")])
def test_the_vocabulary_reaches_to_the_largest_id(tmp_path: Path, name: str, at: str):
    found = plain()
    assert Tokenizer(found, "<end>").vocab_size == 257
    text = found.to_str()
    number = found.token_to_id(at)
    text = text.replace(f'"{at}":{number}', f'"{at}":9000').replace(
        f'"id":{number},"content":"{at}"', f'"id":9000,"content":"{at}"'
    )
    (tmp_path / "tokenizer.json").write_text(text)
    loaded = Tokenizer.load(tmp_path, "<end>")
    assert loaded.vocab_size == 9001
    assert max([*loaded.encode("z"), loaded.eos_id]) == 9000


def test_what_a_model_drew_beside_its_answer_is_in_the_text():
    """A policy learned to draw an unknown token in the place of the end, whose text had been the same."""
    found = plain()
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<|unknown|>"])
    text = Tokenizer(found, "<end>")
    answer, end, unknown = found.encode("704", add_special_tokens=False).ids, text.eos_id, text.id_of("<|unknown|>")
    assert text.answer_text([*answer, end]) == text.answer_text(answer) == "704"
    assert text.answer_text([]) == text.answer_text([end]) == ""
    for hidden in ([unknown], [unknown, end], [end, end], [text.vocab_size], [text.vocab_size, end]):
        assert text.answer_text([*answer, *hidden]) not in ("", "704")
    assert text.answer_text([answer[0], end, *answer[1:], end]) == "7<end>04"
