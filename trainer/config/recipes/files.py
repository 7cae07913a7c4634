"""Recipes of the user's own, checked before they are composed: each fault with its file, its line and its key.

What Octavo ships needs no check. What only the composed configuration shows, such as an unknown key or a wrong type, is
found there; `Origins` names the file then.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from parallel.errors import Fault, one_of
from trainer.config import coerce
from trainer.config.errors import ConfigError
from trainer.config.recipes.entries import Entry
from trainer.config.recipes.groups import KEYS, SECTIONS, choices, is_extra, siblings
from trainer.config.recipes.references import RESOLVER, WRITE_OUT, resolver_fault
from trainer.config.recipes.values import example, is_reference
from trainer.config.say import nearest, show

HEADER = re.compile(r"\s*#\s*@package\s+(\S+)\s*")
GLOBAL = "# @package _global_"


@dataclass(frozen=True)
class Document:
    """A YAML file: its content as OmegaConf reads it, and the nodes of its text (None: it is empty)."""

    file: Path
    text: str
    content: Any
    node: yaml.Node | None

    def at(self, node: yaml.Node | None) -> str:
        """`FILE, line 7`."""
        return str(self.file) if node is None else f"{self.file}, line {node.start_mark.line + 1}"


@dataclass
class Origins:
    """Key -> (where a user's file sets it, the value there), and the faults in those files."""

    places: dict[str, tuple[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def named(self, fault: Fault) -> Fault:
        """The fault with the file in front, if the value comes from there."""
        place, value = self.places.get(fault.where, ("", None))
        if not place or not (fault.value is None or fault.value == value):
            return fault
        return Fault(f"{place}: {fault.text}", fault.where, fault.value, fault.allowed)

    def other_faults(self) -> list[Fault]:
        """Unknown keys and wrong types in the files, where nothing can be composed that would show them."""
        found, bad = [], {fault.where for fault in self.faults}
        for key, (_, value) in self.places.items():
            hint = coerce.find(key, KEYS)
            if key in bad or key in SECTIONS or coerce.is_mapping(hint) or coerce.sections(hint):
                continue
            if hint is None:
                parent = key.rpartition(".")[0]
                if parent in ("", *SECTIONS) or coerce.sections(coerce.find(parent, KEYS)):
                    found.append(coerce.unknown_key(key, siblings(key)))
            elif RESOLVER.search(str(value)):
                found.append(resolver_fault(key, value))
            elif "${" not in str(value) and value != "???" and (expected := coerce.convert(hint, value)[1]):
                found.append(coerce.wrong_type(key, value, expected))
        return [self.named(fault) for fault in found]


def read_document(file: Path) -> Document:
    """Raises `ConfigError` for a file that is not YAML in UTF-8, `OSError` for one that cannot be read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    data = file.read_bytes()
    if data.startswith(codecs.BOM_UTF8):  # Hydra takes it for a part of the first line
        remedy = "save the file as UTF-8 without it"
        text = f"{file}, line 1: starts with a byte order mark; {remedy}"
        raise ConfigError(text, where=str(file), value=data[:3], allowed=remedy)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = "save the file as UTF-8"
        text = f"{file}, line {line}: the byte {data[error.start]:#04x} is not UTF-8; {remedy}"
        raise ConfigError(text, where=str(file), value=data[error.start], allowed=remedy) from None
    node = None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if (circle := _circle(node, [])) is not None:
            remedy = "write its value out"
            where = f"{file}, line {circle.start_mark.line + 1}"
            raise ConfigError(f"{where}: an anchor refers to itself; {remedy}", where=str(file), allowed=remedy)
        content = OmegaConf.to_container(OmegaConf.create(text)) if node is not None else None
    except (yaml.YAMLError, ValueError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError([_not_yaml(file, node, error)]) from None
    if node is None or isinstance(node, yaml.ScalarNode):  # OmegaConf makes a mapping of a bare word
        content = None if node is None else node.value
    return Document(file, text, content, node)


def _circle(node: yaml.Node | None, above: list[yaml.Node]) -> yaml.Node | None:
    """A node that contains itself, by an alias of its own anchor."""
    if any(node is one for one in above):
        return node
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        for inner in item if isinstance(item, tuple) else (item,):
            if (found := _circle(inner, [*above, node])) is not None:
                return found
    return None


def _not_yaml(file: Path, node: yaml.Node | None, error: Exception) -> Fault:
    """node: of the text, where it is YAML that OmegaConf does not take."""
    mark = getattr(error, "problem_mark", None) or next((one.start_mark for one in _unclosed(node)), None)
    what = f"not valid YAML: {getattr(error, 'problem', None) or next(iter(str(error).splitlines()), 'too deep')}"
    if "'\\t'" in what:
        what = "a tab; indent with spaces"
    elif "set_int_max_str_digits" in what:
        what = "a number of more than 4,300 digits"
    elif found := re.search(r"duplicate key (.+)", what):
        what = f"{found[1]} is given twice; keep one"
    elif node is not None and mark is not None and not getattr(error, "problem_mark", None):
        what = f"a ${{ without its }}; {WRITE_OUT}"
    place = f"{file}, line {mark.line + 1}" if mark is not None else str(file)
    return Fault(f"{place}: {what}", str(file), what, "valid YAML")


def _unclosed(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """All scalars under a node whose references are not closed."""
    if isinstance(node, yaml.ScalarNode) and not is_reference(node.value):
        yield node
    elif isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for one in item if isinstance(item, tuple) else (item,):
                yield from _unclosed(one)


def check_recipes(chosen: Iterable[str], groups: Mapping[str, list[str]], own: Mapping[str, Path]) -> Origins:
    """Check the user's files that `chosen`, paths such as `recipe/mine`, ask for, directly or not.

    groups: all options. own: path -> the user's file.
    """
    walk = _Walk(groups, own)
    for path in chosen:
        walk.visit(path, [])
    return walk.origins


def check_document(document: Document, prefix: str, origins: Origins) -> None:
    """Note where `document` sets its keys, and report what could not be merged with a configuration.

    prefix: the section that its keys belong to, such as "model."; empty at the top.
    """
    content = {name: value for name, value in document.content.items() if name != "defaults"}
    for name in [name for name in content if not prefix and nearest(f"{name}", ["defaults", *SECTIONS]) == "defaults"]:
        text = f"{document.at(child(document.node, name))}: {name}: no such key; did you mean 'defaults'?"
        origins.faults.append(Fault(text, f"{name}", content.pop(name), ("defaults",)))
    _check_mapping(document, content, document.node, prefix, origins)


class _Walk:
    """Follows the defaults lists from file to file."""

    def __init__(self, groups: Mapping[str, list[str]], own: Mapping[str, Path]) -> None:
        self.groups, self.own = groups, own
        self.origins = Origins()
        self._visited: set[str] = set()

    def visit(self, path: str, trail: Sequence[str]) -> None:
        if path not in self.own:
            return
        if path in trail:
            self._report_circle([*trail[trail.index(path) :], path])
            return
        if path in self._visited:
            return
        self._visited.add(path)
        try:
            document = read_document(self.own[path])
        except ConfigError as error:
            self.origins.faults += error.faults
            return
        if document.content is None:
            document = replace(document, content={})
        if not isinstance(document.content, Mapping):
            advice = f"give keys and values, such as {_section('train.steps')}"
            self._report(document, document.node, f"{show(document.content)} is not a mapping; {advice}",
                         document.content, "keys and values")  # fmt: skip
            return
        self._visit_defaults(document, path, trail)
        self._check_keys(document, path)

    def _visit_defaults(self, document: Document, path: str, trail: Sequence[str]) -> None:
        defaults, node = document.content.get("defaults", []), child(document.node, "defaults")
        if not isinstance(defaults, list):
            remedy = "write a list, such as defaults: [toy, _self_]"
            self._report(document, node, f"defaults: {show(defaults)} is not a list; {remedy}", defaults, remedy)
            return
        overridden: set[str] = set()
        for number, item in enumerate(defaults):
            line = node.value[number] if isinstance(node, yaml.SequenceNode) else node
            entry = Entry.read(item, path)
            if isinstance(entry, str):
                typed = (
                    "; ".join(f"{key}: {value}" for key, value in item.items()) if isinstance(item, Mapping) else item
                )
                self._report(document, line, f"defaults: {show(typed)}: {entry}", item, entry)
                continue
            if overridden - {"_self_"} and not entry.override:
                remedy = "move it above the first override"
                self._report(document, line, f"defaults: {show(item)} follows an override; {remedy}", item, remedy)
            name = entry.path.partition("/")[0] if entry.override else f"{item}"
            if name in overridden:
                self._report(document, line, f"defaults: {name} is given twice; keep one", item, "one of them")
            if entry.override or item == "_self_":
                overridden.add(name)
            if entry.name not in (None, "_self_") and self._exists(document, line, entry, [*trail, path]):
                self.visit(entry.path, [] if entry.override else [*trail, path])

    def _exists(self, document: Document, line: yaml.Node | None, entry: Entry, trail: Sequence[str]) -> bool:
        """Return True if an entry names an option; report one that does not, or that Hydra would not take so. trail:
        the paths that led here, the last of them that of the entry's file."""
        group, _, option = entry.path.partition("/")
        options = self.groups.get(group, [])
        first, _, rest = entry.target.partition("/")
        if "${" in entry.path or (entry.optional and option not in options):
            return False
        if not entry.absolute and rest and first in self.groups and option not in options:
            remedy = f"write {self._form(first, rest)}"
            self._report(document, line, f"defaults: {entry.text}: without a slash; {remedy}", entry.text, remedy)
        elif not options:
            near = nearest(group, self.groups)
            remedy = f"did you mean '{self._form(near, option)}'?" if near else f"groups: {', '.join(self.groups)}"
            self._report(document, line, f"defaults: {entry.text}: there is no group {group}; {remedy}", group, remedy)
        elif option not in options:
            fit = [one for one in options if entry.override or not self._asks_for(f"{group}/{one}", trail, set())]
            advice = f"use {choices(group, fit, option)}" if fit else "remove it"
            text = f"{document.at(line)}: {group}={option} does not exist; {advice}"
            self.origins.faults.append(Fault(text, group, option, tuple(fit) or advice))
        elif entry.override != self._is_standard(group) and (entry.override or not trail[-1].startswith(f"{group}/")):
            what = "nothing has chosen it yet" if entry.override else "the group has an option already"
            remedy = f"write {self._form(group, option)}"
            self._report(document, line, f"defaults: {entry.text}: {what}; {remedy}", entry.text, remedy)
        else:
            return True
        return False

    def _asks_for(self, path: str, wanted: Collection[str], seen: set[str]) -> bool:
        """Return True if a file is one of those wanted, or asks for one, directly or not. seen: files looked at."""
        if path in wanted or path not in self.own or path in seen:
            return path in wanted
        seen.add(path)
        try:
            content = read_document(self.own[path]).content
        except (ConfigError, OSError):  # reported once a recipe asks for the file
            return False
        defaults = content.get("defaults") if isinstance(content, Mapping) else None
        entries = [Entry.read(item, path) for item in defaults] if isinstance(defaults, list) else []
        onward = [one.path for one in entries if isinstance(one, Entry) and one.name and not one.override]
        return any(self._asks_for(one, wanted, seen) for one in onward)

    def _is_standard(self, group: str) -> bool:
        """Return True for groups whose options every configuration has, so that a recipe overrides them."""
        return group != "recipe" and not is_extra(group, self.groups)

    def _form(self, group: str, option: str) -> str:
        """The entry that chooses an option from within a recipe."""
        if group == "recipe":
            return f"- {option}"
        return f"- {'override ' if self._is_standard(group) else ''}/{group}: {option}"

    def _check_keys(self, document: Document, path: str) -> None:
        group = path.partition("/")[0]
        header = HEADER.fullmatch((document.text.splitlines() or [""])[0])
        package = header[1] if header else ""
        known = package.partition(".")[0] in ("_global_", "_group_", *SECTIONS)
        if not known and (package or group not in SECTIONS):
            found = f", line 1: there is no package {package}" if package else ""
            text = f"{document.file}{found}: must start with the line '{GLOBAL}'"
            self.origins.faults.append(Fault(text, f"{path}.yaml", package or None, GLOBAL))
            return
        prefix = "" if package == "_global_" else f"{package or group}."
        check_document(document, prefix.replace("_group_", group), self.origins)

    def _report_circle(self, trail: Sequence[str]) -> None:
        names = tuple(name.replace("/", "=", 1) for name in trail)
        remedy = f"remove one of them from its defaults, as {names[-1]} from {self.own[trail[-2]]}"
        text = f"recipes ask for each other in a circle, {' -> '.join(names)}; {remedy}"
        if len(trail) == 2:
            remedy = "remove it from its defaults"
            text = f"{self.own[trail[0]]}: {names[0]} asks for itself; {remedy}"
        self.origins.faults.append(Fault(text, trail[0].partition("/")[0], names, remedy))

    def _report(self, document: Document, node: yaml.Node | None, text: str, value: Any, allowed: Any) -> None:
        self.origins.faults.append(Fault(f"{document.at(node)}: {text}", str(document.file), value, allowed))


def child(node: yaml.Node | None, name: Any) -> yaml.Node | None:
    """The node of a key's value; None if the text has none, as where it comes from an anchor."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == str(name):
            return value
    return None


def _check_mapping(document: Document, content: Any, node: Any, prefix: str, origins: Origins) -> None:
    for name, value in content.items():
        key, line = f"{prefix}{name}", child(node, name)
        place = document.at(line)
        if "." in str(name) and coerce.find(key, KEYS) is not None:
            remedy = f"indent it, as {str(name).replace('.', ': {')}: {show(value)}{'}' * str(name).count('.')}"
            origins.faults.append(Fault(f"{place}: {key}: a file has no dotted keys; {remedy}", key, value, remedy))
            continue
        origins.places[key] = (place, value)
        for fault in _unmergeable(key, value, line):
            origins.faults.append(Fault(f"{place}: {fault.text}", fault.where, fault.value, fault.allowed))
            break
        else:
            if isinstance(value, Mapping):
                _check_mapping(document, value, line, f"{key}.", origins)


def _unmergeable(key: str, value: Any, node: yaml.Node | None) -> Iterator[Fault]:
    """Faults of a key that the composed configuration would no longer show, or would not survive."""
    hint = coerce.find(key, KEYS)
    if isinstance(value, str) and "${" in value:
        if not is_reference(value):
            yield Fault(f"{key}: {value}: a ${{ without its }}; {WRITE_OUT}", key, value, WRITE_OUT)
        return
    if key in SECTIONS:
        if not isinstance(value, Mapping):
            first = next(known for known in KEYS if known.startswith(f"{key}."))
            yield Fault(
                f"{key}: {show(value)} is not a mapping; give its keys, such as {_section(first)}", key, value, (first,)
            )
    elif hint is None:
        if key == "hydra" or (key.rpartition(".")[2] == key and "." not in key and isinstance(value, list)):
            yield coerce.unknown_key(key, KEYS)
    elif coerce.is_mapping(hint) or coerce.sections(hint):
        if not (isinstance(value, Mapping) or (value is None and coerce.optional_sections(hint))):
            yield coerce.not_a_mapping(key, value, hint)
    elif isinstance(value, Mapping):
        yield coerce.wrong_type(key, value, coerce.convert(hint, object())[1])
    elif coerce.is_text(hint):
        yield from _changed_text(key, value, hint, node)


def _section(key: str) -> str:
    """A key with its default as a file has it: `train: {steps: 1000}`."""
    section, _, name = key.partition(".")
    return f"{section}: {{{name}: {example(key)}}}"


def _changed_text(key: str, value: Any, hint: Any, node: yaml.Node | None) -> Iterator[Fault]:
    """A text that YAML reads as something else, so that it would not stay as it is typed."""
    typed = node.value if isinstance(node, yaml.ScalarNode) and node.style is None else None
    if typed is None or isinstance(value, str) or (value is None and coerce.base(hint) is not hint):
        return
    if coerce.convert(hint, value)[0] != typed:
        if value is False and coerce.convert(hint, value)[0] == "off":
            return
        if get_origin(coerce.base(hint)) is Literal and typed not in get_args(coerce.base(hint)):
            choices = get_args(coerce.base(hint))
            yield Fault(f"{key}={typed} does not exist; use {one_of(choices)}", key, value, choices)
            return
        remedy = f"quote it: {key.rpartition('.')[2]}: '{typed}'"
        yield Fault(f"{key}: {typed} is read as {show(value)}, not as a text; {remedy}", key, value, remedy)
