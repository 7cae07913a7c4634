"""The overrides of a command line: an option for each group, a value for each key, and every mistake in them.

The schema decides how a value is read: a text stays as it is typed, numbers, lists and mappings follow Hydra's grammar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from parallel.errors import Fault
from trainer.config import coerce
from trainer.config.recipes.groups import KEYS, SECTIONS, choices, is_extra, siblings
from trainer.config.recipes.synonyms import absent
from trainer.config.recipes.values import QUOTES, Unreadable, example, read_text, read_value
from trainer.config.say import nearest, shorten

WORD = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[^=@]*)(?P<package>@[^=]*)?=(?P<value>.*)", re.DOTALL)
DOTTED = re.compile(r"[a-z_]+(?:\.\w+)+")  # keys in a sentence
RECIPE = re.compile(r"\s*\+{0,2}recipe\s*([=:]|$)")  # a word that chooses one, well or badly
NEXT = re.compile(r"[\s,;]+(?=[~+]{0,2}([A-Za-z_][\w./-]*)\s*=)")  # where another override may start in a word
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass
class Words:
    """The content of a command line, and the mistakes in it."""

    groups: Mapping[str, list[str]]
    options: dict[str, str] = field(default_factory=dict)
    values: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    wrong_groups: set[str] = field(default_factory=set)  # named, but with no option that exists
    typed: dict[str, str] = field(default_factory=dict)  # key, or group and = -> its value as typed
    parts: set[str] = field(default_factory=set)  # the keys of `values`, and those inside of mappings
    supposed: set[str] = field(default_factory=set)  # keys that a misspelt word is taken for
    names_recipe: bool = False  # by a word that could stay

    def report(self, text: str, where: str, value: Any = None, allowed: Any = None) -> None:
        self.faults.append(Fault(text, where, value, allowed))

    def is_certain(self, fault: Fault) -> bool:
        """Return False for a fault of the whole configuration that may be due to the word that a misspelt one was taken
        for: an option of its own may fit, and so may other values."""
        named = set(DOTTED.findall(f"{fault.where} {fault.text}"))
        if any(key == one or key.startswith(f"{one}.") for one in named for key in self.supposed):
            return False
        if not self.wrong_groups:
            return True
        chosen = self.options.keys() - self.wrong_groups if "recipe" not in self.wrong_groups else set()
        if fault.where not in self.parts and fault.where.partition(".")[0] not in chosen:
            return False
        return not any(key.partition(".")[0] in self.wrong_groups for key in named - self.parts)


def read_words(overrides: Sequence[str], groups: Mapping[str, list[str]]) -> Words:
    """Read overrides such as `recipe=toy` and `optim.lr=1e-3`."""
    words = Words(groups, names_recipe=any(RECIPE.match(word) for word in overrides))
    left = list(overrides)
    while left:
        word = _join_spaced(left, words)
        if word is not None:
            _read_word(word, words)
    if "recipe" not in words.wrong_groups.union(words.options):
        allowed = groups["recipe"]
        words.report(f"recipe is not set; use {choices('recipe', allowed)}", "recipe", None, tuple(allowed))
    return words


def _join_spaced(left: list[str], words: Words) -> str | None:
    """Take the next override off `left`: a word; or None for several words that one override was split into, with
    spaces around its `=` or without one. These are reported."""
    text = left.pop(0)
    joined, count = text, 0
    if "=" not in text and left and left[0].startswith("="):
        joined, count = text + left[0], 1
    if joined.endswith("=") and text != "=" and len(left) > count and "=" not in left[count]:
        empty_is_fine = count == 0 and _is_text(joined[:-1].strip())
        if not empty_is_fine:
            joined, count = joined + left[count], count + 1
    if (
        not count
        and _is_name(text, words)
        and left
        and (NUMBER.fullmatch(left[0]) or not re.search(r"[=.:]", left[0]))
        and not _is_name(left[0], words)
    ):
        joined, count = f"{text}={left[0]}", 1
    if not count:
        return text
    spaced = left[:count]
    del left[:count]
    key = text.rstrip("=").strip()
    fixed = _without_spaces(joined)
    shown = " ".join([text, *spaced])
    words.report(f"{shown}: one word without spaces; use {fixed}", key, joined.partition("=")[2], fixed)
    _note_option(fixed, words)
    return None


def _read_word(text: str, words: Words) -> None:
    found = WORD.fullmatch(text)
    if found is None:
        _read_bare(text, words)
        return
    sign, key, package, value = found["sign"], found["key"], found["package"], found["value"]
    if parts := _several(text):
        fixed = " ".join(parts)
        words.report(f"{text}: several overrides in one word; use {fixed}", key.strip(), text, fixed)
        for part in parts:
            _note_option(part, words)
    elif not key.strip():
        words.report(f"{text}: nothing before the =; an override is such as optim.lr=1e-3", text, text, "key=value")
    elif value.startswith("=") or key != key.strip() or value != value.lstrip():
        what = "one = is enough" if value.startswith("=") else "spaces around the ="
        fixed = _without_spaces(text)
        words.report(f"{text}: {what}; use {fixed}", key.strip(), value, fixed)
        _note_option(fixed, words)
    elif trouble := _unsupported(sign, key, package, value, words):
        why_not, remedy = trouble
        words.report(f"{shorten(text)}: {why_not}" + (f"; {remedy}" if remedy else ""), key, text, remedy or None)
        _note_option(f"{key}={value}", words)
    elif "." in key:
        _read_value(key, value.rstrip(), words)
    else:
        _read_option(key, value.strip(), bool(sign), words)


def _without_spaces(text: str) -> str:
    key, _, value = text.partition("=")
    return f"{key.strip()}={value.lstrip('= ' + chr(9)).strip()}"


def _several(text: str) -> list[str]:
    """The overrides that one word holds, if it holds more than one and is not quoted."""
    value = text.partition("=")[2].strip()
    if value[:1] in ("'", '"') and value.endswith(value[:1]) and len(value) > 1:
        return []
    starts = [
        match
        for match in NEXT.finditer(text, text.index("=") + 1)
        if coerce.find(match[1], KEYS) is not None or match[1] == "recipe"
    ]
    bounds = [0, *(match.end() for match in starts)]
    ends = [*(match.start() for match in starts), len(text)]
    return [_without_spaces(text[a:b]) for a, b in zip(bounds, ends, strict=True)] if starts else []


def _note_option(text: str, words: Words) -> None:
    """Let a group's option count whose word is reported already, so that the rest is checked as if it were right."""
    group, _, option = text.partition("=")
    if option in words.groups.get(group, ()):
        words.options.setdefault(group, option)
    elif group in words.groups:
        words.wrong_groups.add(group)


