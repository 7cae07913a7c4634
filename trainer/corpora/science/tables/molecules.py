"""Molecules as SMILES with what follows from their structure: the samples of the NCI's open database that the package
rdkit ships. Read as text; the package is not imported.
"""

import re
from pathlib import Path

from trainer.corpora.packages import Files, package_files
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.data.errors import DataError

SURFACES, PROPERTIES = "first_5k.tpsa.csv", "first_200.props.sdf"
MOLECULE = {
    "tpsa": Property("topological polar surface area", unit="square angstroms"),
    "AMW": Property("average molecular weight", unit="g/mol"),
    "CLOGP": Property("calculated octanol-water partition coefficient (log P)"),
    "NUM_HACCEPTORS": Property("number of hydrogen-bond acceptors"),
    "NUM_HDONORS": Property("number of hydrogen-bond donors"),
    "NUM_RINGS": Property("number of rings"),
    "NUM_ROTATABLEBONDS": Property("number of rotatable bonds"),
    "NUM_HETEROATOMS": Property("number of heteroatoms"),
}
FIELD = re.compile(r"^>\s+<(\w+)>.*\n(.*)$", re.M)


def molecule_files() -> Files:
    files = package_files("rdkit", ".csv") + package_files("rdkit", ".sdf")
    found = [item for name in (SURFACES, PROPERTIES) for item in files if item[0].endswith("Data/NCI/" + name)]
    if len(found) != 2:
        raise DataError("package 'rdkit' lacks its NCI samples: pip install 'octavo[science]' brings the right version")
    return found


def molecules() -> list[Table]:
    """One table; a molecule's name is its SMILES string in quotes, since few of them have another."""
    (_, surfaces), (_, properties) = molecule_files()
    found = _surfaces(surfaces)
    for smiles, values in _properties(properties).items():
        found.setdefault(smiles, {}).update(values)
    records = [Record(smiles, f'"{smiles}"', values) for smiles, values in found.items() if values]
    return [Table("NCI", "molecule", "molecules", MOLECULE, records)]


def _surfaces(path: Path) -> dict[str, dict[str, str]]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        smiles, _, surface = line.rpartition(",")
        if smiles and number(surface) is not None:  # the first line is a remark
            found[smiles] = {"tpsa": surface}
    return found


def _properties(path: Path) -> dict[str, dict[str, str]]:
    found = {}
    for entry in path.read_text(encoding="utf-8").split("$$$$\n"):
        fields = dict(FIELD.findall(entry))
        values = {key: fields[key] for key in MOLECULE if key in fields and number(fields[key]) is not None}
        if "SMILES" in fields:
            found[fields["SMILES"]] = values
    return found
