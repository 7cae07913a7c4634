"""A mixture of three sources that takes a second to make: invented words, no package's text, Megatron's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.config.keys import DataConfig
from trainer.config.mixture import PhaseConfig, SourceConfig
from trainer.corpora.packages import Document
from trainer.corpora.tokenize import write
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.hashing import mix64
from trainer.data.shards.files import read_manifest, write_manifest
from trainer.data.shards.tokenizer import train_bpe

SEQ_LEN = 32
PREFIXES = {"science": ["Science text:\n", "Of science:\n"], "general": ["Plain text:\n", "Of all kinds:\n"]}
SYLLABLES = ("ka", "lo", "mi", "ren", "su", "tor", "vel", "xi", "zan", "pe")
# source -> documents: an epoch of the smallest ends inside a short run
DOCUMENTS = {"records": 40, "web": 80, "code": 60}
# phase -> samples, and of how many each source is drawn in it
SAMPLES = {"stable": {"records": 80, "web": 100, "code": 60}, "anneal": {"records": 60, "web": 20, "code": 40}}


def texts(name: str, count: int) -> list[str]:
    """Sentences of 4 to 43 words, drawn by a hash."""
    made = []
    for document in range(count):
        words = 4 + int(mix64(len(name), document)[0] % 40)
        drawn = [mix64(len(name), document, word, 1)[0] for word in range(words)]
        made.append(" ".join("".join(SYLLABLES[int(bits >> shift) % 10] for shift in (3, 11)) for bits in drawn))
    return made


def make_mixture(root: Path, patch: pytest.MonkeyPatch, *, shard_tokens: int = 4000, **data: Any) -> DataConfig:
    """Tokenize the sources into `root` and return their configuration. `data`: further keys of it."""
    patch.setattr(write, "HAS_WHEEL", False)  # the same bytes without Megatron's import of 5 s
    tokenizer = root / "tokenizer.json"
    train_bpe((text for name, count in DOCUMENTS.items() for text in texts(name, count)), 300).save(tokenizer)
    science = {"records"}
    for name, count in DOCUMENTS.items():
        tokenize_source(
            [Document(f"{name} {number}", text) for number, text in enumerate(texts(name, count))],
            tokenizer,
            root / name,
            name=name,
            domain="science" if name in science else "general",
            group="science" if name in science else "general",
            prefixes=PREFIXES,
            heldout_fraction=0.1,
            shard_tokens=shard_tokens,
            workers=0,
        )
    sources = {
        name: SourceConfig(
            path=name,
            domain="science" if name in science else "general",
            tokens=SEQ_LEN * sum(draws[name] for draws in SAMPLES.values()),
            unique_tokens=1000,
            max_epochs=9.0,
            prefix="science" if name in science else "general",
            phases={phase: float(draws[name]) for phase, draws in SAMPLES.items()},
        )
        for name in DOCUMENTS
    }
    phases = {phase: PhaseConfig(tokens=SEQ_LEN * sum(draws.values())) for phase, draws in SAMPLES.items()}
    return DataConfig(
        name="mixture", seq_len=SEQ_LEN, sources=sources, phases=phases, prefixes=PREFIXES, root=str(root), **data
    )


def rewrite_manifest(directory: Path, **changes: object) -> None:
    manifest = dict(read_manifest(directory))
    del manifest["checksum"], manifest["format"]
    write_manifest(directory, {**manifest, **changes})
