"""Everything beside an expanded model's tensors: config.json, the tokenizer's files, and warnings."""

from __future__ import annotations

import copy
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from trainer.config.model import ModelConfig
from trainer.weights.beside.side_files import SideFiles, clashes, side_files
from trainer.weights.config_json.text import text_section
from trainer.weights.dtypes import width_warnings
from trainer.weights.hf_config import FREQUENCIES_KEY, is_qwen3_moe
from trainer.weights.hf_files import HuggingFaceError, read_json
from trainer.weights.hf_read import DTYPES
from trainer.weights.hf_survey import SourceModel
from trainer.weights.map import MULTIMODAL, PLAIN
from trainer.weights.upcycle.noise import smallest_noise
from trainer.weights.upcycle.placement import CopyPlacement, Expansion
from trainer.weights.upcycle.vocabulary import Vocabulary

TOKENIZER_FILES = ("tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
# Vocabularies for parts of a text, such as Intern-S1's for molecules: only its code has their ids, no file.
PIECES = "tokenizer_*.model"
GENERATION = "generation_config.json"
PRO, PRO_TEXT = "interns1_pro", "interns1_pro_text"  # model types whose published code has router groups and FoPE


def prefix_of(source: SourceModel, model: ModelConfig) -> str:
    """The prefix of the text model's names."""
    plain = source.directory.config.get("text_config") is None and is_qwen3_moe(model)
    return PLAIN if plain else MULTIMODAL


def base_config(source: SourceModel, model: ModelConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The config.json that `huggingface_config` completes: the source's, with the model types by which other programs
    recognise router groups and FoPE, and with the new ids of special tokens."""
    config = copy.deepcopy(source.directory.config)
    if not is_qwen3_moe(model):
        if config.get("text_config") is None:
            text = {key: value for key, value in config.items() if key != "architectures"}
            config = {"architectures": ["InternS1ProForConditionalGeneration"], "model_type": PRO, "text_config": text}
            config["tie_word_embeddings"] = False
        config["text_config"]["model_type"] = PRO_TEXT
    text = text_section(config)
    if model.positions == "fope":
        key = "rope_scaling" if text.get("rope_scaling") or not text.get("rope_parameters") else "rope_parameters"
        text[key] = {"rope_type": "default", "fope_sep_head": True, FREQUENCIES_KEY: None} | (text.get(key) or {})
    if vocabulary is not None:
        for section in (config, text):
            section.update(_moved_ids(section, vocabulary))
    return config


def side_files_of(source: Path, expansion: Expansion, vocabulary: Vocabulary | None) -> SideFiles:
    """The source's tokenizer, chat template, processors and generation defaults. With another vocabulary: its tokenizer
    and its files of these kinds instead of the source's, and no generation defaults whose ids changed."""
    files = side_files(source)
    if expansion.vocabulary is None or vocabulary is None:
        return files
    for pattern in TOKENIZER_FILES:
        files = {name: file for name, file in files.items() if not fnmatch(name, pattern)}
    if GENERATION in files and _generation_moved(files[GENERATION], vocabulary):
        del files[GENERATION]
    return dict(sorted((files | side_files(Path(expansion.vocabulary))).items()))


def warnings_of(
    source: SourceModel,
    model: ModelConfig,
    expansion: Expansion,
    placement: CopyPlacement,
    dtypes: Collection[str],
    vocabulary: Vocabulary | None,
) -> list[str]:
    """Results that may be unintended, one line each. dtypes: those of the tensors written."""
    found = list(source.warnings)
    if placement.identical:
        how = "in one group" if expansion.strategy == "spread" else "in groups that hold the same experts"
        found.append(
            f"noise=0 leaves exact copies {how}, which receive the same gradients forever; use noise, or cuts=distinct "
            "(training such a checkpoint needs checkpoint.allow_identical_copies=true)"
        )
    if expansion.rope_theta is None and model.rope_theta != source.model.rope_theta:
        found.append(
            f"positions=fope changes rope_theta from {source.model.rope_theta:g} to {model.rope_theta:g}; give "
            f"--rope-theta {source.model.rope_theta:g} to keep it"
        )
    found += width_warnings(model, dtypes, pad=False)
    coarse = {name: smallest_noise(DTYPES[name]) for name in dtypes if DTYPES[name].is_floating_point}
    for name, limit in coarse.items():
        if 0 < expansion.noise < limit:
            found.append(
                f"noise={expansion.noise:g} is partly lost in rounding to {name}; use noise={limit:.2g} or more, or a "
                "wider dtype"
            )
    found += [f"{source.directory.path / name} is not copied" for name in clashes(source.directory.path)]
    if vocabulary is not None and expansion.vocabulary is not None:
        found += _replaced(source.directory.path, Path(expansion.vocabulary))
        unlisted = sorted(file.name for file in source.directory.path.glob(PIECES))
        lost = source.model.vocab_size - len(vocabulary.known or ())
        if unlisted and lost:
            found.append(
                f"{', '.join(unlisted)}: no file lists the ids of their pieces, so {lost} rows of the source without a "
                "token are dropped. To keep them, list their tokens in the added_tokens.json of both tokenizers"
            )
        generation = source.directory.path / GENERATION
        given = Path(expansion.vocabulary) / GENERATION
        if generation.is_file() and not given.is_file() and _generation_moved(generation, vocabulary):
            found.append(f"{GENERATION} is dropped: its ids are different tokens in {expansion.vocabulary}")
        for section in (source.directory.config, text_section(source.directory.config)):
            for key, old in section.items():
                if key.endswith("_token_id") and type(old) is int and vocabulary.moved_id(old) is None:
                    found.append(f"config.json: {key}={old} has no token in {expansion.vocabulary} and is now null")
    return found


def _replaced(source: Path, vocabulary: Path) -> list[str]:
    """A line for each side file, other than the tokenizer's, that both directories have with different content."""
    ours, theirs = side_files(source), side_files(vocabulary)
    return [
        f"{name} is that of {vocabulary}, which differs from that of {source}"
        for name in sorted(ours.keys() & theirs.keys())
        if not any(fnmatch(name, pattern) for pattern in TOKENIZER_FILES)
        and ours[name].read_bytes() != theirs[name].read_bytes()
    ]


def _generation_moved(file: Path, vocabulary: Vocabulary) -> bool:
    try:
        section = read_json(file)
    except HuggingFaceError:
        return True
    return any(section[key] != value for key, value in _moved_ids(section, vocabulary).items())


def _moved_ids(section: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Keys such as eos_token_id, an id or a list of ids, with the new ids of these tokens."""
    moved: dict[str, Any] = {}
    for key, old in section.items():
        if not key.endswith("_token_id"):
            continue
        if type(old) is int:
            moved[key] = vocabulary.moved_id(old)
        elif isinstance(old, list):
            moved[key] = [i for i in map(vocabulary.moved_id, old) if i is not None]
    return moved
