"""The sources of science text that installed packages bring."""

from collections.abc import Callable, Iterator, Sequence

from trainer.data.science import chemistry
from trainer.data.science.records import Table
from trainer.data.science.texts import texts
from trainer.data.sources import Document, Files, Source

SEED = 0  # of the texts that a corpus is made of; `octavo science --seed` makes others
TASKS_PER_RECORD = 2


def _source(
    name: str,
    packages: tuple[str, ...],
    licence: str,
    prompt: str,
    files: Callable[[], Files],
    tables: Callable[[], Sequence[Table]],
) -> tuple[Source, Callable[[], Sequence[Table]]]:
    def read() -> Iterator[Document]:
        for text in texts(name, tables(), seed=SEED, tasks_per_record=TASKS_PER_RECORD):
            yield Document(text.origin, text.text)

    return Source(name, packages, licence, prompt, files, read), tables


_ALL = (
    _source(
        "pubchem",
        ("chemicals",),
        "package chemicals (MIT); records of PubChem, in the public domain",
        "The molecular formula of",
        chemistry.identity_files,
        chemistry.identities,
    ),
    _source(
        "thermo",
        ("chemicals",),
        "package chemicals (MIT); CRC Handbook, JANAF and ATcT tables",
        "The standard enthalpy of formation of",
        chemistry.thermo_files,
        chemistry.thermo,
    ),
    _source(
        "materials",
        ("chemicals",),
        "package chemicals (MIT); CRC Handbook and IUPAC tables",
        "The melting point of",
        chemistry.material_files,
        chemistry.materials,
    ),
)
SCIENCE: tuple[Source, ...] = tuple(source for source, _ in _ALL)
TABLES: dict[str, Callable[[], Sequence[Table]]] = {source.name: tables for source, tables in _ALL}
