"""Conversion of plain mappings to typed dataclasses, with lists of keys and hashes. No key is known here by name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from parallel.errors import Fault, one_of
from trainer.config.recipes.synonyms import absent
from trainer.config.say import nearest, show

# Metadata of fields that may change when a run is resumed. A free one does not define the result; a named one does, and
# so is part of the default directory's name, but an existing run may resume with another value.
FREE: Mapping[str, str] = {"resume": "free"}
NAMED: Mapping[str, str] = {"resume": "named"}
KIND = "kind"  # the key that selects one of several dataclasses of a section
T = TypeVar("T")


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
    """Dotted key -> value of a nested mapping, no deeper than the schema's keys `known`, except into the entries of a
    mapping to dataclasses, `data.sources.code.tokens`, and into an optional section, `model.vision.width`. The value of
    such a mapping itself is the names of its entries, in order, or {} if it is empty; such a section has none."""
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            hint = find(key, known)
            optional = bool(optional_sections(hint)) and isinstance(value, Mapping)
            leaf = hint is not None and not dataclasses.is_dataclass(hint) and not optional
            entries = bool(entries_of(hint)) and isinstance(value, Mapping) and bool(value)
            if entries or not isinstance(value, Mapping) or leaf:
                flat[key] = list(value) if entries else value
            if isinstance(value, Mapping) and (entries or not leaf):
                walk(value, f"{key}.")

    walk(tree, "")
    return flat


def leaf_of(key: str, known: Iterable[str]) -> str:
    """The schema's key that contains a dotted key: `data.sources` for `data.sources.code.tokens`; the key itself if
    none does."""
    names, parent = set(known), key
    while parent and parent not in names:
        parent = parent.rpartition(".")[0]
    return parent or key


def find(key: str, known: Mapping[str, Any]) -> Any:
    """The type of a dotted key: a key of the schema, or an item of a key that is a mapping, whatever the item's name;
    None if the schema has no such key."""
    leaf = leaf_of(key, known)
    hint = known.get(leaf)
    rest = key[len(leaf) + 1 :]
    while hint is not None and rest:
        name, _, rest = rest.partition(".")
        if is_mapping(hint):
            hint = item_type(hint)
        else:
            found = [fields(schema)[name][0] for schema in sections(hint) if name in fields(schema)]
            choices = tuple(choice for one in found for choice in typing.get_args(one) if name == KIND)
            hint = Literal[choices] if choices else next(iter(found), None)
    return hint


def sections(hint: Any) -> tuple[type, ...]:
    """The dataclasses that a type stands for: itself, or those of an optional section; none for other types."""
    return (typing.cast(type, hint),) if dataclasses.is_dataclass(hint) else optional_sections(hint)


def optional_sections(hint: Any) -> tuple[type, ...]:
    """The dataclasses of a type that is one of them or None. Where there are several, each has a different `kind`."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    return tuple(typing.cast(type, argument) for argument in arguments if dataclasses.is_dataclass(argument))


