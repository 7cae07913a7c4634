"""`octavo config`: the configuration that a command line resolves to, and the differences between two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from launch.configurations import compose_on, read_configuration
from trainer.config import coerce
from trainer.config.checks.optim import doubtful
from trainer.config.command_line import Parser, whole_number
from trainer.config.compose import to_yaml
from trainer.config.errors import CommandError, print_warning
from trainer.config.keys import Config
from trainer.data.vocabulary import refuse_small_vocabulary
from trainer.run import directory


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError` and `ConfigError`."""
    parser.add_overrides(words)
    parser.add_argument(
        "--diff",
        nargs=2,
        metavar=("A", "B"),
        help="two configurations: each is the name of a recipe, a quoted list of overrides, a run directory or "
        "a resolved config.yaml",
    )
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="PREFIX",
        help="list all keys, or those that start with PREFIX such as optim, with default, type and meaning",
    )
    parser.add_argument(
        "--world", type=whole_number(1), metavar="N", help="check the configuration on N ranks (default: 1)"
    )
    options = parser.read(words)
    doubts: list[str] = []
    if options.keys is not None:
        if options.overrides or options.diff or options.world is not None:
            remedy = "give it alone, as in: --keys optim"
            raise CommandError(f"--keys: {remedy}", where="--keys", value=options.overrides, allowed=remedy)
        from launch.reference.keys import list_keys, table

        text = table(list_keys(options.keys))
    elif options.diff is None:
        cfg = compose_on(options.world or 1, "--world", options.overrides, options.config_dir)
        refuse_small_vocabulary(cfg)
        text, doubts = to_yaml(cfg), doubtful(cfg.optim, cfg.train.steps)
    elif options.overrides:
        remedy = "quote its overrides, as in: --diff toy 'recipe=toy optim.lr=1e-3'"
        raise CommandError(f"--diff: {remedy}", where="--diff", value=options.overrides, allowed=remedy)
    elif options.world is not None:
        remedy = "drop --world, which changes no key"
        raise CommandError(f"--diff: {remedy}", where="--world", value=options.world, allowed=remedy)
    else:
        old, new = (_flat(read_configuration(one, options.config_dir)) for one in options.diff)
        text = "\n".join(directory.differences(old, new) or ["no differences"]) + "\n"

    def work() -> int:
        for line in doubts:
            print_warning(line)
        print(text, end="")
        return 0

    return work


def _flat(cfg: Config) -> dict[str, Any]:
    return coerce.flatten(coerce.to_dict(cfg), coerce.keys(Config))
