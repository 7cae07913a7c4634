"""Objects of a config.json, read key by key: what is missing or of another kind is one line. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.weights.hf_files import CONFIG, HuggingFaceError


@dataclass(frozen=True)
class Section:
    """An object of a config.json. A null counts as no such key. Each method raises HuggingFaceError."""

    values: Mapping[str, Any]
    where: str  # as a message calls it, behind the key: "for the text model"
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of keys that are absent, and not null

    def size(self, *names: str, default: int | None = None) -> int:
        """A whole number above 0, under the first of its names that is there."""
        name, value = self._find(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refused(name, "a whole number above 0")
        return value

    def number(self, *names: str, default: float | None = None, least: float = 0.0) -> float:
        """A finite number, `least` or more."""
        name, value = self._find(names, default)
        try:
            if not isinstance(value, bool) and isinstance(value, int | float):
                number = float(value)
                if math.isfinite(number) and number >= least:
                    return number
        except OverflowError:  # a whole number that no float holds
            pass
        raise self.refused(name, "a number" + (f", {least:g} or more" if math.isfinite(least) else ""))

    def pair(self, name: str) -> tuple[int, int]:
        """A whole number above 0 for height and width, or one for each."""
        value = self.values.get(name)
        if not isinstance(value, list):
            return (self.size(name),) * 2
        if len(value) != 2 or not all(isinstance(part, int) and part > 0 for part in value):
            raise self.refused(name, "a whole number above 0, or two")
        return value[0], value[1]

    def refused(self, name: str, need: str) -> HuggingFaceError:
        shown = json.dumps(self.values.get(name))
        return HuggingFaceError(
            f"{CONFIG}: {name}={shown} {self.where} is not supported; expected {need}",
            where=name,
            value=self.values.get(name),
            allowed=need,
        )

    def _find(self, names: tuple[str, ...], default: float | None) -> tuple[str, Any]:
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        if names[0] in self.defaults and not any(name in self.values for name in names):
            return names[0], self.defaults[names[0]]
        if default is None:
            raise HuggingFaceError(f"{CONFIG}: no {' or '.join(names)} {self.where}", where=names[0], allowed=names)
        return names[0], default


def located(path: Path, error: HuggingFaceError) -> HuggingFaceError:
    """An error about a config.json, with the directory of the file in its text."""
    return HuggingFaceError(replace(fault, text=f"{path}/{fault.text}") for fault in error.faults)


def object_under(config: Mapping[str, Any], *names: str) -> dict[str, Any] | None:
    """The object under the first of these keys that is there and not empty; None without one. Raises HuggingFaceError
    where anything else than an object or null is under one of them."""
    for name in names:
        if not isinstance(config.get(name), dict | None):
            raise HuggingFaceError(
                f"{CONFIG}: {name}={json.dumps(config[name])} is not supported; expected an object",
                where=name,
                value=config[name],
                allowed="an object",
            )
    return next((config[name] for name in names if config.get(name)), None)
