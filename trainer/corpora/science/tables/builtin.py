"""The built-in sources of science text, made from installed packages."""

from collections.abc import Callable, Iterator, Sequence

from trainer.corpora.packages import Document, Files, Source
from trainer.corpora.science.records import Table
from trainer.corpora.science.tables import chemistry, constants, molecules, pubchem, sequences
from trainer.corpora.science.texts import texts

SEED = 0  # of the texts in a toy corpus; `octavo science --seed` makes others
TASKS_PER_RECORD = 2


def _source(
    name: str,
    packages: tuple[str, ...],
    licence: str,
    files: Callable[[], Files],
    tables: Callable[[], Sequence[Table]],
) -> tuple[Source[Document], Callable[[], Sequence[Table]]]:
    def read() -> Iterator[Document]:
        for text in texts(name, tables(), seed=SEED, tasks_per_record=TASKS_PER_RECORD):
            yield Document(text.origin, text.text)

    return Source(name, packages, licence, files, read), tables


_ALL = (
    _source(
        "pubchem",
        ("chemicals",),
        "package chemicals (MIT); records of PubChem, in the public domain",
        pubchem.identity_files,
        pubchem.identities,
    ),
    _source(
        "thermo",
        ("chemicals",),
        "package chemicals (MIT); CRC Handbook, JANAF and ATcT tables",
        chemistry.thermo_files,
        chemistry.thermo,
    ),
    _source(
        "materials",
        ("chemicals",),
        "package chemicals (MIT); CRC Handbook and IUPAC tables",
        chemistry.material_files,
        chemistry.materials,
    ),
    _source(
        "constants",
        ("scipy",),
        "package scipy (BSD-3-Clause); CODATA 2022, in the public domain",
        constants.constant_files,
        constants.constants,
    ),
    # The extra `science` installs the packages of these two, which are large: toy runs do without.
    _source(
        "molecules",
        ("rdkit",),
        "package rdkit (BSD-3-Clause); samples of the NCI open database, in the public domain",
        molecules.molecule_files,
        molecules.molecules,
    ),
    _source(
        "sequences",
        ("scikit-bio",),
        "package scikit-bio (BSD-3-Clause); samples of GenBank, EMBL and UniProt (CC BY 4.0)",
        sequences.sequence_files,
        sequences.sequences,
    ),
)
SCIENCE: tuple[Source[Document], ...] = tuple(source for source, _ in _ALL)
TABLES: dict[str, Callable[[], Sequence[Table]]] = {source.name: tables for source, tables in _ALL}
