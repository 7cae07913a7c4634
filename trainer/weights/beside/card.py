"""README.md of an export: a model card with what is known of the model, and nothing else. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trainer.config.model import ModelConfig
from trainer.weights.beside.readers import TRANSFORMERS, Reader
from trainer.weights.beside.side_files import OUR_CARD


def model_card(
    model: ModelConfig,
    read_by: Sequence[Reader],
    step: int,
    init_from: str | None,
    tokenizer: str,
    media: Sequence[str] = (),
    *,
    text_only: bool = False,
) -> str:
    """The card, as Markdown with the metadata that hubs read.

    read_by: what `readers` says of the export. init_from: the directory that the run started from. tokenizer: where it
    is from. media: the lines about images and signals. text_only: the export leaves the model's towers out.
    """
    library = ["library_name: transformers"] if any(r.program == TRANSFORMERS and r.reads for r in read_by) else []
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
        "## Programs that can read it", "", "Judged by keys and tensor names; none was run.", "", *uses, "",
        "Octavo continues from it with `checkpoint.init_from=` and this directory.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
