"""The console script `octavo`. Starts without torch; what needs it imports it once its arguments hold."""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import platform
import re
import sys
from collections.abc import Callable, Sequence

from trainer.config.compose import overview
from trainer.config.errors import ConfigError, report
from trainer.config.say import did_you_mean, one_of

HELP = {"-h", "--help"}
OVERRIDES = "Overrides are recipe=NAME, GROUP=OPTION and KEY=VALUE, as in: recipe=toy optim.lr=1e-3"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or (words[0].startswith("-") and HELP.intersection(words)):
            print(_help(words))
            return 0 if words else 2
        if words[0] == "--version":
            print(_versions())
            return 0
        if words[0] not in COMMANDS:
            near = did_you_mean(words[0], COMMANDS)
            print(f"error: octavo {words[0]}: no such command; use {one_of(COMMANDS)}{near}", file=sys.stderr)
            return 2
        command, _ = COMMANDS[words[0]]
        return command(words[1:])
    except ConfigError as error:
        return report(error)
    except KeyboardInterrupt:
        return 130


def _help(words: Sequence[str]) -> str:
    commands = {name: what for name, (_, what) in COMMANDS.items()}
    commands["--version"] = "print the versions of Octavo, torch and Python"
    lines = [f"  octavo {name:9} {what}" for name, what in commands.items()]
    more = "octavo COMMAND --help says more; with --config-dir DIR it lists the options there too."
    return "\n".join(["usage: octavo COMMAND ...", "", *lines, "", more, "", overview(words)])


def _versions() -> str:
    """One line for a report of a bug."""
    found = []
    for package in ("octavo", "torch"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} (not installed as a package)")
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _parser(command: str, words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"octavo {command}",
        description=f"{COMMANDS[command][1].capitalize()}. {OVERRIDES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=overview(words),
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="override")
    parser.add_argument("--config-dir", action="append", default=[], help="more recipes and options; may be repeated")
    return parser


def _config(words: Sequence[str]) -> int:
    from launch.commands.config import print_config, print_differences

    parser = _parser("config", words)
    parser.add_argument(
        "--diff",
        nargs=2,
        metavar=("A", "B"),
        help="each a recipe's name, a quoted list of overrides, a run directory or a resolved config.yaml",
    )
    options = parser.parse_intermixed_args(words)
    if options.diff is None:
        return print_config(options.overrides, options.config_dir)
    if options.overrides:
        parser.error("--diff takes its overrides in quotes, as in: --diff toy 'recipe=toy optim.lr=1e-3'")
    first, second = options.diff
    return print_differences(first, second, options.config_dir)


def _train(words: Sequence[str]) -> int:
    from launch.commands.train import RENDEZVOUS, train

    # torchrun also takes its options with underscores
    dashed = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in words]
    parser = _parser("train", dashed)
    parser.add_argument("--nproc-per-node", type=int, default=1, metavar="N", help="processes on this machine (1)")
    parser.add_argument("--nnodes", type=int, default=1, metavar="N", help="machines; start the command on each (1)")
    for option, what in RENDEZVOUS.items():
        parser.add_argument(option, metavar="X", help=what)
    options = parser.parse_intermixed_args(dashed)
    if options.nproc_per_node < 1 or options.nnodes < 1:
        parser.error("--nproc-per-node and --nnodes are 1 or more")
    given = {option: vars(options)[option[2:].replace("-", "_")] for option in RENDEZVOUS}
    return train(
        options.overrides,
        config_dirs=options.config_dir,
        nproc_per_node=options.nproc_per_node,
        nnodes=options.nnodes,
        rendezvous={option: value for option, value in given.items() if value is not None},
    )


def _layout(words: Sequence[str]) -> int:
    from launch.commands.layout import print_layout

    parser = _parser("layout", words)
    parser.add_argument("--world", type=int, required=True, metavar="N", help="ranks of the run")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="the one to look at (0)")
    options = parser.parse_intermixed_args(words)
    if not 0 <= options.rank < options.world:
        parser.error("--world is 1 or more and --rank lies between 0 and --world - 1")
    return print_layout(options.overrides, config_dirs=options.config_dir, world=options.world, rank=options.rank)


def _export(words: Sequence[str]) -> int:
    from launch.commands.export import run_export

    parser = _plain_parser("export")
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="a run directory (its newest step) or a step-N directory in it"
    )
    parser.add_argument("target", metavar="DST", help="the directory to make; must not exist")
    parser.add_argument(
        "--dtype",
        choices=("source", "bf16", "fp32", "fp8"),
        default="source",
        help="of the text model: as where the run began (source; bf16 for a run from random weights), bf16, fp32, or "
        "fp8: e4m3 in blocks of 128 x 128 with weight_scale_inv",
    )
    parser.add_argument("--text-only", action="store_true", help="leave vision, projector and time series out")
    parser.add_argument("--shard-gb", type=float, default=5.0, metavar="GB", help="size of one file (5)")
    options = parser.parse_args(words)
    if not 0 < options.shard_gb < math.inf:
        parser.error(f"--shard-gb={options.shard_gb} is no size; use a number above 0, such as 5")
    return run_export(
        options.checkpoint,
        options.target,
        dtype=options.dtype,
        text_only=options.text_only,
        shard_gb=options.shard_gb,
    )


def _inspect(words: Sequence[str]) -> int:
    from launch.commands.inspect import inspect_directory

    parser = _plain_parser("inspect")
    parser.add_argument("directory", metavar="DIR", help="a Hugging Face directory, a run directory or a step-N in it")
    parser.add_argument(
        "--verify", action="store_true", help="also read every file that manifest.json lists, and compare its hash"
    )
    options = parser.parse_args(words)
    return inspect_directory(options.directory, verify=options.verify)


def _upcycle(words: Sequence[str]) -> int:
    from launch.commands.upcycle import run_upcycle

    return run_upcycle(_plain_parser("upcycle"), words)


def _science(words: Sequence[str]) -> int:
    from launch.commands.science import run_science

    return run_science(_plain_parser("science"), words)


def _tokenize(words: Sequence[str]) -> int:
    from launch.commands.tokenize import run_tokenize

    return run_tokenize(_plain_parser("tokenize"), words)


def _data(words: Sequence[str]) -> int:
    from launch.commands.data import run_data

    return run_data(_parser("data", words), words)


def _plain_parser(command: str) -> argparse.ArgumentParser:
    """Of a command that takes no overrides."""
    what = COMMANDS[command][1]
    return argparse.ArgumentParser(
        prog=f"octavo {command}", description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
    )


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "compose once, then train on this machine's or several machines' processes"),
    "tokenize": (_tokenize, "make documents into shuffled shards of tokens, with a manifest"),
    "config": (_config, "print a resolved configuration, or the differences of two"),
    "layout": (_layout, "build one rank of a run of any size here, and print what it holds and sends"),
    "data": (_data, "check a mixture's files, show a sample of it, or count what is in it"),
    "export": (_export, "write a training checkpoint as a Hugging Face directory"),
    "upcycle": (_upcycle, "copy a Hugging Face checkpoint's experts into router groups"),
    "science": (_science, "write records of molecules, materials and sequences as texts, told and asked"),
    "inspect": (_inspect, "print what a Hugging Face directory or a training checkpoint holds and lacks"),
}


if __name__ == "__main__":
    sys.exit(main())
