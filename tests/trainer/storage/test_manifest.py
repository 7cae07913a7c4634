"""Files that a directory's writer may remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.storage.manifest import MANIFEST, file_facts, only_as_written, remove_as_written, write_manifest


@pytest.fixture
def written(tmp_path: Path) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    for name in ("a", "b"):
        (directory / name).write_text(name)
    write_manifest(directory, {name: file_facts(directory / name) for name in ("a", "b")}, {"made": 1})
    return directory


def contents(directory: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def test_a_directory_goes_with_all_that_was_written_or_is_left(written):
    (written / "b").unlink()
    assert only_as_written(written, "made")
    remove_as_written(written, "made")
    assert not written.exists()
    remove_as_written(written, "made")


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
    assert not only_as_written(written, fact)
    remove_as_written(written, fact)
    assert contents(written) == before


def test_a_link_and_its_target_outside_stay(written, tmp_path):
    (tmp_path / "link").symlink_to(written)
    remove_as_written(tmp_path / "link", "made")
    assert (written / "a").exists()
    (tmp_path / "outside").write_text("")
    write_manifest(written, {name: file_facts(written / name) for name in ("a", "b", "../outside")}, {"made": 1})
    remove_as_written(written, "made")
    assert not written.exists()
    assert (tmp_path / "outside").exists()
