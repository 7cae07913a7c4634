"""The words, pairs of words and parts of words of a crop's text, as numbers that are the same on every machine."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

CONTEXT = 2000  # characters of the text around a crop that are read
CAPTION = 2  # times that a word of the caption counts
PART = 5  # letters
# "Fig. 2.", "Table S1:", "Abb. 4a"
LABEL = re.compile(r"^\W*(?:[^\W\d_]+\.?\s*)?[A-Z]{0,2}\.?\d+[a-z]?(?:\.\d+)*\s*[.:|)\u2014-]?\s+")
HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
WORD = re.compile(r"[^\W\d_]{2,}")


Counted = tuple[NDArray[np.uint32], NDArray[np.float32]]  # numbers of features in rising order, how often each occurs


def counted_features(caption: str, context: str) -> Counted:
    """Count each feature, by a 32-bit number made from it. The label of a caption is left out."""
    counts: Counter[int] = Counter()
    for text, times in ((LABEL.sub("", caption, count=1), CAPTION), (context[:CONTEXT], 1)):
        words = words_of(text)
        for word in words:
            for number in _of_word(word):
                counts[number] += times
        for pair in pairwise(words):
            counts[crc32(" ".join(pair).encode())] += times
    numbers = np.fromiter(counts, np.uint32, len(counts))
    order = np.argsort(numbers)
    return numbers[order], np.fromiter(counts.values(), np.float32, len(counts))[order]


def together(texts: Sequence[Counted]) -> Counted:
    """The features of all texts of a document."""
    numbers, places = np.unique(np.concatenate([found for found, _ in texts]), return_inverse=True)
    return numbers, np.bincount(places, np.concatenate([times for _, times in texts]), len(numbers)).astype(np.float32)


def words_of(text: str) -> list[str]:
    """The words in lower case, those that a line end divided joined, ligatures and accents as plain letters."""
    plain = unicodedata.normalize("NFKD", HYPHENATED.sub("", text))
    return WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter)).lower())


@lru_cache(1 << 16)
def _of_word(word: str) -> tuple[int, ...]:
    """The word itself, and its parts of PART letters, ends marked."""
    marked = f"<{word}>"
    parts = (marked[place : place + PART] for place in range(len(marked) - PART + 1)) if len(word) > PART - 2 else ()
    return (crc32(word.encode()), *(crc32(f"~{part}".encode()) for part in parts))
