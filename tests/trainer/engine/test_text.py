import random

import pytest

from trainer.engine.text import TextStream


def decode(ids):
    """Tokens are bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def stream(text, stop=()):
    """(what was shown token by token, what at the end, the stream)"""
    made, shown = TextStream(decode, stop), []
    for token in text.encode():
        shown.append(made.push(token))
        if made.stopped:
            break
    return shown, made.finish(), made


def test_characters_are_shown_when_they_are_complete():
    shown, rest, made = stream("aé漢b")
    assert shown == ["a", "", "é", "", "", "漢", "b"]
    assert (rest, made.text, made.stopped) == ("", "aé漢b", False)


def test_an_incomplete_character_is_shown_at_the_end():
    made = TextStream(decode)
    assert [made.push(token) for token in "漢".encode()[:2]] == ["", ""]
    assert made.finish() == "\ufffd"
    assert made.text == "\ufffd"


def test_a_stop_text_is_not_shown_not_even_its_start():
    shown, rest, made = stream("one END two", ("END", "EMPTY"))
    assert "".join(shown) == made.text == "one "
    assert (made.stopped, rest) == (True, "")
    assert shown[-1] == ""


def test_what_only_looked_like_a_stop_text_is_shown():
    shown, rest, made = stream("an EN is not it, E", ("END",))
    assert "".join(shown) == "an EN is not it, "
    assert rest == "E"
    assert made.text == "an EN is not it, E"


def test_the_first_of_several_stop_texts_ends_the_answer():
    assert stream("abcd", ("cd", "bc"))[2].text == "a"


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_ends_where_a_stop_text_is_first_complete(seed):
    rng = random.Random(seed)
    for _ in range(100):
        text = "".join(rng.choice("aabé") for _ in range(30))
        stop = tuple("".join(rng.choice("abé") for _ in range(rng.randint(1, 4))) for _ in range(2))
        shown, rest, made = stream(text, stop)
        read = next((text[:end] for end in range(31) if any(one in text[:end] for one in stop)), None)
        wanted = text if read is None else read[: min(read.find(one) for one in stop if one in read)]
        assert made.text == "".join(shown) + rest == wanted
        assert made.stopped == (read is not None)
