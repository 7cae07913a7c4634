"""From the words of a command line to a checked `Config`: Hydra composes, the schema converts, `validate` checks.

Every mistake in a command is reported at once. A misspelt word therefore does not end the search: the rest is checked
as if the suggested word had been typed. No torch here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from parallel.errors import Fault, one_of
from trainer.config import coerce
from trainer.config.checks.validate import validate
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.say import did_you_mean, nearest, show

KEYS = coerce.keys(Config)
SECTIONS = list(coerce.fields(Config))
# ${now:} or ${oc.env:}: a value that would differ between ranks, machines or days
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")


def compose(overrides: Sequence[str], *, config_dirs: Sequence[str | Path] = (), world_size: int = 1) -> Config:
    """Compose the recipes with `overrides` such as `recipe=toy` and `optim.lr=1e-3`, and check the result.

    config_dirs: directories that are searched after `pkg://recipes`, for a user's own recipes and options.
    Raises `ConfigError` with every mistake found.
    """
    groups = list_groups(config_dirs)
    words = _read(overrides, groups)
    try:
        tree = _compose_groups(words, groups, config_dirs)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError([*words.faults, _library_fault(error, "recipe")]) from None
    _apply(words, tree)
    return _check(tree, words.faults, world_size)


def load(path: str | Path, *, world_size: int = 1) -> Config:
    """Read a resolved configuration, such as the config.yaml of a run directory. Raises `ConfigError`."""
    try:
        tree = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}", where=str(path), value=error.strerror, allowed="a readable file"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([_library_fault(error, str(path))]) from None
    if not isinstance(tree, DictConfig):
        raise ConfigError(
            f"{path}: not a configuration (no keys at the top)", where=str(path), allowed="keys at the top"
        )
    return _check(tree, [], world_size)


def to_yaml(cfg: Config) -> str:
    """The resolved configuration as YAML, in the order of the schema; `load` reads it back."""
    return yaml.safe_dump(coerce.to_dict(cfg), sort_keys=False, allow_unicode=True, default_flow_style=False)


def list_groups(config_dirs: Sequence[str | Path] = ()) -> dict[str, list[str]]:
    """Group -> its options, those in the package and those in the user's directories.

    Raises `ConfigError` for a directory that does not exist, or whose files have the names of built-in ones.
    """
    found = _options(files("recipes"))
    faults = []
    for directory in map(Path, config_dirs):
        if not directory.is_dir():
            text = f"--config-dir {directory}: no such directory"
            faults.append(Fault(text, "--config-dir", str(directory), "a directory that exists"))
            continue
        taken = [directory / "config.yaml"] if (directory / "config.yaml").is_file() else []
        for group, options in _options(directory).items():
            taken += [directory / group / f"{name}.yaml" for name in sorted({*options} & {*found.get(group, [])})]
            found[group] = sorted({*found.get(group, []), *options})
        for file in taken:
            remedy = "make it recipe/NAME.yaml" if file.parent == directory else "rename the file"
            text = f"{file}: Octavo has a file of this name, so this one would not be read; {remedy}"
            faults.append(Fault(text, str(file), allowed=remedy))
    if faults:
        raise ConfigError(faults)
    return found


def overview(words: Sequence[str]) -> str:
    """Groups and options as text for the --help of a command line, with those of its `--config-dir`s.

    Raises `ConfigError` as `list_groups` does.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", action="append", default=[], nargs="?")  # the command's parser wants a value
    config_dirs = [place for place in parser.parse_known_args(words)[0].config_dir if place is not None]
    lines = [f"  {group}={'|'.join(options)}" for group, options in list_groups(config_dirs).items()]
    return "\n".join(["groups and their options:", *lines, "keys: " + ", ".join(f"{name}.*" for name in SECTIONS)])


def _options(root: Traversable) -> dict[str, list[str]]:
    def walk(folder: Traversable, prefix: str) -> list[str]:
        names = []
        for entry in folder.iterdir():
            if entry.is_dir():
                names += walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                names.append(prefix + entry.name.removesuffix(".yaml"))
        return sorted(names)

    groups = {entry.name: walk(entry, "") for entry in root.iterdir() if entry.is_dir()}
    return {name: options for name, options in sorted(groups.items()) if options}


@dataclass
class _Words:
    """The content of a command line: an option for each group, a value for each key, and the mistakes in them."""

    options: dict[str, str] = field(default_factory=dict)
    values: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    wrong_groups: set[str] = field(default_factory=set)  # named, but with no option that exists

    def report(self, text: str, where: str, value: Any = None, allowed: Any = None) -> None:
        self.faults.append(Fault(text, where, value, allowed))


