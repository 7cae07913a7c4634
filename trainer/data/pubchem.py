"""Narrative text from structured PubChem records: templates filled with names, formulas, weights and structures.

Which sentences a record gets, in which words and order, is a hash of the record: the same on every machine, and
varied enough that the text is not one template learnt by heart.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.errors import DataError
from trainer.data.hashing import text_key

ELEMENTS = {
    "C": "carbon", "H": "hydrogen", "N": "nitrogen", "O": "oxygen", "S": "sulfur", "P": "phosphorus",
    "F": "fluorine", "Cl": "chlorine", "Br": "bromine", "I": "iodine", "Si": "silicon", "B": "boron",
    "Na": "sodium", "K": "potassium", "Li": "lithium", "Ca": "calcium", "Mg": "magnesium", "Al": "aluminium",
    "Fe": "iron", "Cu": "copper", "Zn": "zinc", "Hg": "mercury", "Sn": "tin", "Pb": "lead", "As": "arsenic",
    "Se": "selenium", "Co": "cobalt", "Ni": "nickel", "Pt": "platinum", "Au": "gold", "Ag": "silver",
}  # fmt: skip
WORD = re.compile(r"[a-z]{3}")
CATALOGUE_NUMBER = re.compile(r"^agn-pc|^[a-z]{1,10}[- ]?\d{3,}|^\d+-\d\d-\d|[0-9a-f]{8}-|_\d|[|;]|\.p\d")

OPENINGS = (
    "The molecular formula of {name} is {formula}.",
    "The compound {name} has the molecular formula {formula}.",
    "{formula} is the molecular formula of {name}.",
    "Among the compounds of formula {formula} is {name}.",
    "Consider {name}, a compound with the formula {formula}.",
    "What is the molecular formula of {name}? It is {formula}.",
)
# field -> (chance out of 8 that a record mentions it, ways of saying it)
SENTENCES: dict[str, tuple[int, tuple[str, ...]]] = {
    "weight": (7, ("Its molecular weight is {weight} g/mol.", "One mole of it weighs {weight} g.",
                   "It has a molar mass of {weight} g/mol.")),
    "smiles": (6, ('In SMILES notation it is written "{smiles}".', 'Its structure as a SMILES string is "{smiles}".',
                   'The SMILES string of the molecule is "{smiles}".')),
    "systematic": (6, ("Its systematic name is {systematic}.", "By the rules of IUPAC it is called {systematic}.")),
    "atoms": (4, ("Each molecule contains {atoms}.", "A molecule of it is made of {atoms}.",
                  "Counting atoms gives {atoms}.")),
    "synonyms": (4, ("It is also known as {synonyms}.", "Some call it {synonyms}.")),
    "inchi": (2, ('The InChI of the compound is "InChI=1S/{inchi}".', 'Its InChI reads "InChI=1S/{inchi}".')),
    "cas": (2, ("Its CAS registry number is {cas}.", "It is listed under the CAS number {cas}.")),
    "cid": (2, ("PubChem lists it as compound {cid}.", "It is number {cid} in PubChem.")),
}  # fmt: skip
CARD = ("name", "formula", "weight", "smiles", "inchi", "cas")


@dataclass(frozen=True)
class Molecule:
    skeleton: str  # first block of the InChIKey: the same for all stereoisomers, which so stay in one split
    fields: dict[str, str]


def parse_record(line: str) -> Molecule:
    """A line of the table: CID, CAS, formula, weight, SMILES, InChI, InChIKey, IUPAC name, common name, synonyms..."""
    cid, cas, formula, weight, smiles, inchi, key, systematic, *names = line.split("\t")
    readable = [name for name in names if len(name) <= 60 and WORD.search(name) and not CATALOGUE_NUMBER.search(name)]
    name = readable[0] if readable else systematic
    fields = {"name": name, "formula": formula, "weight": weight, "smiles": smiles, "inchi": inchi, "cas": cas}
    if int(cid) > 0:
        fields["cid"] = cid
    if systematic != name:
        fields["systematic"] = systematic
    synonyms = [other for other in readable[1:] if other not in (name, systematic)]
    if synonyms:
        fields["synonyms"] = " or ".join(synonyms[:2])
    atoms = [(ELEMENTS.get(symbol), count or "1") for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula)]
    if len(atoms) > 1 and all(element for element, _ in atoms):
        listed = [f"{count} {element}" for element, count in atoms]
        fields["atoms"] = ", ".join(listed[:-1]) + f" and {listed[-1]} atoms"
    return Molecule(key.split("-")[0], fields)


class Choices:
    """Small integers drawn one after the other from the bits of a record's hash."""

    def __init__(self, key: int) -> None:
        self._bits = key

    def below(self, n: int) -> int:
        self._bits, choice = divmod(self._bits, n)
        return choice


def narrate(molecule: Molecule) -> str:
    """The record as a paragraph, one line per sentence, or (one in eight) a card of `field: value` lines."""
    fields = molecule.fields
    choose = Choices(text_key("sentences", fields["inchi"]))
    if choose.below(8) == 0:
        return "".join(f"{field}: {fields[field]}\n" for field in CARD)
    separator = "\n" if choose.below(4) == 0 else " "
    opening = OPENINGS[choose.below(len(OPENINGS))]
    said = [
        ways[choose.below(len(ways))]
        for field, (chance, ways) in SENTENCES.items()
        if choose.below(8) < chance and field in fields
    ]
    order = Choices(text_key("order", fields["inchi"]))
    for last in range(len(said) - 1, 0, -1):  # a Fisher-Yates shuffle
        other = order.below(last + 1)
        said[last], said[other] = said[other], said[last]
    return separator.join((opening, *said)).format(**fields) + "\n"


def read_molecules(table: Path) -> Iterator[tuple[str, str]]:
    """(skeleton, text) of every record of the table, in the order of a hash of the skeleton."""
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{table}: {error.strerror}: pip install 'octavo[toy]' brings this file") from error
    keyed = []
    for number, line in enumerate(lines):
        columns = line.split("\t", 7)
        if len(columns) < 8:
            raise DataError(f"{table}: line {number + 1} is no PubChem record: reinstall the package 'chemicals'")
        skeleton = columns[6].split("-")[0]
        keyed.append((text_key(skeleton), skeleton, number))
    for _, skeleton, number in sorted(keyed):
        yield skeleton, narrate(parse_record(lines[number]))
