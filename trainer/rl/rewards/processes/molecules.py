"""The process that reads molecules: [texts, how] in, for each text its forms out, or null where it is not a molecule.

how: {"stereo": bool, "isotopes": bool, "salts": bool, "form": "smiles" | "inchi" | "tautomer"}; a form is
{"smiles": canonical SMILES, "form": the text that is compared, empty where there is none}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.evaluation.scorers.worker import serve


def forms(question: list[Any]) -> list[Any]:
    texts, how = question
    return [_form(text, how) for text in texts]


def _form(text: str, how: Mapping[str, Any]) -> dict[str, str] | None:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():  # RDKit prints a line for every text that it cannot read
        try:
            molecule = Chem.MolFromInchi(text) if text.startswith("InChI=") else Chem.MolFromSmiles(text)
            if molecule is None or not molecule.GetNumAtoms():
                return None
            molecule = _reduced(molecule, how)
            smiles = Chem.MolToSmiles(molecule)
            return {"smiles": smiles, "form": _compared(molecule, smiles, how["form"])}
        except Exception:  # of RDKit's C++, for a molecule that it reads and cannot treat
            return None


def _reduced(molecule: Any, how: Mapping[str, Any]) -> Any:
    """The molecule without what does not count."""
    from rdkit import Chem
    from rdkit.Chem.MolStandardize import rdMolStandardize

    if not how["salts"]:
        molecule = rdMolStandardize.ChargeParent(molecule)  # of the largest part, as neutral as it can be
    if not how["isotopes"]:
        for atom in molecule.GetAtoms():
            atom.SetIsotope(0)
        molecule = Chem.RemoveHs(molecule)  # deuterium is an atom of the graph, hydrogen is not
        Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    if not how["stereo"]:
        Chem.RemoveStereochemistry(molecule)
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return molecule


def _compared(molecule: Any, smiles: str, form: str) -> str:
    if form == "inchi":
        from rdkit import Chem

        return str(Chem.MolToInchi(molecule))
    if form == "tautomer":
        from rdkit import Chem
        from rdkit.Chem.MolStandardize import rdMolStandardize

        tautomers = rdMolStandardize.TautomerEnumerator()
        tautomers.SetRemoveSp3Stereo(False)  # or the two alanines are one
        tautomers.SetRemoveBondStereo(False)
        return str(Chem.MolToSmiles(tautomers.Canonicalize(molecule)))
    return smiles


if __name__ == "__main__":
    serve(forms)
