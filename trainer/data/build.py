"""`build_data` opens what `data.name` chooses; torch and the corpora are not imported until then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.errors import print_warning
from trainer.config.model import VisionConfig
from trainer.data.errors import DataError
from trainer.data.vocabulary import too_small
from trainer.storage.progress import OnProgress, print_line

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.config.model import ModelConfig
    from trainer.data.protocols import Data
    from trainer.data.weights import Reduction


def build_data(
    cfg: DataConfig,
    *,
    seed: int,
    vocab_size: int,
    samples: int = 0,
    weights: Path | None = None,
    model: ModelConfig | None = None,
    reduction: Reduction = "token",
    kept: Path | None = None,
    progress: OnProgress = print_line,
    warn: Callable[[str], None] = print_warning,
) -> Data:
    """Open the data of `cfg`; any number of processes may call it at once. Raises DataError.

    seed: decides the order of the samples. vocab_size: the model's; synthetic data use all of it, a corpus must fit in
    it. samples: that the run reads in all. weights: the directory of the published weights that it starts from, whose
    tokenizer.json must give the corpus' tokens the same ids. model: whose towers must be those that the images and
    signals of the corpus were tokenized for; synthetic data have some for them. reduction: of chats, as
    `train.loss_reduction`. kept: where the run keeps its tokenizer, which chats are read with if nothing else names
    one. progress: receives every stage of building a toy corpus. warn: receives a line for damage that
    `data.on_fault=skip` passes over, for records that are left out, and for tokens that the weights do not know.
    """
    if cfg.name == "synthetic":
        from trainer.data.synthetic import open_synthetic

        placeholders = (
            [token for token in (model.image_token, model.signal_token) if token is not None] if model else []
        )
        data = open_synthetic(vocab_size=min([vocab_size, *placeholders]), seq_len=cfg.seq_len, seed=seed)
        if model is None or not placeholders:
            return data
        from trainer.data.media.synthetic import with_media

        return with_media(data, model, cfg.seq_len, seed)
    if cfg.name == "pairs":
        return _open_pairs(cfg, model, seed=seed, vocab_size=vocab_size, samples=samples, progress=progress, warn=warn)
    if cfg.name == "chat":
        return _open_chats(
            cfg, seed=seed, vocab_size=vocab_size, reduction=reduction, weights=weights, kept=kept, progress=progress,
            warn=warn,
        )  # fmt: skip
    if cfg.name == "questions":
        return _open_questions(cfg, seed=seed, vocab_size=vocab_size, weights=weights, kept=kept, progress=progress)
    if cfg.name != "mixture":
        names = ("mixture", "synthetic", "pairs", "chat", "questions")
        text = f"data.name={cfg.name} is not a kind of data; use {' or '.join(names)}"
        raise DataError(text, where="data.name", value=cfg.name, allowed=names)
    from trainer.data.mixture.checks import other_towers, other_vocabulary, without_position
    from trainer.data.mixture.stream import open_mixture

    directories = source_directories(cfg, progress)
    if model is not None and (faults := [*other_towers(cfg, directories, model)]):
        raise DataError(faults)
    for unplaced in without_position(directories, model) if model is not None else ():
        warn(unplaced)
    data = open_mixture(cfg, directories, seed=seed, samples=samples, warn=warn)
    if weights is not None:
        faults, line = other_vocabulary(next(iter(directories.values())), weights)
        if faults:
            raise DataError(faults)
        if line:
            warn(line)
    if data.text is not None and (error := too_small(vocab_size, data.text.vocab_size)) is not None:
        raise error
    return data


def _open_pairs(
    cfg: DataConfig,
    model: ModelConfig | None,
    *,
    seed: int,
    vocab_size: int,
    samples: int,
    progress: OnProgress,
    warn: Callable[[str], None],
) -> Data:
    from trainer.data.pairs.stream import open_pairs

    assert model is not None
    assert isinstance(model.vision, VisionConfig)  # the checks of the configuration have seen one
    if cfg.build == "toy":
        from trainer.corpora.pairs.toy import open_toy_pairs

        directory = open_toy_pairs(cfg, progress)
        cfg = replace(cfg, root=str(directory), tokenizer=str(directory))
    data, tokens = open_pairs(cfg, model.vision, seed=seed, samples=samples, warn=warn)
    if (error := too_small(vocab_size, tokens)) is not None:
        raise error
    return data


def _open_chats(
    cfg: DataConfig,
    *,
    seed: int,
    vocab_size: int,
    reduction: Reduction,
    weights: Path | None,
    kept: Path | None,
    progress: OnProgress,
    warn: Callable[[str], None],
) -> Data:
    from trainer.data.chats.stream import open_chats

    if cfg.tokenizer is not None and weights is not None:
        from trainer.data.mixture.checks import other_vocabulary
        from trainer.data.shards.tokenizer import tokenizer_file

        path = tokenizer_file(Path(cfg.tokenizer))
        faults, line = other_vocabulary(path.parent, weights, "use data.tokenizer=null for the weights' own")
        if faults:
            raise DataError(faults)
        if line:
            warn(line)
    data, tokens = open_chats(
        with_toy_chats(cfg, progress),
        seed=seed,
        reduction=reduction,
        weights=weights,
        kept=kept,
        progress=progress,
        warn=warn,
    )
    if (error := too_small(vocab_size, tokens)) is not None:
        raise error
    return data


def _open_questions(
    cfg: DataConfig, *, seed: int, vocab_size: int, weights: Path | None, kept: Path | None, progress: OnProgress
) -> Data:
    from trainer.data.questions.stream import open_questions

    if cfg.build == "toy":
        from trainer.corpora.questions.toy import open_toy_questions

        cfg = open_toy_questions(cfg, progress)
    data, tokens = open_questions(cfg, seed=seed, weights=weights, kept=kept)
    if (error := too_small(vocab_size, tokens)) is not None:
        raise error
    return data


def with_toy_chats(cfg: DataConfig, progress: OnProgress = print_line) -> DataConfig:
    """`cfg` with the files and the tokenizer of the toy's chats, made where they are missing, for `data.build=toy`.

    Raises DataError."""
    if cfg.build != "toy":
        return cfg
    from trainer.corpora.chats.toy import open_toy_chats

    return open_toy_chats(cfg, progress)


def source_directories(cfg: DataConfig, progress: OnProgress = print_line) -> dict[str, Path]:
    """Return the directory of each source's shards; build those of `data.build=toy` where they are missing.

    Raises DataError.
    """
    if cfg.build == "toy":
        from trainer.corpora.toy import open_toy_mixture

        return open_toy_mixture(cfg, progress)
    return {name: Path(cfg.root, source.path) for name, source in cfg.sources.items()}
