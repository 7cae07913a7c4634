"""Molecules and names: SMolInstruct's and Mol-Instructions' metrics as OpenCompass 0.5.4 computes them.

Source: opencompass/datasets/smolinstruct.py and mol_instructions_chem.py. Percentages are between 0 and 100.
"""

from __future__ import annotations

import re
from typing import Any

from trainer.evaluation.scorers import extract
from trainer.evaluation.scorers.metric import Metric, of_errors, of_means

_TAGS = ("MOLFORMULA", "SMILES", "IUPAC")
# headings after which a model writes its reactants on a line of their own, without tags
_HEADINGS = (
    "reactants and reagents are:\n```\n",
    "reactants and reagents:\n```\n",
    "Reactants and Reagents:**\n```\n",
    "Reactants and Reagents SMILES:**\n```\n",
    "Reactants and Reagents:**  \n`",
)
_FORMULA = re.compile(r"(?:[A-Za-z]\d*)+(?:[+-]\d*)*$")
_ATOM = re.compile(r"([A-Z][a-z]?)(\d*)")
_CHARGE = re.compile(r"([+-])(\d*)")


def last_molecule(text: str) -> str:
    """The last tagged formula, SMILES or name; else the line after a known heading; else the whole text."""
    found = extract.tagged(text, *_TAGS)
    if found:
        return found[-1]
    for heading in _HEADINGS:
        if heading in text:
            return text.rpartition(heading)[2].partition("\n")[0]
    return text


def atoms(formula: str) -> dict[str, int] | None:
    """Counts of the elements in a molecular formula, and its charge under `+` or `-`; None if it is not a formula.

    Reading stops at the first letter that is not the start of an element, as in the published scorer; only the first
    charge counts.
    """
    if not _FORMULA.match(formula) or re.search(r"\d{300}", formula):
        return None
    counts: dict[str, int] = {}
    place = 0
    while found := _ATOM.match(formula, place):
        counts[found[1]] = counts.get(found[1], 0) + int(found[2] or 1)
        place = found.end()
    if charge := _CHARGE.search(formula):
        counts[charge[1]] = int(charge[2] or 1)
    return counts


def _same_atoms(answer: str, reference: str) -> dict[str, Any]:
    formula, wanted = last_molecule(answer), atoms(last_molecule(reference))
    if wanted is None:
        raise ValueError(f"the reference {reference!r} is not a molecular formula")
    found = atoms(formula) if formula else None
    # an empty formula counts as valid and wrong
    return {"score": found is not None and found == wanted, "valid": found is not None or not formula}


same_atoms = of_means(_same_atoms, "valid", unit=100)
"""Percentage of formulas with the reference's atoms, in any order. extra: `valid`, the percentage that is a formula."""


def _same_text(answer: str, reference: str) -> dict[str, Any]:
    found = last_molecule(answer).strip()
    return {"score": found != "" and found == last_molecule(reference).strip()}


same_text = of_means(_same_text, unit=100)
"""Percentage of answers whose last molecule or name is the reference's, character by character."""


def _first_number(answer: str, reference: str) -> dict[str, Any]:
    wanted = extract.numbers(reference)
    if not wanted:
        raise ValueError(f"the reference {reference!r} has no number in <NUMBER> tags or \\boxed{{}}")
    found = extract.numbers(answer)
    return {"score": abs((found or [0.0])[0] - wanted[0]), "parsed": bool(found)}


absolute_error = of_errors(_first_number)
r"""Mean absolute error of the first number in `<NUMBER>` or `\boxed{}`; 0 is taken where there is none.

SMolInstruct's property tasks. The published scorer calls this RMSE: it takes the root of each row's square and then the
mean, which is the mean absolute error. extra: `rmse`, the root of the mean square."""


def _last_number(answer: str, reference: float | str) -> dict[str, Any]:
    found = extract.numbers(answer)
    return {"score": abs((found or [0.0])[-1] - float(reference)), "parsed": bool(found)}


last_number_error = of_errors(_last_number)
r"""Mean absolute error of the last number in `<NUMBER>` or `\boxed{}` (0 without one) to a bare number.

Mol-Instructions' property task."""


def _yes_no(answer: str, reference: str) -> dict[str, Any]:
    word = extract.yes_or_no(answer)
    return {"score": word != "" and f"<BOOLEAN> {word.capitalize()} </BOOLEAN>" == reference, "parsed": word != ""}


yes_no = of_means(_yes_no, unit=100)
"""Percentage of answers that say yes or no as the reference does, which is written `<BOOLEAN> Yes </BOOLEAN>`."""


def tanimoto(first: str, second: str) -> float | None:
    """Tanimoto similarity, 0 to 1, of the Morgan fingerprints (radius 2, 2,048 bits) of two SMILES; None if one is not
    a molecule to RDKit."""
    from rdkit import Chem, DataStructs, rdBase
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    with rdBase.BlockLogs():  # RDKit prints a line for every SMILES that it cannot read
        molecules = [Chem.MolFromSmiles(smiles) for smiles in (first, second)]
    if None in molecules:
        return None
    generator = GetMorganGenerator(radius=2, fpSize=2048)
    return float(DataStructs.TanimotoSimilarity(*map(generator.GetFingerprint, molecules)))


def _similar(pair: tuple[str, str] | None) -> dict[str, Any]:
    found = None if pair is None else tanimoto(*pair)
    return {"score": found or 0.0, "valid": found is not None}


similarity = of_means(lambda answer, ref: _similar((last_molecule(answer), last_molecule(ref))), "valid", unit=100)
"""Mean fingerprint similarity in per cent; 0 where a molecule cannot be read. extra: `valid`, the percentage read.

SMolInstruct's molecule generation, synthesis and retrosynthesis."""


def tagged_similarity(tag: str) -> Metric:
    """As `similarity`, between the last `<tag>`s, SELFIES or SMILES: Mol-Instructions' reaction and design tasks.

    A text without the tag is taken whole, as SMILES, and a reference in SELFIES is then not decoded: the published
    scorer decodes both where the answer has the tag, and neither where it has not.
    """

    def one(answer: str, reference: str) -> dict[str, Any]:
        found = (extract.tagged(answer, tag) or [""])[-1]
        wanted = (extract.tagged(reference, tag) or [""])[-1] or reference
        return _similar(_decoded(found, wanted) if found and tag == "SELFIES" else (found or answer, wanted))

    return of_means(one, "valid", unit=100)


def _decoded(*texts: str) -> tuple[str, str] | None:
    """SMILES of SELFIES; None where one cannot be decoded."""
    import selfies

    try:
        first, second = (selfies.decoder(text) for text in texts)
    except (selfies.DecoderError, AttributeError, TypeError, ValueError):
        return None
    return first, second


def meteor(wordnet: Any = None) -> Metric:
    """Mean METEOR of nltk, 0 to 1, over words split at spaces; 0 for an empty text.

    Needs nltk's `wordnet` data (`python -m nltk.downloader wordnet`), from which synonyms come; `wordnet` replaces it.
    Scoring raises LookupError where the data are missing.
    """

    def one(answer: str, reference: str) -> dict[str, Any]:
        from nltk.translate.meteor_score import meteor_score

        options = {} if wordnet is None else {"wordnet": wordnet}
        if not answer or not reference:
            return {"score": 0.0}
        return {"score": float(meteor_score([reference.split()], answer.split(), **options))}

    return of_means(one)
