import importlib.metadata
import itertools

import pytest

from trainer.corpora import packages as sources
from trainer.corpora.science.tables.pubchem import identity_files, parse_record
from trainer.data.errors import DataError

RECORD = "\t".join(
    [
        *("15", "521-18-6", "C19H30O2", "290.4403", "CC12CCC(=O)CC1CCC3C2CCC4(C3CCC4O)C"),
        *("C19H30O2/c1-18-9-7-13(20)11-12(18)3-4", "NVKAWKQGWWIWPM-UHFFFAOYSA-N", "the systematic one"),
        *("stk366316", "17-hydroxyandrostan-3-one", "521-18-6", "anaprotin", "c1-1"),
    ]
)


def test_a_record_becomes_named_fields() -> None:
    compound = parse_record(RECORD)
    assert compound.skeleton == "NVKAWKQGWWIWPM"
    assert compound.name == "17-hydroxyandrostan-3-one"  # not the catalogue number before it
    assert compound.values["other"] == "anaprotin"
    assert compound.values["systematic"] == "the systematic one"
    assert compound.values["weight"] == "290.4403"
    assert compound.values["atoms of molecule"] == "19 carbon atoms, 30 hydrogen atoms and 2 oxygen atoms"


def test_docstrings_are_found_dedented_and_short_ones_left_out() -> None:
    long = "First line.\n\n    " + "words and more words " * 30
    functions = f'"""short"""\ndef f():\n    """{long}\n    end."""\n'
    source = functions + f'add_newdoc("numpy", "g", """\n    {long}""")\nx = """{long}"""\n'
    found = sources.docstrings(source)
    assert len(found) == 2
    assert all(text.startswith("First line.\n") and len(text) >= sources.MIN_DOCSTRING for text in found)
    assert found[0].endswith("\nend.\n")


def test_long_texts_are_cut_without_losing_a_line() -> None:
    text = "".join(f"def f{n}():\n    return {n}\n\n\n" for n in range(2000))
    parts = list(sources.split_text(text))
    assert len(parts) > 2
    assert all(len(part) <= sources.MAX_DOCUMENT and part.startswith("def ") for part in parts)
    assert [line for part in parts for line in part.split("\n") if line] == [line for line in text.split("\n") if line]
    solid = "x" * (3 * sources.MAX_DOCUMENT)
    assert "".join(sources.split_text(solid)) == solid
    assert list(sources.split_text("short\n")) == ["short\n"]


def test_code_is_the_standard_library_without_tests_or_this_machine() -> None:
    documents = list(sources.read_code())
    origins = {document.origin for document in documents}
    assert {"json/decoder.py", "heapq.py", "asyncio/base_events.py"} <= origins
    directories = {part for origin in origins for part in origin.split("/")[:-1]}
    assert directories.isdisjoint({"test", "tests", "site-packages", "__pycache__"})
    assert not any("sysconfigdata" in origin for origin in origins)
    some = sources.read_code()
    assert [document.text for document in itertools.islice(some, 5)] == [document.text for document in documents[:5]]


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(DataError) as caught:
        identity_files()
    assert (caught.value.where, caught.value.allowed) == ("chemicals", "pip install -e '.[toy]'")
