"""Tables of the package `chemicals`, read from its files: identities, thermochemistry, properties of materials.

Values stay the strings that the files hold. The tables' columns are in SI units (K, Pa, J/mol, kg/m^3, m^3/mol), as the
package's documentation of each says.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.corpora.packages import Files, package_files
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.data.errors import DataError

ELEMENTS = {
    "C": "carbon", "H": "hydrogen", "N": "nitrogen", "O": "oxygen", "S": "sulfur", "P": "phosphorus",
    "F": "fluorine", "Cl": "chlorine", "Br": "bromine", "I": "iodine", "Si": "silicon", "B": "boron",
    "Na": "sodium", "K": "potassium", "Li": "lithium", "Ca": "calcium", "Mg": "magnesium", "Al": "aluminium",
    "Fe": "iron", "Cu": "copper", "Zn": "zinc", "Hg": "mercury", "Sn": "tin", "Pb": "lead", "As": "arsenic",
    "Se": "selenium", "Co": "cobalt", "Ni": "nickel", "Pt": "platinum", "Au": "gold", "Ag": "silver",
}  # fmt: skip
WORD = re.compile(r"[a-z]{3}")
CATALOGUE_NUMBER = re.compile(r"^agn-pc|^[a-z]{1,10}[- ]?\d{3,}|^\d+-\d\d-\d|[0-9a-f]{8}-|_\d|[|;]|\.p\d")
STATES = {"s": "as a solid", "l": "as a liquid", "g": "as a gas"}
QUANTITIES = {
    "Hf": ("standard enthalpy of formation", "J/mol"),
    "Gf": ("standard Gibbs energy of formation", "J/mol"),
    "S0": ("standard molar entropy", "J/(mol K)"),
    "Cp": ("molar heat capacity at constant pressure", "J/(mol K)"),
}
TEMPERATURES = ("200.0", "298.15", "400.0", "500.0", "700.0", "1000.0", "1500.0", "2000.0", "3000.0")


def _property(said: str, condition: str = "", unit: str = "") -> Property:
    """`said` of {name} `condition`: "melting point", or "enthalpy of formation" with "as a gas at 298.15 K"."""
    return Property(f"{said} {condition}".strip(), f"{said} of {{name}} {condition}".strip(), unit)


THERMOCHEMISTRY = {
    quantity + state: _property(said, f"{phase} at 298.15 K", unit)
    for quantity, (said, unit) in QUANTITIES.items()
    for state, phase in STATES.items()
}
HEAT_CAPACITIES = {
    f"{state} {temperature}": _property(QUANTITIES["Cp"][0], f"{phase} at {temperature} K", QUANTITIES["Cp"][1])
    for state, phase in STATES.items()
    for temperature in TEMPERATURES
}
ACTIVE = {
    "Hfg": _property("enthalpy of formation", "as a gas at 298.15 K", "J/mol"),
    "Hfg_0K": _property("enthalpy of formation", "as a gas at 0 K", "J/mol"),
    "uncertainty": _property("uncertainty of the enthalpy of formation", "as a gas", "J/mol"),
}
PHYSICAL = {
    "Tm": _property("melting point", unit="K"),
    "Tb": _property("normal boiling point", unit="K"),
    "rho": _property("density", unit="kg/m^3"),
    "RI": _property("refractive index"),
}
PHASE_CHANGE = {
    "Hfus": _property("enthalpy of fusion", "at the melting point", "J/mol"),
    "HvapTb": _property("enthalpy of vaporization", "at the normal boiling point", "J/mol"),
    "Hvap298": _property("enthalpy of vaporization", "at 298.15 K", "J/mol"),
}
CRITICAL = {
    "Tc": _property("critical temperature", unit="K"),
    "Pc": _property("critical pressure", unit="Pa"),
    "Vc": _property("critical molar volume", unit="m^3/mol"),
    "Zc": _property("critical compressibility factor"),
}
ELEMENT = {
    "atomic number": _property("atomic number"),
    "element symbol": Property("chemical symbol", number=False, identifies=True),
    "atomic mass": _property("atomic mass", unit="u"),
    "covalent radius": _property("covalent radius", unit="angstrom"),
    "Van derWaal radius": _property("van der Waals radius", unit="angstrom"),
    "most common isotopic mass": _property("mass", "in its most common isotope", "u"),
}
IDENTITY = {
    "formula": Property("molecular formula", number=False),
    "weight": _property("molecular weight", unit="g/mol"),
    "smiles": Property("SMILES string", number=False, quoted=True, identifies=True),
    "systematic": Property("systematic name", number=False, identifies=True),
    "other": Property("other name", number=False),
    "atoms": Property("composition of one molecule", "composition of one molecule of {name}", number=False),
    "inchi": Property("InChI", number=False, quoted=True, identifies=True),
    "cas": Property("CAS registry number", number=False, asked=False),
    "cid": Property("number in PubChem", "number of {name} in PubChem", number=False, asked=False),
}

CRC = "the CRC Handbook of Chemistry and Physics"
JANAF = "the JANAF Thermochemical Tables of 1998"


@dataclass(frozen=True)
class Sheet:
    """A file of the package and what it says."""

    file: str
    thing: str
    things: str
    properties: Mapping[str, Property]
    authority: str
    name: str = "{Chemical}"  # of a row, from its columns


THERMO = (
    Sheet(
        "Heat Capacity/CRC Standard Thermodynamic Properties of Chemical Substances.tsv",
        *("substance", "substances", THERMOCHEMISTRY, CRC),
    ),
    # Ions and dimers bear the name of what they are made of; the formula tells them apart.
    Sheet("Reactions/JANAF_1998.tsv", "substance", "substances", THERMOCHEMISTRY, JANAF, "{Chemical} ({formula})"),
    Sheet(
        "Reactions/ATcT 1.112 (g).tsv",
        *("species", "species", ACTIVE, "the Active Thermochemical Tables, version 1.112", "{Chemical}, {Formula}"),
    ),
)
MATERIALS = (
    Sheet("Misc/Physical Constants of Inorganic Compounds.csv", "substance", "substances", PHYSICAL, CRC),
    Sheet("Misc/Physical Constants of Organic Compounds.csv", "compound", "compounds", PHYSICAL, CRC, "{Name}"),
    Sheet("Phase Change/CRC Handbook Heat of Fusion.tsv", "substance", "substances", PHASE_CHANGE, CRC),
    Sheet(
        "Phase Change/CRC Handbook Heat of Vaporization.tsv", "substance", "substances", PHYSICAL | PHASE_CHANGE, CRC
    ),
    Sheet(
        "Critical Properties/IUPACOrganicCriticalProps.tsv",
        *("compound", "compounds", CRITICAL, "the IUPAC compilation of critical properties"),
    ),
    Sheet("Misc/Element data.csv", "element", "elements", ELEMENT, "", "{name}"),
)
CAPACITY_FILES = {state: f"Heat Capacity/JANAF_1998_{word}_Cp.json" for state, word in
                  (("s", "solid"), ("l", "liq"), ("g", "gas"))}  # fmt: skip


def _file(name: str) -> tuple[str, Path]:
    """A file of the package by the end of its path."""
    for listed, path in package_files("chemicals", Path(name).suffix):
        if listed.endswith(name):
            return listed, path
    raise DataError(f"package 'chemicals' has no file '{name}': pip install 'octavo[toy]' brings the right version")


def thermo_files() -> Files:
    return [_file(name) for name in (*(sheet.file for sheet in THERMO), *CAPACITY_FILES.values())]


def material_files() -> Files:
    return [_file(sheet.file) for sheet in MATERIALS]


def identity_files() -> Files:
    return [_file("Identifiers/chemical identifiers pubchem large.tsv")]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated table with a header; none of these files quotes."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: pip install 'octavo[toy]' brings this file") from error
    names = [name.strip() for name in header.split("\t")]
    for line in lines:
        yield dict(zip(names, (cell.strip() for cell in line.split("\t")), strict=False))


def _known(row: Mapping[str, str], properties: Mapping[str, Property]) -> dict[str, str]:
    """The cells of a row that hold a value of their property."""
    cells = {key: row[key] for key in properties if row.get(key)}
    return {key: cell for key, cell in cells.items() if not properties[key].number or number(cell) is not None}


def _table(sheet: Sheet) -> Table:
    records = []
    for row in _rows(_file(sheet.file)[1]):
        name, values = sheet.name.format(**row).replace(" ,", ","), _known(row, sheet.properties)
        if values and name:
            records.append(Record(row["CAS"], name, values))
    return Table(Path(sheet.file).stem, sheet.thing, sheet.things, sheet.properties, records, sheet.authority)


def thermo() -> list[Table]:
    """Standard enthalpies, Gibbs energies, entropies and heat capacities of three collections, and heat capacities over
    temperature."""
    return [*(_table(sheet) for sheet in THERMO), _heat_capacities()]


def materials() -> list[Table]:
    """Melting and boiling points, densities, refractive indices, heats of phase change, critical points, elements."""
    return [_table(sheet) for sheet in MATERIALS]


def _heat_capacities() -> Table:
    janaf = THERMO[1]
    names = {row["CAS"]: janaf.name.format(**row) for row in _rows(_file(janaf.file)[1])}
    found: dict[str, dict[str, str]] = {}
    for state, name in CAPACITY_FILES.items():
        path = _file(name)[1]
        for cas, (temperatures, capacities) in json.loads(path.read_text(), parse_float=str, parse_int=str).items():
            at = dict(zip(temperatures, capacities, strict=True))
            known = {f"{state} {t}": at[t] for t in TEMPERATURES if t in at}
            found.setdefault(cas, {}).update(known)
    records = [Record(cas, names[cas], values) for cas, values in sorted(found.items()) if cas in names and values]
    return Table("JANAF heat capacities", janaf.thing, janaf.things, HEAT_CAPACITIES, records, JANAF)


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


def identities() -> list[Table]:
    """PubChem's records: names, formulas, weights and structures."""
    ((_, path),) = identity_files()
    records = []
    for line_number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.count("\t") < 7:
            raise DataError(f"{path}: line {line_number} is no PubChem record: reinstall the package 'chemicals'")
        molecule = parse_record(line)
        fields = molecule.fields | {"inchi": "InChI=1S/" + molecule.fields["inchi"]}
        fields["other"] = fields.get("synonyms", "").split(" or ")[0]
        values = _known(fields, IDENTITY)
        records.append(Record(molecule.skeleton, molecule.fields["name"], values))
    return [Table("PubChem", "compound", "compounds", IDENTITY, records)]
