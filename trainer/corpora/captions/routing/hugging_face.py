"""A Hugging Face sequence classifier in place of the built-in model of subjects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.classifier import TOKENS, load_classifier
from trainer.corpora.captions.routing.features import CONTEXT
from trainer.corpora.captions.routing.subjects import PLACES, SUBJECTS
from trainer.data.errors import DataError


class HuggingFaceModel:
    """The classifier of a directory, whose labels are subjects; subjects without a label have the probability 0.

    Weights are read from safetensors alone, and no code of the directory is run. Raises DataError for labels that are
    not subjects, for a classifier whose classes do not exclude each other, and where the directory cannot be loaded.
    """

    def __init__(self, directory: Path) -> None:
        self._classifier = load_classifier(directory)
        if self._classifier.kind != "single":
            problem = str(self._classifier.model.config.problem_type)
            allowed = "single_label_classification"
            text = f"{directory}: problem_type is {problem}, whose outputs are not shares of one; use {allowed}"
            raise DataError(text, where=str(directory), value=problem, allowed=(allowed,))
        self._columns = _columns(directory, self._classifier.names)

    def probabilities(self, captions: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float64]:
        """The crops of one document: a row for each, a column for each of SUBJECTS. Each text is run alone, so that a
        row does not depend on the others, to the bit."""
        import torch

        found, one = np.zeros((len(captions), len(SUBJECTS))), self._classifier
        longest = min(TOKENS, one.longest)
        for row, (caption, context) in enumerate(zip(captions, contexts, strict=True)):
            tokens = one.tokenizer(caption, context[:CONTEXT], truncation=True, max_length=longest, return_tensors="pt")
            with torch.inference_mode():
                logits = one.model(**tokens).logits[0].double()
            found[row, self._columns] = torch.softmax(logits, 0).numpy()
        return found


def _columns(directory: Path, labels: Sequence[str]) -> list[int]:
    """The place in SUBJECTS of each label. Raises DataError; one label alone would be sure of everything."""
    strangers = [label for label in labels if label not in PLACES]
    if strangers or len({*labels}) < len(labels) or len(labels) < 2:
        remedy = f"give it id2label with two subjects or more, each once: {', '.join(SUBJECTS)}"
        text = f"{directory}/config.json has the labels {', '.join(labels)}; {remedy}"
        raise DataError(text, where=str(directory), value=tuple(labels), allowed=remedy)
    return [PLACES[label] for label in labels]
