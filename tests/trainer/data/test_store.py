from pathlib import Path

import numpy as np
import pytest

from trainer.data.errors import DataError
from trainer.data.store import MappedTokens, write_tokens

DOCUMENTS = [np.array(ids, np.uint16) for ids in ([5, 6, 7, 0], [0], [65_535, 0], [8, 9, 0])]


@pytest.fixture
def store(tmp_path: Path) -> MappedTokens:
    write_tokens(tmp_path / "text.train", DOCUMENTS)
    return MappedTokens(tmp_path / "text.train")


def test_documents_come_back(store: MappedTokens) -> None:
    assert (store.num_documents, store.num_tokens) == (4, 10)
    for index, document in enumerate(DOCUMENTS):
        assert store.document(index).tolist() == document.tolist()


def test_every_window_is_a_slice_of_the_stream_with_its_document_starts(store: MappedTokens) -> None:
    stream = np.concatenate(DOCUMENTS).tolist()
    begins = {0, 4, 5, 7}
    for start in range(10):
        for length in range(1, 11 - start):
            tokens, starts = store.window(start, length)
            assert tokens.dtype == np.int64
            assert tokens.tolist() == stream[start : start + length]
            assert starts.tolist() == sorted(b - start for b in begins if start <= b < start + length)


def test_windows_outlive_the_store(store: MappedTokens) -> None:
    tokens, starts = store.window(0, 10)
    del store
    assert tokens.sum() == 5 + 6 + 7 + 65_535 + 8 + 9
    assert starts.tolist() == [0, 4, 5, 7]


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 0), (9, 2), (10, 1), (0, 11)])
def test_a_window_outside_the_stream_is_refused(store: MappedTokens, start: int, length: int) -> None:
    with pytest.raises(IndexError, match="of 10"):
        store.window(start, length)


@pytest.mark.parametrize("index", [-1, 4])
def test_a_document_that_does_not_exist_is_refused(store: MappedTokens, index: int) -> None:
    with pytest.raises(IndexError, match="of 4"):
        store.document(index)


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    tokens_path, offsets_path = write_tokens(tmp_path / "text.train", DOCUMENTS)
    tokens_path.write_bytes(tokens_path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"offsets do not rise from 0 to the 9 tokens"):
        MappedTokens(tmp_path / "text.train")
    offsets_path.unlink()
    with pytest.raises(DataError, match=r"text\.train: unreadable"):
        MappedTokens(tmp_path / "text.train")
