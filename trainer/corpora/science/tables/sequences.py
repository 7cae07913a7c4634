"""Protein and nucleotide records in the flat formats of GenBank, EMBL and UniProt and in FASTA by UniProt and NCBI: the
test samples of the package scikit-bio. They are read as text; the package is not imported.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from parallel.errors import one_of
from trainer.corpora.packages import Files, package_files
from trainer.corpora.science.records import Property, Record, Table
from trainer.data.errors import DataError

SAMPLES = (
    *("format/tests/data/genbank_multi_records", "format/tests/data/genbank_single_record"),
    *("format/tests/data/embl_uniprot_record", "format/tests/data/embl_multi_records"),
    *("format/tests/data/embl_single_record", "format/tests/data/embl_feature_level_record"),
    *("alignment/tests/data/insulin.faa", "alignment/tests/data/16s.frn"),
)
LENGTHS = ("shortest", "longest")
CALLED = {"protein": "the protein", "nucleotide": "the nucleotide entry"}
COMMON = {
    "description": Property("description", number=False, quoted=True, predicates=("is described as {value}",)),
    "organism": Property(
        "source organism",
        number=False,
        stated=False,  # after "its source organism is Homo sapiens", "it" would be the organism
        predicates=("comes from {value}",),
        questions=("Which organism does {called} come from?", "In which organism is {called} found?"),
    ),
    "lineage": Property("taxonomic lineage", number=False),
    "sequence": Property("sequence", number=False, identifies=True),
}
KEYWORDS = {
    "keyword": Property("keyword", number=False, quoted=True, predicates=("is indexed under {value}",)),
    "keywords": Property("keywords", number=False, quoted=True, plural=True, predicates=("is indexed under {value}",)),
}
PROTEIN = COMMON | {
    "length": Property(
        "sequence length",
        unit="amino acids",
        measured=False,
        predicates=("is {value} long", "has a sequence length of {value}"),
        questions=("How many amino acids does {called} have?",),
        extremes=LENGTHS,
    ),
    "weight": Property("molecular weight", unit="Da", measured=False),
    "gene": Property("gene name", number=False, predicates=("is encoded by the gene {value}",)),
    "function": Property("function", number=False, quoted=True),
    **KEYWORDS,
}
NUCLEOTIDE = COMMON | {
    "length": Property(
        "sequence length",
        unit="bp",
        measured=False,
        predicates=("is {value} long", "has a sequence length of {value}"),
        questions=("How long is {called}?",),
        extremes=LENGTHS,
    ),
    "molecule": Property("molecule type", number=False, had=False),
    **KEYWORDS,
}
GENBANK_FIELD = re.compile(r"^ {0,2}([A-Z]+) +(.*(?:\n {12}.*)*)", re.M)
EVIDENCE = re.compile(r" *\{ECO:[^}]*\}")
FASTA_UNIPROT = re.compile(r"^\w\w\|(\w+)\|(\w+) (.*?) OS=(.*?) OX=\d+(?: GN=(\S+))?")
Found = tuple[str, str, dict[str, str]]  # "protein" or "nucleotide", name, values


def sequence_files() -> Files:
    listed = [item for suffix in ("", ".faa", ".frn") for item in package_files("scikit-bio", suffix)]
    files = [item for sample in SAMPLES for item in listed if item[0].endswith(sample)]
    if len(files) != len(SAMPLES):
        raise DataError(
            "package 'scikit-bio' lacks its samples: pip install -e '.[science]' installs the right version",
            where="scikit-bio",
            allowed="pip install -e '.[science]'",
        )
    return files


def sequences() -> list[Table]:
    """A table of proteins and one of nucleotide entries; a record that is in several files is read once."""
    found: dict[str, dict[str, Record]] = {"protein": {}, "nucleotide": {}}
    for _, path in sequence_files():
        for kind, name, values in read_records(path):
            found[kind].setdefault(name, Record(name, name, values, called=f"{CALLED[kind]} {name}"))
    return [
        Table("proteins", "protein", "proteins", PROTEIN, list(found["protein"].values())),
        Table("nucleotides", "nucleotide entry", "nucleotide entries", NUCLEOTIDE, list(found["nucleotide"].values())),
    ]


def read_records(path: Path) -> Iterator[Found]:
    """The records of a file. Raises DataError for an unknown format or a sequence of another length than declared."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith(">"):
        yield from _fasta(text)
        return
    for entry in re.split(r"^//\s*$", text, flags=re.M):
        if not entry.strip():
            continue
        kind, name, values = _genbank(entry) if entry.lstrip().startswith("LOCUS") else _embl(entry, path)
        if len(values["sequence"]) != int(values["length"]):
            found, declared = len(values["sequence"]), values["length"]
            raise DataError(
                f"{path}: {name} has {found} letters, but declares {declared}",
                where=f"{path}: {name}",
                value=found,
                allowed=declared,
            )
        yield kind, name, {key: value for key, value in values.items() if value}


