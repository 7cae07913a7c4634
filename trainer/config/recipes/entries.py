"""The entries of a recipe's defaults list, as they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One entry of a defaults list."""

    text: str
    target: str  # group/option, relative to the group of the file unless absolute
    path: str  # group/option
    name: str | None
    override: bool
    optional: bool
    absolute: bool

    @classmethod
    def read(cls, item: Any, path: str) -> Entry | str:
        """The entry, or what is wrong with it. path: of the file that has it."""
        flags, group, name = [], "", item
        if isinstance(item, Mapping) and len(item) == 1:
            [(key, name)] = item.items()
            *flags, group = str(key).split() or [""]
        elif not isinstance(item, str) or re.search(r"[\s:]", item):  # such as /model:toy, which YAML takes for a text
            found = re.fullmatch(r"((?:\w+\s+)*)(/?\w+)\s*[:=\s]\s*([\w/.-]+)", f"{item}")
            example = f"{found[1]}{found[2]}: {found[3]}" if found else "override /model: toy"
            return f"not an entry; write a name, or - {example}"
        if name == "???":
            return "no option is chosen; write one, such as - override /model: toy"
        if set(flags) - {"override", "optional"} and isinstance(name, str):
            return f"not an entry; write - override {group}: {name}"
        if not (name is None or isinstance(name, str)):
            return "not an entry; write - override /model: toy"
        shown = item if isinstance(item, str) else f"{key}: {name}"
        if "override" in flags and "@" in group:
            return f"packages are not supported; write - override {group.partition('@')[0]}: {name}"
        name = name and name.removesuffix(".yaml")
        target = "/".join(filter(None, [group.partition("@")[0], (name or "").partition("@")[0]]))
        full = target.strip("/") if target.startswith("/") else f"{path.rpartition('/')[0]}/{target}"
        flagged = "override" in flags, "optional" in flags
        return cls(shown, target.strip("/"), full, name, *flagged, target.startswith("/"))
