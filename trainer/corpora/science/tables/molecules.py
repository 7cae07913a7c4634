"""Molecules as SMILES with properties computed from their structure: the samples of the NCI open database in rdkit.

They are read as text; the package is not imported.
"""

import re
from pathlib import Path

from trainer.corpora.packages import Files, package_files
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.data.errors import DataError

SURFACES, PROPERTIES = "first_5k.tpsa.csv", "first_200.props.sdf"
COUNTS = ("smallest", "largest")
MOLECULE = {
    "tpsa": Property("topological polar surface area", unit="Å^2", measured=False, extremes=COUNTS),
    "AMW": Property("average molecular weight", unit="g/mol", measured=False),
    "CLOGP": Property("calculated octanol-water log P", measured=False),
    **{
        key: Property(
            f"number of {things}",
            counted=(things[:-1], things),
            measured=False,
            questions=(f"How many {things} does {{called}} have?", f"How many {things} are there in {{called}}?"),
            extremes=COUNTS,
        )
        for key, things in (
            ("NUM_HACCEPTORS", "hydrogen-bond acceptors"),
            ("NUM_HDONORS", "hydrogen-bond donors"),
            ("NUM_RINGS", "rings"),
            ("NUM_ROTATABLEBONDS", "rotatable bonds"),
            ("NUM_HETEROATOMS", "heteroatoms"),
        )
    },
}
FIELD = re.compile(r"^>\s+<(\w+)>.*\n(.*)$", re.M)


def molecule_files() -> Files:
    files = package_files("rdkit", ".csv") + package_files("rdkit", ".sdf")
    found = [item for name in (SURFACES, PROPERTIES) for item in files if item[0].endswith("Data/NCI/" + name)]
    if len(found) != 2:
        raise DataError(
            "package 'rdkit' lacks its NCI samples: pip install -e '.[science]' installs the right version",
            where="rdkit",
            allowed="pip install -e '.[science]'",
        )
    return found


def molecules() -> list[Table]:
    """One table, in which the name of a molecule is its SMILES string, since few have another."""
    (_, surfaces), (_, properties) = molecule_files()
    found = _surfaces(surfaces)
    for smiles, values in _properties(properties).items():
        found.setdefault(smiles, {}).update(values)
    records = [
        Record(smiles, smiles, values, called=f'the molecule with SMILES "{smiles}"')
        for smiles, values in found.items()
        if values
    ]
    return [Table("NCI", "molecule", "molecules", MOLECULE, records, heading="SMILES")]


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
