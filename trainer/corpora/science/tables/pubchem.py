"""Identities of compounds, from the table of PubChem records in the package `chemicals`."""

import re
from dataclasses import dataclass

from trainer.corpora.packages import Files
from trainer.corpora.science.names import in_order, with_capitals
from trainer.corpora.science.records import Property, Record, Table
from trainer.corpora.science.tables.chemistry import known, one_file
from trainer.data.errors import DataError

ELEMENTS = {
    "C": "carbon", "H": "hydrogen", "N": "nitrogen", "O": "oxygen", "S": "sulfur", "P": "phosphorus",
    "F": "fluorine", "Cl": "chlorine", "Br": "bromine", "I": "iodine", "Si": "silicon", "B": "boron",
    "Na": "sodium", "K": "potassium", "Li": "lithium", "Ca": "calcium", "Mg": "magnesium", "Al": "aluminium",
    "Fe": "iron", "Cu": "copper", "Zn": "zinc", "Hg": "mercury", "Sn": "tin", "Pb": "lead", "As": "arsenic",
    "Se": "selenium", "Co": "cobalt", "Ni": "nickel", "Pt": "platinum", "Au": "gold", "Ag": "silver",
}  # fmt: skip
NON_METALS = {"C", "H", "N", "O", "S", "P", "F", "Cl", "Br", "I", "Si", "B", "As", "Se"}
WORD = re.compile(r"[a-z]{3}")
NO_NAME = re.compile(  # catalogue numbers, formulas, polymers and scrambled entries
    r"[0-9a-f]{8}-|_\d|\.p\d|"
    r"[\\@$#%&?!=<>_{}~|;]|\d[a-z]\d[a-z]\d|polymer|"
    r"\[[^\]]*\b(?:german|french|dutch|polish|latin|russian|czech|japanese|italian|spanish|portugu?ese|chinese|"
    r"romanian|swedish|danish|hungarian|dcit)\b[^\]]*\]|"  # names in other languages
    r"\.equiv\.|\((?:tn|usan|inn|ban|jan|nf|usp)\)"
)
INDEX_ENTRY = re.compile(r"-, |-$|, \S+-$|\(\d+ci|, (?:\S+ )*(?:ester|acid)\b")  # "benzene, 1-hexynyl-"
# The checks of the next five run on 200,000 names: each has a condition that is quick.
COMMA = re.compile(r",(?<=[a-z],)[a-z]{3}")  # "arsine,dimethyl(phenylmethyl)"
RADICALS = ("chloro", "bromo", "fluoro", "iodo", "oxy", "nitro", "amino", "yl")  # at the end: "hexane 1,1-dichloro"
CODE = re.compile(
    r"agn-pc|[a-z]{1,10}[- ]?\d{3,}|ac1\w{5}$|ctk\w+$|\d+-\d\d-\d|chebi:|\([a-z]{2}\d\)|dn cust|"
    r"[a-z]{1,3}\d[a-z]{1,2}\d|[a-z]{2,4}[- ]?\d{2,}$"
)
MIXTURE = re.compile(
    r" de |\(sup |[a-z)]- |reaction product|\bc\d+-c?\d+| \[(?:inn|ban|usan)\b| (?:radical|ion|cation|anion)$"
)
RATIO = re.compile(r"[a-z]\(\d+:\d")  # "ethanamine(1:1)"
FORMULA = re.compile(r" \([a-z]+\d[a-z\d()]*\)$")  # in lower case, after a name: "copper nitride (cu3n)"
GREEK = re.compile(r"\.(alpha|beta|gamma|delta|epsilon|omega)\.")
DYE = re.compile(
    r"(?:c\.i\. )?\b(?:(?:acid|basic|citrus|direct|disperse|food|mordant|pigment|reactive|solvent|vat) )?"
    r"(?:red|orange|yellow|blue|green|violet|brown|black) (?:no\. )?\d+\b"
)
LETTER = re.compile(  # "vitamin b12", "rhodamine b", "baccatin iii", "bisphenol a diallyl ether"
    r" (?:(?<=vitamin )[a-k]\d*$|(?<=[a-z]{3} )(?:[a-z]|i{2,3}|iv|ix|vi{0,3})$|(?<=bisphenol )[a-z]\b)"
)
ISOTOPE = re.compile(r"-1[358][cno]\d*\b")
PROTECTED = re.compile(r"(?<![a-z])(?:boc|fmoc|cbz)(?=-)")
PUNCTUATION = str.maketrans("", "", "-–()[]{} ,.'")
LONGEST_NAME = 60  # characters
IDENTITY = {
    "formula": Property("molecular formula", number=False),
    "weight": Property("molecular weight", unit="g/mol", measured=False),
    "smiles": Property(
        "SMILES string",
        number=False,
        quoted=True,
        identifies=True,
        questions=("What is the SMILES representation of {called}?", "Write {called} in SMILES notation."),
    ),
    "systematic": Property("systematic name", number=False, identifies=True),
    "other": Property(
        "alternative name", number=False, asked=False, several=True, predicates=("is also known as {value}",)
    ),
    "atoms": Property(
        "atomic composition",
        number=False,
        stated=False,
        predicates=("contains {value} per formula unit",),
        questions=("How many atoms of each element does one formula unit of {called} contain?",),
    ),
    "atoms of molecule": Property(
        "atomic composition",
        number=False,
        stated=False,
        predicates=("contains {value} per molecule",),
        questions=("How many atoms of each element does one molecule of {called} contain?",),
    ),
    "inchi": Property("InChI", number=False, quoted=True, identifies=True),
    "cas": Property("CAS registry number", number=False, asked=False),
    "cid": Property("PubChem compound identifier (CID)", number=False, asked=False),
}


