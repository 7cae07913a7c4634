"""Sequence classifiers of transformers in directories, as other tools write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError

TOKENS = 512  # of a text at most, where the tokenizer does not say
UNKNOWN = 1 << 20  # what a tokenizer says at least where it does not know


@dataclass(frozen=True)
class Classifier:
    """names: of its outputs, in their order. kind: "single" for one class of several, "multi" for classes that do not
    exclude each other, "regression". longest: tokens that it reads."""

    tokenizer: Any
    model: Any
    names: tuple[str, ...]
    kind: str
    longest: int


def load_classifier(directory: Path) -> Classifier:
    """Load config.json, weights in safetensors and the tokenizer, in fp32, for evaluation.

    No code of the directory is run and nothing is downloaded. Raises DataError, also where a weight is missing, which
    transformers would draw at random.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), **local)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            str(directory), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
        model, info = loaded
        names = tuple(str(model.config.id2label[place]) for place in range(model.config.num_labels))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        allowed = "a directory with config.json, model.safetensors and the tokenizer of a sequence classifier"
        raise DataError(f"{directory}: {reason}; give {allowed}", where=str(directory), allowed=allowed) from error
    if missing := sorted(info["missing_keys"]):
        allowed = "a directory with all weights of the classifier"
        text = f"{directory}: has no weights for {missing[0]}; give {allowed}"
        raise DataError(text, where=str(directory), value=tuple(missing), allowed=allowed)
    problem = model.config.problem_type
    kind = {"regression": "regression", "multi_label_classification": "multi"}.get(problem, "single")
    said = tokenizer.model_max_length
    longest = min(said if said <= UNKNOWN else TOKENS, _positions(model))
    return Classifier(tokenizer, model.eval(), names, kind, longest)


def _positions(model: Any) -> int:
    """The tokens that a model has learned positions for; those of RoBERTa start behind that of padding."""
    import torch

    found = [UNKNOWN]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - first)
    return min(found)
