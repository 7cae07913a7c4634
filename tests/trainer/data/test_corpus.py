import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data import corpus as corpus_module
from trainer.data.corpus import HELDOUT, TRAIN, Corpus, open_corpus
from trainer.data.errors import DataError
from trainer.data.sources import SOURCES, Document, Source
from trainer.data.store import MappedTokens
from trainer.data.tokenizer import Tokenizer


def read_numbers() -> Iterator[Document]:
    for n in range(200):
        yield Document(f"file{n // 4}", " ".join(str(n * k) for k in range(1, 40)))


def numbers(read: Callable[[], Iterator[Document]] = read_numbers, files: Sequence[Path] = ()) -> Source:
    return Source("numbers", ("numpy",), "none", "1", lambda: [(path.name, path) for path in files], read)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def tiny(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a corpus that is built in no time."""
    monkeypatch.setattr(corpus_module, "VOCAB_SIZE", 300)

    def open_tiny(tokens_per_source: int = 10_000, source: Source | None = None) -> Corpus:
        return open_corpus(
            tmp_path / "cache",
            tokens_per_source=tokens_per_source,
            holdout_fraction=0.1,
            sources=[source or numbers()],
            progress=said.append,
        )

    return open_tiny


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_two_processes_at_once_make_the_same_bytes_as_one_before(
    corpus: Corpus, small: dict[str, Any], tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from trainer.data.corpus import open_corpus\n"
        f"print(open_corpus(Path(sys.argv[1]), **{small!r}).fingerprint)"
    )
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in (1, 2)
    ]
    printed = [builder.communicate(timeout=120)[0].strip() for builder in builders]
    assert printed == [corpus.fingerprint] * 2
    (built,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert built.name == corpus.directory.name
    assert contents(built) == contents(corpus.directory)


def test_the_manifest_tells_where_the_text_comes_from_and_how_much_there_is(
    corpus: Corpus, small: dict[str, Any]
) -> None:
    manifest = json.loads((corpus.directory / "manifest.json").read_text())
    assert manifest == corpus.manifest
    assert set(manifest["sources"]) == {"pubchem", "code", "prose"}
    assert set(manifest["files"]) == {path.name for path in corpus.directory.iterdir()} - {"manifest.json"}
    assert set(manifest["sources"]["pubchem"]["packages"]) == {"chemicals"}
    assert manifest["sources"]["code"]["packages"]["python"].endswith(sys.version.split()[0])
    tokenizer = Tokenizer.load(corpus.directory / "tokenizer.json")
    assert tokenizer.vocab_size == 4096
    for name, source in manifest["sources"].items():
        assert source["licence"]
        for split, share in ((TRAIN, 0.95), (HELDOUT, 0.05)):
            store = MappedTokens(corpus.stem(name, split))
            assert source[split]["tokens"] == store.num_tokens
            assert source[split]["documents"] == store.num_documents
            text = "".join(tokenizer.decode(store.document(i).tolist()) for i in range(store.num_documents))
            assert source[split]["bytes"] == len(text.encode())
            # the last document is taken whole
            longest = max(len(store.document(i)) for i in range(store.num_documents))
            assert small["tokens_per_source"] * share <= store.num_tokens
            assert store.num_tokens < small["tokens_per_source"] * share + longest


def test_no_document_and_no_origin_is_in_both_splits(corpus: Corpus) -> None:
    tokenizer = Tokenizer.load(corpus.directory / "tokenizer.json")
    for source in SOURCES:
        texts = {}
        for split in (TRAIN, HELDOUT):
            store = MappedTokens(corpus.stem(source.name, split))
            texts[split] = {tokenizer.decode(store.document(i).tolist()) for i in range(store.num_documents)}
            assert len(texts[split]) == store.num_documents
        assert texts[TRAIN].isdisjoint(texts[HELDOUT])
        origins: dict[str, set[str]] = {TRAIN: set(), HELDOUT: set()}
        to_find = len(texts[TRAIN]) + len(texts[HELDOUT])
        for document in source.read():
            for split in (TRAIN, HELDOUT):
                if document.text in texts[split]:
                    origins[split].add(document.origin)
                    texts[split].remove(document.text)
                    to_find -= 1
            if to_find == 0:
                break
        assert to_find == 0
        assert origins[TRAIN].isdisjoint(origins[HELDOUT])


def test_every_document_ends_with_the_end_of_document_token_and_only_there(corpus: Corpus) -> None:
    eos_id = Tokenizer.load(corpus.directory / "tokenizer.json").eos_id
    for name in corpus.manifest["sources"]:
        store = MappedTokens(corpus.stem(name, TRAIN))
        tokens, starts = store.window(0, store.num_tokens)
        assert np.flatnonzero(tokens == eos_id).tolist() == [*(starts[1:] - 1).tolist(), store.num_tokens - 1]


def test_text_survives_the_tokenizer(corpus: Corpus) -> None:
    tokenizer = Tokenizer.load(corpus.directory / "tokenizer.json")
    for text in ("def f(x):\n\treturn x  # ünïcödé 水 🧪\n", " C1=CC=CC=C1 ", "", "<|endofdocument|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids
    assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.eos_id]) == "ab"


def test_a_built_corpus_is_opened_without_reading_the_sources(tiny: Any, said: list[str]) -> None:
    first = tiny()
    assert any("numbers" in line and "held out" in line for line in said)
    said.clear()

    def read_nothing() -> Iterator[Document]:
        raise AssertionError("built again")

    again = tiny(source=numbers(read_nothing))
    assert again == first
    assert said == []


def test_a_built_corpus_is_opened_while_another_process_holds_the_lock(tiny: Any) -> None:
    corpus = tiny()
    with corpus.directory.with_name(corpus.directory.name + ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tiny() == corpus


def test_other_sizes_and_other_package_versions_are_other_corpora(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = {tiny().directory, tiny(tokens_per_source=5_000).directory}
    monkeypatch.setattr(corpus_module, "installed_version", lambda package: "0.0.1")
    directories.add(tiny().directory)
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
    directories = {first.directory, second.directory, tiny(source=source).directory}
    assert len(directories) == 3
    assert first.manifest["ingredients"]["packages"] == second.manifest["ingredients"]["packages"]
    assert set(first.manifest["ingredients"]["sources"]) == {"numbers"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["numbers.train.tokens.u16", "numbers.heldout.offsets.i64", "tokenizer.json", "manifest.json"]
)
@pytest.mark.parametrize(
    "harm", [flip, lambda path: os.truncate(path, 7), Path.unlink], ids=["flip", "truncate", "unlink"]
)
def test_a_damaged_file_is_named_and_the_corpus_built_again(tiny: Any, said: list[str], name: str, harm: Any) -> None:
    corpus = tiny()
    before = contents(corpus.directory)
    harm(corpus.directory / name)
    said.clear()
    assert tiny() == corpus
    assert contents(corpus.directory) == before
    assert f"{corpus.directory / name}" in said[0]
    assert said[0].endswith(f"building {corpus.directory} again")


def test_a_build_that_fails_leaves_nothing_and_one_that_was_killed_is_swept_up(tiny: Any, tmp_path: Path) -> None:
    def read_and_fail() -> Iterator[Document]:
        yield from read_numbers()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny(source=numbers(read_and_fail))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    corpus = tiny()
    leftover = corpus.directory.with_name(corpus.directory.name + ".tmp-1")
    corpus.directory.rename(leftover)
    assert tiny() == corpus
    assert not leftover.exists()


def test_a_directory_that_cannot_be_written_is_named_with_its_key(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should go")
    with pytest.raises(DataError, match=r"data\.cache_dir=.*cache: File exists"):
        tiny()


def test_a_full_disk_is_one_clear_error(tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(corpus_module, "write_tokens", full)
    with pytest.raises(DataError, match=r"data\.cache_dir=.*No space left on device"):
        tiny()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_source_without_enough_documents_is_refused(tiny: Any) -> None:
    one = numbers(lambda: iter([Document("a", "a text")]))
    with pytest.raises(DataError, match=r"'numbers' has 1 documents.*data\.tokens_per_source"):
        tiny(source=one)


def test_text_too_poor_for_the_vocabulary_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "VOCAB_SIZE", 60_000)
    with pytest.raises(DataError, match=r"of 60000 tokens: raise data\.tokens_per_source"):
        tiny()
