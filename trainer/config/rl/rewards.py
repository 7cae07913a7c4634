"""Names and options of `rl.reward` and `rl.environment`, checked before anything is built. No torch here.

The rewards and environments themselves are in trainer.rl, which reads their options through this module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from parallel.errors import Fault, one_of
from trainer.config.say import did_you_mean


@dataclass(frozen=True)
class Kind:
    """The values that an option takes. allowed: in words."""

    allowed: str
    fits: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a text, or null", lambda value: value is None or isinstance(value, str))
FROM_0 = Kind("a number from 0", lambda value: _number(value) and value >= 0)
ABOVE_0 = Kind("a number above 0", lambda value: _number(value) and value > 0)
COUNT = Kind("a whole number from 1", lambda value: _whole(value) and value >= 1)
COUNT_0 = Kind("a whole number from 0", lambda value: _whole(value) and value >= 0)
PARTS = Kind(
    "a list of rewards", lambda value: isinstance(value, Sequence) and not isinstance(value, str) and bool(value)
)
NAMED = Kind(
    "rewards by kind, {KIND: REWARD, ...}, each kind a text",  # YAML reads yes, 1 and null as something else
    lambda value: isinstance(value, Mapping) and bool(value) and all(isinstance(kind, str) for kind in value),
)
NUMBERS = Kind("a list of numbers", lambda value: isinstance(value, Sequence) and all(map(_number, value)))

# Numbers of YAML 1.2, by the names of their tags.
NUMBERS_1_2 = {
    "int": re.compile(r"^[-+]?(?:0|[1-9]\d*)$"),
    "float": re.compile(
        r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
}

_PROCESSES = {"seconds": ABOVE_0, "processes": COUNT}
_LIMITS = {
    "wall_s": ABOVE_0, "cpu_s": COUNT, "memory_mb": COUNT, "processes": COUNT, "file_mb": COUNT, "disk_mb": COUNT,
    "output_kb": COUNT, "packages": FLAG,
}  # fmt: skip
_JUDGE = {
    "url": TEXT, "model": NAME, "prompt": TEXT, "pattern": TEXT, "points": ABOVE_0, "tries": COUNT, "longest": COUNT,
    "max_tokens": COUNT, "temperature": FROM_0, "thinking": FLAG, "timeout": ABOVE_0, "retries": COUNT_0,
    "price_in": FROM_0, "price_out": FROM_0, "api_key_env": TEXT,
}  # fmt: skip
# Options of each reward, and those that it needs.
OPTIONS: Mapping[str, Mapping[str, Kind]] = {
    "exact": {"case": FLAG},
    "overlap": {"end": FLAG},
    "final": {"case": FLAG},
    "format": {"thinking": FLAG, "boxed": FLAG, "pattern": TEXT, "longest": COUNT_0},
    "math": {"relative": FROM_0, **_PROCESSES},
    "quantity": {"relative": FROM_0, "absolute": FROM_0, "unit_required": FLAG},
    "choice": {},
    "molecule": {"by": TEXT, "stereo": FLAG, "isotopes": FLAG, "salts": FLAG, **_PROCESSES},
    "code": {"partial": FLAG, **_LIMITS},
    "judge": _JUDGE,
    "sum": {"parts": PARTS, "weights": NUMBERS},
    "product": {"parts": PARTS},
    "kind": {"parts": NAMED, "key": TEXT},
}
NEEDED: Mapping[str, tuple[str, ...]] = {
    "judge": ("url",),
    "sum": ("parts", "weights"),
    "product": ("parts",),
    "kind": ("parts",),
}

# Options of each tool, all of them needed.
TOOLS: Mapping[str, tuple[str, ...]] = {"calculator": (), "table": ("records", "columns")}
ENVIRONMENT = ("tools", "reward", "turns", "calls", "longest", "system", "guide")


def read_options(text: str, where: str) -> Any | Fault:
    """The options that a text gives: YAML such as `{name: math, seconds: 5}`; else the text is the name.

    1e-6 is a number, as in YAML 1.2, and 010 and 1:30 are texts: YAML 1.1 reads them as 8 and 90. A key that is given
    twice is a fault."""
    if not text.lstrip().startswith("{"):
        return {"name": text}
    import yaml

    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError) as error:
        allowed = "a name, or {name: NAME, OPTION: VALUE}"
        said = " ".join(str(error).split())
        return Fault(f"{where} cannot be read: {said}; use {allowed}", where, text, allowed)


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                names = [key.value for key, _ in node.value]
                raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
            return found

    numbers = {f"tag:yaml.org,2002:{kind}": pattern for kind, pattern in NUMBERS_1_2.items()}
    Loader.yaml_implicit_resolvers = {
        first: [one for one in some if one[0] not in numbers]
        for first, some in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern in numbers.items():
        Loader.add_implicit_resolver(tag, pattern, [*"-+.0123456789"])
    return Loader


def check_reward(cfg: Any, where: str) -> Iterator[Fault]:
    """Faults of a reward's name and options, and of its parts. where: the key that gives them."""
    options = read_options(cfg, where) if isinstance(cfg, str) else cfg
    if isinstance(options, Fault):
        yield options
        return
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        allowed = "a name, or an object with a name"
        yield Fault(f"{where} is not {allowed}", where, cfg, allowed)
        return
    name = options["name"]
    if name not in OPTIONS:
        text = f"{where}={name}: there is no such reward; use {one_of(OPTIONS)}{did_you_mean(name, OPTIONS)}"
        yield Fault(text, where, name, tuple(OPTIONS))
        return
    known = OPTIONS[name]
    for key in options:
        if key != "name" and key not in known:
            text = f"{where}.{key}: the reward {name} has no such option; use {one_of(known) or 'none'}"
            yield Fault(text + did_you_mean(str(key), known), f"{where}.{key}", key, tuple(known))
        elif key != "name" and not known[key].fits(options[key]):
            allowed, value = known[key].allowed, options[key]
            yield Fault(f"{where}.{key}={value!r}: use {allowed}", f"{where}.{key}", value, allowed)
    for key in NEEDED.get(name, ()):
        if key not in options:
            text = f"{where}.{key} is missing: the reward {name} needs it; give a value"
            yield Fault(text, f"{where}.{key}", None, "a value")
    if "parts" in known and known["parts"].fits(options.get("parts")):
        for at, part in parts_of(options["parts"]):
            yield from check_reward(part, f"{where}.{at}")


