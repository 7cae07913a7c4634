"""A manifest is written byte for byte as ever, shows every change, and lists the files that a writer may remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.shards.files import SHARDS
from trainer.storage.manifest import CHECKPOINT, MANIFEST, CorruptError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    for name in ("a", "b"):
        (directory / name).write_text(name)
    CHECKPOINT.write(directory, {"made": 1}, {name: CHECKPOINT.file_facts(directory / name) for name in ("a", "b")})
    return directory


def contents(directory: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def test_a_directory_goes_with_all_that_was_written_or_is_left(written):
    (written / "b").unlink()
    assert CHECKPOINT.holds_only_its_files(written, "made")
    CHECKPOINT.remove_directory(written, "made")
    assert not written.exists()
    CHECKPOINT.remove_directory(written, "made")


def one_more(directory: Path) -> str:
    (directory / "c").write_text("")
    return "made"


def a_directory_more(directory: Path) -> str:
    (directory / "deep").mkdir()
    return "made"


def longer(directory: Path) -> str:
    (directory / "a").write_text("of a user")
    return "made"


def no_manifest(directory: Path) -> str:
    (directory / MANIFEST).unlink()
    return "made"


def edited_manifest(directory: Path) -> str:
    file = directory / MANIFEST
    file.write_text(file.read_text().replace('"made": 1', '"made": 2'))
    return "made"


def of_another_writer(directory: Path) -> str:
    return "kinds"


@pytest.mark.parametrize(
    "change", [one_more, a_directory_more, longer, no_manifest, edited_manifest, of_another_writer]
)
def test_any_other_stays_as_it_is(written, change):
    fact = change(written)
    before = contents(written)
    assert not CHECKPOINT.holds_only_its_files(written, fact)
    CHECKPOINT.remove_directory(written, fact)
    assert contents(written) == before


def test_a_link_and_its_target_outside_stay(written, tmp_path):
    (tmp_path / "link").symlink_to(written)
    CHECKPOINT.remove_directory(tmp_path / "link", "made")
    assert (written / "a").exists()
    (tmp_path / "outside").write_text("")
    names = ("a", "b", "../outside")
    CHECKPOINT.write(written, {"made": 1}, {name: CHECKPOINT.file_facts(written / name) for name in names})
    CHECKPOINT.remove_directory(written, "made")
    assert not written.exists()
    assert (tmp_path / "outside").exists()


def test_both_spellings_are_bytewise_what_they_were(tmp_path):
    (tmp_path / "b").write_text("b")
    (tmp_path / "a").write_text("ä")
    body = CHECKPOINT.write(
        tmp_path, {"made": "é", "n": [1, 2]}, {name: CHECKPOINT.file_facts(tmp_path / name) for name in "ba"}
    )
    assert (tmp_path / MANIFEST).read_bytes() == (
        b'{\n "format": 1,\n "made": "\\u00e9",\n "n": [\n  1,\n  2\n ],\n "files": {\n  "a": {\n   "size": 2,\n'
        b'   "sha256": "33e6d73fee82904c8d7afb78de1154d1e8dc2a0edb08120e63df5b9385c2d9cc"\n  },\n  "b": {\n'
        b'   "size": 1,\n   "sha256": "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"\n  }\n },\n'
        b' "manifest_sha256": "19b3d84a1f0dece919f8b7aa54bfb640de2c81d7b6b33927710a9ebf3b243668"\n}'
    )
    assert CHECKPOINT.read(tmp_path) == body
    SHARDS.write(tmp_path, {"name": "é", "n": [1, 2]})
    assert (tmp_path / MANIFEST).read_bytes() == (
        b'{\n "format": 1,\n "name": "\xc3\xa9",\n "n": [\n  1,\n  2\n ],\n'
        b' "checksum": "59b175faff870284e3e2418beea134951ff4407498568048e7597c2fcd369af7"\n}'
    )


def test_every_cut_and_every_changed_byte_of_a_manifest_is_found(written):
    file = written / MANIFEST
    content = file.read_bytes()
    spaces = [at for at, byte in enumerate(content) if byte in b" \n"]  # of no meaning in JSON
    for at in range(len(content)):
        file.write_bytes(content[:at])
        with pytest.raises(CorruptError):
            CHECKPOINT.read(written)
        if at not in spaces:
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(CorruptError) as damage:
                CHECKPOINT.read(written)
            assert (damage.value.path, damage.value.missing) == (file, False)
    file.unlink()
    with pytest.raises(CorruptError) as damage:
        CHECKPOINT.read(written)
    assert damage.value.missing


def test_a_files_fault_names_it(written):
    expected = CHECKPOINT.read(written)["files"]["a"]
    assert CHECKPOINT.check_file(written, "a", expected) is None
    for content, size_shows in (("z", False), ("longer", True), (None, True)):
        if content is None:
            (written / "a").unlink()
        else:
            (written / "a").write_text(content)
        assert bool(CHECKPOINT.check_size(written, "a", expected)) == size_shows
        fault = CHECKPOINT.check_file(written, "a", expected)
        assert fault is not None
        assert (fault.path, fault.missing) == (written / "a", content is None)
