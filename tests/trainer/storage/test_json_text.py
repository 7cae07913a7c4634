"""JSON from outside: what Python's parser takes and JSON does not have."""

import json
import math

import pytest

from trainer.storage.json_text import is_finite, read_json, whole_characters


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5e300, "", "ä€😀", [1, [2]], {"a": {"b": [None]}}, 2**70, "\u2028", "\\ud83d"]
)
def test_json_is_read_as_python_reads_it(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        for form in (text, text.encode(), b"\xef\xbb\xbf" + text.encode()):
            assert read_json(form, unique=True) == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[-1e400]", "", "{", "01", "'a'", b"\xff", b'"\xed\xa0\xbd"',
     r'"\ud83d"', r'{"\udc00": 1}', r'["\ude00\ud83d"]', "[" * 200_000],
)  # fmt: skip
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_a_key_given_twice_is_refused_where_that_is_asked() -> None:
    text = '{"a": 1, "b": {"c": 1, "c": 1}}'
    assert read_json(text) == {"a": 1, "b": {"c": 1}}
    with pytest.raises(ValueError, match="c"):
        read_json(text, unique=True)


def test_half_a_character_can_be_replaced() -> None:
    found = read_json(r'{"\ud83d": ["a\ud83d\ude00b\ude00", 1.5], "c": "\ud83d\ud83d\ude00"}', halves="replace")
    assert found == {"\ufffd": ["a😀b\ufffd", 1.5], "c": "\ufffd😀"}
    json.dumps(found, ensure_ascii=False).encode()
    assert whole_characters("a\ud83d") == "a\ufffd"


def test_what_is_not_a_number_can_be_kept() -> None:
    found = read_json('{"a": [1.5, NaN], "b": {"c": 1e999}, "d": 7}', not_numbers=True)
    assert math.isnan(found["a"][1])
    assert [is_finite(found[name]) for name in "abd"] == [False, False, True]
    assert is_finite([{"a": "nan"}, None, True])


def test_numbers_stay_what_they_are() -> None:
    assert math.copysign(1, read_json("-0.0")) == -1
    assert (read_json("1.0"), type(read_json("1"))) == (1.0, int)