def _read_bare(text: str, words: Words) -> None:
    """Report a word without `=`."""
    typed = text
    if not text.strip():
        words.report("an override is empty; remove it", "override", text, "remove it")
        return
    if text.startswith("~"):
        if text == "~recipe" and not words.names_recipe:
            allowed = words.groups["recipe"]
            words.report(
                f"{text}: a run needs a recipe; use {choices('recipe', allowed)}", "recipe", text, tuple(allowed)
            )
        else:
            advice = "remove it, or give another value"
            words.report(f"{text}: keys and groups cannot be taken away; {advice}", text[1:], text, "remove it")
        _note_option(f"{text[1:]}=", words)
        return
    key, colon, value = text.partition(":")
    if colon and (coerce.find(key, KEYS) is not None or key in words.groups):
        near = f"{key}={value.strip()}"
    else:
        group, _, option = text.partition(".")
        owners = [group for group in ("recipe", *words.groups) if text in words.groups[group]]
        if option in words.groups.get(group, ()):
            owners, text = [group], option
        near = f"{owners[0]}={text}" if owners else nearest(text, [*KEYS, *words.groups]) or ""
        if near in KEYS:
            near = f"{near}={example(near)}"
        elif near in words.groups:
            near = f"{near}={'toy' if near == 'recipe' else words.groups[near][0]}"
    if near:
        _note_option(near, words)
    advice = f"; did you mean '{near}'?" if near else ", such as recipe=toy or optim.lr=1e-3"
    words.report(f"{shorten(typed)}: not of the form key=value{advice}", typed, typed, (near,) if near else "key=value")


def _unsupported(sign: str, key: str, package: str | None, value: str, words: Words) -> tuple[str, str] | None:
    """(why overrides of this kind are not supported, what to use), or None."""
    groups = words.groups
    if sign == "~" and key == "recipe" and not words.names_recipe:
        return "a run needs a recipe", f"use {f'recipe={value}' if value in groups[key] else choices(key, groups[key])}"
    if sign == "~":
        return "keys and groups cannot be taken away", "remove it"
    if package is not None:
        return "packages are not supported", f"use {key}={value}"
    if (sign and not is_extra(key, groups)) or sign == "++":
        if coerce.find(key, KEYS) is not None or key in groups:
            return "the key exists already", f"use {key}={value}"
        near = nearest(key, [*KEYS, *groups])
        return "no such key, and new keys cannot be added", f"did you mean '{near}'?" if near else ""
    return None


