"""The signals of a source against the tables of a model's tower for signals. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Recording
from trainer.data.media.rules import SignalKind
from trainer.data.media.store import MEDIA, PLACES, SIGNAL, MediaFiles, Places, PlaceTable
from trainer.model.towers.signal_patches import WIDEST_PATCH, known_rate, patch_stride

if TYPE_CHECKING:
    from trainer.config.model import TimeSeriesConfig

PUBLISHED_STRIDE = 160  # the widest of the published rule


def widest_patch(directory: Path, manifest: Mapping[str, Any], kind: SignalKind, tower: TimeSeriesConfig) -> int:
    """Steps of the widest patch of a source; 0 where the tower has one for every signal. Signals are read only for a
    smaller tower; those that cannot be read are left to those who train on them."""
    limit = 2 * PUBLISHED_STRIDE if kind.rule.long == "cut" else WIDEST_PATCH
    if tower.patch_positions >= limit:
        return 0
    widest, files = 0, MediaFiles()
    for path, records in _signals(directory, manifest):
        for record in records:
            try:
                recording = Recording.from_bytes(files.read(path, record), where=str(path))
                steps = recording.steps - kind.rule.left_out(recording.steps)
                stride = kind.rule.stride(steps, recording.rate)
            except DataError:
                continue
            widest = max(widest, 2 * (stride or patch_stride(known_rate(recording.rate, steps))))
    return widest


def most_tokens(directory: Path, manifest: Mapping[str, Any]) -> int:
    """Embeddings of the longest signal of a source."""
    return max((int(records["tokens"].max()) for _, records in _signals(directory, manifest)), default=0)


def _signals(directory: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[Path, Places]]:
    """The media file and the records of each shard with signals; one that cannot be read is left out."""
    for shard in [*manifest["shards"], *manifest["heldout"]]:
        stem = directory / shard["stem"]
        try:
            table = PlaceTable(stem.with_name(stem.name + PLACES), shard["records"])
        except DataError:
            continue
        records = table.between(0, shard["tokens"])
        records = records[records["kind"] == SIGNAL]
        if len(records):
            yield stem.with_name(stem.name + MEDIA), records
