"""SciReasoner's generated materials: elements and a space group that smact calls possible."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from trainer.evaluation.scorers.metric import Metric, of_means

_TAGGED = re.compile("<material>(.*?)</material>", re.DOTALL | re.IGNORECASE)
_ELEMENTS = r"([A-Z][a-z]?(?: [A-Z][a-z]?)*?)\s*"
_ASKED = re.compile(_ELEMENTS + r"(?:<sg>\s*)?<sg\d+>")
_FREE = re.compile(_ELEMENTS + r"[<⟨]sg[>⟩]\s*[<⟨]sg\d+[>⟩]")


def formula(text: str, form: re.Pattern[str], ones: str) -> str:
    """The formula of `Na Cl <sg><sg225>` at the start of the first material tags, in the elements' alphabetical order;
    empty where there is none. ones: the count of an element that is there once."""
    found = _TAGGED.search(text)
    listed = form.match(found[1].strip()) if found else None
    counts = Counter(listed[1].split()) if listed else {}
    return "".join(f"{element}{count if count > 1 else ones}" for element, count in sorted(counts.items()))


def _possible(form: re.Pattern[str], ones: str) -> Metric:
    def one(answer: str, reference: Any) -> dict[str, Any]:
        from smact.screening import smact_validity

        written = formula(answer, form, ones)
        try:
            valid = bool(written) and bool(smact_validity(written))
        except Exception:  # whatever smact raises for an element that it does not have: published as not possible
            valid = False
        return {"score": valid, "parsed": written != ""}

    return of_means(one, unit=100)


asked = _possible(_ASKED, "1")
"""Percentage of possible materials among the answers to questions for a composition or a bulk modulus."""
free = _possible(_FREE, "")
"""Percentage of possible materials among those that are asked for without a condition."""
