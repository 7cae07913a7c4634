"""A text classifier that scores captions: any sequence classifier of transformers in a directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError

BATCH = 32  # captions at once; fixed, as the last bits of a score depend on the texts beside it
TOKENS = 512  # of a caption at most, where the tokenizer does not say


class Discriminator:
    """Scores captions from 0 to 1.

    directory: with config.json, weights in safetensors and a tokenizer, as `save_pretrained` writes them; no code of
    the directory runs and nothing is downloaded. label: the class whose probability is the score, by its name in the
    configuration or its number; None: the last. A classifier with one output scores by its sigmoid, or, as a
    regression, by the output itself. Raises DataError.
    """

    def __init__(self, directory: Path, *, label: str | None = None, device: str = "cpu") -> None:
        kinds = read_config(directory)
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as error:
            remedy = "pip install transformers"
            text = f"{directory}: a discriminator needs transformers, which is not installed; {remedy}"
            raise DataError(text, where=str(directory), allowed=remedy) from error
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), **local)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                str(directory), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            allowed = "a directory that transformers loads as a sequence classifier"
            raise DataError(f"{directory}: {reason}; give {allowed}", where=str(directory), allowed=allowed) from error
        self._model, info = loaded
        if missing := sorted(info["missing_keys"]):  # would be random, and score at random
            allowed = "a directory with all weights of the classifier"
            text = f"{directory}: has no weights for {missing[0]}; give {allowed}"
            raise DataError(text, where=str(directory), value=tuple(missing), allowed=allowed)
        self._model.to(device).eval()
        self._regression = kinds.get("problem_type") == "regression"
        self._label = self._place(directory, label)
        most = self._tokenizer.model_max_length  # huge where it is not known
        self._longest = most if most <= 1 << 20 else TOKENS
        self._device = device

    def _place(self, directory: Path, label: str | None) -> int:
        names = {str(name): int(place) for place, name in self._model.config.id2label.items()}
        if label is None:
            return int(self._model.config.num_labels) - 1
        places = {**{str(place): place for place in names.values()}, **names}
        if label not in places:
            text = f"{directory}: has no label {label}; use {', '.join(names)}"
            raise DataError(text, where="label", value=label, allowed=tuple(names))
        return places[label]

    def score(self, captions: Sequence[str]) -> list[float]:
        """The scores in the order of the captions; longer ones are cut to what the classifier reads."""
        import torch

        found: list[float] = []
        for start in range(0, len(captions), BATCH):
            some = list(captions[start : start + BATCH])
            inputs = self._tokenizer(
                some, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                logits = self._model(**inputs).logits.double()
            if logits.shape[1] > 1:
                scores = logits.softmax(1)[:, self._label]
            else:
                scores = logits[:, 0] if self._regression else logits[:, 0].sigmoid()
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
