"""The fundamental physical constants of CODATA 2022, from the table in the package scipy, which is not imported."""

import ast

from trainer.corpora.packages import Files, package_files
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.data.errors import DataError

COLUMNS = (slice(60), slice(60, 85), slice(85, 110), slice(110, None))  # name, value, uncertainty, unit
NAME = "txt2022"
FULL = {
    "mag. mom.": "magnetic moment",
    "dipole mom.": "dipole moment",
    "quadrupole mom.": "quadrupole moment",
    "gyromag. ": "gyromagnetic ",
    "mag. ": "magnetic ",
    "1st hyper": "first hyper",
    "2nd hyper": "second hyper",
    "of Josephson": "of the Josephson",
    "of von Klitzing": "of the von Klitzing",
}


def constant_files() -> Files:
    return [item for item in package_files("scipy", ".py") if item[0].endswith("constants/_codata.py")]


def constants() -> list[Table]:
    """One table with a property for each unit, so that only constants of the same unit are compared.

    The source writes digits in groups of three; the spaces between the groups are dropped, so that a value reads as one
    number, and a number with an exponent gets a single digit before its point (`normalised`). Values with endless
    digits ("1.054 571 817...") are left out.
    """
    source = "".join(path.read_text(encoding="utf-8") for _, path in constant_files())
    properties, records = {}, []
    for line in _text(source).splitlines():
        name, value, uncertainty, unit = (line[column].strip() for column in COLUMNS)
        value, uncertainty = normalised(value.replace(" ", "")), normalised(uncertainty.replace(" ", ""))
        if number(value) is None:
            continue
        properties[f"value {unit}"] = Property("CODATA 2022 value", unit=unit, measured=False)
        values = {f"value {unit}": value}
        if number(uncertainty) is not None:
            properties[f"uncertainty {unit}"] = Property(
                "standard uncertainty", unit=unit, measured=False, extremes=("smallest", "largest")
            )
            values[f"uncertainty {unit}"] = uncertainty
        records.append(Record(name, _in_full(name), values, called=f"the {_in_full(name)}"))
    return [Table("CODATA 2022", "constant", "constants", properties, records)]


def normalised(text: str) -> str:
    """`0.000000042e-28` -> `4.2e-36`: the same digits, with one before the point. Other texts as they are."""
    value = number(text)
    if "e" not in text or not value:
        return text
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
