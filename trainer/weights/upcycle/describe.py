"""What stands beside an expanded model's tensors: config.json, the tokenizer's files, and what to warn of."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trainer.config.model import ModelConfig
from trainer.weights.hf_config import FREQUENCIES_KEY, is_qwen3_moe, text_section
from trainer.weights.hf_files import HuggingFaceError, read_json
from trainer.weights.hf_read import DTYPES
from trainer.weights.hf_survey import Source
from trainer.weights.hf_write import side_files
from trainer.weights.map import MULTIMODAL, PLAIN
from trainer.weights.upcycle.noise import least
from trainer.weights.upcycle.placement import Expansion, Placement
from trainer.weights.upcycle.vocabulary import Vocabulary

TOKENIZER_FILES = ("tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
# Vocabularies for parts of a text, such as Intern-S1's for molecules: its code knows their ids, its files do not.
PIECES = "tokenizer_*.model"
GENERATION = "generation_config.json"
PRO, PRO_TEXT = "interns1_pro", "interns1_pro_text"  # model types of published code that knows router groups and FoPE


def prefix_of(source: Source, model: ModelConfig) -> str:
    """What the names of the text model begin with."""
    plain = source.directory.config.get("text_config") is None and is_qwen3_moe(model)
    return PLAIN if plain else MULTIMODAL


def begun(source: Source, model: ModelConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The config.json that `huggingface_config` brings in line: the source's, with the model types that other programs
    need to know that the text model has router groups or FoPE, and the ids of its special tokens where these moved."""
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


def side_files_of(source: Path, expansion: Expansion, vocabulary: Vocabulary | None) -> list[Path]:
    """The source's tokenizer, chat template, processors and generation defaults; with another vocabulary that one's
    tokenizer, its other such files in place of the source's, and no generation defaults whose ids are gone."""
    files = {file.name: file for file in side_files(source)}
    if expansion.vocabulary is None or vocabulary is None:
        return list(files.values())
    for pattern in TOKENIZER_FILES:
        files = {name: file for name, file in files.items() if not file.match(pattern)}
    if GENERATION in files and _generation_moved(files[GENERATION], vocabulary):
        del files[GENERATION]
    files |= {file.name: file for file in side_files(Path(expansion.vocabulary))}
    return [files[name] for name in sorted(files)]


def warnings_of(
    source: Source,
    model: ModelConfig,
    expansion: Expansion,
    placement: Placement,
    dtypes: Collection[str],
    vocabulary: Vocabulary | None,
) -> list[str]:
    """What may not be what is wanted, a line each. dtypes: of the tensors written."""
    found = []
    if placement.identical:
        how = "in one group" if expansion.strategy == "spread" else "in groups that hold the same experts"
        found.append(
            f"noise=0 leaves exact copies {how}, which get the same gradients for ever; use noise, or cuts=distinct "
            "(training such a checkpoint needs checkpoint.allow_identical_copies=true)"
        )
    if expansion.rope_theta is None and model.rope_theta != source.model.rope_theta:
        found.append(
            f"positions=fope changes rope_theta from {source.model.rope_theta:g} to {model.rope_theta:g}; give "
            f"--rope-theta {source.model.rope_theta:g} to keep it"
        )
    coarse = {name: least(DTYPES[name]) for name in dtypes if DTYPES[name].is_floating_point}
    for name, limit in coarse.items():
        if 0 < expansion.noise < limit:
            found.append(
                f"noise={expansion.noise:g} is lost in part where {name} rounds: its numbers are further apart. Use "
                f"noise={limit:.2g} or more, or a wider dtype"
            )
    if vocabulary is not None and expansion.vocabulary is not None:
        unlisted = sorted(file.name for file in source.directory.path.glob(PIECES))
        lost = source.model.vocab_size - len(vocabulary.known or ())
        if unlisted and lost:
            found.append(
                f"{', '.join(unlisted)}: no list of tokens names the ids of their pieces; {lost} rows of the source "
                "that have no token are left out. Name these in added_tokens.json, here and there alike, to keep them"
            )
        generation = source.directory.path / GENERATION
        given = Path(expansion.vocabulary) / GENERATION
        if generation.is_file() and not given.is_file() and _generation_moved(generation, vocabulary):
            found.append(f"{GENERATION} is left out: ids in it are other tokens in {expansion.vocabulary}")
        for section in (source.directory.config, text_section(source.directory.config)):
            for key, old in section.items():
                if key.endswith("_token_id") and type(old) is int and vocabulary.moved_id(old) is None:
                    found.append(f"config.json: {key}={old} is no token of {expansion.vocabulary}; it is now null")
    return found


def _generation_moved(file: Path, vocabulary: Vocabulary) -> bool:
    try:
        section = read_json(file)
    except HuggingFaceError:
        return True
    return any(section[key] != value for key, value in _moved_ids(section, vocabulary).items())


def _moved_ids(section: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Keys such as eos_token_id, an id or a list of them, with the ids that these tokens have now."""
    moved: dict[str, Any] = {}
    for key, old in section.items():
        if not key.endswith("_token_id"):
            continue
        if type(old) is int:
            moved[key] = vocabulary.moved_id(old)
        elif isinstance(old, list):
            moved[key] = [i for i in map(vocabulary.moved_id, old) if i is not None]
    return moved
