"""A model and its tokenizer from a run or from a Hugging Face directory, ready to generate.

`open_source` starts without torch and finds out everything that can be wrong before weights are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.errors import CheckpointError
from trainer.config.model import ModelConfig
from trainer.config.run_files import CONFIG_FILE, read_run
from trainer.data.errors import DataError
from trainer.data.shards.tokenizer import Tokenizer
from trainer.storage.boxes import full_box
from trainer.weights.beside.side_files import TOKENIZERS
from trainer.weights.beside.tokenizer import GENERATION_CONFIG, find_tokenizer
from trainer.weights.hf_files import CONFIG, open_directory, read_json
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.opened import OpenedCheckpoint, open_checkpoint
from trainer.weights.towers.config import SIGNAL_TOKEN

if TYPE_CHECKING:
    import torch

    from trainer.model.decoder import Decoder

GENERATES = f"a run directory, a step-N directory in one, or a Hugging Face directory (with {CONFIG})"


@dataclass(frozen=True)
class Source:
    """A directory that weights are read from.

    tokenizer: None where there is none; `without` says why. stop_ids: tokens that end an answer. linears, experts: as
    `precision`'s keys.
    """

    opened: OpenedCheckpoint | SourceModel
    model: ModelConfig
    tokenizer: Tokenizer | None
    without: str
    stop_ids: frozenset[int]
    linears: str
    experts: str
    warnings: list[str]
    placeholders: Mapping[int, str] = field(default_factory=dict)  # of towers: token -> medium, with its article

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text, or of the end of a document where it is empty.

        Raises DataError without a tokenizer, for a text that is not UTF-8 (Python reads other bytes of a command line
        as surrogates), and for one that spells the placeholder of an image or signal: media cannot be given."""
        tokenizer = self.require_tokenizer()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            remedy = "text in UTF-8"
            fault = f"the prompt is not UTF-8 from character {error.start + 1} on; give {remedy}"
            raise DataError(fault, where="prompt", value=text, allowed=remedy) from None
        ids = tokenizer.encode(text)
        for token in sorted(self.placeholders.keys() & set(ids)):
            spelled, remedy = tokenizer.token(token), "a prompt without it"
            medium = self.placeholders[token]
            fault = f"the prompt has {spelled}, the placeholder of {medium}, which cannot be given here; use {remedy}"
            raise DataError(fault, where="prompt", value=spelled, allowed=remedy)
        return ids or [tokenizer.eos_id]

    def require_tokenizer(self) -> Tokenizer:
        """Raises DataError where there is none."""
        if self.tokenizer is None:
            remedy = "give token ids to trainer.engine"
            raise DataError(f"there is no tokenizer: {self.without}; {remedy}", where="tokenizer", allowed=remedy)
        return self.tokenizer

    def load(self, device: torch.device) -> Decoder:
        """The text model in exact arithmetic, without gradients. Matrices that compute in 16 bits are held in 16 bits.

        Raises CheckpointError and HuggingFaceError for weights that are damaged."""
        import torch

        from trainer.model.decoder import Decoder
        from trainer.model.exact.switch import make_exact, store_for_few_rows
        from trainer.model.experts.choose import choose_backend
        from trainer.precision import DTYPES

        dtype = DTYPES[self.linears]
        with torch.device("meta"):
            cfg = replace(self.model, vision=None, signals=None)
            model = Decoder(cfg, dtype, make_backend=choose_backend(self.experts, cfg.expert_backend))
        model.requires_grad_(False).to_empty(device="cpu")
        _fill(model, self.opened)
        for name, weight in model.named_parameters():
            experts = ".moe.experts." in name and self.experts != "fp8_reference"
            if experts or ".attention." in name:
                weight.data = weight.data.to(dtype)
        return store_for_few_rows(make_exact(model.to(device)))


def open_source(path: Path) -> Source:
    """Open a Hugging Face directory, a run directory (its newest checkpoint) or a step-N directory in one.

    Raises CheckpointError, ConfigError or HuggingFaceError for one that cannot be read or has no LM head; DataError for
    its tokenizer."""
    return _published(path) if (path / CONFIG).is_file() else _trained(path)


def _published(path: Path) -> Source:
    source = survey_directory(open_directory(path))
    source.require(towers=False)
    tokenizer, without, stop = None, f"{path} has no tokenizer.json", frozenset(_stop_ids(path))
    if (path / TOKENIZERS[0]).is_file():
        tokenizer = Tokenizer.load(path, special_text="encode")
        stop = stop or frozenset({tokenizer.eos_id})
    config = source.directory.config
    image = config.get("image_token_id") if config.get("vision_config") else None
    placeholders = _placeholders(image, config.get("ts_token_id", SIGNAL_TOKEN) if config.get("ts_config") else None)
    return Source(source, source.model, tokenizer, without, stop, "fp32", "fp32", source.warnings, placeholders)


def _stop_ids(path: Path) -> Iterable[int]:
    """The end tokens that a directory names, in generation_config.json or else in config.json."""
    for name in (GENERATION_CONFIG, CONFIG):
        found: Any = read_json(path / name).get("eos_token_id") if (path / name).is_file() else None
        if found is not None:
            return found if isinstance(found, list) else [found]
    return []


def _trained(path: Path) -> Source:
    opened = open_checkpoint(path, allowed=GENERATES)
    tree, _ = read_run(opened.run_directory)
    objective = (tree.get("train") or {}).get("objective", "next_token")
    if objective != "next_token":
        allowed = "a run with train.objective=next_token"
        text = f"{opened.run_directory} was trained with train.objective={objective}, which leaves the LM head out"
        raise CheckpointError(f"{text}; give {allowed}", where="train.objective", value=objective, allowed=allowed)
    precision = tree.get("precision") or {}
    linears, experts = precision.get("linears", "fp32"), precision.get("experts", "fp32")
    warnings = []
    if experts not in ("fp32", "bf16", "fp8_reference"):
        warnings.append(f"the run's experts are in {experts}; here they are in {linears}")
        experts = linears
    found, why = find_tokenizer(opened.run_directory)
    tokenizer = None
    if found is not None:
        before = [found.bos_id] if found.bos_id != found.eos_id else []
        tokenizer = Tokenizer.load(found.file, found.eos, special_text="encode", before=before)
    stop = frozenset({tokenizer.eos_id}) if tokenizer is not None else frozenset[int]()
    without = why or "the run's data are synthetic"
    m = opened.model
    placeholders = _placeholders(m.image_token if m.vision else None, m.signal_token if m.signals else None)
    return Source(opened, m, tokenizer, without, stop, linears, experts, warnings, placeholders)


def _placeholders(image: int | None, signal: int | None) -> dict[int, str]:
    return {token: medium for token, medium in ((image, "an image"), (signal, "a signal")) if token is not None}


def _fill(model: Decoder, opened: OpenedCheckpoint | SourceModel) -> None:
    if isinstance(opened, SourceModel):
        from trainer.weights.hf_read import fill

        fill(model, opened)
        return
    if wrong := [*(f"{name} is missing" for name in opened.missing), *opened.unfit]:
        raise CheckpointError(
            f"{opened.path} does not match the model of its run: {wrong[0]} (octavo inspect lists all)",
            where=str(opened.path), value=wrong, allowed=f"a checkpoint beside its own {CONFIG_FILE}",
        )  # fmt: skip
    opened.compare_hashes()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.data.copy_(opened.state.read(f"model.{name}", full_box(tensor.shape)))
