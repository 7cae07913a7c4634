"""`octavo recipes`: the recipes, and on request the options of other groups, each with what its file says it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.resources.abc import Traversable

from parallel.errors import one_of
from trainer.config.command_line import Parser
from trainer.config.errors import CommandError
from trainer.config.recipes.files import HEADER
from trainer.config.recipes.groups import built_in, list_groups, users
from trainer.config.say import did_you_mean

SENTENCE = re.compile(r"(.+?\.)(?=\s|$)")


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError` and `ConfigError`."""
    parser.add_argument(
        "groups", nargs="*", metavar="group", help="list the options of these groups instead: model, ..."
    )
    parser.add_config_dir()
    options = parser.read(words)
    groups = list_groups(options.config_dir)
    for group in options.groups:
        if group not in groups:
            text = f"{group}: no such group; use {one_of(groups)}{did_you_mean(group, groups)}"
            raise CommandError(text, where="group", value=group, allowed=tuple(groups))
    files = {**built_in(), **users(options.config_dir)}
    shown = [(f"{group}={name}", meaning(files[f"{group}/{name}"])) for group in options.groups or ["recipe"]
             for name in groups[group]]  # fmt: skip
    width = max(len(name) for name, _ in shown)

    def work() -> int:
        for name, text in shown:
            print(f"{name:{width}}  {text}".rstrip())
        return 0

    return work


def meaning(file: Traversable) -> str:
    """The first sentence of the comment that a file starts with; a text in brackets if the file cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return f"(cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'})"
    if lines and HEADER.fullmatch(lines[0]):
        lines = lines[1:]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").rstrip())
    text = " ".join(filter(None, comment))
    first = SENTENCE.match(text)
    return first[1] if first else text
