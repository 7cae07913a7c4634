"""What a run trains on: `build_data` gives an object of the interface `Data`.

Samples are numbered from 0 for ever and any of them can be asked for at any time. Step n of a run takes the samples
n * global_batch .. (n + 1) * global_batch - 1, so the state of the data is one integer, whatever the world size.
No torch is imported here: the command line and the processes that read ahead start without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer.data.errors import DataError

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.data.batch import Batch

__all__ = ["Data", "DataError", "TextTokenizer", "build_data"]


class TextTokenizer(Protocol):
    @property
    def eos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Data(Protocol):
    """A training stream, held-out splits to measure it by, and the tokenizer that made both."""

    vocab_size: int
    sources: list[str]
    fingerprint: str  # changes with any token of the corpus; a checkpoint refuses to resume on another

    @property
    def tokenizer(self) -> TextTokenizer: ...

    def train_batch(self, first_sample: int, count: int) -> Batch:
        """Samples first_sample .. first_sample + count - 1, a window each. Raises ValueError below 0."""

    def eval_batches(self, source: str, batches: int, micro_batch: int) -> Iterator[Batch]:
        """Windows of a source's held-out split, the same at every call; fewer where the split has fewer."""

    def prompts(self) -> dict[str, str]:
        """How a sample text starts, per source."""

    def unigram_nats(self, source: str | None = None) -> float:
        """Cross-entropy, in nats per token, of held-out tokens under the smoothed unigram of the training mixture.

        Of one source or, by default, of all, weighted as the mixture is.
        """


def build_data(
    cfg: DataConfig,
    *,
    seed: int,
    vocab_size: int,
    progress: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Data:
    """The data that `cfg.name` names, in an order decided by `seed`; any number of processes may call it at once.

    vocab_size: the model's; synthetic data use all of it, a corpus must fit in it. progress: takes a line of text at
    every stage of building the corpus, printed to stderr by default; warn, one of what is damaged and will be passed
    over. Raises DataError.
    """
    if cfg.name == "synthetic":
        from trainer.data.synthetic import SyntheticData

        return SyntheticData(vocab_size=vocab_size, seq_len=cfg.seq_len, seed=seed)
    if cfg.name != "mixture":
        raise DataError(f"data.name={cfg.name}: use mixture or synthetic")
    from trainer.corpora.build import print_progress
    from trainer.data.mixture.stream import MixtureData

    progress = progress or print_progress
    data = MixtureData(cfg, source_directories(cfg, progress), seed=seed, warn=warn or progress)
    if data.vocab_size > vocab_size:
        raise DataError(f"model.vocab_size={vocab_size} is smaller than the corpus' {data.vocab_size} tokens")
    return data


def source_directories(cfg: DataConfig, progress: Callable[[str], None]) -> dict[str, Path]:
    """Where the shards of each source of a mixture lie; those of `data.build=toy` are built first where they are
    missing. Raises DataError."""
    if cfg.build == "toy":
        from trainer.corpora.toy import open_toy_mixture

        return open_toy_mixture(cfg, progress)
    return {name: Path(cfg.root, source.path) for name, source in cfg.sources.items()}
