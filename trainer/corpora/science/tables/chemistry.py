"""Thermochemistry and properties of materials, from the files of the package `chemicals`.

Values stay the strings of the files, but for the ".0" that whole numbers have in the JANAF files. The columns are in SI
units (K, Pa, J/mol, kg/m^3, m^3/mol), as the package's documentation of each says.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.corpora.packages import Files, package_files
from trainer.corpora.science.names import in_lower_case, in_order
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.corpora.science.tables.formulas import usual
from trainer.corpora.science.tables.plausible import of_element, plausible
from trainer.data.errors import DataError

PHASES = {"s": "in the solid state", "l": "in the liquid phase", "g": "in the gas phase"}
QUANTITIES = {
    "Hf": ("standard enthalpy of formation", "J/mol"),
    "Gf": ("standard Gibbs energy of formation", "J/mol"),
    "S0": ("standard molar entropy", "J/(mol K)"),
    "Cp": ("molar heat capacity at constant pressure", "J/(mol K)"),
}
TEMPERATURES = ("200.0", "298.15", "400.0", "500.0", "700.0", "1000.0", "1500.0", "2000.0", "3000.0")

THERMOCHEMISTRY = {
    quantity + state: Property(label, f"{phase} at 298.15 K", unit)
    for quantity, (label, unit) in QUANTITIES.items()
    for state, phase in PHASES.items()
}
HEAT_CAPACITIES = {
    f"{state} {temperature}": Property(
        QUANTITIES["Cp"][0], f"{phase} at {temperature.removesuffix('.0')} K", QUANTITIES["Cp"][1]
    )
    for state, phase in PHASES.items()
    for temperature in TEMPERATURES
}
SIZES = ("smallest", "largest")
ACTIVE = {
    "Hfg": Property("enthalpy of formation", "in the gas phase at 298.15 K", "J/mol"),
    "Hfg_0K": Property("enthalpy of formation", "in the gas phase at 0 K", "J/mol"),
    "uncertainty": Property(
        "uncertainty in the gas-phase enthalpy of formation",
        unit="J/mol",
        measured=False,
        possessive="the uncertainty in its gas-phase enthalpy of formation",
        had=False,
        follows=True,
        extremes=SIZES,
    ),
}
PHYSICAL = {
    "Tm": Property(
        "melting point",
        unit="K",
        predicates=("melts at {value}", "has a melting point of {value}"),
        questions=("At what temperature does {called} melt?", "What is the temperature at which {called} melts?"),
    ),
    "Tb": Property(
        "normal boiling point",
        unit="K",
        predicates=("boils at {value} at atmospheric pressure", "has a normal boiling point of {value}"),
        questions=(
            "At what temperature does {called} boil at atmospheric pressure?",
            "What is the boiling point of {called} at atmospheric pressure?",
        ),
    ),
    # No condition: the package's table leaves out the temperatures of the Handbook, some far above room temperature.
    "rho": Property("density", "", "kg/m^3"),
    "RI": Property("refractive index", ""),
}
PHASE_CHANGE = {
    "Hfus": Property("enthalpy of fusion", "at the melting point", "J/mol"),
    "HvapTb": Property("enthalpy of vaporization", "at the normal boiling point", "J/mol"),
    "Hvap298": Property("enthalpy of vaporization", "at 298.15 K", "J/mol"),
}
CRITICAL = {
    "Tc": Property("critical temperature", unit="K"),
    "Pc": Property("critical pressure", unit="Pa"),
    "Vc": Property("critical molar volume", unit="m^3/mol", extremes=SIZES),
    "Zc": Property("critical compressibility factor"),
}
ELEMENT = {
    "atomic number": Property("atomic number", measured=False),
    "element symbol": Property(
        "chemical symbol",
        number=False,
        identifies=True,
        questions=("What is the chemical symbol for {called}?", "Which symbol stands for {called}?"),
    ),
    "atomic mass": Property("atomic mass", unit="u"),
    "covalent radius": Property("covalent radius", unit="Å", extremes=SIZES),
    "Van derWaal radius": Property("van der Waals radius", unit="Å", extremes=SIZES),
    "most common isotopic mass": Property(
        "mass of the most abundant isotope",
        unit="u",
        measured=False,
        possessive="the mass of its most abundant isotope",
        had=False,
        part=("most abundant isotope", "a mass of {value}"),
    ),
}

PARTICLE = re.compile(r"\b(?:ion|cation|anion|dication|radical|atom|molecule|dimer)\b")
MISSPELT = {
    "triclorofluormethane": "trichlorofluoromethane",
    "clorosilylidyne": "chlorosilylidyne",
    "trifluoriodomethane": "trifluoroiodomethane",
}
DEUTERATED = re.compile(r"(.+)-D\b(.*)")
DEUTERIDES = {  # others are named by the number of their deuterium atoms: "ammonia-d3"
    "hydrogen": "hydrogen deuteride", "water": "deuterium oxide", "hydrochloric acid": "deuterium chloride",
    "hydrofluoric acid": "deuterium fluoride", "hydrogen sulfide": "deuterium sulfide",
}  # fmt: skip
ONLY = {  # the formula of these names; the table also gives them to other species
    "borane": "BH3", "boric acid": "BH3O3", "carbonyl fluoride": "CF2O", "carbonyl chloride": "CCl2O",
}  # fmt: skip
BORANE, HYDROGEN = re.compile(r"borane\b"), re.compile(r"H(?![a-z])")
HALOGENS = re.compile(r"(?:F|Cl|Br|I)(\d?)")
CHARGED = re.compile(r"^\[([A-Z][a-z]?)\]([+-])(\d)$")  # "[He]+2" -> "He2+"
FLOAT_NOISE = re.compile(r"0{6,}\d$|9{6,}\d?$")  # of arithmetic on the tables: "-128461.00000000001"
CRC = "the CRC Handbook of Chemistry and Physics"
JANAF = "the 1998 JANAF Thermochemical Tables"


def _name(entry: str) -> str:
    return in_lower_case(in_order(entry.strip()))


def _called(name: str) -> str:
    """`the zinc ion (Zn+)`: a particle takes an article in a sentence, a substance does not."""
    return f"the {name}" if PARTICLE.search(name) else name


def _janaf_name(row: Mapping[str, str]) -> str:
    """`Hydrogen, Ion` -> `hydrogen anion (H-)`: ions and dimers share their names and differ in formulas. The name
    alone where the usual order of the formula is not certain; "" where the two contradict."""
    name, comma, isomer = row["Chemical"].replace(" ,", ",").partition(", ")
    formula = row["formula"]
    name = in_lower_case(name)
    for wrong, right in MISSPELT.items():
        name = name.replace(wrong, right)
    if comma:
        ion = {"+": "cation", "-": "anion"}.get(formula[-1:], "ion")
        name = f"{name} {ion}" if isomer == "Ion" else f"{isomer.lower()}-{name}"
    if ONLY.get(name, formula) != formula or (BORANE.search(name) and not HYDROGEN.search(formula) and (
        formula.startswith("B2") or sum(int(count or 1) for count in HALOGENS.findall(formula)) < 3
    )):  # fmt: skip
        return ""
    written = usual(formula, name)
    if name.endswith("-D") and not written:
        return ""
    if found := DEUTERATED.match(name):
        count = formula.partition("D")[2][:1]
        name = (DEUTERIDES.get(found[1]) or f"{found[1]}-d{count if count.isdigit() else ''}") + found[2]
    if "(" in written:
        return f"{name} [{written}]"
    return f"{name} ({written})" if written else name


def _active_name(row: Mapping[str, str]) -> str:
    """`Ozone`, `OOO (g)` -> `ozone (OOO)`; all species of this file are gases. Formulas that need brackets of two kinds
    are left out, and so are the acids whose name and formula contradict: HONC is isofulminic acid."""
    formula, name = row["Formula"].removesuffix(" (g)"), _name(row["Chemical"])
    if "fulminic" in name or "vdW" in name:
        return ""
    if name.endswith(" ion") and formula[-1] in "+-":
        name = f"{name.removesuffix(' ion')} {'cation' if formula[-1] == '+' else 'anion'}"
    formula = CHARGED.sub(r"\1\3\2", formula)
    return name if "(" in formula or "[[" in formula else f"{name} ({formula})"


@dataclass(frozen=True)
class Sheet:
    """A file of the package and its meaning."""

    file: str
    thing: str
    things: str
    properties: Mapping[str, Property]
    authority: str
    name: Callable[[Mapping[str, str]], str] = lambda row: _name(row["Chemical"])  # of a row


THERMO = (
    Sheet(
        "Heat Capacity/CRC Standard Thermodynamic Properties of Chemical Substances.tsv",
        *("substance", "substances", THERMOCHEMISTRY, CRC),
    ),
    Sheet("Reactions/JANAF_1998.tsv", "substance", "substances", THERMOCHEMISTRY, JANAF, _janaf_name),
    Sheet(
        "Reactions/ATcT 1.112 (g).tsv",
        *("species", "species", ACTIVE, "version 1.112 of the Active Thermochemical Tables", _active_name),
    ),
)
MATERIALS = (
    Sheet("Misc/Physical Constants of Inorganic Compounds.csv", "substance", "substances", PHYSICAL, CRC),
    Sheet(
        "Misc/Physical Constants of Organic Compounds.csv",
        "compound",
        "compounds",
        PHYSICAL,
        CRC,
        lambda row: _name(row["Name"]),
    ),
    Sheet("Phase Change/CRC Handbook Heat of Fusion.tsv", "substance", "substances", PHASE_CHANGE, CRC),
    Sheet(
        "Phase Change/CRC Handbook Heat of Vaporization.tsv", "substance", "substances", PHYSICAL | PHASE_CHANGE, CRC
    ),
    Sheet(
        "Critical Properties/IUPACOrganicCriticalProps.tsv",
        *("compound", "compounds", CRITICAL, "the IUPAC compilation of critical properties"),
    ),
    Sheet("Misc/Element data.csv", "element", "elements", ELEMENT, "", lambda row: _name(row["name"])),
)
CAPACITY_FILES = {state: f"Heat Capacity/JANAF_1998_{word}_Cp.json" for state, word in
                  (("s", "solid"), ("l", "liq"), ("g", "gas"))}  # fmt: skip


def one_file(name: str) -> tuple[str, Path]:
    """A file of the package by the end of its path."""
    for listed, path in package_files("chemicals", Path(name).suffix):
        if listed.endswith(name):
            return listed, path
    raise DataError(
        f"package 'chemicals' has no file '{name}': pip install -e '.[toy]' installs the right version",
        where="chemicals",
        value=name,
        allowed="pip install -e '.[toy]'",
    )


def thermo_files() -> Files:
    return [one_file(name) for name in (*(sheet.file for sheet in THERMO), *CAPACITY_FILES.values())]


def material_files() -> Files:
    return [one_file(sheet.file) for sheet in MATERIALS]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated table with a header; none of these files quotes."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}: pip install -e '.[toy]' installs this file",
            where=str(path),
            allowed="pip install -e '.[toy]'",
        ) from error
    names = [name.strip() for name in header.split("\t")]
    for line in lines:
        yield dict(zip(names, (cell.strip() for cell in line.split("\t")), strict=False))


def known(row: Mapping[str, str], properties: Mapping[str, Property]) -> dict[str, str]:
    """The cells of a row that have a value of their property."""
    cells = {key: row[key] for key in properties if row.get(key)}
    return {key: cell for key, cell in cells.items() if not properties[key].number or _clean(cell)}


def _clean(cell: str) -> bool:
    return number(cell) is not None and not ("." in cell and FLOAT_NOISE.search(cell))


def _table(sheet: Sheet) -> Table:
    records, left_out = [], Counter[str]()
    labels = {key: prop.label for key, prop in sheet.properties.items()}
    janaf, elements = sheet.authority == JANAF, sheet.properties is ELEMENT
    for row in _rows(one_file(sheet.file)[1]):
        name, values = sheet.name(row), known(row, sheet.properties)
        if not name or name == "ununbium":
            left_out["name that contradicts the formula or symbol"] += 1
            continue
        values = of_element(values, left_out) if elements else plausible(values, labels, left_out)
        if janaf:
            values = {key: value.removesuffix(".0") for key, value in values.items()}
        if values:
            records.append(Record(row["CAS"], name, values, called=_called(name)))
    stem = Path(sheet.file).stem
    return Table(stem, sheet.thing, sheet.things, sheet.properties, records, sheet.authority, left_out=left_out)


def thermo() -> list[Table]:
    """Standard enthalpies, Gibbs energies, entropies and heat capacities of three collections, and heat capacities over
    temperature."""
    return [*(_table(sheet) for sheet in THERMO), _heat_capacities()]


def materials() -> list[Table]:
    """Melting and boiling points, densities, refractive indices, heats of phase change, critical points, elements."""
    return [_table(sheet) for sheet in MATERIALS]


def _heat_capacities() -> Table:
    janaf = THERMO[1]
    names = {row["CAS"]: janaf.name(row) for row in _rows(one_file(janaf.file)[1])}
    found: dict[str, dict[str, str]] = {}
    for state, name in CAPACITY_FILES.items():
        path = one_file(name)[1]
        for cas, (temperatures, capacities) in json.loads(path.read_text(), parse_float=str, parse_int=str).items():
            at = dict(zip(temperatures, capacities, strict=True))
            known = {f"{state} {t}": at[t].removesuffix(".0") for t in TEMPERATURES if t in at}
            found.setdefault(cas, {}).update(known)
    records = [
        Record(cas, names[cas], values, called=_called(names[cas]))
        for cas, values in sorted(found.items())
        if names.get(cas) and values
    ]
    return Table("JANAF heat capacities", janaf.thing, janaf.things, HEAT_CAPACITIES, records, JANAF)
