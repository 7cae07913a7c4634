import importlib.metadata
from pathlib import Path

import pytest

from trainer.corpora.science.tables import molecules
from trainer.corpora.science.tables.constants import constants
from trainer.corpora.science.tables.sequences import read_records, sequences
from trainer.data.errors import DataError

GENBANK = """\
LOCUS       XX1   12 bp   mRNA   linear   BCT   26-APR-1993
DEFINITION  a made-up record,
            in two lines.
ACCESSION   XX1
SOURCE      E. coli
  ORGANISM  Escherichia coli
            Bacteria; Proteobacteria.
FEATURES             Location/Qualifiers
     CDS             1..>12
ORIGIN
        1 gtgaaacaaa
       11 gc
//
"""
UNIPROT = """\
ID   MADE_UP                 Reviewed;         12 AA.
AC   Q00001;
DE   RecName: Full=Made-up protein {ECO:0000305};
GN   Name=mup;
OS   Frog virus 3.
OC   Viruses; Ranavirus.
CC   -!- FUNCTION: Does nothing
CC       at all. {ECO:0000305}.
CC   -!- SUBUNIT: None.
KW   Activator; Repeat.
SQ   SEQUENCE   12 AA;  1363 MW;  B4840739BF7D4121 CRC64;
     MAFSAEDVLK EY
//
"""
EMBL = """\
ID   X1; SV 1; linear; genomic DNA; STD; PRO; 12 BP.
XX
DE   a record.
OS   Escherichia coli
SQ   Sequence 12 BP; 7 A; 2 C; 3 G; 1 T; 0 other;
     gtgaaacaaa gc        12
//
"""


def test_flat_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_text(GENBANK + "\n" + UNIPROT + EMBL)
    assert list(read_records(path)) == [
        (
            "nucleotide",
            "XX1",
            {
                "description": "a made-up record, in two lines",
                "organism": "Escherichia coli",
                "lineage": "Bacteria; Proteobacteria",
                "length": "12",
                "sequence": "gtgaaacaaagc",
                "molecule": "mRNA",
            },
        ),
        (
            "protein",
            "MADE_UP",
            {
                "organism": "Frog virus 3",
                "lineage": "Viruses; Ranavirus",
                "keywords": "Activator; Repeat",
                "sequence": "MAFSAEDVLKEY",
                "description": "Made-up protein",
                "gene": "mup",
                "function": "Does nothing at all",
                "weight": "1363",
                "length": "12",
            },
        ),
        (
            "nucleotide",
            "X1",
            {
                "organism": "Escherichia coli",
                "sequence": "gtgaaacaaagc",
                "description": "a record",
                "length": "12",
                "molecule": "genomic DNA",
            },
        ),
    ]


@pytest.mark.parametrize(
    ("text", "value", "allowed"),
    [(GENBANK.replace("gtg", "gg"), 11, "12"), ("AC 3\n//\n", None, ("GenBank", "EMBL", "UniProt", "FASTA"))],
)
def test_a_damaged_file_is_reported(tmp_path: Path, text: str, value: int | None, allowed: object) -> None:
    path = tmp_path / "records"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert caught.value.where.startswith(str(path))
    assert (caught.value.value, caught.value.allowed) == (value, allowed)


def test_constants_are_those_that_scipy_reads() -> None:
    # Not physical_constants: its aliases give "natural unit of momentum" the value of 2014.
    reader = pytest.importorskip("scipy.constants._codata", reason="pip install -e '.[toy]'")
    (table,) = constants()
    assert len(table.records) > 250
    for record in table.records:
        for key, value in record.values.items():
            kind, _, unit = key.removesuffix(" (in the name)").partition(" ")
            expected = reader._physical_constants_2022[record.key]
            assert float(value) == expected[{"value": 0, "uncertainty": 2}[kind]]
            assert unit == expected[1]
            assert f"{record.name} {table.properties[key].unit} ".count(f" {unit} ") <= 1


def test_the_samples_of_sequences_and_molecules_are_read() -> None:
    for package in ("scikit-bio", "rdkit"):
        if not list(importlib.metadata.distributions(name=package)):
            pytest.skip(f"the package {package} is not here: pip install -e '.[science]'")
    proteins, nucleotides = sequences()
    known = {record.name: record.values for record in (*proteins.records, *nucleotides.records)}
    assert known["INS_HUMAN"]["sequence"].startswith("MALWMRLLPLLALLALWGPDPAAA")
    assert known["001R_FRG3G"]["weight"] == "29735"
    assert known["M14399"]["organism"] == "Escherichia coli"
    assert {name for name in known if "sequence" not in known[name]} == set()
    (table,) = molecules.molecules()
    by_smiles = {record.key: record.values for record in table.records}
    assert by_smiles["CC1=CC(=O)C=CC1=O"]["tpsa"] == "34.14"
    assert by_smiles["CC1=CC(=O)C=CC1=O"]["AMW"] == "122.12344"
    assert len(table.records) > 5000
