"""From the words of a command line to a checked `Config`: Hydra composes, the schema converts, `validate` checks.

Every mistake in a command is reported at once. A misspelt word therefore does not end the search: the rest is checked
as if the suggested word had been typed. No torch here; Hydra is imported when something is composed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from parallel.errors import Fault, one_of
from trainer.config import coerce
from trainer.config.checks.validate import validate
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.recipes.files import Origins, check_document, check_recipes, read_document
from trainer.config.recipes.groups import KEYS, SECTIONS, built_in, is_extra, list_groups, overview, users
from trainer.config.recipes.references import unresolved
from trainer.config.recipes.words import Words, read_words
from trainer.config.say import did_you_mean, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

NUMERIC = re.compile(r"[-+.\d][-+.\d_eE]*")
__all__ = ["compose", "list_groups", "load", "overview", "to_yaml"]


def compose(overrides: Sequence[str], *, config_dirs: Sequence[str | Path] = (), world_size: int | None = 1) -> Config:
    """Compose the recipes with `overrides` such as `recipe=toy` and `optim.lr=1e-3`, and check the result.

    config_dirs: directories that are searched after `pkg://recipes`, for a user's own recipes and options. world_size:
    ranks of the run; None where they do not matter.
    Raises `ConfigError` with every mistake found.
    """
    groups, own = list_groups(config_dirs), users(config_dirs)
    words = read_words(overrides, groups)
    origins = check_recipes([f"{group}/{option}" for group, option in words.options.items()], groups, own)
    if origins.faults:  # nothing can be composed
        raise ConfigError([*words.faults, *origins.faults, *origins.other_faults()])
    tree = _compose_groups(words, groups, config_dirs)
    _apply(words, tree)
    return _check(tree, words.faults, world_size, origins, words)


def load(path: str | Path, *, world_size: int | None = 1) -> Config:
    """Read a resolved configuration, such as the config.yaml of a run directory. world_size: as for `compose`. Raises
    `ConfigError`."""
    from omegaconf import OmegaConf

    try:
        document = read_document(Path(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}", where=str(path), value=error.strerror, allowed="a readable file"
        ) from None
    if not isinstance(document.content, Mapping):
        raise ConfigError(
            f"{path}: not a configuration (no keys at the top)", where=str(path), allowed="keys at the top"
        )
    origins = Origins()
    check_document(document, "", origins)
    if origins.faults:
        raise ConfigError(origins.faults)
    return _check(OmegaConf.create(document.text), [], world_size, origins)


class _Dumper(yaml.SafeDumper):
    """Also quotes texts such as 1e3, which are numbers to OmegaConf alone."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = "'" if NUMERIC.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def to_yaml(cfg: Config) -> str:
    """The resolved configuration as YAML, in the order of the schema; `load` reads it back."""
    return yaml.dump(coerce.to_dict(cfg), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def _compose_groups(words: Words, groups: Mapping[str, list[str]], config_dirs: Sequence[str | Path]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    chosen = [f"{'+' if is_extra(group, groups) else ''}{group}={option}" for group, option in words.options.items()]
    if "recipe" not in words.options:
        chosen.append("~recipe")
    if config_dirs:
        places = ",".join(_quoted(f"file://{Path(directory).absolute()}") for directory in config_dirs)
        chosen.append(f"hydra.searchpath=[{places}]")
    try:
        with initialize_config_module("recipes", version_base="1.3"):
            composed = hydra_compose("config", overrides=chosen)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError([*words.faults, _library_fault(error, words.options.get("recipe", "recipe"))]) from None
    OmegaConf.set_struct(composed, False)
    # A recipe need not repeat its name.
    recipe = words.options.get("recipe", "run").replace("/", "-")
    composed = OmegaConf.merge({"run": {"name": recipe}}, composed)  # type: ignore[assignment]
    for section in SECTIONS:
        if section in composed and not isinstance(composed[section], DictConfig):
            value = composed[section]
            first = next(key for key in KEYS if key.startswith(f"{section}."))
            words.report(f"{section}={show(value)}: a section; a recipe gives its keys, such as {first}", section,
                         value, (first,))  # fmt: skip
            del composed[section]
    return composed


ANY_NAMES = ("data.chat_values",)  # mappings whose names a recipe does not fix: a chat template reads them


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _apply(words: Words, tree: DictConfig) -> None:
    from omegaconf import DictConfig, OmegaConf

    for key, value in words.values:
        mapping = coerce.leaf_of(key, KEYS)
        names = [key[len(mapping) + 1 :].partition(".")[0]] if key != mapping else []
        if key == mapping and isinstance(value, Mapping):
            names = list(value)
        there = OmegaConf.select(tree, mapping)
        known = [str(name) for name in there] if isinstance(there, DictConfig) else []
        unknown = [str(name) for name in names if str(name) not in known and mapping not in ANY_NAMES]
        if names and not known and coerce.optional_sections(KEYS[mapping]):
            if key in words.supposed:
                continue
            section, _, name = mapping.partition(".")
            having = tuple(f"{section}={option}" for option in _options_with(section, name, words.groups[section]))
            text = f"{key}: {mapping} is null here, so it has no keys; choose an option that sets it, {one_of(having)}"
            words.report(text, key, value, having)
            continue
        for name in unknown:
            advice = did_you_mean(name, known) or f"; {mapping} has {', '.join(known) or 'no keys here'}"
            words.report(f"{mapping}.{name}: no such key{advice}", f"{mapping}.{name}", None, tuple(known))
        if not unknown:
            OmegaConf.update(tree, key, value, merge=True)


def _options_with(group: str, name: str, options: Iterable[str]) -> list[str]:
    """The built-in options of a group whose files set the section `name`."""
    files = built_in()
    contents = {option: yaml.safe_load(files[f"{group}/{option}"].read_text()) for option in options
                if f"{group}/{option}" in files}  # fmt: skip
    return [option for option, content in contents.items() if isinstance(content, dict) and content.get(name)]


def _check(
    tree: Any, faults: Iterable[Fault], world_size: int | None, origins: Origins, words: Words | None = None
) -> Config:
    """The typed configuration of a tree. words: the command line that it is from, whose misspelt words are reported
    already."""
    from omegaconf import OmegaConf

    tree = OmegaConf.merge(coerce.defaults(Config), tree)  # a mapping merges into a mapping
    broken = unresolved(tree)
    values: Any = OmegaConf.to_container(tree, resolve=not broken)
    cfg, mistyped = coerce.from_dict(Config, values)
    found = [*broken, *(fault for fault in mistyped if not broken or "${" not in str(fault.value))]
    if cfg is not None and not broken:
        found += [fault for fault in validate(cfg, world_size) if words is None or words.is_certain(fault)]
    supposed = words.supposed if words is not None else set()
    found = [*faults, *(origins.named(fault) for fault in found if fault.where not in supposed)]
    if found or cfg is None:
        raise ConfigError({fault.text: fault for fault in found}.values())
    return cfg


def _library_fault(error: Exception, recipe: str) -> Fault:
    """A fault for what only the library finds wrong with a defaults list, on one line."""
    text = " ".join(str(error.__cause__ or error).split())
    remedy = "a defaults list such as that of recipes/recipe/toy.yaml"
    return Fault(f"recipe={recipe} cannot be composed ({text}); use {remedy}", "recipe", recipe, remedy)