def _read(overrides: Sequence[str], groups: Mapping[str, list[str]]) -> _Words:
    words, parser = _Words(), OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            words.faults.append(_unreadable(text, groups))
            if text in groups["recipe"]:
                words.options.setdefault("recipe", text)
            continue
        why_not, remedy = _unsupported(override, groups)
        if why_not:
            shown = f"{text}: {why_not}" + (f"; {remedy}" if remedy else "")
            words.report(shown, override.key_or_group, text, remedy or None)
        elif "." in override.key_or_group:
            _read_value(override, words)
        else:
            _read_option(override, groups, words)
    if "recipe" not in words.wrong_groups.union(words.options):
        words.report(f"recipe is not set; use {_choices('recipe', groups)}", "recipe", None, tuple(groups["recipe"]))
    return words


def _unreadable(text: str, groups: Mapping[str, list[str]]) -> Fault:
    key, equals, value = text.partition("=")
    if equals:
        remedy = f"quote a value with special characters, as in '{key}=\"{value}\"'"
        return Fault(f"{text}: cannot be parsed; {remedy}", key, value, remedy)
    near = f"recipe={text}" if text in groups["recipe"] else nearest(text, [*KEYS, *groups])
    advice = f"; did you mean '{near}'?" if near else ""
    return Fault(f"{text}: not of the form key=value{advice}", text, text, (near,) if near else None)


def _unsupported(override: Override, groups: Mapping[str, list[str]]) -> tuple[str, str]:
    """(why overrides of this kind are not supported, what to use), or two empty texts."""
    key = override.key_or_group
    if override.is_delete():
        return "keys and groups cannot be removed", "give another value"
    if override.is_sweep_override():
        return "sweeps are not supported", "write a list as [a,b]"
    if override.package is not None:
        return "packages are not supported", f"use {key}=OPTION"
    if (override.is_add() and not _is_extra(key, groups)) or override.is_force_add():
        known = key in KEYS or key in groups
        if known:
            return "the key exists already", f"use {key}=..."
        near = nearest(key, [*KEYS, *groups])
        return "no such key, and new keys cannot be added", f"did you mean '{near}'?" if near else ""
    return "", ""


def _is_extra(name: str, groups: Mapping[str, list[str]]) -> bool:
    """Return True for a group of the user's own, which is not in the defaults list: `+name=option` adds it there."""
    return name in groups and not files("recipes").joinpath(name).is_dir()


def _read_option(override: Override, groups: Mapping[str, list[str]], words: _Words) -> None:
    group, option = override.key_or_group, override.value()
    if group not in groups:
        if group in SECTIONS:
            inside = tuple(key for key in KEYS if key.startswith(f"{group}."))
            text = f"{group}={show(option)}: a section, not a group; its keys are {', '.join(inside)}"
            words.report(text, group, option, inside)
            return
        near = nearest(group, [*groups, *KEYS])
        if near is None:
            text = f"{group}: no such group or key; groups: {', '.join(groups)}"
            words.report(text, group, None, tuple(groups))
            return
        words.report(f"{group}: no such group or key; did you mean '{near}'?", group, None, (near,))
        if near in KEYS:
            _take(near, option, words)
            return
        group = near
    elif _is_extra(group, groups) and not override.is_add():
        text = f"{override.input_line}: not in the defaults list; add it with +{override.input_line}"
        words.report(text, group, option, f"+{override.input_line}")
    if words.options.get(group, option) != option:
        text = f"{group} is given twice, as {words.options[group]} and {show(option)}; keep one"
        words.report(text, group, (words.options[group], option), "one of them")
    elif isinstance(option, str) and option in groups[group]:
        words.options[group] = option
    else:
        words.wrong_groups.add(group)
        text = f"{group}={show(option)} does not exist; use {_choices(group, groups, str(option))}"
        words.report(text, group, option, tuple(groups[group]))
        near = nearest(str(option), groups[group])
        if near:
            words.options[group] = near


def _choices(group: str, groups: Mapping[str, list[str]], typed: str = "") -> str:
    options = groups[group]
    return f"{group}={one_of(options)}{did_you_mean(typed, options) if typed else ''}"


def _read_value(override: Override, words: _Words) -> None:
    key, value = override.key_or_group, override.value()
    if coerce.find(key, KEYS) is not None:
        _take(key, value, words)
        return
    known = _siblings(key)
    words.faults.append(coerce.unknown_key(key, known))
    near = nearest(key, known)
    if near:
        _take(near, value, words, quiet=True)


def _siblings(key: str) -> dict[str, Any]:
    """The keys that could be meant: those of the schema, or those of the entry that contains `key`, such as
    data.sources.code."""
    parent = key.rpartition(".")[0]
    entry = coerce.find(parent, KEYS) if parent else None
    if not isinstance(entry, type) or not is_dataclass(entry):
        return KEYS
    return {f"{parent}.{name}": hint for name, hint in coerce.keys(entry).items()}


