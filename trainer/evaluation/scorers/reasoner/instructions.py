"""SciReasoner's group Mol_Instructions: questions about chemistry in words, and molecules.

Source: opencompass/datasets/SciReasoner/Mol_Instructions/biotext.py and molecule.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from trainer.evaluation.scorers.metric import Figures, Metric, Row, mean, of_errors, of_means

_MARKS = re.compile(r"<\|endoftext\|>|<\|im_end\|>")
_LABEL = re.compile(r"^(?:Response:|Answer:)\s*", re.IGNORECASE)
_OPENING = re.compile(r"^(?:I would say that|I would like to say that)\s*", re.IGNORECASE)


def _after_thinking(text: str) -> str:
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    return re.sub(r".*?</think>\s*", "", text, flags=re.DOTALL)


def _said(text: str) -> str:
    """The answer in small letters, without labels and phrases that open it."""
    text = _after_thinking(_LABEL.sub("", _MARKS.sub("", text.strip())))
    return _OPENING.sub("", text).strip()


def _f1(found: set[str], wanted: set[str]) -> dict[str, Any]:
    shared = len(found & wanted)
    return {"score": 2 * shared / (len(found) + len(wanted)) if shared else 0.0}


def _pairs(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = (re.findall(r"\(.*?\)", _said(text).lower()) for text in (answer, reference))
    if not found:
        found = re.findall(r"\(.*?\)", f"({_said(answer).lower()})")
    return {**_f1(set(found), set(wanted)), "parsed": bool(found)}


pairs = of_means(_pairs)
"""Mean F1, 0 to 1, of what is in brackets; an answer without brackets counts as one pair."""


def _names(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = (set(_said(text).lower().split(", ")) for text in (answer, reference))
    return {**_f1(found, wanted), "parsed": found != {""}}


names = of_means(_names)
"""Mean F1, 0 to 1, of names with commas between them."""


def _truth(answer: str, reference: str) -> dict[str, Any]:
    low = _said(answer).lower()
    signs = (("yes", ("yes",)), ("no", ("no",)), ("maybe", ("maybe", "may be", "might")))
    found = next((word for word, marks in signs if any(mark in low for mark in marks)), None)
    return {"score": found == _said(reference).lower().split(",")[0].strip(), "parsed": found is not None}


truth = of_means(_truth, unit=100)
"""Accuracy in per cent of yes, no or maybe, found in this order anywhere in the answer, inside words too."""


def _letter(answer: str, reference: str) -> dict[str, Any]:
    text = _said(answer)
    found = next((one for one in "ABCD" if any(form in text for form in (f"({one}", f"{one})", f" {one} "))), None)
    wanted = _said(reference).split("(")[1].split(")")[0]
    return {"score": (found or text) == wanted, "parsed": found is not None}


letter = of_means(_letter, unit=100)
"""Accuracy in per cent of A to D, in a bracket or between spaces, in this order; the reference is as "(B) text"."""


def _first_number(text: str) -> str | None:
    text = _after_thinking(_MARKS.sub("", text.strip()))
    text = re.sub(r"(?<=\d) +(?=\d)|(?<=\.) +(?=\d)", "", text)
    found = re.search(r"[-+]?\d*\.\d+|\d+", text)
    return found[0] if found else None


def _error(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = _first_number(answer), _first_number(reference)
    return {"score": abs(float(found or 0) - float(wanted or 0)) * 1000, "parsed": found is not None}


thousandth_error = of_errors(_error)
"""Mean absolute error of the first number in thousandths (of hartrees); 0 is taken where there is none."""


def _inchi(text: str) -> str | None:
    """The InChI of the first molecule in SMILES tags, without stereochemistry; None where there is none."""
    from rdkit import Chem, rdBase

    found = re.search(r"<SMILES>(.*?)</SMILES>", _after_thinking(_MARKS.sub("", text.strip())))
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(found[1].strip()) if found else None
        if molecule is None:
            return None
        plain = Chem.MolFromSmiles(Chem.MolToSmiles(molecule, isomericSmiles=False, canonical=True))
        return None if plain is None else Chem.MolToInchi(plain)


def _same_molecule(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = _inchi(answer), _inchi(reference)
    if wanted is None:
        raise ValueError(f"the reference {reference!r} has no molecule in SMILES tags")
    return {"score": None if found is None else found == wanted, "parsed": found is not None}


def _of_molecules(rows: Sequence[Row]) -> Figures:
    kept = [row for row in rows if row["score"] is not None]
    return Figures(mean(kept) if kept else 0.0, {"valid": len(kept) / len(rows) if rows else 0.0})


same_molecule = Metric(_same_molecule, _of_molecules)
"""Share, 0 to 1, of answers with the reference's molecule (InChI) among those with one that can be read: the published
scorer leaves the others out. extra: `valid`, the share that can be read."""


def _described(scorer: Any, answer: str, reference: str) -> dict[str, Any]:
    found = _after_thinking(_MARKS.sub("", answer.strip())).rsplit(".", 1)[0] + "."
    wanted = _after_thinking(_MARKS.sub("", reference.strip()))
    return {"score": float(scorer().score(found, wanted)["rougeL"].fmeasure)}


def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


described = of_means(partial(_described, _scorer))
"""Mean ROUGE-L F, 0 to 1, without stems, of the answer up to its last full stop."""