def digest(values: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON, as hex."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def from_dict(schema: type[T], tree: Mapping[str, Any], *, file: str = "") -> tuple[T | None, list[Fault]]:
    """Build a dataclass of dataclasses from a nested mapping.

    file: where the mapping was read, named in each fault. Returns (object, []), or (None, every unknown or missing key
    and every wrong type).
    """
    known = keys(schema)
    faults: list[Fault] = []
    built = _build(schema, tree, "", known, faults)
    if file:
        faults = [dataclasses.replace(fault, text=f"{file}: {fault.text}") for fault in faults]
    return (None, faults) if faults else (typing.cast(T, built), [])


def _build(schema: type, tree: Any, prefix: str, known: Mapping[str, Any], faults: list[Fault]) -> Any:
    if not isinstance(tree, Mapping):
        faults.append(not_a_mapping(prefix[:-1], tree, schema))
        return None
    members = fields(schema)
    unknown = [unknown_key(f"{prefix}{name}", known) for name in tree if name not in members]
    faults += unknown
    meant = {fault.allowed for fault in unknown}  # what a misspelt key stands for is not missing as well
    values: dict[str, Any] = {}
    before = len(faults) - len(unknown)
    for name, (hint, field) in members.items():
        key = f"{prefix}{name}"
        if name not in tree or tree[name] == "???":
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and (key,) not in meant:
                expected = convert(hint, object())[1]
                faults.append(Fault(f"{key} is not set; it has no default", key, allowed=expected))
        elif dataclasses.is_dataclass(hint):
            values[name] = _build(typing.cast(type, hint), tree[name], f"{key}.", known, faults)
        elif entry := entries_of(hint):
            values[name] = _build_entries(entry, tree[name], key, faults)
        elif choices := optional_sections(hint):
            values[name] = None if tree[name] is None else _build_optional(choices, tree[name], key, faults)
        else:
            value, expected = convert(hint, tree[name])
            if expected and is_mapping(hint) and isinstance(tree[name], Mapping):
                for inner, item in tree[name].items():
                    if wrong := convert(item_type(hint), item)[1]:
                        faults.append(wrong_type(f"{key}.{inner}", item, wrong))
            elif expected:
                faults.append(wrong_type(key, tree[name], expected))
            values[name] = value
    return schema(**values) if len(faults) == before else None


def _build_entries(schema: type, tree: Any, key: str, faults: list[Fault]) -> Any:
    if not isinstance(tree, Mapping):
        faults.append(not_a_mapping(key, tree, types.GenericAlias(dict, (str, schema))))
        return None
    entries = {}
    for name, item in tree.items():
        prefix = f"{key}.{name}."
        known = {f"{prefix}{inner}": hint for inner, hint in keys(schema).items()}
        entries[str(name)] = _build(schema, item, prefix, known, faults)
    return entries


def _build_optional(schemas: Sequence[type], tree: Any, key: str, faults: list[Fault]) -> Any:
    if not isinstance(tree, Mapping):
        faults.append(not_a_mapping(key, tree, typing.Optional[schemas[0]]))  # noqa: UP045
        return None
    by_kind = {typing.get_args(fields(schema)[KIND][0])[0]: schema for schema in schemas} if len(schemas) > 1 else {}
    schema = by_kind.get(tree.get(KIND)) if by_kind else schemas[0]
    if schema is None:
        faults.append(wrong_type(f"{key}.{KIND}", tree.get(KIND), one_of(tuple(by_kind))))
        return None
    known = {f"{key}.{inner}": hint for inner, hint in keys(schema).items()}
    return _build(schema, tree, f"{key}.", known, faults)


def meant(key: str, known: Mapping[str, Any]) -> str | None:
    """The key of the schema `known` that is probably meant by one that it lacks; None if none is close. Each part of a
    key inside an optional section, or an entry, is compared with the names at its own level."""
    section, _, last = key.rpartition(".")
    if not (inside := _respelt(section, known) if "." in section else None):
        return nearest(key, known)
    near = last if is_mapping(find(inside, known)) else nearest(last, _names_in(inside, known))
    found = f"{inside}.{near}" if near is not None else nearest(key, known)
    return found if found != key else None


def _respelt(section: str, known: Mapping[str, Any]) -> str | None:
    """A dotted section with every misspelt part corrected; None if a part is close to no name at its level."""
    found = ""
    for part in section.split("."):
        names = _names_in(found, known)
        near = part if part in names or is_mapping(find(found, known)) else nearest(part, names)
        if near is None:
            return None
        found = f"{found}.{near}" if found else near
    return found


def _names_in(section: str, known: Mapping[str, Any]) -> list[str]:
    """The names of the keys and sections inside a section of the schema; of those at its top for an empty one."""
    prefix = f"{section}." if section else ""
    flat = [name[len(prefix) :].partition(".")[0] for name in known if name.startswith(prefix)]
    nested = [name for schema in sections(find(section, known)) for name in fields(schema)] if section else []
    return list(dict.fromkeys([*flat, *nested]))


def unknown_key(key: str, known: Mapping[str, Any]) -> Fault:
    """The fault of a key that the schema lacks, with the key that was probably meant or those of its section."""
    names = list(known)
    section = key.rpartition(".")[0]
    inside = [name.rpartition(".")[2] for name in names if section and name.rpartition(".")[0] == section]
    if lacking := absent(key):
        return Fault(f"{key}: no such key; {lacking[0]}", key, allowed=lacking[1])
    near = meant(key, known)
    if near:
        return Fault(f"{key}: no such key; did you mean '{near}'?", key, allowed=(near,))
    if inside:
        allowed = tuple(f"{section}.{name}" for name in inside)
        return Fault(f"{key}: no such key; {section} has {', '.join(inside)}", key, allowed=allowed)
    sections = sorted({f"{name.partition('.')[0]}." for name in names})
    return Fault(f"{key}: no such key; keys start with {one_of(sections)}", key, allowed=tuple(sections))


def wrong_type(key: str, value: Any, expected: str) -> Fault:
    if (
        isinstance(value, str)
        and (expected == "true or false" or "number" in expected)
        and _is_literal(value, expected)
    ):
        text = f"{key}='{value}' is a text, as it is quoted; use {value} without quotes"
        return Fault(text, key, value, value)
    return Fault(f"{key}={show(value)} has the wrong type; use {expected}", key, value, expected)


def _is_literal(text: str, expected: str) -> bool:
    """Return True for a text that would be of the expected type without its quotes."""
    if expected == "true or false":
        return text in ("true", "false")
    number = (
        r"-?[0-9]{1,18}"
        if expected.startswith("a whole number")
        else r"-?[0-9]{1,18}(\.[0-9]{0,18})?(e[-+]?[0-9]{1,3})?"
    )
    return re.fullmatch(number, text) is not None


def base(hint: Any) -> Any:
    """The type itself of one that may also be None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(argument for argument in typing.get_args(hint) if argument is not type(None))
    return hint


def is_text(hint: Any) -> bool:
    """Return True for texts, those of a fixed set among them."""
    return base(hint) is str or typing.get_origin(base(hint)) is Literal


def not_a_mapping(key: str, value: Any, hint: Any) -> Fault:
    """The fault of a value where the schema has a section, or a mapping from names."""
    if entry := entries_of(hint):
        return wrong_type(key, value, f"a mapping from names to the keys {', '.join(fields(entry))}")
    if is_mapping(hint):
        return wrong_type(key, value, convert(hint, None)[1])
    inside = tuple(dict.fromkeys(f"{key}.{name}" for schema in sections(hint) for name in keys(schema)))
    none = ", or null" if optional_sections(hint) else ""
    return Fault(f"{key}={show(value)} is a section; give its keys: {', '.join(inside)}{none}", key, value, inside)


def is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is dict


def entries_of(hint: Any) -> type | None:
    """The dataclass that a mapping type maps to; None for other types."""
    return item_type(hint) if is_mapping(hint) and dataclasses.is_dataclass(item_type(hint)) else None


def item_type(hint: Any) -> Any:
    """The type of the values of a mapping type."""
    return typing.get_args(hint)[1]


def convert(hint: Any, value: Any) -> tuple[Any, str]:
    """(value as the type `hint`, "") or (None, the expected type). 1 becomes 1.0 and 1e3 becomes 1000, nothing else."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # YAML 1.1 reads a bare `off` as false
        if value is False and "off" in arguments:
            return "off", ""
        return (value, "") if isinstance(value, str) else (None, one_of(arguments))
    if optional := optional_sections(hint):  # its keys are converted one by one
        names = dict.fromkeys(name for schema in optional for name in fields(schema))
        return None, "" if value is None else f"null or a mapping with the keys {', '.join(names)}"
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if value is None and len(inner) < len(arguments):
            return None, ""
        if len(inner) > 1:  # of scalars, the narrowest first
            tried = [convert(choice, value) for choice in inner]
            return next(((found, "") for found, problem in tried if not problem), (None, one_of(p for _, p in tried)))
        converted, problem = convert(inner[0], value)
        # a number may have no use where another key is null, as the placeholder of a tower that is not there
        return converted, f"{problem} or null" if problem and inner[0] in (int, float) else problem
    if origin is list:
        return _convert_list(arguments[0], value)
    if dataclasses.is_dataclass(hint):  # its keys are converted one by one
        return None, f"a mapping with the keys {', '.join(fields(typing.cast(type, hint)))}"
    if origin is dict:
        if not isinstance(value, Mapping):
            return None, "a mapping"
        items = {str(name): convert(arguments[1], item) for name, item in value.items()}
        problem = next((problem for _, problem in items.values() if problem), "")
        return {name: item for name, (item, _) in items.items()}, problem and f"a mapping to {problem}"
    return _convert_scalar(hint, value)


def _convert_list(item_hint: Any, value: Any) -> tuple[Any, str]:
    if not isinstance(value, list | tuple):
        return None, "a list such as [a, b]" if is_text(item_hint) else "a list such as [0.9, 0.95]"
    converted = [convert(item_hint, item) for item in value]
    problem = next((problem for _, problem in converted if problem), "")
    return [item for item, _ in converted], problem and f"a list whose items are each {problem}"


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
    return None, "text"
