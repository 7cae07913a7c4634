"""The built-in sources of documents with images or signals."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.corpora.media.pictures import drawing, molecule, plot
from trainer.corpora.media.questions import asked
from trainer.corpora.media.recorded import pieces, series_files
from trainer.corpora.media.shapes import SHAPES
from trainer.corpora.packages import Files, Source
from trainer.corpora.science.records import Record
from trainer.corpora.science.tables.pubchem import ELEMENTS, identities, identity_files
from trainer.corpora.tokenize.media.documents import PartsDocument
from trainer.data.hashing import text_key

BESIDES = ("O", "N", "S", "F", "Cl", "Br")  # the one element besides carbon and hydrogen, each in its colour
PER_RINGS = 120  # drawings with an element and a number of rings
MOST_RINGS = 2
MOST_CARBONS = 12
LONGEST_NAME = 30  # characters
SYMBOL = re.compile(r"([A-Z][a-z]?)(\d*)")


def picture_files() -> Files:
    return [*identity_files(), *series_files()]


def read_pictures() -> Iterator[PartsDocument]:
    """Drawings of molecules with two questions, name and formula; plots of recorded series with two questions."""
    documents = [*_drawings(), *_plots()]
    yield from sorted(documents, key=lambda document: text_key("picture", document.origin, document.parts[1]))


def _drawings() -> Iterator[PartsDocument]:
    found: dict[str, list[Record]] = {symbol: [] for symbol in BESIDES}
    (table,) = identities()
    for record in sorted(table.records, key=lambda record: (text_key("drawing", record.key, record.name), record.name)):
        atoms = {symbol: int(count or 1) for symbol, count in SYMBOL.findall(record.values.get("formula", ""))}
        others = atoms.keys() - {"C", "H"}
        if atoms.get("C", 0) > MOST_CARBONS or len(others) != 1 or len(record.name) > LONGEST_NAME:
            continue
        (other,) = others
        if other in found and "smiles" in record.values:
            found[other].append(record)
    for symbol, records in found.items():
        counts = dict.fromkeys(range(MOST_RINGS + 1), PER_RINGS)
        for record in records:
            if not any(counts.values()):
                break
            found_molecule = molecule(record.values["smiles"])
            rings = found_molecule.GetRingInfo().NumRings() if found_molecule is not None else -1
            if not counts.get(rings):
                continue
            counts[rings] -= 1
            png = drawing(found_molecule)
            text = asked(element=ELEMENTS[symbol], rings=str(rings))
            text += f"This is {record.name}, {record.values['formula']}.\n"
            yield PartsDocument(f"drawing/{record.key}", [{"type": "image", "bytes": png}, text])


def _plots() -> Iterator[PartsDocument]:
    for piece in pieces():
        text = asked(recorded=piece.kind, quarter=piece.quarter)
        yield PartsDocument(piece.origin, [{"type": "image", "bytes": plot(piece.values)}, text])


def read_signals() -> Iterator[PartsDocument]:
    """Pieces of recorded series with two questions."""
    for piece in pieces():
        signal = {"type": "signal", "values": piece.values, "rate": piece.rate}
        yield PartsDocument(piece.origin, [signal, asked(recorded=piece.kind, quarter=piece.quarter)])


PICTURES = Source(
    "pictures",
    ("chemicals", "rdkit", "pillow", "aeon"),
    "packages chemicals (MIT), aeon (BSD-3-Clause); records of PubChem, in the public domain",
    picture_files,
    read_pictures,
)
SIGNALS = Source("signals", ("aeon",), "package aeon (BSD-3-Clause)", series_files, read_signals)
MEDIA = (PICTURES, SIGNALS, SHAPES)