def _joined(text: str) -> str:
    return " ".join(text.split()).rstrip(".;")


def _keywords(listed: str) -> dict[str, str]:
    return {"keywords" if ";" in listed else "keyword": listed}


def _genbank(entry: str) -> Found:
    head, _, letters = entry.partition("\nORIGIN")
    head, _, _ = head.partition("\nFEATURES")
    fields = dict(reversed(GENBANK_FIELD.findall(head)))  # the first of each
    locus = fields["LOCUS"].split()
    organism, _, lineage = fields.get("ORGANISM", "").partition("\n")
    values = {
        "description": _joined(fields.get("DEFINITION", "")),
        "organism": organism.strip(),
        "lineage": _joined(lineage) if _joined(lineage) != "Unclassified" else "",
        "length": locus[1],
        **_keywords(_joined(fields.get("KEYWORDS", ""))),
        "sequence": re.sub(r"[\s\d]", "", letters),
    }
    if locus[2] == "aa":
        return "protein", fields["ACCESSION"].split()[0], values
    return "nucleotide", fields["ACCESSION"].split()[0], values | {"molecule": locus[3]}


def _embl(entry: str, path: Path) -> Found:
    head, _, letters = entry.partition("\nSQ ")
    lines: dict[str, list[str]] = {}
    for line in head.splitlines():
        lines.setdefault(line[:2], []).append(line[5:])
    if "ID" not in lines or not letters:
        formats = ("GenBank", "EMBL", "UniProt", "FASTA")
        raise DataError(f"{path} is not a {one_of(formats)} file", where=str(path), allowed=formats)
    said, _, letters = letters.partition("\n")
    fields = {code: _joined(" ".join(parts)) for code, parts in lines.items()}
    parts = fields["ID"].split(";")
    values = {
        "organism": fields.get("OS", ""),
        "lineage": fields.get("OC", ""),
        **_keywords(fields.get("KW", "")),
        "sequence": re.sub(r"[\s\d]", "", letters),
    }
    if parts[-1].split()[-1] == "AA":  # UniProt
        name = re.search(r"RecName: Full=([^;{]*)", fields.get("DE", ""))
        gene = re.search(r"(?:Name|ORFNames|OrderedLocusNames)=([^;{]*)", fields.get("GN", ""))
        function = re.search(r"-!- FUNCTION: (.*?)(?:\.? -!-|$)", fields.get("CC", ""))
        weight = re.search(r"(\d+) MW;", said)
        values |= {
            "description": name[1].strip() if name else "",
            "gene": gene[1].strip() if gene else "",
            "function": _joined(EVIDENCE.sub("", function[1])) if function else "",
            "weight": weight[1] if weight else "",
            "length": parts[-1].split()[0],
        }
        return "protein", parts[0].split()[0], values
    values |= {"description": fields.get("DE", ""), "length": parts[-1].split()[0], "molecule": parts[3].strip()}
    return "nucleotide", parts[0].split()[0], values


def _fasta(text: str) -> Iterator[Found]:
    for entry in text.split(">")[1:]:
        header, _, letters = entry.partition("\n")
        sequence = "".join(letters.split())
        uniprot = FASTA_UNIPROT.match(header)
        if uniprot:
            _, name, description, organism, gene = uniprot.groups(default="")
            values = {"description": description, "organism": organism, "gene": gene}
            kind = "protein"
        else:  # NCBI: accession, then the organism and the gene in words
            name, _, description = header.partition(" ")
            values, kind = {"description": description}, "nucleotide"
        values |= {"sequence": sequence, "length": str(len(sequence))}
        yield kind, name, {key: value for key, value in values.items() if value}
