"""Constraints on words, counts and shares."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from trainer.evaluation.scorers.instructions.text import (
    MARKS,
    Check,
    runs,
    sentences,
    tokens,
    trimmed,
    without_marks,
)

_NAMES = """
Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper Leo
Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla
Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
"""
_PRONOUNS = """
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves
"""
_CONJUNCTIONS = {"and", "but", "for", "nor", "or", "so", "yet"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CONSONANTS = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")
_JAPANESE = re.compile("[぀-ヿ一-鿿]")
_PRIMES = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97}

Arguments = Mapping[str, Any]


def word_count(text: str, given: Arguments) -> bool:
    return bool(given["min_words"] <= len(runs(text)) <= given["max_words"])


def different_words(text: str, given: Arguments) -> bool:
    return len({trimmed(word) for word in text.lower().split()}) >= given["N"]


def stop_words(text: str, given: Arguments) -> bool:
    """nltk's English stop words, in per cent of all words. Needs its data `stopwords`."""
    from nltk.corpus import stopwords

    listed, found = set(stopwords.words("english")), runs(text)
    return bool(sum(word.lower() in listed for word in found) / len(found) * 100 <= given["percentage"])


def conjunctions(text: str, given: Arguments) -> bool:
    """Spellings count apart: "and", "And" and "and," are three different conjunctions in the published rule."""
    return len({word for word in text.split() if trimmed(word).lower() in _CONJUNCTIONS}) >= given["small_n"]


def person_names(text: str, given: Arguments) -> bool:
    """Inside other words too: "Leonard" has Leo."""
    return sum(name in text for name in _NAMES.split()) >= given["N"]


def overlap(text: str, given: Arguments) -> bool:
    """Groups of three characters, not words, within two per cent points of the wanted share."""
    found, wanted = ({one[i : i + 3] for i in range(len(one) - 2)} for one in (text, given["reference_text"]))
    return abs(len(found & wanted) / len(found) * 100 - given["percentage"]) <= 2


def numbers(text: str, given: Arguments) -> bool:
    """Without marks: "3.14" is one number, and so is "1,000"."""
    return len(re.findall(r"\d+", without_marks(text))) == given["N"]


def alphabet(text: str, given: Arguments) -> bool:
    words = without_marks(text).split()
    first = _LETTERS.find(words[0][0].lower())
    return first >= 0 and all(word[0].lower() == _LETTERS[(first + place) % 26] for place, word in enumerate(words))


def three_vowels(text: str, given: Arguments) -> bool:
    text = text.strip().lower()
    return "\n" not in text and len(set(text) & set("aeiou")) <= 3


def consonant_clusters(text: str, given: Arguments) -> bool:
    return all(_CONSONANTS.search(word) for word in text.lower().split())


def palindromes(text: str, given: Arguments) -> bool:
    words = without_marks(text).lower().split()
    return sum(len(word) >= 5 and word == word[::-1] for word in words) >= 10


def prime_lengths(text: str, given: Arguments) -> bool:
    return all(len(word) in _PRIMES for word in without_marks(text).split())


def japanese(text: str, given: Arguments) -> bool:
    every = given["N"]
    words = [trimmed(word) for place, word in enumerate(text.split(), 1) if place % every == 0]
    return all(_JAPANESE.search(word) for word in words if word and not word.isdigit())


def starts_with_verb(text: str, given: Arguments) -> bool:
    """By nltk's tagger. Needs its data `punkt_tab` and `averaged_perceptron_tagger_eng`."""
    from nltk import pos_tag

    return "VB" in pos_tag(tokens(text))[0][1]


def repeats(text: str, given: Arguments) -> bool:
    counts = Counter(without_marks(text.lower()).split())
    return all(count <= given["small_n"] for count in counts.values())


def pronouns(text: str, given: Arguments) -> bool:
    words = without_marks(text.replace("/", " ").lower()).split()
    return sum(word in _PRONOUNS.split() for word in words) >= given["N"]


def alternating_syllables(text: str, given: Arguments) -> bool:
    """Syllables by the package syllapy."""
    import syllapy

    parities = [syllapy.count(word) % 2 for word in without_marks(text).lower().split()]
    return all(one != other for one, other in itertools.pairwise(parities))


def last_first(text: str, given: Arguments) -> bool:
    found = sentences(text)
    return all(
        one.rstrip(MARKS + " ").split()[-1].lower() == other.lstrip(MARKS + " ").split()[0].lower()
        for one, other in itertools.pairwise(found)
    )


def paragraph_ends(text: str, given: Arguments) -> bool:
    lines = [trimmed(line.strip().lower()).split() for line in text.split("\n")]
    return all(words[0] == words[-1] for words in lines if words)


def no_consecutive(text: str, given: Arguments) -> bool:
    words = without_marks(text.lower()).split()
    return all(one[0] != other[0] for one, other in itertools.pairwise(words))


def keywords(text: str, given: Arguments) -> bool:
    low = text.lower()
    times = (1, 2, 3, 5, 7)
    return all(low.count(given[f"keyword{place}"].strip().lower()) == n for place, n in enumerate(times, 1))


def keyword_position(text: str, given: Arguments) -> bool:
    words = tokens(sentences(text)[given["n"] - 1])
    return bool(words[given["m"] - 1] == given["keyword"].strip())


def second_and_second_last(text: str, given: Arguments) -> bool:
    words = tokens(text)
    return bool(words[1] == words[-2] == given["keyword"].strip())


CHECKS: dict[str, Check] = {
    "count:word_count_range": word_count,
    "count:unique_word_count": different_words,
    "ratio:stop_words": stop_words,
    "count:conjunctions": conjunctions,
    "count:person_names": person_names,
    "ratio:overlap": overlap,
    "count:numbers": numbers,
    "words:alphabet": alphabet,
    "words:vowel": three_vowels,
    "words:consonants": consonant_clusters,
    "words:palindrome": palindromes,
    "words:prime_lengths": prime_lengths,
    "count:words_japanese": japanese,
    "words:start_verb": starts_with_verb,
    "words:repeats": repeats,
    "count:pronouns": pronouns,
    "words:odd_even_syllables": alternating_syllables,
    "words:last_first": last_first,
    "words:paragraph_last_first": paragraph_ends,
    "words:no_consecutive": no_consecutive,
    "count:keywords_multiple": keywords,
    "words:keywords_specific_position": keyword_position,
    "words:words_position": second_and_second_last,
}
