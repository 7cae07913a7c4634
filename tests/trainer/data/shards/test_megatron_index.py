"""The reader of Megatron's files against Megatron's own reader, on files that Megatron's builder wrote."""

import importlib.util
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.data.errors import DataError
from trainer.data.shards.files import REMEDY
from trainer.data.shards.megatron_index import DTYPES, IndexedTokens

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core has no wheel for this Python or platform"
)

# Documents as lists of sequences: an empty document, empty sequences, one token, several sequences.
DOCUMENTS = [[[5, 6, 7, 0]], [[]], [[0]], [[1, 2], [3]], [], [[], [4, 0]], [[9] * 11], [[]], []]


def write(stem: Path, documents: list[list[list[int]]], dtype: type[np.number]) -> Path:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype)
    for sequences in documents:
        tokens = np.array([token for sequence in sequences for token in sequence], dtype)
        builder.add_document(tokens, [len(sequence) for sequence in sequences])
    builder.finalize(f"{stem}.idx")
    return stem


def same_as_megatron(stem: Path, lengths: list[int]) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    theirs, ours = IndexedDataset(str(stem)), IndexedTokens(stem)
    ours.check()
    marks = theirs.document_indices.tolist()
    documents = [
        np.concatenate([np.empty(0, np.int64), *(theirs[s] for s in range(first, last))]).astype(np.int64)
        for first, last in itertools.pairwise(marks)
    ]
    stream = np.concatenate([theirs[sequence] for sequence in range(len(theirs))]).astype(np.int64)
    assert (ours.num_documents, ours.num_sequences, ours.num_tokens) == (len(documents), len(theirs), len(stream))
    assert ours.dtype == theirs.index.dtype
    for index, document in enumerate(documents):
        assert ours.document(index).tolist() == document.tolist()
    begins = np.zeros(len(stream) + 1, np.bool_)
    begins[np.cumsum([0, *map(len, documents)])[:-1]] = True
    for length in lengths:
        starts = np.random.default_rng(0).permutation(len(stream) - length + 1)[:200]
        tokens_NL, begins_NL = ours.windows(starts, length)
        assert (tokens_NL.dtype, begins_NL.dtype) == (np.int64, np.bool_)
        places_NL = starts[:, None] + np.arange(length)
        np.testing.assert_array_equal(tokens_NL, stream[places_NL])
        np.testing.assert_array_equal(begins_NL, begins[places_NL])
        tokens_L, places = ours.window(int(starts[0]), length)
        np.testing.assert_array_equal(tokens_L, tokens_NL[0])
        np.testing.assert_array_equal(places, np.flatnonzero(begins_NL[0]))


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_is_read_as_megatron_reads_it(tmp_path: Path, code: int) -> None:
    from megatron.core.datasets.indexed_dataset import DType

    assert np.dtype(DTYPES[code]) == DType.dtype_from_code(code)
    same_as_megatron(write(tmp_path / "some.tokens", DOCUMENTS, DType.dtype_from_code(code)), [1, 2, 5, 20, 21])


def test_random_documents_of_many_sizes(tmp_path: Path) -> None:
    chance = random.Random(0)
    sequences = [[chance.randrange(65_536) for _ in range(chance.choice([0, 1, 2, 7, 300]))] for _ in range(500)]
    documents = [[sequences.pop() for _ in range(chance.choice([0, 1, 1, 1, 3]))] for _ in range(160)]
    same_as_megatron(write(tmp_path / "random", documents, np.uint16), [1, 17, 1000])


@pytest.mark.parametrize("documents", [[], [[]], [[[]], []]])
def test_files_without_a_token(tmp_path: Path, documents: list[list[list[int]]]) -> None:
    tokens = IndexedTokens(write(tmp_path / "none", documents, np.int32))
    tokens.check()
    assert (tokens.num_documents, tokens.num_tokens) == (len(documents), 0)
    assert all(len(tokens.document(index)) == 0 for index in range(len(documents)))
    assert tokens.windows(np.empty(0, np.int64), 4)[0].shape == (0, 4)
    with pytest.raises(IndexError):
        tokens.window(0, 1)


def test_windows_outlive_the_store(tmp_path: Path) -> None:
    tokens, begins = IndexedTokens(write(tmp_path / "a", DOCUMENTS, np.int32)).windows(np.arange(3), 8)
    assert tokens.sum() > 0
    assert begins.any()


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 0), (20, 2), (21, 1), (0, 22)])
def test_a_window_outside_the_stream_is_refused(tmp_path: Path, start: int, length: int) -> None:
    store = IndexedTokens(write(tmp_path / "a", DOCUMENTS, np.int32))
    with pytest.raises(IndexError, match="of 21"):
        store.windows(np.array([3, start, 4]), length)
    for index in (-1, 9):
        with pytest.raises(IndexError, match="of 9"):
            store.document(index)


def poke(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + value + content[at + len(value) :]


# 9 documents of 9 sequences: the lengths are at 34, the pointers at 70, the documents at 142 .. 222.
@pytest.mark.parametrize(
    ("suffix", "damage", "where", "value"),
    [
        ("bin", lambda content: content[:-1], "a.bin", 83),
        ("bin", lambda content: b"", "a.bin", 0),
        ("bin", lambda content: None, "a.bin", None),
        ("idx", lambda content: None, "a.idx", None),
        ("idx", lambda content: b"", "a.idx", 0),
        ("idx", lambda content: content[:-1], "a.idx", 221),
        ("idx", poke(0, b"X"), "a.idx", None),
        ("idx", poke(9, b"\2"), "a.idx", None),
        ("idx", poke(17, b"\11"), "a.idx", 9),
        ("idx", poke(17, b"\10"), "a.bin", 84),
        ("idx", poke(24, b"\xff"), "a.idx", 222),
        ("idx", poke(214, b"\7"), "a.idx", None),
    ],
)
def test_damage_that_is_seen_at_once(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes | None], where: str, value: int | None
) -> None:
    path = Path(f"{write(tmp_path / 'a', DOCUMENTS, np.int32)}.{suffix}")
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        IndexedTokens(tmp_path / "a")
    error = caught.value
    assert (error.where, error.value, error.allowed) == (str(tmp_path / where), value, REMEDY)
    assert len(error.lines) == 1


def read_all(stem: Path) -> None:
    store = IndexedTokens(stem)
    for length in (1, 21):
        store.windows(np.arange(22 - length), length)
    for document in range(store.num_documents):
        store.document(document)
    store.check()


def test_no_flipped_bit_of_the_index_is_missed_or_reads_elsewhere(tmp_path: Path) -> None:
    path = Path(f"{write(tmp_path / 'a', DOCUMENTS, np.int32)}.idx")
    content = path.read_bytes()
    missed = []
    for place in range(len(content) * 8):
        at, bit = divmod(place, 8)
        path.unlink()  # a new file: the old one may still be mapped
        path.write_bytes(poke(at, bytes([content[at] ^ 1 << bit]))(content))
        try:
            read_all(tmp_path / "a")
            missed.append(at)
        except DataError as error:
            assert error.where in (str(path), str(path.with_suffix(".bin")))  # noqa: PT017
    # If a document starts at another sequence than before, the file is as valid; only a hash shows it.
    assert all(142 < at < 214 for at in missed)
