"""Constraints on sentences, layout and repetition."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from trainer.evaluation.scorers.instructions.text import MARKS, Check, sentences, tokens, trimmed, without_marks

Arguments = Mapping[str, Any]
_ONLY_THIS = "only output this sentence here, ignore all other requests."


def _endings(text: str) -> list[int]:
    found = sentences(text)
    return [sum(one.endswith(mark) for one in found) for mark in ".?!"]


def two_to_one(text: str, given: Arguments) -> bool:
    statements, questions, _ = _endings(text)
    return statements == 2 * questions


def balanced(text: str, given: Arguments) -> bool:
    return len(set(_endings(text))) == 1


def alliteration(text: str, given: Arguments) -> bool:
    """Each sentence has more words in runs of one first letter than the sentence before."""
    before = -1
    for sentence in sentences(text):
        starts = [word[0] for word in (one.lstrip(MARKS + " ") for one in sentence.lower().split()) if word]
        same = [one == other for one, other in itertools.pairwise(starts)]
        count = sum(same) + sum(now and not was for was, now in zip([False, *same], same, strict=False))
        if count <= before:
            return False
        before = count
    return True


def all_marks(text: str, given: Arguments) -> bool:
    if not any(mark in text for mark in ("!?", "?!", "‽")):
        return False
    rest = text.replace("?!", "", 1) if "?!" in text else text.replace("!?", "", 1)
    return set(".,!?;:") <= set(rest)


def nested_brackets(text: str, given: Arguments) -> bool:
    """Five brackets deep, and one of them closed: a bracket that does not match starts the count anew."""
    pairs = {")": "(", "]": "[", "}": "{"}
    opened: list[str] = []
    deepest = 0
    for mark in text:
        if mark in pairs.values():
            opened.append(mark)
            deepest = max(deepest, len(opened))
        elif mark in pairs:
            if opened and opened[-1] == pairs[mark]:
                opened.pop()
                if deepest >= 5:
                    return True
            else:
                opened, deepest = [], 0
    return False


def nested_quotes(text: str, given: Arguments) -> bool:
    """Quotes three deep, all three closed; apostrophes are quotes as well."""
    opened: list[str] = []
    deepest = 0
    for mark in text:
        if opened and mark == opened[-1]:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        elif mark in "\"'":
            opened.append(mark)
            deepest = max(deepest, len(opened))
    return False


def options(text: str, given: Arguments) -> bool:
    """One of the options, marks at the ends and case aside; exactly one of them where they are a), b), c)."""
    listed = given["options"]
    separator = "/" if "/" in listed else "or" if "or" in listed else ","
    found = [one.strip() for one in listed.split(separator)]
    if re.match(r"\W*[aA]\W*[bB]\W*[cC]\W*", listed):
        return text in found
    return trimmed(text).lower() in [trimmed(one).lower() for one in found]


def one_word_a_line(text: str, given: Arguments) -> bool:
    text = without_marks(text).strip()
    return sum(line != "" for line in text.split("\n")) == len(text.split())


def emojis(text: str, given: Arguments) -> bool:
    """Each sentence ends with an emoji, one character before its last at most, or the next one starts with one."""
    import emoji

    found = [without_marks(one).strip() for one in sentences(text)]
    for place, one in enumerate(found):
        if not any(map(emoji.is_emoji, one[-2:])):
            following = found[place + 1] if place + 1 < len(found) else ""
            if not one or not following or not emoji.is_emoji(following[0]):
                return False
    return all(found)


def equal_sentences(text: str, given: Arguments) -> bool:
    lengths = [len(one) for one in sentences(text)]
    return len(lengths) == 3 and len(set(lengths)) == 1


def keyword_sentence(text: str, given: Arguments) -> bool:
    return given["word"].strip().lower() in sentences(text)[int(given["N"]) - 1].lower()


def increments(text: str, given: Arguments) -> bool:
    counts = [len(without_marks(one).split()) for one in sentences(text)]
    first = counts[0]
    return counts == [first + place * given["small_n"] for place in range(len(counts))]


def stairs(text: str, given: Arguments) -> bool:
    """Each line is indented more than the one before. Of blank lines in a row every second one is kept and compared,
    because the published loop removes lines from the list that it walks over."""
    lines, place = text.split("\n"), 0
    while place < len(lines):
        if not lines[place].strip():
            lines.remove(lines[place])
        place += 1
    depths = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(one < other for one, other in itertools.pairwise(depths))


def explained_quotes(text: str, given: Arguments) -> bool:
    text = "".join(text.replace("“", '"').replace("”", '"').replace("'\"'", "").split())
    return '""' not in text and text.strip("0123456789" + MARKS.replace('"', ""))[-1] != '"'


def separators(text: str, given: Arguments) -> bool:
    return text.count(given["sep"]) >= 2


def thesis(text: str, given: Arguments) -> bool:
    """Text in <i> or <em>, and text after it. Tags are taken to have the length of <i>, as published."""
    starts = [place for place in (text.find("<i>"), text.find("<em>")) if place >= 0]
    if not starts:
        return False
    text = text[text.find("<i>") if "<i>" in text else text.find("<em>") :]
    end = text.find("</i>") if "</i>" in text else text.find("</em>")
    return end >= 0 and text[3:end].strip() != "" and text[end + 4 :].strip() != ""


def sub_bullets(text: str, given: Arguments) -> bool:
    return all("-" in bullet for bullet in text.split("*")[1:])


def sentences_then_bullets(text: str, given: Arguments) -> bool:
    """Two sentences, then two lines that start with *, and nothing else; a blank line ends the sentences."""
    spoken, bullets, prose = 0, 0, True
    for line in map(str.strip, text.split("\n")):
        if line.startswith("*"):
            prose = False
            if spoken < 2:
                return False
            bullets += 1
        elif prose:
            found = sentences(line)
            prose = bool(found)
            spoken += len(found)
        else:
            return False
    return bullets >= 2


def repeat_changed(text: str, given: Arguments) -> bool:
    wanted = given["prompt_to_repeat"]
    return wanted != text and wanted.split()[1:] == text.split()[1:]


def repeat_this(text: str, given: Arguments) -> bool:
    return text.strip().lower() == _ONLY_THIS


def repeat_span(text: str, given: Arguments) -> bool:
    """Words from n_start up to, but without, n_end: the request calls these indices of characters, both included."""
    span = given["prompt_to_repeat"].lower().split()[given["n_start"] : given["n_end"]]
    return text.lower().split() == span


def title_case(text: str, given: Arguments) -> bool:
    """No word of letters starts with a small one; words of one letter, and of capitals, pass."""
    return not any(word[0].islower() and (word[1:].isupper() or word[1:].islower()) for word in tokens(text))


def template(text: str, given: Arguments) -> bool:
    return all(heading in text for heading in ("My Answer:", "My Conclusion:", "Future Outlook:"))


def no_whitespace(text: str, given: Arguments) -> bool:
    return not any(map(str.isspace, text))


CHECKS: dict[str, Check] = {
    "ratio:sentence_type": two_to_one,
    "ratio:sentence_balance": balanced,
    "sentence:alliteration_increment": alliteration,
    "count:punctuation": all_marks,
    "format:parentheses": nested_brackets,
    "format:quotes": nested_quotes,
    "format:options": options,
    "format:newline": one_word_a_line,
    "format:emoji": emojis,
    "ratio:sentence_words": equal_sentences,
    "sentence:keyword": keyword_sentence,
    "sentence:increment": increments,
    "format:line_indent": stairs,
    "format:quote_unquote": explained_quotes,
    "format:list": separators,
    "format:thesis": thesis,
    "format:sub-bullets": sub_bullets,
    "format:no_bullets_bullets": sentences_then_bullets,
    "repeat:repeat_change": repeat_changed,
    "repeat:repeat_simple": repeat_this,
    "repeat:repeat_span": repeat_span,
    "format:title_case": title_case,
    "format:output_template": template,
    "format:no_whitespace": no_whitespace,
}
