"""Parts of a tensor read from its bytes are what indexing gives."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from trainer.storage import boxes
from trainer.storage.boxes import StoredTensor, UnreadableError, full_box, overlap, read_box, relative_to


def stored(path: Path, values: np.ndarray) -> StoredTensor:
    path.write_bytes(b"head" + values.tobytes() + b"tail")
    return StoredTensor("w", "?", values.shape, path, 4, values.nbytes)


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize(("short", "block"), [(64 << 10, 32 << 20), (0, 1), (64 << 10, 100)])
def test_every_box_of_a_small_tensor(tmp_path: Path, monkeypatch, itemsize: int, short: int, block: int) -> None:
    monkeypatch.setattr(boxes, "SHORT_RUN", short)
    monkeypatch.setattr(boxes, "BLOCK_BYTES", block)
    values = np.random.default_rng(0).integers(0, 255, (3, 4, 5), dtype=np.uint8).astype(f"u{itemsize}")
    tensor = stored(tmp_path / "file", values)
    cuts = [[slice(0, n), slice(1, n), slice(1, 2), slice(0, n - 1), slice(1, 1)] for n in values.shape]
    for box in product(*cuts):
        found = read_box(tensor, box, itemsize)
        assert found.dtype.itemsize == itemsize
        np.testing.assert_array_equal(found, values[box])


def test_a_number_and_an_empty_tensor(tmp_path: Path) -> None:
    assert read_box(stored(tmp_path / "one", np.array(7, np.uint32)), (), 4) == 7
    assert read_box(stored(tmp_path / "none", np.empty((0, 3), np.uint16)), full_box((0, 3)), 2).shape == (0, 3)


def test_a_file_that_is_too_short_or_gone(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "file", np.arange(10, dtype=np.uint64))
    with open(tensor.file, "r+b") as file:
        file.truncate(60)
    with pytest.raises(UnreadableError) as short:
        read_box(tensor, full_box((10,)), 8)
    assert (short.value.file, short.value.name) == (tensor.file, "w")
    assert "24 bytes early" in short.value.reason
    tensor.file.unlink()
    with pytest.raises(UnreadableError):
        read_box(tensor, full_box((10,)), 8)


def test_overlaps_and_coordinates() -> None:
    a, b = (slice(2, 6), slice(0, 4)), (slice(4, 9), slice(1, 3))
    both = overlap(a, b)
    assert both == (slice(4, 6), slice(1, 3))
    assert relative_to(both, a) == (slice(2, 4), slice(1, 3))
    assert overlap(a, (slice(6, 9), slice(1, 3))) is None
