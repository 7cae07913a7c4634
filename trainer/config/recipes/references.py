"""References between keys, `${train.steps}`: each that cannot be resolved, with its key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parallel.errors import Fault
from trainer.config import coerce
from trainer.config.recipes.groups import KEYS
from trainer.config.say import nearest, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

# ${now:} or ${oc.env:}: a value that would differ between ranks, machines or days
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")
NAMES = re.compile(r"\$\{\s*([^${}:\s]+)\s*\}")
WRITE_OUT = "write it out, or refer to a key: ${a.b}"


def unresolved(tree: DictConfig) -> list[Fault]:
    """The faults of all references in a composed configuration."""
    from omegaconf import OmegaConf

    raw: Any = OmegaConf.to_container(tree, resolve=False)
    values = {key: value for key, value in coerce.flatten(raw, KEYS).items() if "${" in str(value)}
    faults: list[Fault] = []
    in_circles: set[str] = set()  # each circle is reported once
    for key, value in values.items():
        if key not in in_circles and (fault := _fault(key, value, values, tree, in_circles)):
            faults.append(fault)
    if not faults and values:
        try:
            OmegaConf.to_container(tree, resolve=True)
        except Exception:  # of the library's many
            faults = [Fault(f"{key}={show(value)}: cannot be resolved; {WRITE_OUT}", key, value, WRITE_OUT)
                      for key, value in values.items()]  # fmt: skip
    return faults


def _fault(key: str, value: Any, values: Mapping[str, Any], tree: DictConfig, in_circles: set[str]) -> Fault | None:
    text = str(value)
    if RESOLVER.search(text):
        return resolver_fault(key, value)
    for name in NAMES.findall(text):
        circle = _circle([key], name, values)
        if circle:
            in_circles.update(circle)
            shown = f"refers to {'itself' if len(circle) == 2 else 'itself by ' + ' -> '.join(circle)}"
            return Fault(f"{key}={show(value)}: {shown}; {WRITE_OUT}", key, value, WRITE_OUT)
        if not name.startswith(".") and not _is_there(name, tree):
            alone = text == f"${{{name}}}"  # its value is then the whole value, and has its type
            kind = coerce.find(key, KEYS)
            near = nearest(name, [other for other in KEYS if other != key and (not alone or KEYS[other] == kind)])
            allowed = f"${{{near}}}" if near else WRITE_OUT
            advice = f"did you mean '{allowed}'?" if near else allowed
            return Fault(f"{key}={show(value)}: there is no key {name}; {advice}", key, value,
                         (allowed,) if near else allowed)  # fmt: skip
    return None


def resolver_fault(key: str, value: Any) -> Fault:
    return Fault(f"{key}={show(value)}: could differ between ranks; {WRITE_OUT}", key, value, WRITE_OUT)


def _circle(trail: Sequence[str], name: str, values: Mapping[str, Any]) -> list[str]:
    """The keys from `trail[0]` back to it, if it refers to itself by way of `name`."""
    if name == trail[0]:
        return [*trail, name]
    if name in trail:
        return []
    for further in NAMES.findall(str(values.get(name, ""))):
        if circle := _circle([*trail, name], further, values):
            return circle
    return []


def _is_there(name: str, tree: DictConfig) -> bool:
    from omegaconf import OmegaConf

    missing = object()
    try:
        found = OmegaConf.select(tree, name, default=missing, throw_on_resolution_failure=False)
    except Exception:  # a name that cannot be one
        return False
    return found is not missing or name in KEYS
