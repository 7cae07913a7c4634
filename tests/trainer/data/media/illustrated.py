"""Small sources of documents with images, for tests: drawn noise, a tokenizer with markers, rows in every form."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from tests.trainer.corpora.tokenize.tokenized import DEFAULTS, PREFIXES, documents, texts, tokenizer
from trainer.config.keys import DataConfig
from trainer.config.mixture import PhaseConfig, SourceConfig
from trainer.corpora.tokenize import write
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.media.images import PatchRule
from trainer.data.media.rules import ImageKind, MediaRules, SignalKind
from trainer.data.media.signals import SignalRule
from trainer.data.shards.tokenizer import Tokenizer

MARKERS = ("<img>", "<IMG_CONTEXT>", "</img>", "<ts>", "<TS_CONTEXT>", "</ts>", "<|video_pad|>")
SIDE = 32  # pixels of an image that become one token
SEQ_LEN, SAMPLES = 128, 48  # of the mixture


def image(number: int, rows: int = 1, columns: int = 1, kind: str = "PNG") -> bytes:
    """An image file of rows x columns tokens."""
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 256, (rows * SIDE, columns * SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@cache
def with_markers() -> Tokenizer:
    bpe = tokenizers.Tokenizer.from_str(json.dumps(tokenizer().state))
    bpe.add_special_tokens([*MARKERS])
    return Tokenizer(bpe)


def ids(*tokens: str) -> tuple[int, ...]:
    found = [with_markers().id_of(token) for token in tokens]
    return tuple(token for token in found if token is not None)


def rules(**changes: Any) -> MediaRules:
    (token,), before, after = ids("<IMG_CONTEXT>"), ids("<img>"), ids("</img>")
    image = ImageKind(PatchRule(min_pixels=SIDE**2), token, before, after, **changes)
    (token,), before, after = ids("<TS_CONTEXT>"), ids("<ts>"), ids("</ts>")
    return MediaRules(image, SignalKind(SignalRule(max_tokens=4), token, before, after))


def wave(number: int, steps: int = 300) -> np.ndarray:
    """Two channels that no other number has."""
    seconds = np.arange(steps) / 100
    return np.stack([np.sin(seconds * (1 + number % 7)), np.cos(seconds * number)], axis=1).round(3)


def save_tokenizer(directory: Path) -> Path:
    with_markers().save(directory / "tokenizer.json")
    return directory / "tokenizer.json"


def make(directory: Path, inputs: Any, **changes: Any) -> Path:
    """A source `directory/source` of documents with parts, tokenized in this process by default."""
    out: Path = changes.pop("out", directory / "source")
    options = {**DEFAULTS, "media": rules(), "field": "content", "prefixes": PREFIXES, **changes}
    tokenize_source(inputs, save_tokenizer(directory), out, **options)
    return out


def rows(count: int) -> list[list[dict[str, Any]]]:
    """Documents of one to three images of 1 to 6 tokens, whose bytes are files `NUMBER.png`, between texts."""
    made = []
    for number, text in enumerate(texts(count)):
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        for place in range(number % 4):
            parts.append({"type": "image", "image": f"images/{number}-{place}.png"})
            parts.append({"type": "text", "text": f"Figure {place}.\n"})
        made.append(parts)
    return made


def write_rows(directory: Path, some: list[list[dict[str, Any]]], name: str = "rows.jsonl") -> Path:
    """The rows as JSONL, and the images that they name."""
    (directory / "images").mkdir(exist_ok=True)
    for number, parts in enumerate(some):
        for place, part in enumerate(part for part in parts if "image" in part):
            path = directory / str(part["image"])
            if not path.exists():
                path.write_bytes(image(number * 10 + place, 1 + number % 2, 1 + place))
    path = directory / name
    path.write_text("".join(json.dumps({"content": parts, "id": str(n)}) + "\n" for n, parts in enumerate(some)))
    return path


def make_mixture(root: Path, patch: pytest.MonkeyPatch) -> DataConfig:
    """A source of documents with images, `figures`, beside one of text, `notes`."""
    patch.setattr(write, "HAS_WHEEL", False)
    make(root, [write_rows(root, rows(90))], out=root / "figures", name="figures")
    tokenize_source(
        documents(texts(120)), save_tokenizer(root), root / "notes", name="notes", domain="general", group="general",
        prefixes=PREFIXES, heldout_fraction=0.2, workers=0,
    )  # fmt: skip
    sources = {
        name: SourceConfig(
            path=name, domain=domain, modality="image" if name == "figures" else "text", prefix=domain,
            tokens=SEQ_LEN * SAMPLES // 2, unique_tokens=1000, max_epochs=9.0, phases={"all": 1.0},
        )
        for name, domain in (("figures", "science"), ("notes", "general"))
    }  # fmt: skip
    phases = {"all": PhaseConfig(tokens=SEQ_LEN * SAMPLES)}
    return DataConfig(
        name="mixture", seq_len=SEQ_LEN, sources=sources, phases=phases, prefixes=PREFIXES, root=str(root),
        cache_dir=str(root / "cache"),
    )  # fmt: skip
