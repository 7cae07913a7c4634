"""The keys of a configuration that a program's model files read."""

import sys
from types import MethodType

from transformers import PreTrainedConfig


def record(*modules: str) -> dict[str, set[str]]:
    """From now on: model type -> the attributes that code in `modules` (prefixes of names) reads of a configuration of
    that type, methods left out."""
    found: dict[str, set[str]] = {}
    read = PreTrainedConfig.__getattribute__

    def recording(self: PreTrainedConfig, name: str) -> object:
        value = None
        try:
            value = read(self, name)
            return value
        finally:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith(modules) and not name.startswith("_") and not isinstance(value, MethodType):
                found.setdefault(type(self).model_type, set()).add(name)

    PreTrainedConfig.__getattribute__ = recording
    return found
