"""Building the directory of a toy corpus: once, completely, by one process, and again if it is damaged."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.config.keys import DataConfig
from trainer.config.mixture import PhaseConfig, SourceConfig
from trainer.corpora import build as corpus_module
from trainer.corpora import toy as toy_mixture
from trainer.corpora.packages import Document, Source
from trainer.corpora.tokenize import write
from trainer.data.errors import DataError
from trainer.data.shards.windows import Shards
from trainer.storage.progress import Progress

NUMBERS = SourceConfig(
    path="numbers", domain="general", tokens=1000, unique_tokens=1000, prefix="", phases={"stable": 1.0}
)


def read_numbers() -> Iterator[Document]:
    for n in range(200):
        yield Document(f"file{n // 4}", " ".join(str(n * k) for k in range(1, 40)))


def numbers(read: Callable[[], Iterator[Document]] = read_numbers, files: Sequence[Path] = ()) -> Source:
    return Source("numbers", ("numpy",), "none", lambda: [(path.name, path) for path in files], read)


@pytest.fixture
def said() -> list[Progress]:
    return []


@pytest.fixture
def tiny(tmp_path: Path, said: list[Progress], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a corpus that is built in no time; returns the directory of all of it."""
    monkeypatch.setattr(toy_mixture, "VOCAB_SIZE", 300)
    monkeypatch.setattr(write, "HAS_WHEEL", False)  # the same bytes without Megatron's import of 5 s
    data = DataConfig(
        build="toy",
        cache_dir=str(tmp_path / "cache"),
        holdout_fraction=0.1,
        sources={"numbers": NUMBERS},
        phases={"stable": PhaseConfig(tokens=1000)},
    )

    def open_tiny(tokens_per_source: int = 10_000, source: Source | None = None) -> Path:
        monkeypatch.setattr(toy_mixture, "KNOWN", {"numbers": source or numbers()})
        sized = replace(data, tokens_per_source=tokens_per_source)
        return toy_mixture.open_toy_mixture(sized, said.append)["numbers"].parent

    return open_tiny


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_about_as_many_tokens_are_taken_of_a_source_as_are_asked_for(tiny: Any) -> None:
    for wanted in (5_000, 10_000):
        directory = tiny(wanted) / "numbers"
        found = sum(Shards(directory, split).num_tokens for split in ("train", "heldout"))
        assert found == pytest.approx(wanted, rel=0.1)


def test_a_built_corpus_is_opened_without_reading_the_sources(tiny: Any, said: list[Progress]) -> None:
    first = tiny()
    assert any("numbers" in state.detail and "held out" in state.detail for state in said)
    said.clear()

    def read_nothing() -> Iterator[Document]:
        raise AssertionError("built again")

    assert tiny(source=numbers(read_nothing)) == first
    assert said == []


def test_a_built_corpus_is_opened_while_another_process_holds_the_lock(tiny: Any) -> None:
    directory = tiny()
    with directory.with_name(directory.name + ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tiny() == directory


def test_other_sizes_and_other_package_versions_are_other_corpora(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = {tiny(), tiny(tokens_per_source=5_000)}
    monkeypatch.setattr(corpus_module, "installed_version", lambda package: "0.0.1")
    directories.add(tiny())
    assert len(directories) == 3


def test_another_content_of_the_same_version_is_another_corpus(tiny: Any, tmp_path: Path) -> None:
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in files:
        path.write_text("x = 1\n")
    source = numbers(files=[*files, tmp_path / "listed_but_not_there.py"])
    first = tiny(source=source)
    os.utime(files[0], (1, 1))
    assert tiny(source=source) == first
    files[0].write_text("x = 2\n")
    second = tiny(source=source)
    files[0].write_text("x = 1\n")
    files[1].write_text("x = 2\n")
    assert len({first, second, tiny(source=source)}) == 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["train-00000.bin", "heldout-00000.idx", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize(
    "harm", [flip, lambda path: os.truncate(path, 7), Path.unlink], ids=["flip", "truncate", "unlink"]
)
def test_a_damaged_file_is_named_and_the_corpus_built_again(
    tiny: Any, said: list[Progress], name: str, harm: Any
) -> None:
    directory = tiny()
    before = contents(directory)
    harm(directory / "numbers" / name)
    said.clear()
    assert tiny() == directory
    assert contents(directory) == before
    assert f"{directory / 'numbers' / name}" in said[0].detail
    assert said[0].detail.endswith(f"building {directory} again")


def test_a_build_that_fails_leaves_nothing_and_one_that_was_killed_is_swept_up(tiny: Any, tmp_path: Path) -> None:
    def read_and_fail() -> Iterator[Document]:
        yield from read_numbers()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny(source=numbers(read_and_fail))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    directory = tiny()
    leftover = directory.with_name(directory.name + ".0123abcd.octavo.tmp")
    directory.rename(leftover)
    (leftover / "owner.lock").touch()  # whose process is gone
    assert tiny() == directory
    assert not leftover.exists()


def test_a_directory_that_cannot_be_written_is_named_with_its_key(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should go")
    with pytest.raises(DataError) as caught:
        tiny()
    assert (caught.value.where, caught.value.value) == ("data.cache_dir", str(tmp_path / "cache"))
    assert os.strerror(errno.EEXIST) in caught.value.lines[0]


def test_a_full_disk_is_one_clear_error(tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(toy_mixture, "tokenize_source", full)
    with pytest.raises(DataError) as caught:
        tiny()
    assert caught.value.where == "data.cache_dir"
    assert os.strerror(errno.ENOSPC) in caught.value.lines[0]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_source_without_documents_is_refused(tiny: Any) -> None:
    with pytest.raises(DataError) as caught:
        tiny(source=numbers(lambda: iter([])))
    assert (caught.value.where, caught.value.value) == ("numbers", 0)


def test_text_too_poor_for_the_vocabulary_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_mixture, "VOCAB_SIZE", 60_000)
    with pytest.raises(DataError) as caught:
        tiny()
    assert caught.value.where == "data.tokens_per_source"
    assert "60000" in caught.value.lines[0]
