"""Read back a corpus of documents with media, for tests."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainer.data.media.illustrated import ids, image, make
from trainer.data.media.store import MEDIA, PLACES, MediaFiles, PlaceTable
from trainer.data.shards.megatron_index import IndexedTokens
from trainer.storage.manifest import MANIFEST

PAD, OPEN, CLOSE = ids("<IMG_CONTEXT>", "<img>", "</img>")


TEXT = {"type": "text", "text": "a note"}


def written(out: Path) -> list[tuple[list[int], list[tuple[int, int, bytes]]]]:
    """All documents: ids, and (first placeholder, placeholders, bytes) of each image."""
    manifest = json.loads((out / MANIFEST).read_text())
    found, files = [], MediaFiles()
    for shard in [*manifest["shards"], *manifest["heldout"]]:
        store, table = IndexedTokens(out / shard["stem"]), PlaceTable(out / (shard["stem"] + PLACES), shard["records"])
        starts = store.document_starts().tolist()
        for number in range(store.num_documents):
            places = table.between(starts[number], starts[number + 1])
            path = out / (shard["stem"] + MEDIA)
            media = [(int(p["first"]) - starts[number], int(p["tokens"]), files.read(path, p)) for p in places]
            found.append((store.document(number).tolist(), media))
    return found


def one(tmp_path: Path, parts: Any, **changes: Any) -> tuple[list[int], list[tuple[int, int, bytes]]]:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"content": parts}) + "\n")
    (document,) = written(make(tmp_path, [path], **{"heldout_fraction": 0, "group": None, **changes}))
    return document


def encoded(number: int) -> str:
    return base64.b64encode(image(number)).decode()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()