def parts_of(parts: Any) -> Iterator[tuple[str, Any]]:
    """(place, options) of the parts of a reward: a list, or an object by kind."""
    if isinstance(parts, Mapping):
        yield from ((f"parts.{kind}", part) for kind, part in parts.items())
    else:
        yield from ((f"parts[{place}]", part) for place, part in enumerate(parts))


def check_environment(cfg: Any, where: str, *, reward: bool) -> Iterator[Fault]:
    """Faults of an environment's options. reward: another key gives its reward where it has none."""
    options = read_options(cfg, where) if isinstance(cfg, str) else cfg
    if isinstance(options, Fault):
        yield options
        return
    if not isinstance(options, Mapping) or (isinstance(cfg, str) and options.keys() == {"name"}):
        allowed = "{tools: [TOOL, ...], OPTION: VALUE}"
        yield Fault(f"{where} is not {allowed}", where, cfg, allowed)
        return
    yield from _check_options(options, ENVIRONMENT, ("tools",) if reward else ("tools", "reward"), where)
    for key in ("turns", "calls", "longest"):
        value = options.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            allowed = "a whole number from 1"
            yield Fault(f"{where}.{key}={value}: use {allowed}", f"{where}.{key}", value, allowed)
    if not isinstance(system := options.get("system", ""), str):
        yield Fault(f"{where}.system={system}: use a text", f"{where}.system", system, "a text")
    guide = options.get("guide", 0.0)
    if isinstance(guide, bool) or not isinstance(guide, int | float) or not 0 <= guide < 1:
        text = f"{where}.guide={guide}: use a share from 0 to below 1"
        yield Fault(text, f"{where}.guide", guide, "0 to below 1")
    if "tools" in options:
        tools = options["tools"]
        if not isinstance(tools, Sequence) or isinstance(tools, str):
            allowed = f"a list of {one_of(TOOLS)}"
            yield Fault(f"{where}.tools is not {allowed}", f"{where}.tools", tools, allowed)
        else:
            for place, tool in enumerate(tools):
                yield from _check_tool(tool, f"{where}.tools[{place}]")
    if "reward" in options:
        yield from check_reward(options["reward"], f"{where}.reward")


def _check_tool(cfg: Any, where: str) -> Iterator[Fault]:
    options = {"name": cfg} if isinstance(cfg, str) else cfg
    name = options.get("name") if isinstance(options, Mapping) else None
    if not isinstance(name, str) or name not in TOOLS:
        text = f"{where}={name}: there is no such tool; use {one_of(TOOLS)}{did_you_mean(str(name), TOOLS)}"
        yield Fault(text, where, name, tuple(TOOLS))
        return
    yield from _check_options(options, ("name", *TOOLS[name]), TOOLS[name], where)
    for key in TOOLS[name]:
        if key in options and not isinstance(options[key], str):
            yield Fault(f"{where}.{key}={options[key]}: use a path", f"{where}.{key}", options[key], "a path")


def _check_options(
    given: Mapping[Any, Any], known: Sequence[str], needed: Sequence[str], where: str
) -> Iterator[Fault]:
    for key in given:
        if key not in known:
            text = f"{where}.{key}: there is no such option; use {one_of(known)}{did_you_mean(str(key), known)}"
            yield Fault(text, f"{where}.{key}", key, tuple(known))
    for key in needed:
        if key not in given:
            yield Fault(f"{where}.{key} is missing; give a value", f"{where}.{key}", None, "a value")
