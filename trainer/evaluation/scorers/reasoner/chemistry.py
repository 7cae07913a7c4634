"""SciReasoner's group SmolInstruct: molecules, formulas, names and properties."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from trainer.evaluation.scorers.chemistry import atoms
from trainer.evaluation.scorers.metric import Figures, Metric, Row, mean, of_means

_THOUGHT = re.compile("<think>.*?</think>", re.DOTALL)
_ATOM = r"[A-Z][a-z]?\d*"
# an atom, perhaps in brackets; atoms and groups in either kind of brackets; a charge; what is bound loosely
_FORMULA = re.compile(
    rf"[\[\(]?{_ATOM}(?:\([A-Za-z0-9]+\)\d*)?[\]\)]?(?:{_ATOM}|\([^\)]+\)\d*|\[[^\]]+\]\d*)*(?:[+-]{{1,2}})?"
    rf"(?:·\d*{_ATOM})*"
)


def _tagged(text: str, tag: str) -> str:
    """The text between the first `<tag>` and the first `</tag>`; empty unless both are there."""
    start, end = text.find(f"<{tag}>"), text.find(f"</{tag}>")
    return text[start + len(tag) + 2 : end].strip() if min(start, end) >= 0 else ""


def _molecule(text: str) -> str:
    return _tagged(_THOUGHT.sub("", text), "SMILES").replace(";", ".")


def _number(text: str) -> str:
    text = _THOUGHT.sub("", text)
    if found := _tagged(text, "NUMBER"):
        return found
    last = re.findall(r"-?\d*\.\d+|-?\d+", re.sub("<SMILES>.*?</SMILES>", "", text, flags=re.DOTALL))
    return last[-1] if last else ""


def _formula(text: str) -> str:
    text = _THOUGHT.sub("", text)
    return _tagged(text, "MOLFORMULA") or (_FORMULA.findall(text) or [""])[-1]


def _truth(text: str) -> str:
    text = _THOUGHT.sub("", text)
    if found := _tagged(text, "BOOLEAN"):
        return found.lower()
    words = re.findall(r"\b(?:yes|true|no|false)\b", text, re.IGNORECASE)
    return "" if not words else "yes" if words[-1].lower() in ("yes", "true") else "no"


def rebuilt(smiles: str) -> str | None:
    """A molecule's SMILES after it was rebuilt from symbols, charges, bonds and chirality; isotopes and hydrogens that
    were written out are lost. None where RDKit refuses it on the way."""
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(smiles)
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    for _ in range(2):  # written and read until it does not change
        molecule = Chem.MolFromSmiles(Chem.MolToSmiles(molecule))
        if molecule is None:
            return None
    source = Chem.MolFromSmiles(Chem.MolToSmiles(molecule).replace(" ", ""), sanitize=False)
    source.UpdatePropertyCache()
    made = Chem.RWMol()
    for atom in source.GetAtoms():
        new = Chem.Atom(atom.GetSymbol())
        new.SetFormalCharge(atom.GetFormalCharge())
        if atom.GetIsAromatic() and atom.GetNoImplicit():
            new.SetNumExplicitHs(atom.GetNumExplicitHs())
        made.AddAtom(new)
    for bond in source.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        made.AddBond(*ends, bond.GetBondType())
        made.GetBondBetweenAtoms(*ends).SetBondDir(bond.GetBondDir())
    for atom in made.GetAtoms():
        single = all(bond.GetBondType() == Chem.BondType.SINGLE for bond in atom.GetBonds())
        if atom.GetDegree() > 3 or (atom.GetDegree() == 3 and single):
            atom.SetChiralTag(source.GetAtomWithIdx(atom.GetIdx()).GetChiralTag())
    flags = Chem.SanitizeFlags
    steps = flags.SANITIZE_SETAROMATICITY | flags.SANITIZE_PROPERTIES | flags.SANITIZE_ADJUSTHS
    Chem.SanitizeMol(made, sanitizeOps=steps, catchErrors=True)
    Chem.AssignStereochemistry(made, cleanIt=False, force=True, flagPossibleStereoCenters=True)
    again = Chem.MolFromSmiles(Chem.MolToSmiles(made))
    return None if again is None else str(Chem.MolToSmiles(again, kekuleSmiles=True))


def identity(smiles: str) -> frozenset[str] | None:
    """The InChIs of the molecules in a SMILES, each once; None where one cannot be rebuilt.

    As published, a part that is not a molecule stands for the whole SMILES, and its InChI is an empty text.
    """
    from rdkit import Chem, rdBase

    names = set()
    with rdBase.BlockLogs():
        for part in smiles.split("."):
            if not part:
                return None
            if Chem.MolFromSmiles(part) is None:
                return frozenset({""})
            try:
                plain = rebuilt(part)
            except (RuntimeError, ValueError):
                return None
            if plain is None:
                return None
            names |= {_inchi(one) for one in plain.split(".")}
    return frozenset(names)


def _inchi(smiles: str) -> str:
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(smiles)
    return "" if molecule is None else str(Chem.MolToInchi(molecule))


def _same_molecule(answer: str, reference: str) -> dict[str, Any]:
    wanted = identity(_molecule(reference))
    if wanted is None:
        raise ValueError(f"the reference {reference!r} has no molecule in SMILES tags")
    text = _molecule(answer)
    found = identity(text) if text else None
    return {"score": found == wanted, "parsed": found not in (None, frozenset({""}))}


same_molecule = of_means(_same_molecule, unit=100)
"""Percentage of answers with the reference's molecules (InChI), in any order and number."""


