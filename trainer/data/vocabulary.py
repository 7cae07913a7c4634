"""The vocabulary that a corpus needs, from its manifests: known before torch is imported."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.data.errors import DataError

TOY_VOCAB_SIZE = 4096  # tokens of the toy corpora's tokenizer


def refuse_small_vocabulary(cfg: Config) -> None:
    """Raises `ConfigError` if the model has fewer tokens than a source that is on disk, or than the toy will have.

    A manifest that is missing or corrupt is left to those who open the corpus.
    """
    if cfg.data.name == "mixture" and (fault := too_small(cfg.model.vocab_size, _tokens(cfg))) is not None:
        raise ConfigError(fault.faults)


def too_small(vocab_size: int, needed: int) -> DataError | None:
    """The error of a model with fewer tokens than its corpus."""
    if needed <= vocab_size:
        return None
    text = f"model.vocab_size={vocab_size} is smaller than the {needed} tokens of the corpus; use {needed} or more"
    return DataError(text, where="model.vocab_size", value=vocab_size, allowed=f"{needed} or more")


def _tokens(cfg: Config) -> int:
    if cfg.data.build == "toy":
        return TOY_VOCAB_SIZE
    found = [0]
    for source in cfg.data.sources.values():
        try:
            manifest = json.loads(Path(cfg.data.root, source.path, "manifest.json").read_bytes())
            found.append(int(manifest["tokenizer"]["vocab_size"]))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return max(found)
