"""From plain mappings to checked dataclasses: key lists, conversions, spelling help, hashes. Knows no key by name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar

# Metadata of fields that may change when a run is resumed. A free one does not define the result; a named one does, and
# so names the default directory, but a run that stands may go on with another value.
FREE: Mapping[str, str] = {"resume": "free"}
NAMED: Mapping[str, str] = {"resume": "named"}
T = TypeVar("T")


class ConfigError(Exception):
    """A configuration that cannot run. `errors` holds one line per mistake: the key, what is wrong, what would work."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be. A last dotted part alone also counts: lr is optim.lr."""
    names = sorted(set(known))
    begins = [name for name in names if name.startswith(f"{word}_")]
    if begins:
        return begins[0]
    section, _, last = word.rpartition(".")
    # two keys of one section are alike in its name alone
    for near in difflib.get_close_matches(word, names, n=3, cutoff=0.8 if section else 0.6):
        near_section, _, near_last = near.rpartition(".")
        if section != near_section or difflib.get_close_matches(last, [near_last]):
            return near
    tails = {name.rpartition(".")[2]: name for name in reversed(names)}
    alike = difflib.get_close_matches(last, tails, n=1, cutoff=0.75)
    return tails[alike[0]] if alike else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'adamw'?"`, or nothing if no known word is near."""
    near = nearest(word, known)
    return f"; did you mean '{near}'?" if near else ""


def one_of(values: Iterable[Any]) -> str:
    """`a, b or c`."""
    words = [str(value) for value in values]
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


@functools.cache
def fields(schema: type) -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """Field name -> (resolved type, field) of a dataclass."""
    hints = typing.get_type_hints(schema)
    return {field.name: (hints[field.name], field) for field in dataclasses.fields(schema)}


def keys(schema: type, *, resume: Collection[str] = ("fixed", "named", "free")) -> dict[str, Any]:
    """Dotted key -> type of every leaf of a dataclass of dataclasses, of the kinds that `resume` lists."""
    found: dict[str, Any] = {}
    for name, (hint, field) in fields(schema).items():
        if dataclasses.is_dataclass(hint):
            nested = keys(typing.cast(type, hint), resume=resume)
            found.update({f"{name}.{key}": value for key, value in nested.items()})
        elif field.metadata.get("resume", "fixed") in resume:
            found[name] = hint
    return found


