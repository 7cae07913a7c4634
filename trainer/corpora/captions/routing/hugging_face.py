"""A Hugging Face sequence classifier in place of the built-in model of subjects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.routing.features import CONTEXT
from trainer.corpora.captions.routing.subjects import PLACES, SUBJECTS
from trainer.data.errors import DataError

TOKENS = 512  # of caption and context; fewer where the tokenizer says so


class HuggingFaceModel:
    """The classifier of a directory, whose labels are subjects; subjects without a label have the probability 0.

    Weights are read from safetensors alone, and no code of the directory is run. Raises DataError for labels that are
    not subjects, and where the directory cannot be loaded.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            names = AutoConfig.from_pretrained(directory, **here).id2label
            self._columns = _columns(directory, names)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, **here)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                directory, use_safetensors=True, **here
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            remedy = "name a directory with config.json, model.safetensors and the tokenizer of a sequence classifier"
            text = f"{directory} cannot be loaded ({error}); {remedy}"
            raise DataError(text, where=str(directory), allowed=remedy) from error

    def probabilities(self, captions: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float64]:
        """The crops of one document: a row for each, a column for each of SUBJECTS. Each text is run alone, so that a
        row does not depend on the others, to the bit."""
        import torch

        found = np.zeros((len(captions), len(SUBJECTS)))
        longest = min(TOKENS, self._tokenizer.model_max_length)
        for row, (caption, context) in enumerate(zip(captions, contexts, strict=True)):
            tokens = self._tokenizer(
                caption, context[:CONTEXT], truncation=True, max_length=longest, return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self._model(**tokens).logits[0].double()
            found[row, self._columns] = torch.softmax(logits, 0).numpy()
        return found


def _columns(directory: Path, names: dict[int, str]) -> list[int]:
    """The place in SUBJECTS of each label. Raises DataError."""
    labels = [names[place] for place in range(len(names))]
    strangers = [label for label in labels if label not in PLACES]
    if strangers or len({*labels}) < len(labels):
        remedy = f"give it id2label with subjects, each once: {', '.join(SUBJECTS)}"
        text = f"{directory}/config.json has the labels {', '.join(labels)}; {remedy}"
        raise DataError(text, where=str(directory), value=tuple(labels), allowed=remedy)
    return [PLACES[label] for label in labels]
