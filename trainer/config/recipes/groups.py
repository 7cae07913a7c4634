"""Groups and the options in them: the files in the package `recipes`, and those in a user's directories."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from parallel.errors import Fault, one_of
from trainer.config import coerce
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.say import did_you_mean

SECTIONS = list(coerce.fields(Config))
KEYS = coerce.keys(Config)


def list_groups(config_dirs: Sequence[str | Path] = ()) -> dict[str, list[str]]:
    """Group -> its options, those in the package and those in the user's directories.

    Raises `ConfigError` for a directory that does not exist, or whose files have the names of built-in ones.
    """
    found: dict[str, list[str]] = {}
    for path in [*built_in(), *users(config_dirs)]:
        group, _, option = path.partition("/")
        found.setdefault(group, []).append(option)
    return {group: sorted(options) for group, options in sorted(found.items())}


def built_in() -> dict[str, Traversable]:
    """`group/option` -> the file in the package."""
    return _files(files("recipes"))


def users(config_dirs: Sequence[str | Path]) -> dict[str, Path]:
    """`group/option` -> the file in a user's directory.

    Raises `ConfigError` for a directory that does not exist, and for files whose names are taken.
    """
    taken, found, faults = dict.fromkeys(built_in(), "Octavo"), dict[str, Path](), []
    for directory in map(Path, config_dirs):
        if not directory.is_dir():
            text = f"--config-dir {directory}: no such directory"
            faults.append(Fault(text, "--config-dir", str(directory), "a directory that exists"))
            continue
        if (directory / "config.yaml").is_file():
            faults.append(_not_read(directory / "config.yaml", "Octavo", "make it recipe/NAME.yaml"))
        for path in _files(directory):
            file = directory / f"{path}.yaml"
            if path in taken and taken[path] != str(directory):
                faults.append(_not_read(file, taken[path], "rename the file"))
            taken.setdefault(path, str(directory))
            found.setdefault(path, file)
    if faults:
        raise ConfigError(faults)
    return found


def _not_read(file: Path, owner: str, remedy: str) -> Fault:
    text = f"{file}: {owner} has a file of this name, so this one would not be read; {remedy}"
    return Fault(text, str(file), allowed=remedy)


def _files(root: Traversable) -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}

    def walk(folder: Traversable, prefix: str) -> None:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
            elif prefix and entry.name.endswith(".yaml"):
                found[prefix + entry.name.removesuffix(".yaml")] = entry

    walk(root, "")
    return found


def is_extra(group: str, groups: Iterable[str]) -> bool:
    """Return True for a group of the user's own, which is not in the defaults list: `+name=option` adds it there."""
    return group in groups and not files("recipes").joinpath(group).is_dir()


def siblings(key: str) -> dict[str, Any]:
    """The keys that could be meant: those of the schema, or those of the entry that contains `key`, such as
    data.sources.code."""
    parent = key.rpartition(".")[0]
    entries = coerce.sections(coerce.find(parent, KEYS)) if parent else ()
    if not entries:
        return KEYS
    return {f"{parent}.{name}": hint for entry in entries for name, hint in coerce.keys(entry).items()}


def choices(group: str, options: Sequence[str], typed: str = "") -> str:
    """`model=toy or toy_gpu`, with a suggestion if `typed` resembles one of the options."""
    return f"{group}={one_of(options)}{did_you_mean(typed, options) if typed else ''}"


def directories_in(words: Sequence[str]) -> list[str]:
    """The `--config-dir`s of a command line that may be wrong or unfinished elsewhere."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", action="append", default=[], nargs="?")  # the command's parser wants a value
    return [place for place in parser.parse_known_args(words)[0].config_dir if place is not None]


def overview(words: Sequence[str]) -> str:
    """Groups and options as text for the --help of a command line, with those of its `--config-dir`s.

    Raises `ConfigError` as `list_groups` does.
    """
    lines = [f"  {group}={'|'.join(options)}" for group, options in list_groups(directories_in(words)).items()]
    keys = "keys: " + ", ".join(f"{name}.*" for name in SECTIONS)
    more = "octavo recipes describes the recipes, octavo config --keys the keys."
    return "\n".join(["groups and their options:", *lines, keys, more])