def _canonical(text: str) -> str:
    """The canonical SMILES in the last tags of a text, without atom maps; empty where it is not a molecule."""
    from rdkit import Chem, rdBase

    found = re.findall("<SMILES>(.*?)</SMILES>", _THOUGHT.sub("", text), re.DOTALL)
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(found[-1].strip()) if found else None
    if molecule is None:
        return ""
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return str(Chem.MolToSmiles(molecule))


def _same_smiles(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = _canonical(answer), _canonical(reference)
    return {"score": found != "" and found == wanted, "parsed": found != ""}


same_smiles = of_means(_same_smiles, unit=100)
"""Percentage of answers whose canonical SMILES is the reference's: the first of USPTO-50K's precursors."""


def _same_atoms(answer: str, reference: str) -> dict[str, Any]:
    formula, wanted = _formula(answer), atoms(_formula(reference))
    if wanted is None:
        raise ValueError(f"the reference {reference!r} has no molecular formula")
    found = atoms(formula) if formula else None
    return {"score": found is not None and found == wanted, "parsed": found is not None}


same_atoms = of_means(_same_atoms, unit=100)
"""Percentage of formulas with the reference's atoms, in any order."""


def _same_name(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = (_tagged(_THOUGHT.sub("", text), "IUPAC") for text in (answer, reference))
    if not wanted:
        raise ValueError(f"the reference {reference!r} has no name in IUPAC tags")
    return {"score": sorted(found.split(";")) == sorted(wanted.split(";")), "parsed": found != ""}


same_name = of_means(_same_name, unit=100)
"""Percentage of names that are the reference's, their parts between semicolons in any order."""


def _same_truth(answer: str, reference: str) -> dict[str, Any]:
    found, wanted = _truth(answer), _truth(reference)
    read = found in ("yes", "no")
    return {"score": read and (found == "yes") == (wanted == "yes"), "parsed": read}


same_truth = of_means(_same_truth, unit=100)
"""Percentage of answers that say yes or no as the reference does."""


def _error(answer: str, reference: str) -> dict[str, Any]:
    wanted = float(_number(reference))
    try:
        error = float(_number(answer)) - wanted
    except ValueError:
        error = math.nan
    square = error * error
    return {"score": square if math.isfinite(square) else None, "parsed": math.isfinite(square)}


def _root(rows: Sequence[Row]) -> Figures:
    kept = [row for row in rows if row["score"] is not None]
    return Figures(math.sqrt(mean(kept)) if kept else math.nan)


root_error = Metric(_error, _root, higher=False)
"""Root of the mean squared error of the answers whose number can be read: the published scorer leaves the others out.
Infinite numbers are left out too."""


_CANDIDATE = re.compile(r"(?<!\*)[A-Za-z0-9\u2080-\u2089().+\-=#$:@*/%\\]{2,}(?!\*)")
_SHOWN = re.compile(r"<SMILES> ([A-Za-z0-9()=#+@\\/.-]+) </SMILES>")


def _readable(answer: str, reference: Any) -> dict[str, Any]:
    """A molecule in SMILES tags with a space at each end, else in the whole text. In a text without tags, words of four
    letters or more that are SMILES get such tags first."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():

        def shown(found: re.Match[str]) -> str:
            word = found[0]
            known = len(word) >= 4 and Chem.MolFromSmiles(word, sanitize=False) is not None
            return f"<SMILES> {word} </SMILES>" if known else word

        text = answer if "<SMILES>" in answer else _CANDIDATE.sub(shown, answer)
        smiles = found[1] if (found := _SHOWN.search(text)) else text
        read = bool(answer) and Chem.MolFromSmiles(smiles.strip()) is not None
    return {"score": read, "parsed": read, "found": smiles if read else ""}


def _shares(rows: Sequence[Row]) -> Figures:
    found = [row["found"] for row in rows if row["score"]]
    return Figures(mean(rows), {"unique": len(set(found)) / len(found) if found else 0.0})


readable = Metric(_readable, _shares)
"""Share, 0 to 1, of answers that RDKit reads as a molecule. extra: `unique`, the share of different texts in these."""
