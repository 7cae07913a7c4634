"""Questions from records, for learning from rewards: a prompt, an answer that can be verified, and the kind of it.

    {"prompt": "What is the density of zinc orthosilicate?", "answer": "4.1 g/cm^3", "kind": "quantity", ...}

Kinds are `quantity` (a number with its unit), `choice` (the letter of an option), `molecule` (SMILES or InChI) and
`text` (a name, or an order of names in one of several spellings). A completion has no prompt of its own and is not
asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.corpora.science.texts import Text
from trainer.data.errors import DataError
from trainer.data.hashing import mix64, text_key

REWARD: Mapping[str, Any] = {
    "name": "kind", "parts": {"quantity": "quantity", "choice": "choice", "molecule": "molecule", "text": "final"}
}  # fmt: skip
MOLECULES = re.compile(r"\b(SMILES|InChI)\b(?! ?key)", re.IGNORECASE)
LETTERS = "ABCD"
BOXED = "\nPut your final answer in \\boxed{}."
HELD_OUT = 0.1  # of the groups of records
SPLIT = "questions"  # names the hash by which groups are held out


def question(text: Text, *, messages: bool) -> dict[str, Any] | None:
    """The row of a text's task; None for a text without one, and for options that have no letters.

    messages: the prompt is a message that asks for a box; else it is a text that an answer follows."""
    task = text.task
    if task is None or not task.asked:
        return None
    kind, answer = "text", task.finals[0]
    more: dict[str, Any] = {}
    if task.form == "choice":
        kind, answer, more = "choice", answer.strip("()[]"), {"options": list(task.options)}
        if answer not in LETTERS:
            return None
    elif task.form == "ranking":
        orders = [one for one in task.finals if "\n" not in one]
        more = {} if len(orders) == 1 else {"answer": orders}
    elif (prop := task.value_of) is not None:
        kind = "quantity" if prop.number else "molecule" if MOLECULES.search(prop.label) else "text"
    asked = [{"role": "user", "content": task.asked + BOXED}] if messages else f"{task.asked}\nAnswer: "
    of = {"kind": kind, "form": task.form, "name": text.name, "origin": text.origin}
    return {"prompt": asked, "answer": answer, **more, **of}


def held_out(origins: Iterable[str]) -> frozenset[str]:
    """The groups of records to hold out, about a tenth by their hashes: no question compares records of both splits.

    Of two groups or more at least one is held out and at least one is not: those of the smallest hashes come first.
    Raises DataError for fewer."""
    hashes = {origin: int(mix64(text_key(SPLIT, origin))[0]) for origin in origins}
    if len(hashes) < 2:
        remedy = "more records, or another --source beside them"
        text = f"--questions: two files need two groups of records, and {len(hashes)} has questions; give {remedy}"
        raise DataError(text, where="--questions", value=len(hashes), allowed=remedy)
    below = sum(number < HELD_OUT * 2**64 for number in hashes.values())
    ranked = sorted(hashes, key=lambda origin: (hashes[origin], origin))
    return frozenset(ranked[: min(max(below, 1), len(hashes) - 1)])