def _read_option(group: str, typed: str, added: bool, words: Words) -> None:
    groups, option = words.groups, read_text(typed)
    if group not in groups:
        _read_unknown(group, typed, words)
        return
    if is_extra(group, groups) and not added:
        text = f"{group}={typed}: not in the defaults list; add it with +{group}={typed}"
        words.report(text, group, option, f"+{group}={typed}")
    if _is_repeated(f"{group}=", option, words):
        return
    if option in groups[group]:
        words.options[group] = option
        return
    words.wrong_groups.add(group)
    near = nearest(option, groups[group])
    if near:
        words.options[group] = near
    text = f"{shorten(f'{group}={typed}')} does not exist; use {choices(group, groups[group], option)}"
    if "," in option and all(part.strip() in groups[group] for part in option.split(",")):
        text = f"{group}={typed}: sweeps are not supported; choose one of {', '.join(groups[group])}"
    words.report(text, group, option, tuple(groups[group]))


def _read_unknown(name: str, typed: str, words: Words) -> None:
    """Report a name without a dot that is not a group."""
    if name.lower() in SECTIONS and name.lower() not in words.groups:
        inside = tuple(key for key in KEYS if key.startswith(f"{name.lower()}."))
        text = f"{shorten(f'{name}={typed}')}: a section, not a group; its keys are {', '.join(inside)}"
        words.report(text, name, typed, inside)
        return
    if lacking := absent(name):
        words.report(f"{name}: no such group or key; {lacking[0]}", name, None, lacking[1])
        return
    near = nearest(name, [*words.groups, *KEYS])
    if near in KEYS:  # of the keys with this last part, one that takes the value
        near = next((key for key in KEYS if key.endswith(f".{near.rpartition('.')[2]}") and _fits(key, typed)), near)
    if near is None:
        text = f"{name}: no such group or key; groups: {', '.join(words.groups)}"
        words.report(text, name, None, tuple(words.groups))
        return
    words.report(f"{name}: no such group or key; did you mean '{near}'?", name, None, (near,))
    if near in KEYS:
        _suppose(near, typed, words)
    elif f"{near}=" not in words.typed:
        faults = list(words.faults)
        _read_option(near, typed, False, words)
        words.faults[:] = faults
        words.typed.pop(f"{near}=", None)


def _fits(key: str, typed: str) -> bool:
    hint = coerce.base(KEYS[key])
    try:
        value = read_value(key, KEYS[key], typed)
    except Unreadable:
        return False
    return get_origin(hint) is not Literal or value in get_args(hint)


def _read_value(key: str, typed: str, words: Words) -> None:
    if coerce.find(key, KEYS) is not None:
        if not _is_repeated(key, typed, words):
            _take(key, typed, words)
        return
    known = siblings(key)
    words.faults.append(coerce.unknown_key(key, known))
    near = coerce.meant(key, known)
    if near:
        _suppose(near, typed, words)


def _is_repeated(key: str, typed: str, words: Words) -> bool:
    """Report a key or group that an earlier word has set."""
    before = words.typed.get(key)
    if before is None:
        words.typed[key] = typed
        return False
    name = key.rstrip("=")
    text = f"{name} is given twice, as {shorten(before)} and {shorten(typed)}; keep one"
    words.report(text, name, (before, typed), "one of them")
    return True


def _suppose(key: str, typed: str, words: Words) -> None:
    """Continue as if a misspelt word had named `key`, about which nothing more is reported."""
    if key in words.typed:
        return
    words.supposed.add(key)
    faults = list(words.faults)
    _take(key, typed, words)
    words.faults[:] = faults


def _take(key: str, typed: str, words: Words) -> None:
    """Set `key` to what was typed if the type fits; else report it."""
    hint = coerce.find(key, KEYS)
    try:
        value = read_value(key, hint, typed)
    except Unreadable as error:
        words.faults.append(error.fault)
        return
    _set(key, value, words)


def _set(key: str, value: Any, words: Words) -> None:
    hint = coerce.find(key, KEYS)
    if isinstance(value, Mapping) and (coerce.entries_of(hint) or coerce.sections(hint)):
        for name, item in value.items():
            if coerce.find(f"{key}.{name}", KEYS) is None:
                words.faults.append(coerce.unknown_key(f"{key}.{name}", siblings(f"{key}.{name}")))
            else:
                _set(f"{key}.{name}", item, words)
        return
    reference = isinstance(value, str) and "${" in value  # its type is known once it is resolved
    expected = "" if reference else coerce.convert(hint, value)[1]
    if coerce.is_text(hint) and isinstance(value, int | float):  # inside a mapping
        expected = QUOTES
    if expected:
        words.faults.append(coerce.wrong_type(key, value, expected))
        return
    parts = {f"{key}.{name}" for name in value} if isinstance(value, Mapping) else {key}
    if twice := sorted(parts & words.parts):
        text = f"{twice[0]} is given twice, inside a mapping and by itself; keep one"
        words.report(text, twice[0], None, "one of them")
    else:
        words.parts |= parts
        words.values.append((key, value))


def _is_name(word: str, words: Words) -> bool:
    return word in KEYS or word in words.groups


def _is_text(key: str) -> bool:
    return coerce.is_text(coerce.find(key, KEYS))
