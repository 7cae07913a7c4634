"""The fundamental physical constants of CODATA 2022, from the table in the package scipy, which is not imported."""

import ast
import re

from trainer.corpora.packages import Files, package_files
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.data.errors import DataError

COLUMNS = (slice(60), slice(60, 85), slice(85, 110), slice(110, None))  # name, value, uncertainty, unit
NAME = "txt2022"
IN_UNIT = re.compile(r" in (?:u|[MG]?eV|M?Hz|J|K|inverse meter)\b")
FULL = {
    "conventional value of ": "conventional ",  # "the CODATA 2022 value of the conventional value"
    "mag. mom.": "magnetic moment",
    "dipole mom.": "dipole moment",
    "quadrupole mom.": "quadrupole moment",
    "gyromag. ": "gyromagnetic ",
    "mag. ": "magnetic ",
    "1st hyper": "first hyper",
    "2nd hyper": "second hyper",
    "Copper": "copper",
    "Molybdenum": "molybdenum",
    "Angstrom": "angstrom",
    "inverse meter per": "inverse meters per",
    "charge to mass": "charge-to-mass",
    "triton to proton": "triton-to-proton",
    "W to Z": "W-to-Z",
}


def constant_files() -> Files:
    return [item for item in package_files("scipy", ".py") if item[0].endswith("constants/_codata.py")]


def constants() -> list[Table]:
    """One table with a property for each unit, so that only constants of the same unit are compared.

    The source writes digits in groups of three; the spaces between the groups are dropped, so that a value reads as one
    number, and a number with an exponent, or with zeros after its point, gets one digit before it (`normalised`).
    Values with endless digits ("1.054 571 817...") are left out.
    """
    source = "".join(path.read_text(encoding="utf-8") for _, path in constant_files())
    properties, records = {}, []
    for line in _text(source).splitlines():
        name, value, uncertainty, unit = (line[column].strip() for column in COLUMNS)
        value, uncertainty = normalised(value.replace(" ", "")), normalised(uncertainty.replace(" ", ""))
        if number(value) is None:
            continue
        # "The electron mass in u is 0.00054857990907 u" would name the unit twice.
        written = "" if IN_UNIT.search(name) else unit
        kind = unit if written == unit else f"{unit} (in the name)"
        properties[f"value {kind}"] = Property("CODATA 2022 value", unit=written, measured=False)
        values = {f"value {kind}": value}
        if number(uncertainty) is not None:
            properties[f"uncertainty {kind}"] = Property(
                "standard uncertainty", unit=written, measured=False, follows=True, extremes=("smallest", "largest")
            )
            values[f"uncertainty {kind}"] = uncertainty
        records.append(Record(name, _in_full(name), values, called=f"the {_in_full(name)}"))
    return [Table("CODATA 2022", "constant", "constants", properties, records, quantities=True)]


def normalised(text: str) -> str:
    """`0.000000042e-28` -> `4.2e-36`, `0.00000040` -> `4.0e-7`, `8.0e1` -> `80`: the same digits, with an exponent only
    where the number is small or large. Other texts as they are."""
    value = number(text)
    if not value or ("e" not in text and value.adjusted() >= -3):
        return text
    if -2 <= value.adjusted() <= 2:
        return f"{value:f}"
    sign, digits, exponent = value.as_tuple()
    first, *rest = map(str, digits)
    point = "." if rest else ""
    return f"{'-' * sign}{first}{point}{''.join(rest)}e{int(exponent) + len(rest)}"


def _in_full(name: str) -> str:
    """`electron mag. mom.` -> `electron magnetic moment`, with the articles that the table leaves out."""
    for short, full in FULL.items():
        name = name.replace(short, full)
    return name


def _text(source: str) -> str:
    """The string that the module assigns to NAME."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == NAME:
            return str(ast.literal_eval(node.value))
    raise DataError(
        f"package 'scipy' has no table {NAME}: pip install -e '.[toy]' installs the right version",
        where="scipy",
        value=NAME,
        allowed="pip install -e '.[toy]'",
    )
