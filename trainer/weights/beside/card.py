"""README.md of an export: a model card with what is known of the model, and nothing else. No torch here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.model import ModelConfig
from trainer.weights.beside.readers import TRANSFORMERS, Reader
from trainer.weights.beside.side_files import OUR_CARD

CHAT = ("chat_template", "additional_chat_templates/")


def model_card(
    model: ModelConfig,
    config: Mapping[str, Any],
    files: Collection[str],
    read_by: Sequence[Reader],
    step: int,
    init_from: str | None,
    tokenizer: str,
    media: Sequence[str] = (),
    *,
    text_only: bool = False,
) -> str:
    """The card, as Markdown with the metadata that hubs read.

    config: the export's config.json. files: its side files. read_by: what `readers` says of the export. init_from: the
    directory that the run started from. tokenizer: where it is from. media: the lines about images and signals.
    text_only: the export leaves the model's towers out.
    """
    loads = any(r.program == TRANSFORMERS and r.reads for r in read_by)
    library = ["library_name: transformers"] if loads else []
    origin = "random weights" if init_from is None else f"the weights in `{Path(init_from).name}`"
    towers = "".join(
        f"; {sum(math.prod(shape) for shape in tower.shapes()):,} of the {name} tower"
        for name, tower in (("vision", model.vision), ("signal", model.signals))
        if tower is not None and not text_only
    )
    rows = [
        (
            "parameters",
            f"{model.num_params() - model.tower_params():,} of the text model, "
            f"{model.active_params():,} active per token{towers}",
        ),
        ("layers, hidden size", f"{model.num_layers}, {model.hidden_size}"),
        (
            "experts",
            f"{model.num_experts} in {model.router_groups} router group(s), {model.experts_per_token} per token, "
            f"width {model.expert_width}",
        ),
        ("attention", f"{model.num_heads} heads, {model.num_kv_heads} for keys and values, of size {model.head_dim}"),
        ("positions", f"{model.positions}, up to {model.max_position:,}"),
        ("vocabulary", f"{model.vocab_size:,} rows"),
        ("tokenizer", tokenizer),
        ("chat template", "in the directory" if any(name.startswith(CHAT) for name in files) else "none"),
        ("stored in", _dtypes(config)),
        ("trained from", f"{origin}, {step:,} step(s)"),
    ]
    table = [f"| {name} | {text} |" for name, text in rows]
    uses = [f"- {reader.line}" for reader in read_by]
    lines = [
        "---", *library, "pipeline_tag: text-generation", "tags:", "- octavo", "- mixture-of-experts", "---", "",
        "# A mixture-of-experts language model", "",
        f"Trained with Octavo. {OUR_CARD}, from the run's configuration.", "",
        "| | |", "|---|---|", *table, "",
        *([*media, ""] if media else []),
        *(_with_transformers("auto_map" in config) if loads else []),
        "## Programs that can read it", "", "Judged by keys, tensor names and files; none was run on it.", "",
        *uses, "",
        "Octavo continues from it with `checkpoint.init_from=` and this directory.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _dtypes(config: Mapping[str, Any]) -> str:
    """The dtypes of the text model, in words."""
    full = {"bfloat16": "BF16", "float32": "FP32", "float16": "FP16"}.get(str(config.get("dtype")), "see the tensors")
    quantised = config.get("quantization_config")
    return f"FP8 (e4m3, blocks of 128 x 128), the rest {full}" if quantised else full


def _with_transformers(code: bool) -> list[str]:
    """The lines about loading it, with the code that auto_map names or without."""
    trust = ", trust_remote_code=True" if code else ""
    said = ["It runs Python files of this directory; read them first.", ""] if code else []
    return [
        "## With transformers", "", *said, "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        'place = "."  # this directory', f"tokenizer = AutoTokenizer.from_pretrained(place{trust})",
        f"model = AutoModelForCausalLM.from_pretrained(place{trust})", "```", "",
    ]  # fmt: skip
