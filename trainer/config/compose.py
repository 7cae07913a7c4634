"""From words on a command line to a checked `Config`: Hydra composes, the schema types, `validate` judges.

Every mistake of one command is reported at once. So a misspelt word does not end the search: the rest is checked as if
the suggested word had been typed. No torch here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
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

from trainer.config import coerce as schema
from trainer.config.checks.validate import validate
from trainer.config.keys import Config, ConfigError

KEYS = schema.keys(Config)
SECTIONS = list(schema.fields(Config))
# ${now:} or ${oc.env:}: a value that would differ between ranks, machines or days
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")


def compose(overrides: Sequence[str], *, config_dirs: Sequence[str | Path] = (), world_size: int = 1) -> Config:
    """Compose the recipes tree with `overrides` such as `recipe=toy` and `optim.lr=1e-3`.

    config_dirs: directories that are searched after `pkg://recipes`, for recipes and options of a user's own.
    Raises `ConfigError` with every mistake found.
    """
    groups = list_groups(config_dirs)
    words = _read(overrides, groups)
    try:
        tree = _compose_groups(words, groups, config_dirs)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError([*words.errors, _one_line(error)]) from None
    _apply(words, tree)
    return _check(tree, words.errors, world_size)


def load(path: str | Path, *, world_size: int = 1) -> Config:
    """Read a resolved configuration, such as the config.yaml of a run directory. Raises `ConfigError`."""
    try:
        tree = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: {_one_line(error)}"]) from None
    if not isinstance(tree, DictConfig):
        raise ConfigError([f"{path}: not a configuration (no keys at the top)"])
    return _check(tree, [], world_size)


def to_yaml(cfg: Config) -> str:
    """The resolved configuration as YAML, in the order of the schema; `load` reads it back."""
    return yaml.safe_dump(schema.to_dict(cfg), sort_keys=False, allow_unicode=True, default_flow_style=False)


def list_groups(config_dirs: Sequence[str | Path] = ()) -> dict[str, list[str]]:
    """Group -> its options, of the package and of the user's directories.

    Raises `ConfigError` for a directory that is none, or that hides a file behind a built-in name.
    """
    found = _options(files("recipes"))
    errors = []
    for directory in map(Path, config_dirs):
        if not directory.is_dir():
            errors.append(f"--config-dir {directory}: no such directory")
            continue
        if (directory / "config.yaml").is_file():
            errors.append(f"{directory / 'config.yaml'}: a name already taken, so never read; make it recipe/NAME.yaml")
        for group, options in _options(directory).items():
            for taken in sorted(set(options) & set(found.get(group, []))):
                errors.append(f"{directory / group / taken}.yaml: a name already taken, so never read; rename the file")
            found[group] = sorted({*found.get(group, []), *options})
    if errors:
        raise ConfigError(errors)
    return found


def report(error: ConfigError) -> int:
    """Print one line per mistake to stderr. Returns the exit code of a configuration that cannot run."""
    for line in error.errors:
        print(f"error: {line}", file=sys.stderr)
    return 2


def overview(words: Sequence[str]) -> str:
    """Groups and options as text for the --help of a command line, those of its `--config-dir`s included.

    Raises `ConfigError` as `list_groups` does.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", action="append", default=[])
    config_dirs = parser.parse_known_args(words)[0].config_dir
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
    """What the command line says: which option of which group, which value for which key, and what is wrong with it."""

    options: dict[str, str] = field(default_factory=dict)
    values: list[tuple[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wrong_groups: set[str] = field(default_factory=set)  # named, but with no option that exists


def _read(overrides: Sequence[str], groups: Mapping[str, list[str]]) -> _Words:
    words, parser = _Words(), OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            words.errors.append(_unreadable(text, groups))
            if text in groups["recipe"]:
                words.options.setdefault("recipe", text)
            continue
        problem = _refused(override, groups)
        if problem:
            words.errors.append(f"{text}: {problem}")
        elif "." in override.key_or_group:
            _read_value(override, words)
        else:
            _read_option(override, groups, words)
    if "recipe" not in words.wrong_groups.union(words.options):
        words.errors.append(f"recipe is not set; use {_choices('recipe', groups)}")
    return words


def _unreadable(text: str, groups: Mapping[str, list[str]]) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        near = schema.nearest(text, [*KEYS, *groups])
        if text in groups["recipe"]:
            near = f"recipe={text}"
        return f"{text}: not of the form key=value" + (f"; did you mean '{near}'?" if near else "")
    return f"{text}: cannot be read; quote a value with special signs, as in '{key}=\"{value}\"'"


def _refused(override: Override, groups: Mapping[str, list[str]]) -> str:
    """Why an override of this kind is never taken, or nothing."""
    key = override.key_or_group
    if override.is_delete():
        return "keys and groups cannot be removed"
    if override.is_sweep_override():
        return "one value per key; a list is written [a,b]"
    if override.package is not None:
        return f"a group has one place; use {key}=OPTION"
    if (override.is_add() and not _is_extra(key, groups)) or override.is_force_add():
        known = key in KEYS or key in groups
        advice = f"use {key}=..." if known else f"there is no {key}{schema.did_you_mean(key, [*KEYS, *groups])}"
        return f"keys cannot be added; {advice}"
    return ""


def _is_extra(name: str, groups: Mapping[str, list[str]]) -> bool:
    """A group of the user's own directories, which is not in the defaults list: `+name=option` puts it there."""
    return name in groups and not files("recipes").joinpath(name).is_dir()


def _read_option(override: Override, groups: Mapping[str, list[str]], words: _Words) -> None:
    group, option = override.key_or_group, override.value()
    if group not in groups:
        if group in SECTIONS:
            inside = ", ".join(key for key in KEYS if key.startswith(f"{group}."))
            words.errors.append(f"{group}={schema.show(option)}: a section, not a group; its keys are {inside}")
            return
        near = schema.nearest(group, [*groups, *KEYS])
        if near is None:
            words.errors.append(f"{group}: no such group or key; groups: {', '.join(groups)}")
            return
        words.errors.append(f"{group}: no such group or key; did you mean '{near}'?")
        if near in KEYS:
            _take(near, option, words)
            return
        group = near
    elif _is_extra(group, groups) and not override.is_add():
        words.errors.append(f"{override.input_line}: not in the defaults list; add it with +{override.input_line}")
    if words.options.get(group, option) != option:
        words.errors.append(f"{group} is given twice, as {words.options[group]} and {schema.show(option)}; keep one")
    elif isinstance(option, str) and option in groups[group]:
        words.options[group] = option
    else:
        words.wrong_groups.add(group)
        words.errors.append(f"{group}={schema.show(option)} does not exist; use {_choices(group, groups, str(option))}")
        near = schema.nearest(str(option), groups[group])
        if near:
            words.options[group] = near


def _choices(group: str, groups: Mapping[str, list[str]], typed: str = "") -> str:
    options = groups[group]
    return f"{group}={schema.one_of(options)}{schema.did_you_mean(typed, options) if typed else ''}"


def _read_value(override: Override, words: _Words) -> None:
    key, value = override.key_or_group, override.value()
    if schema.find(key, KEYS) is not None:
        _take(key, value, words)
        return
    known = _siblings(key)
    words.errors.append(schema.unknown_key(key, known))
    near = schema.nearest(key, known)
    if near:
        _take(near, value, words, quiet=True)


def _siblings(key: str) -> dict[str, Any]:
    """The keys that could be meant: those of the schema, or of the entry that the key lies in, as data.sources.code."""
    parent = key.rpartition(".")[0]
    entry = schema.find(parent, KEYS) if parent else None
    if not isinstance(entry, type) or not is_dataclass(entry):
        return KEYS
    return {f"{parent}.{name}": hint for name, hint in schema.keys(entry).items()}


def _take(key: str, value: Any, words: _Words, *, quiet: bool = False) -> None:
    """Note `key=value` if the type fits; else note what is wrong, unless the key itself was already wrong."""
    hint = schema.find(key, KEYS)
    entry = schema.entries_of(hint)
    if isinstance(value, Mapping) and (entry or is_dataclass(hint)):
        for name, item in value.items():
            if schema.find(f"{key}.{name}", KEYS) is None:
                words.errors.append(schema.unknown_key(f"{key}.{name}", _siblings(f"{key}.{name}")))
            else:
                _take(f"{key}.{name}", item, words, quiet=quiet)
        return
    reference = isinstance(value, str) and "${" in value  # its type shows when it is resolved
    problem = "" if reference else schema.convert(hint, value)[1]
    if not problem:
        words.values.append((key, value))
    elif not quiet:
        words.errors.append(schema.wrong_type(key, value, problem))


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
    # A recipe that lacks its first line lands under its group's name, where nothing would read it.
    for group in set(groups) - set(SECTIONS):
        if group in composed:
            file = f"{group}/{words.options.get(group)}.yaml"
            words.errors.append(f"{file}: must begin with the line '# @package _global_'")
            del composed[group]
    for section in SECTIONS:
        if section in composed and not isinstance(composed[section], DictConfig):
            value = schema.show(composed[section])
            example = next(key for key in KEYS if key.startswith(f"{section}."))
            words.errors.append(f"{section}={value}: a section; a recipe gives its keys, such as {example}")
            del composed[section]
    return composed


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _apply(words: _Words, tree: DictConfig) -> None:
    for key, value in words.values:
        mapping = schema.leaf_of(key, KEYS)
        names = [key[len(mapping) + 1 :].partition(".")[0]] if key != mapping else []
        if key == mapping and isinstance(value, Mapping):
            names = list(value)
        there = OmegaConf.select(tree, mapping)
        known = [str(name) for name in there] if isinstance(there, DictConfig) else []
        unknown = [str(name) for name in names if str(name) not in known]
        for name in unknown:
            near = schema.did_you_mean(name, known) or f"; {mapping} has {', '.join(known) or 'no keys here'}"
            words.errors.append(f"{mapping}.{name}: no such key{near}")
        if not unknown:
            OmegaConf.update(tree, key, value, merge=True)


def _check(tree: DictConfig, errors: list[str], world_size: int) -> Config:
    tree = OmegaConf.merge(schema.defaults(Config), tree)  # type: ignore[assignment]  # a mapping merges into a mapping
    errors = [*errors, *_resolver_errors(tree)]
    try:
        values: Any = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([*errors, _one_line(error)]) from None
    cfg, problems = schema.from_dict(Config, values)
    errors += problems
    if cfg is not None:
        errors += validate(cfg, world_size)
    if errors or cfg is None:
        raise ConfigError(dict.fromkeys(errors))
    return cfg


def _resolver_errors(tree: DictConfig) -> list[str]:
    errors = []
    raw: Any = OmegaConf.to_container(tree, resolve=False)
    for key, value in schema.flatten(raw, KEYS).items():
        if RESOLVER.search(str(value)):
            errors.append(f"{key}={value}: could differ between ranks; write it out, or refer to a key: ${{a.b}}")
    return errors


def _one_line(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options, wanted = error.options or [], f"{group}={name}" if group else name
        near = schema.did_you_mean(name, options)
        return f"{wanted}, which a recipe asks for, does not exist; {group} has {', '.join(options)}{near}"
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{mark.name}, line {mark.line + 1}: {getattr(error, 'problem', '')}"
    return " ".join(str(error.__cause__ or error).split())
