import numpy as np
import pytest

from tests.trainer.corpora.tokenize.tokenized import PREFIXES, documents, make, texts, tokenizer
from trainer.data.errors import DataError
from trainer.data.shards.prefixes import Prefixes, shared_starts


def test_groups_with_different_starts_are_fine():
    assert Prefixes(PREFIXES, tokenizer()).faults() == []


@pytest.mark.parametrize(
    ("groups", "longer", "shorter"),
    [
        ({"a": [[1, 2]], "b": [[1, 2, 3]]}, "data.prefixes.b[0]", "data.prefixes.a[0]"),
        ({"a": [[1, 2, 3]], "b": [[5], [1]]}, "data.prefixes.a[0]", "data.prefixes.b[1]"),
        ({"a": [[4], [4, 5]]}, "data.prefixes.a[1]", "data.prefixes.a[0]"),
        ({"a": [[4, 5]], "b": [[4, 5]]}, "data.prefixes.b[0]", "data.prefixes.a[0]"),
    ],
)
def test_a_prefix_that_starts_with_another_is_reported(groups, longer, shorter):
    (fault,) = shared_starts(groups)
    assert fault.where == longer
    assert shorter in fault.allowed
    assert fault.text.index(longer) < fault.text.index(shorter)


def test_texts_may_differ_where_their_tokens_do_not(tmp_path):
    """'\\u2028' and the like aside: a tokenizer that drops what two texts differ in makes them one."""

    class Lossy:
        eos_id = 0

        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text.lower().strip()]

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    assert len(Prefixes({"a": ["Science"], "b": ["science "]}, Lossy()).faults()) == 1
    (empty,) = Prefixes({"a": [" "]}, Lossy()).faults()
    assert (empty.where, empty.value) == ("data.prefixes.a[0]", " ")


def test_tokenizing_refuses_prefixes_that_clash(tmp_path):
    clashing = {"science": ["A text about science.\n"], "general": ["A text"]}
    with pytest.raises(DataError) as error:
        make(tmp_path, documents(texts(5)), prefixes=clashing)
    assert error.value.where == "data.prefixes.science[0]"


def test_choices_are_a_function_of_seed_source_and_document_and_even():
    prefixes = Prefixes(PREFIXES, tokenizer())
    numbers = np.arange(30_000)
    chosen = prefixes.choose("science", "notes", numbers, 1)
    np.testing.assert_array_equal(chosen[17:19], prefixes.choose("science", "notes", numbers[17:19], 1))
    assert np.abs(np.bincount(chosen) - 10_000).max() < 4 * (30_000 * 2 / 9) ** 0.5
    for other in (prefixes.choose("science", "notes", numbers, 2), prefixes.choose("science", "books", numbers, 1)):
        assert abs((other == chosen).mean() - 1 / 3) < 0.02