@dataclass(frozen=True)
class Compound:
    skeleton: str  # first block of the InChIKey: the same for all stereoisomers, which so stay in one split
    name: str  # "" where the table has none
    values: dict[str, str]


def identity_files() -> Files:
    return [one_file("Identifiers/chemical identifiers pubchem large.tsv")]


def identities() -> list[Table]:
    """Names, formulas, weights and structures. Raises DataError where the file is damaged."""
    ((_, path),) = identity_files()
    records = []
    for line_number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.count("\t") < 7:
            raise DataError(
                f"{path}: line {line_number} is not a PubChem record: reinstall the package 'chemicals'",
                where=f"{path}, line {line_number}",
                value=line,
                allowed="reinstall the package 'chemicals'",
            )
        compound = parse_record(line)
        if compound.name:
            records.append(Record(compound.skeleton, compound.name, known(compound.values, IDENTITY)))
    return [Table("PubChem", "compound", "compounds", IDENTITY, records)]


def parse_record(line: str) -> Compound:
    """A line of the table: CID, CAS, formula, weight, SMILES, InChI, InChIKey, IUPAC name, common name, synonyms..."""
    cid, cas, formula, weight, smiles, inchi, key, systematic, *names = line.split("\t")
    readable, spoken = "", list[str]()  # the first readable name, and the first two that are not index entries
    for name in names:
        if len(name) <= LONGEST_NAME and WORD.search(name) and not _odd(name) and not NO_NAME.search(name):
            readable = readable or name
            if not _indexed(name):
                spoken.append(name)
                if len(spoken) == 2:
                    break
    if "{" in systematic:  # "$l^{5}-phosphane", "tricyclo[2.2.1.0^{2,6}]heptane"
        systematic = systematic.replace("$l^{", "lambda").replace("^{", "^").replace("}", "")
    plain = "" if ";" in systematic else systematic  # salts are lists of ions: "azanium;chloride"
    name = _spelled(next((one for one in (*spoken[:1], plain, readable) if one), ""))
    values = {"formula": formula, "weight": weight, "smiles": smiles, "inchi": f"InChI=1S/{inchi}", "cas": cas}
    if int(cid) > 0:
        values["cid"] = cid
    if plain and not _same(plain, name):
        values["systematic"] = with_capitals(systematic)
    for other in map(_spelled, spoken[1:]):
        if not (_same(other, name) or _same(other, systematic)):
            values["other"] = other
    counts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    atoms = [(ELEMENTS.get(symbol), count or "1") for symbol, count in counts]
    if len(atoms) > 1 and all(element for element, _ in atoms):
        *most, last = [f"{count} {element} {'atom' if count == '1' else 'atoms'}" for element, count in atoms]
        molecular = _molecular({symbol for symbol, _ in counts}, smiles, inchi)
        values["atoms of molecule" if molecular else "atoms"] = f"{', '.join(most)} and {last}"
    return Compound(key.split("-")[0], name, values)


def _molecular(elements: set[str], smiles: str, inchi: str) -> bool:
    """True if a compound certainly consists of molecules: a single neutral component of non-metals. Those that may be
    network solids, such as SiC and SiO2, have neither hydrogen nor a halogen."""
    if "." in smiles or "." in inchi or ";" in inchi or re.search(r"/[qp]", inchi) or not elements <= NON_METALS:
        return False
    return bool(elements & {"H", "F", "Cl", "Br", "I"}) or elements <= {"C", "N", "O", "S"}


def _spelled(name: str) -> str:
    name = with_capitals(in_order(FORMULA.sub("", name) if name.endswith(")") else name))
    if " " in name:
        if name[-1].isdigit():
            name = DYE.sub(lambda found: found[0].title().replace("C.i.", "C.I."), name)
        name = LETTER.sub(lambda found: found[0].upper(), name)
        name = f"{name[:-3]}hydrochloride" if name.endswith(" hcl") else name
    if name.startswith("s-") and "thio" in name:
        name = f"S{name[1:]}"
    if "." in name:
        name = GREEK.sub(r"\1", name)
    if "itert-" in name:
        name = name.replace("itert-but", "i-tert-but")
    if "-1" in name:
        name = ISOTOPE.sub(lambda found: found[0].upper(), name)
    if "oc-" in name or "cbz-" in name:
        name = PROTECTED.sub(lambda found: found[0].capitalize(), name)
    return name


def _odd(name: str) -> bool:
    """True for codes, mixtures and names with a ratio or a remark."""
    spaced = " " in name and MIXTURE.search(name)
    return bool(spaced or CODE.match(name) or (":" in name and RATIO.search(name)))


def _indexed(name: str) -> bool:
    """True for the entry of an index: "benzene, 1-hexynyl-"."""
    radical = " " in name and name.endswith(RADICALS)
    return bool(radical or INDEX_ENTRY.search(name) or ("," in name and COMMA.search(name)))


def _same(one: str, other: str) -> bool:
    """True if two names differ in nothing but hyphens, brackets, spaces and capitals."""
    first, last, end = one[:1].lower() == other[:1].lower(), one[-1:].lower(), other[-1:].lower()
    if one == other or not first or (last != end and last.isalnum() and end.isalnum()):  # most pairs, at little cost
        return one == other
    return one.translate(PUNCTUATION).lower() == other.translate(PUNCTUATION).lower()
