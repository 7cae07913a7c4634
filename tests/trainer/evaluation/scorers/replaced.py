"""Stand-ins for packages that both sides of a comparison call: the rules around them are compared."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec


def _selfies() -> types.ModuleType:
    """Its strings are here the SMILES themselves; one that starts with C1CC fails."""

    class DecoderError(Exception):
        pass

    def decoder(text: str) -> str:
        if text.startswith("C1CC"):
            raise DecoderError(text)
        return text

    selfies = types.ModuleType("selfies")
    selfies.__dict__.update(encoder=lambda text: text, decoder=decoder, DecoderError=DecoderError)
    return selfies


def _screening() -> types.ModuleType:
    """A part of smact in which formulas of an even number of characters are possible, and there is no element Xx."""

    def smact_validity(formula: str) -> bool:
        if "Xx" in formula or not re.fullmatch(r"(?:[A-Z][a-z]?\d*)+", formula):
            raise ValueError(formula)
        return len(formula) % 2 == 0

    screening = types.ModuleType("smact.screening")
    screening.__dict__.update(smact_validity=smact_validity)
    return screening


@contextmanager
def replaced() -> Iterator[None]:
    """Puts the stand-ins in the places of selfies and smact."""
    smact = types.ModuleType("smact")
    smact.__path__ = []
    smact.__spec__ = ModuleSpec("smact", None)  # by which it counts as installed
    made = {"selfies": _selfies(), "smact": smact, "smact.screening": _screening()}
    before = {name: sys.modules[name] for name in made if name in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
        sys.modules.update(before)
