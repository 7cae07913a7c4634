"""A model and its tokenizer from a run or from a Hugging Face directory, ready to generate.

`open_source` starts without torch and finds out everything that can be wrong before weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.errors import CheckpointError
from trainer.config.model import ModelConfig
from trainer.config.run_files import CONFIG_FILE, read_run
from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Recording
from trainer.data.media.rules import MediaRules
from trainer.data.media.signals import PreparedSignal
from trainer.data.shards.tokenizer import Tokenizer
from trainer.engine.media import Medium, place_media, prepare_medium
from trainer.model.towers.signal_patches import patch_stride
from trainer.weights.beside.media_rules import rules_of_directory, rules_of_run
from trainer.weights.beside.side_files import TOKENIZERS
from trainer.weights.beside.tokenizer import GENERATION_CONFIG, find_tokenizer
from trainer.weights.hf_files import CONFIG, HuggingFaceError, open_directory, read_json
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.opened import OpenedCheckpoint, open_checkpoint
from trainer.weights.towers.config import SIGNAL_TOKEN, multimodal_config_from_huggingface

if TYPE_CHECKING:
    import torch

    from trainer.model.decoder import Decoder

GENERATES = f"a run directory, a step-N directory in one, or a Hugging Face directory (with {CONFIG})"


@dataclass(frozen=True)
class Source:
    """A directory that weights are read from.

    tokenizer: None where there is none; `without` says why. stop_ids: tokens that end an answer. linears, experts: as
    `precision`'s keys. model: with the towers that can be loaded. find_rules: of their media.
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
    find_rules: Callable[[], MediaRules] = MediaRules

    @property
    def path(self) -> Path:
        """The run directory, or the Hugging Face directory."""
        return self.opened.directory.path if isinstance(self.opened, SourceModel) else self.opened.run_directory

    @cached_property
    def rules(self) -> MediaRules:
        """The rules of images and signals that the model takes. Raises DataError or HuggingFaceError for files of them
        that are damaged."""
        return self.find_rules()

    def medium(self, kind: str, given: bytes | Path | Recording, where: str | None = None) -> Medium:
        """An image or signal for `prompt` and `Request`, prepared as in training.

        given: an image file or its bytes; of a signal a file, its bytes, or a recording. where: names it in errors.
        Raises DataError for a kind that the model has no tower for, and for what cannot be read or prepared.
        """
        where = where or (str(given) if isinstance(given, Path) else kind)
        rule = self.rules.kinds.get(kind)
        if rule is None:
            allowed = " or ".join(self.rules.kinds) or "text alone"
            text = f"{where}: this model has no tower for {kind}s; give it {allowed}"
            raise DataError(text, where=where, value=kind, allowed=allowed)
        medium = prepare_medium(kind, rule, given, where)
        if kind == "signal" and self.model.signals is not None:
            _check_stride(medium.value, self.model.signals.patch_positions // 2, where)
        return medium

    def prompt(self, text: str, media: Sequence[Medium] = (), *, opening: bool = True) -> list[int]:
        """Token ids of a text with its media, or of the end of a document where both are empty.

        Where the text spells a placeholder, a medium has its place; media of a text without any come before it.
        opening: start with the token that opens a document, if the model's documents do.
        Raises DataError without a tokenizer, for a text that is not UTF-8 (Python reads other bytes of a command line
        as surrogates), and for one that spells more or fewer placeholders than media."""
        tokenizer = self.require_tokenizer()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            remedy = "text in UTF-8"
            fault = f"the prompt is not UTF-8 from character {error.start + 1} on; give {remedy}"
            raise DataError(fault, where="prompt", value=text, allowed=remedy) from None
        ids = tokenizer.encode(text)[0 if opening else len(tokenizer.before) :]
        if media:
            return place_media(ids, media, self.rules, tokenizer)
        for token in sorted(self.placeholders.keys() & set(ids)):
            spelled, medium = tokenizer.token(token), self.placeholders[token]
            remedy = f"{medium} for it, or a prompt without it"
            fault = f"the prompt has {spelled}, the placeholder of {medium}, and there is none; give {remedy}"
            raise DataError(fault, where="prompt", value=spelled, allowed=remedy)
        return ids or [tokenizer.eos_id]

    def require_tokenizer(self) -> Tokenizer:
        """Raises DataError where there is none."""
        if self.tokenizer is None:
            remedy = "give token ids to trainer.engine"
            raise DataError(f"there is no tokenizer: {self.without}; {remedy}", where="tokenizer", allowed=remedy)
        return self.tokenizer

    def load(self, device: torch.device, *, towers: bool = False, ranks: int = 1) -> Decoder:
        """The model in exact arithmetic, without gradients. Matrices that compute in 16 bits are held in 16 bits.

        towers: with those for images and signals, where it has any; otherwise the text model alone. ranks: of the
        default process group, which share the experts; with more than one the call is collective.
        Raises CheckpointError and HuggingFaceError for weights that are damaged, ConfigError for a number of ranks that
        the experts cannot be divided among."""
        import torch

        from trainer.model.decoder import Decoder
        from trainer.model.exact.switch import make_exact, store_for_few_rows
        from trainer.model.experts.choose import choose_backend
        from trainer.model.multimodal import Multimodal
        from trainer.precision import DTYPES

        dtype = DTYPES[self.linears]
        cfg = self.model if towers else replace(self.model, vision=None, signals=None)
        kind = Decoder if cfg.vision is None and cfg.signals is None else Multimodal
        with torch.device("meta"):
            model = kind(cfg, dtype, make_backend=choose_backend(self.experts, cfg.expert_backend))
        if ranks > 1:
            from trainer.engine.spread import keep_own_experts, spread_experts

            spread_experts(model, ranks, device)
        model.requires_grad_(False).to_empty(device=device if ranks > 1 else "cpu")
        _fill(model, self.opened)
        if ranks > 1:
            keep_own_experts(model)
        for name, weight in model.named_parameters():
            experts = ".moe.experts." in name and self.experts != "fp8_reference"
            if name.startswith("layers.") and (experts or ".attention." in name):
                weight.data = weight.data.to(dtype)
        return store_for_few_rows(make_exact(model.to(device)))


def _check_stride(signal: PreparedSignal, widest: int, where: str) -> None:
    """Refuse a signal whose patches are longer than the tower's: its rate is too high for them, or it is too long."""
    stride = patch_stride(signal.rate) if signal.stride is None else signal.stride
    if stride > widest:
        allowed = f"a lower sampling rate, for a stride of at most {widest}"
        text = f"{where}: at {signal.rate:g} Hz patches are {stride} steps apart; this tower needs {allowed}"
        raise DataError(text, where=where, value=stride, allowed=allowed)


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
    model = _with_towers(source)
    return Source(
        source, model, tokenizer, without, stop, "fp32", "fp32", source.warnings, placeholders,
        lambda: rules_of_directory(path, model, tokenizer),
    )  # fmt: skip


def _with_towers(source: SourceModel) -> ModelConfig:
    """The model with its towers, where there are any and all of their tensors; otherwise the text model."""
    if not source.directory.config.get("vision_config"):
        return source.model
    try:
        source.require(towers=True)
        return multimodal_config_from_huggingface(source.directory.config)
    except HuggingFaceError:
        return source.model  # without a rule for media, which are then refused


def _stop_ids(path: Path) -> Iterable[int]:
    """The end tokens that a directory names, in generation_config.json or else in config.json."""
    for name in (GENERATION_CONFIG, CONFIG):
        found: Any = read_json(path / name).get("eos_token_id") if (path / name).is_file() else None
        if found is not None:
            return found if isinstance(found, list) else [found]
    return []


def _trained(path: Path) -> Source:
    opened = open_checkpoint(path, allowed=GENERATES)
    opened.require_base()
    tree, _ = read_run(opened.run_directory)
    objective = (tree.get("train") or {}).get("objective", "next_token")
    if objective not in ("next_token", "policy"):
        allowed = "a run with train.objective=next_token or policy"
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
        before = [found.bos_id] if found.bos_id != found.eos_id and found.chat is None else []
        tokenizer = Tokenizer.load(found.file, found.eos, special_text="encode", before=before)
    stop = found.stop_ids if found is not None else frozenset[int]()
    without = why or "the run's data are synthetic"
    m = opened.model
    placeholders = _placeholders(m.image_token if m.vision else None, m.signal_token if m.signals else None)
    return Source(
        opened, m, tokenizer, without, stop, linears, experts, warnings, placeholders,
        lambda: rules_of_run(opened.run_directory, m, tokenizer),
    )  # fmt: skip


def _placeholders(image: int | None, signal: int | None) -> dict[int, str]:
    return {token: medium for token, medium in ((image, "an image"), (signal, "a signal")) if token is not None}


def _fill(model: Decoder, opened: OpenedCheckpoint | SourceModel) -> None:
    if isinstance(opened, SourceModel):
        from trainer.weights.hf_read import fill
        from trainer.weights.towers.map import tower_pieces

        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        fill(model, opened, pieces=[*opened.pieces, *tower_pieces(shapes)])
        return
    from parallel.sharding.local import local_part, local_region

    if wrong := [*(f"{name} is missing" for name in opened.missing), *opened.unfit]:
        raise CheckpointError(
            f"{opened.path} does not match the model of its run: {wrong[0]} (octavo inspect lists all)",
            where=str(opened.path), value=wrong, allowed=f"a checkpoint beside its own {CONFIG_FILE}",
        )  # fmt: skip
    opened.compare_hashes()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        local_part(tensor).copy_(opened.state.read(f"model.{name}", local_region(tensor)))