def _take(key: str, value: Any, words: _Words, *, quiet: bool = False) -> None:
    """Set `key` to `value` if the type fits; else report it, unless the key itself is reported already (`quiet`)."""
    hint = coerce.find(key, KEYS)
    if isinstance(value, Mapping) and (coerce.entries_of(hint) or is_dataclass(hint)):
        for name, item in value.items():
            if coerce.find(f"{key}.{name}", KEYS) is None:
                words.faults.append(coerce.unknown_key(f"{key}.{name}", _siblings(f"{key}.{name}")))
            else:
                _take(f"{key}.{name}", item, words, quiet=quiet)
        return
    reference = isinstance(value, str) and "${" in value  # its type is known once it is resolved
    expected = "" if reference else coerce.convert(hint, value)[1]
    if not expected:
        words.values.append((key, value))
    elif not quiet:
        words.faults.append(coerce.wrong_type(key, value, expected))


def _compose_groups(words: _Words, groups: Mapping[str, list[str]], config_dirs: Sequence[str | Path]) -> DictConfig:
    chosen = [f"{'+' if _is_extra(group, groups) else ''}{group}={option}" for group, option in words.options.items()]
    if "recipe" not in words.options:
        chosen.append("~recipe")
    if config_dirs:
        places = ",".join(_quoted(f"file://{Path(directory).absolute()}") for directory in config_dirs)
        chosen.append(f"hydra.searchpath=[{places}]")
    with initialize_config_module("recipes", version_base="1.3"):
        composed = hydra_compose("config", overrides=chosen)
    OmegaConf.set_struct(composed, False)
    # A recipe need not repeat its name.
    recipe = words.options.get("recipe", "run").replace("/", "-")
    composed = OmegaConf.merge({"run": {"name": recipe}}, composed)  # type: ignore[assignment]
    # A recipe that lacks its first line is put under its group's name, where nothing would read it.
    for group in set(groups) - set(SECTIONS):
        if group in composed:
            file, line = f"{group}/{words.options.get(group)}.yaml", "# @package _global_"
            words.report(f"{file}: must start with the line '{line}'", file, None, line)
            del composed[group]
    for section in SECTIONS:
        if section in composed and not isinstance(composed[section], DictConfig):
            value = composed[section]
            example = next(key for key in KEYS if key.startswith(f"{section}."))
            text = f"{section}={show(value)}: a section; a recipe gives its keys, such as {example}"
            words.report(text, section, value, (example,))
            del composed[section]
    return composed


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _apply(words: _Words, tree: DictConfig) -> None:
    for key, value in words.values:
        mapping = coerce.leaf_of(key, KEYS)
        names = [key[len(mapping) + 1 :].partition(".")[0]] if key != mapping else []
        if key == mapping and isinstance(value, Mapping):
            names = list(value)
        there = OmegaConf.select(tree, mapping)
        known = [str(name) for name in there] if isinstance(there, DictConfig) else []
        unknown = [str(name) for name in names if str(name) not in known]
        for name in unknown:
            advice = did_you_mean(name, known) or f"; {mapping} has {', '.join(known) or 'no keys here'}"
            words.report(f"{mapping}.{name}: no such key{advice}", f"{mapping}.{name}", None, tuple(known))
        if not unknown:
            OmegaConf.update(tree, key, value, merge=True)


def _check(tree: DictConfig, faults: Iterable[Fault], world_size: int) -> Config:
    tree = OmegaConf.merge(coerce.defaults(Config), tree)  # type: ignore[assignment]  # a mapping merges into a mapping
    faults = [*faults, *_resolver_faults(tree)]
    try:
        values: Any = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([*faults, _library_fault(error, "recipe")]) from None
    cfg, mistyped = coerce.from_dict(Config, values)
    faults += mistyped
    if cfg is not None:
        faults += validate(cfg, world_size)
    if faults or cfg is None:
        raise ConfigError({fault.text: fault for fault in faults}.values())
    return cfg


def _resolver_faults(tree: DictConfig) -> list[Fault]:
    raw: Any = OmegaConf.to_container(tree, resolve=False)
    remedy = "write it out, or refer to a key: ${a.b}"
    return [
        Fault(f"{key}={value}: could differ between ranks; {remedy}", key, value, remedy)
        for key, value in coerce.flatten(raw, KEYS).items()
        if RESOLVER.search(str(value))
    ]


def _library_fault(error: Exception, where: str) -> Fault:
    """A fault for an error of Hydra, OmegaConf or YAML, on one line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options, wanted = error.options or [], f"{group}={name}" if group else name
        text = f"{wanted}, which a recipe asks for, does not exist; {group} has {', '.join(options)}"
        return Fault(text + did_you_mean(name, options), group or name, name, tuple(options))
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", "")
        return Fault(f"{mark.name}, line {mark.line + 1}: {problem}", str(mark.name), problem, "valid YAML")
    text = " ".join(str(error.__cause__ or error).split())
    where = getattr(error, "full_key", None) or where
    if isinstance(error, UnicodeDecodeError | yaml.YAMLError):
        return Fault(f"{where}: {text}", where, allowed="valid YAML in UTF-8")
    return Fault(text, where, allowed="a value that can be resolved")
