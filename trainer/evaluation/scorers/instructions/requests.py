"""Constraints that are one request each: lists, tables, questions, stories."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping
from typing import Any

from trainer.evaluation.scorers.instructions.text import Check, ascii_of, sentences, trimmed, without_marks

Arguments = Mapping[str, Any]
# Europe's capitals north of 45 degrees, from north to south
_CAPITALS = """
Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw London
Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb
"""
_DAYS = dict.fromkeys((4, 6, 9, 11), 30) | dict.fromkeys((1, 3, 5, 7, 8, 10, 12), 31) | {2: 29}


def multiples(text: str, given: Arguments) -> bool:
    return re.findall(r"\d+", text) == ["14", "21", "28", "35", "42", "49"]


def four_questions(text: str, given: Arguments) -> bool:
    """From "Question 1" on, four questions of five options, each question longer than the one before."""
    if not text.startswith("Question"):
        return False
    lengths = []
    for question in re.split(r"\n*Question \d+[.|):;]?\s*", text):
        if not question.strip():
            continue
        wording, count = "", 0
        for line in map(str.strip, question.strip().split("\n")):
            if re.match(r"[A-Ea-e][.|)]\s*\w+", line):
                count += 1
            elif not count:
                wording += f" {line}"
        if count != 5:
            return False
        lengths.append(len(wording.strip()))
    return len(lengths) == 4 and all(one < other for one, other in itertools.pairwise(lengths))


def countries(text: str, given: Arguments) -> bool:
    """From the line with Zimbabwe on, at least 52 lines in reverse order."""
    lines = [line for line in (trimmed(one) for one in text.split("\n")) if line]
    start = next(place for place, line in enumerate(lines) if "Zimbabwe" in line)
    found = [ascii_of(line) for line in lines[start:]]
    return len(found) >= 52 and found == sorted(found, reverse=True)


def words_reversed(text: str, given: Arguments) -> bool:
    words = without_marks(text.lower().strip()).split()[::-1]
    # without marks there is one sentence, so that the published test of it always holds
    return "bald eagle" in " ".join(words)


def letters_reversed(text: str, given: Arguments) -> bool:
    return "elgae dlab" in text.lower()


def alphabet_story(text: str, given: Arguments) -> bool:
    starts = [one.split()[0][0].lower() for one in sentences(text)]
    return starts == list("abcdefghijklmnopqrstuvwxyz")


def capitals(text: str, given: Arguments) -> bool:
    return [one.strip() for one in ascii_of(text).split(",") if one.strip()] == _CAPITALS.split()


def cities(text: str, given: Arguments) -> bool:
    rows = list(csv.reader(io.StringIO(text)))
    return len(rows) == 8 and rows[0] == ["ID", "Country", "City", "Year", "Count"] and all(len(r) == 5 for r in rows)


def _quoted_rows(text: str, delimiter: str) -> list[list[str]]:
    """Rows whose fields keep their quotes."""
    return list(csv.reader(io.StringIO(text.replace('"', '"""')), delimiter=delimiter))


def _headed(text: str, gap: str, *names: str) -> bool:
    pattern = gap.join(f'(?:{name}|"{name}")' for name in names)
    return re.fullmatch(pattern, text.split("\n")[0].strip()) is not None


def products(text: str, given: Arguments) -> bool:
    """14 rows of five fields, until one has a quoted field with a special character: later rows are not counted."""
    if not _headed(text, r",[ \t]*", "ProductID", "Category", "Brand", "Price", "Stock"):
        return False
    rows = _quoted_rows(text, ",")
    if len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(re.match(r'".*[^\d\w\s].*"', field) for field in row):
            return True
    return False


def grades(text: str, given: Arguments) -> bool:
    if not _headed(text, r"\t *", "StudentID", "Subject", "Grade", "Semester", "Score"):
        return False
    rows = _quoted_rows(text, "\t")
    quoted = all(field.strip()[0] == field.strip()[-1] == '"' for row in rows for field in row)
    return len(rows) == 4 and all(len(row) == 5 for row in rows) and quoted


def dates(text: str, given: Arguments) -> bool:
    """Dates of 1769 to 1821 as YYYY-MM-DD, with commas; days up to the month's last, month 0 and day 0 included."""
    for date in text.strip().split(","):
        found = re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})", date.strip())
        if not found:
            return False
        year, month, day = map(int, found.groups())
        if not 1769 <= year <= 1821 or month > 12 or day > _DAYS.get(month, 99):
            return False
    return True


CHECKS: dict[str, Check] = {
    "custom:multiples": multiples,
    "custom:mcq_count_length": four_questions,
    "custom:reverse_newline": countries,
    "custom:word_reverse": words_reversed,
    "custom:character_reverse": letters_reversed,
    "custom:sentence_alphabet": alphabet_story,
    "custom:european_capitals_sort": capitals,
    "custom:csv_city": cities,
    "custom:csv_special_character": products,
    "custom:csv_quotes": grades,
    "custom:date_format_list": dates,
}
