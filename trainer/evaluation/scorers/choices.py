"""The option that an answer to a multiple choice names, by the rules of each benchmark's published scorer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SENTENCE = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


def option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names; `Z` for a refusal; None where no rule finds one.

    One letter as a word, among the last four words or the only ones; "the answer is B"; else the only option whose text
    is in the answer, unless the answer is twice as long as all options. Rules of VLMEvalKit (utils/matching_util.py).
    options: texts by letter.
    """
    if "Failed to obtain answer via API" not in answer:
        letter = _letter(answer, options)
        if letter:
            return letter
    low = answer.lower()
    if len(low) > 2 * sum(len(text) for text in options.values()):
        return None
    named = [letter for letter, text in options.items() if text.lower() in low]
    return named[0] if len(named) == 1 else None


def _letter(answer: str, options: Mapping[str, str]) -> str | None:
    if any(refusal in answer for refusal in _REFUSALS):
        return "Z"
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    found = _SENTENCE.search(answer)
    return found[1].upper() if found and found[1].upper() in options else None


def letters(answer: str) -> str:
    """All letters A to E that an answer names, sorted: XLRS-Bench's questions may have several right options.

    In brackets; else every letter a to e there is, small ones and those inside words included; nothing where no capital
    A to E occurs.
    Rules of VLMEvalKit (dataset/image_mcq.py, XLRSBench).
    """
    answer = answer.strip()
    for phrase in (
        "The best answer is",
        "The correct answer is",
        "The answer is",
        "The answer",
        "The best option isThe correct option is",
        "Best answer:Best option:",
    ):
        answer = answer.replace(phrase, "")
    if not re.search("[ABCDE]", answer):
        return ""
    # the published second rule has nothing but optional neighbours, so that it takes every letter a to e there is
    found = re.findall(r"\(([a-eA-E])\)", answer) or re.findall("[a-eA-E]", answer)
    return "".join(sorted({letter.upper() for letter in found}))


def mmlu_pro(answer: str) -> str | None:
    """The letter A to J of MMLU-Pro: "answer is (B)", else the last "answer: B" of the first line with one, else the
    last such letter alone.

    Rules of TIGER-AI-Lab/MMLU-Pro (compute_accuracy.py); where nothing is found that script draws a letter, and this
    returns None, which is wrong.
    """
    if found := re.search(r"answer is \(?([A-J])\)?", answer):
        return found[1]
    if named := [*re.finditer(r"(?=[aA]nswer:\s*([A-J]))", answer)]:
        end = answer.find("\n", named[0].start())
        return [found for found in named if end < 0 or found.start() < end][-1][1]
    alone = re.findall(r"\b[A-J]\b", answer)
    return alone[-1] if alone else None


def mmmu_pro(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of MMMU-Pro: the only one after the last "Answer:", else one named in the text.

    Named is "(B)"; else "B " at the end of a word, else "B." there; else, in more than five words, the text of an
    option. Of several the last in brackets, between spaces or as text counts; with none between spaces the first
    letter. Rules of MMMU-Benchmark/MMMU (mmmu-pro/evaluate.py), which draws a letter where nothing is found; this
    returns None, which is wrong.
    """
    if "Answer:" in answer:
        tail = answer.rpartition("Answer:")[2]
        alone = [letter for letter in options if letter in tail]
        if len(alone) == 1:
            return alone[0]
    text = answer
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for shown, placed in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if named := [letter for letter in options if shown.format(letter) in text]:
            return max(named, key=lambda letter: text.rfind(placed.format(letter)))
    low = text.lower()
    named = [letter for letter, content in options.items() if content.lower() in low]
    if not named or len(text.split()) <= 5:
        return None
    return max(named, key=lambda letter: low.rfind(options[letter].lower()))


def by_letter(texts: Sequence[str]) -> dict[str, str]:
    """Texts by the letters A, B, C, ..."""
    return {chr(ord("A") + place): text for place, text in enumerate(texts)}