def defaults(schema: type) -> dict[str, Any]:
    """Nested defaults of a dataclass of dataclasses; fields that must be given are left out."""
    found: dict[str, Any] = {}
    for name, (hint, field) in fields(schema).items():
        if dataclasses.is_dataclass(hint):
            found[name] = defaults(typing.cast(type, hint))
        elif field.default is not dataclasses.MISSING:
            found[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[name] = field.default_factory()
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """Section -> key -> value of a dataclass of sections, all copied; `from_dict` reads it back."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a nested mapping; goes no deeper than the schema's keys `known`, but into the entries of a
    mapping to dataclasses: `data.sources.code.tokens`. Such a mapping has a value itself, the names of its entries in
    their order, or {} where it is empty."""
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            hint = find(key, known)
            leaf = hint is not None and not dataclasses.is_dataclass(hint)
            entries = bool(entries_of(hint)) and isinstance(value, Mapping) and bool(value)
            if entries or not isinstance(value, Mapping) or leaf:
                flat[key] = list(value) if entries else value
            if isinstance(value, Mapping) and (entries or not leaf):
                walk(value, f"{key}.")

    walk(tree, "")
    return flat


def leaf_of(key: str, known: Iterable[str]) -> str:
    """The schema's key that a dotted key is or lies in: `data.sources` of `data.sources.code.tokens`; the key itself
    where there is none."""
    names, parent = set(known), key
    while parent and parent not in names:
        parent = parent.rpartition(".")[0]
    return parent or key


def find(key: str, known: Mapping[str, Any]) -> Any:
    """The type of what a dotted key names: a key of the schema or an item of one that is a mapping, whatever the item's
    name; None where the schema has nothing of that kind."""
    leaf = leaf_of(key, known)
    hint = known.get(leaf)
    rest = key[len(leaf) + 1 :]
    while hint is not None and rest:
        name, _, rest = rest.partition(".")
        if is_mapping(hint):
            hint = item_type(hint)
        elif dataclasses.is_dataclass(hint):
            hint = fields(typing.cast(type, hint)).get(name, (None,))[0]
        else:
            return None
    return hint


def digest(values: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON, as hex."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def from_dict(schema: type[T], tree: Mapping[str, Any], *, where: str = "") -> tuple[T | None, list[str]]:
    """Build a dataclass of dataclasses from a nested mapping, with every unknown key and every wrong type named.

    Returns (object, []) or (None, errors).
    """
    known = keys(schema)
    errors: list[str] = []
    built = _build(schema, tree, "", known, errors)
    return (None, [where + error for error in errors]) if errors else (typing.cast(T, built), [])


def _build(schema: type, tree: Any, prefix: str, known: Mapping[str, Any], errors: list[str]) -> Any:
    if not isinstance(tree, Mapping):
        errors.append(f"{prefix[:-1]}={show(tree)} is a section; give its keys: {_inside(prefix, known)}")
        return None
    members = fields(schema)
    for name in tree:
        if name not in members:
            errors.append(unknown_key(f"{prefix}{name}", known))
    values: dict[str, Any] = {}
    before = len(errors)
    for name, (hint, field) in members.items():
        key = f"{prefix}{name}"
        if name not in tree or tree[name] == "???":
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required:
                errors.append(f"{key} is not set; it has no default")
        elif dataclasses.is_dataclass(hint):
            values[name] = _build(typing.cast(type, hint), tree[name], f"{key}.", known, errors)
        elif entry := entries_of(hint):
            values[name] = _build_entries(entry, tree[name], key, errors)
        else:
            value, problem = convert(hint, tree[name])
            if problem:
                errors.append(wrong_type(key, tree[name], problem))
            values[name] = value
    return schema(**values) if len(errors) == before else None


def _build_entries(schema: type, tree: Any, key: str, errors: list[str]) -> Any:
    if not isinstance(tree, Mapping):
        errors.append(wrong_type(key, tree, f"a mapping from names to the keys {', '.join(fields(schema))}"))
        return None
    entries = {}
    for name, item in tree.items():
        prefix = f"{key}.{name}."
        known = {f"{prefix}{inner}": hint for inner, hint in keys(schema).items()}
        entries[str(name)] = _build(schema, item, prefix, known, errors)
    return entries


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The line for a key that the schema lacks."""
    names = list(known)
    hint = did_you_mean(key, names)
    if hint:
        return f"{key}: no such key{hint}"
    section = key.rpartition(".")[0]
    inside = [name.rpartition(".")[2] for name in names if section and name.rpartition(".")[0] == section]
    if inside:
        return f"{key}: no such key; {section} has {', '.join(inside)}"
    sections = sorted({name.partition(".")[0] for name in names})
    return f"{key}: no such key; keys begin with {one_of(f'{name}.' for name in sections)}"


def wrong_type(key: str, value: Any, expected: str) -> str:
    return f"{key}={show(value)} has the wrong type; use {expected}"


def _inside(prefix: str, known: Iterable[str]) -> str:
    return ", ".join(key for key in known if key.startswith(prefix))


def is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def entries_of(hint: Any) -> type | None:
    """The dataclass of the values of a mapping type, if they are of one."""
    return item_type(hint) if is_mapping(hint) and dataclasses.is_dataclass(item_type(hint)) else None


def item_type(hint: Any) -> Any:
    """The type of the values of a mapping type."""
    return typing.get_args(hint)[1]


def show(value: Any) -> str:
    """A value as a person would type it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def convert(hint: Any, value: Any) -> tuple[Any, str]:
    """(value as the type `hint`, "") or (None, what was expected). 1 becomes 1.0 and 1e3 becomes 1000, nothing else."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # YAML 1.1 reads a bare `off` as false
        if value is False and "off" in arguments:
            return "off", ""
        return (value, "") if isinstance(value, str) else (None, f"one of {one_of(arguments)}")
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return (None, "") if value is None else convert(inner[0], value)
    if origin is list:
        return _convert_list(arguments[0], value)
    if dataclasses.is_dataclass(hint):  # its keys are converted one by one
        return None, f"a mapping with the keys {', '.join(fields(typing.cast(type, hint)))}"
    if origin is dict:
        if not isinstance(value, Mapping):
            return None, "a mapping"
        converted = {str(name): convert(arguments[1], item) for name, item in value.items()}
        problem = next((problem for _, problem in converted.values() if problem), "")
        return {name: item for name, (item, _) in converted.items()}, problem and f"a mapping to {problem}"
    return _convert_scalar(hint, value)


def _convert_list(item_hint: Any, value: Any) -> tuple[Any, str]:
    if not isinstance(value, list | tuple):
        return None, "a list such as [0.9, 0.95]"
    converted = [convert(item_hint, item) for item in value]
    problem = next((problem for _, problem in converted if problem), "")
    return [item for item, _ in converted], problem and f"a list of which each item is {problem}"


def _convert_scalar(hint: Any, value: Any) -> tuple[Any, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool:
        return (value, "") if isinstance(value, bool) else (None, "true or false")
    if hint is int:
        if number and (isinstance(value, int) or value.is_integer()):
            return int(value), ""
        return None, "a whole number"
    if hint is float:
        return (float(value), "") if number else (None, "a number")
    if isinstance(value, str) or number:  # run.name=7 is a fine name
        return str(value), ""
    return None, "a text"
