"""A text classifier that scores captions: any sequence classifier of transformers in a directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.corpora.captions.classifier import load_classifier
from trainer.data.errors import DataError

BATCH = 32  # captions at once; fixed, as the last bits of a score depend on the texts beside it


class Discriminator:
    """Scores captions from 0 to 1.

    directory: with config.json, weights in safetensors and a tokenizer, as `save_pretrained` writes them; no code of
    the directory runs and nothing is downloaded. label: the class whose probability is the score, by its name in the
    configuration or its number; None: the last. A classifier with one output, or with classes that do not exclude each
    other, scores by the sigmoid of the output, and a regression by the output itself. Raises DataError.
    """

    def __init__(self, directory: Path, *, label: str | None = None, device: str = "cpu") -> None:
        read_config(directory)
        try:
            self._classifier = load_classifier(directory)
        except ImportError as error:
            remedy = "pip install transformers"
            text = f"{directory}: a discriminator needs transformers, which is not installed; {remedy}"
            raise DataError(text, where=str(directory), allowed=remedy) from error
        if self._classifier.tokenizer.pad_token_id is None:  # captions are read side by side
            allowed = "a tokenizer with a pad_token"
            text = f"{directory}: its tokenizer has no pad_token; give {allowed}"
            raise DataError(text, where=str(directory), allowed=allowed)
        self._classifier.model.to(device)
        self._label = self._place(directory, label)
        self._device = device

    def _place(self, directory: Path, label: str | None) -> int:
        names = {name: place for place, name in enumerate(self._classifier.names)}
        if label is None:
            return len(self._classifier.names) - 1
        places = {**{str(place): place for place in names.values()}, **names}
        if label not in places:
            text = f"{directory}: has no label {label}; use {', '.join(names)}"
            raise DataError(text, where="label", value=label, allowed=tuple(names))
        return places[label]

    def score(self, captions: Sequence[str]) -> list[float]:
        """The scores in the order of the captions; longer ones are cut to what the classifier reads."""
        import torch

        found: list[float] = []
        one = self._classifier
        for start in range(0, len(captions), BATCH):
            some = list(captions[start : start + BATCH])
            inputs = one.tokenizer(some, padding=True, truncation=True, max_length=one.longest, return_tensors="pt").to(
                self._device
            )
            with torch.inference_mode():
                logits = one.model(**inputs).logits.double()
            scores = logits[:, self._label]
            if one.kind == "single" and logits.shape[1] > 1:
                scores = logits.softmax(1)[:, self._label]
            elif one.kind != "regression":
                scores = scores.sigmoid()
            found += scores.tolist()
        return found


def read_config(directory: Path) -> dict[str, Any]:
    """config.json. Raises DataError where it is missing or asks for code of its own."""
    allowed = "a directory with a sequence classifier of transformers"
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{directory}: {error}; give {allowed}", where=str(directory), allowed=allowed) from error
    if not isinstance(found, dict):
        raise DataError(
            f"{directory}: config.json is not an object; give {allowed}", where=str(directory), allowed=allowed
        )
    if (own := found.get("auto_map")) is not None:
        text = f"{directory}: config.json names code of its own, which is not run; give {allowed}"
        raise DataError(text, where=str(directory), value=own, allowed=allowed)
    return found
