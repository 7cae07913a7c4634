"""The console script `octavo`. Starts without torch; a command imports it once its arguments are checked.

Little is imported before `main`, so that Ctrl-C ends the process quietly from its first moment.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence

from parallel.interrupts import INTERRUPTED, exiting_on_interrupt

with exiting_on_interrupt():
    from parallel.errors import UserError, one_of
    from trainer.config.errors import CommandError, report

HELP = {"-h", "--help"}
# Command -> what it does. Each is the module of its name in launch/commands or a folder of `FOLDERS`, with a function
# `prepare(parser, words) -> Callable[[], int]`, which checks everything that can be checked before work starts, and
# returns the work; that returns the exit code.
COMMANDS = {
    "train": "resolve and check the configuration, then train on one or more machines",
    "tokenize": "turn documents into shuffled, checksummed shards of tokens",
    "config": "print a resolved configuration, the differences between two, or all keys with their meanings",
    "recipes": "list the recipes, or the options of a group, with what each is for",
    "layout": "simulate one rank of a run of any size on this machine, and print its memory and its collectives",
    "data": "check a mixture or pairs, make the index of pairs, show a sample of a mixture, or count its tokens",
    "runs": "list the runs in a directory with their state and results, or compare two",
    "export": "write a training checkpoint as a Hugging Face directory",
    "evaluate": "ask a model the questions of benchmarks, and score its answers",
    "generate": "continue a prompt with the model of a run or an export",
    "chat": "converse in the terminal with the model of a run or an export",
    "serve": "answer OpenAI's and LMDeploy's requests over HTTP with the model of a run or an export",
    "upcycle": "copy a Hugging Face checkpoint's experts into router groups",
    "captions": "find the figures of PDFs with their captions and the text about them",
    "science": "turn records and labelled recordings into prose and tasks",
    "inspect": "print the contents of a Hugging Face directory or a training checkpoint, and report anything missing",
    "completion": "print the bash, zsh or fish completion script for octavo",
}
FOLDERS = {
    "captions": "corpora",
    "recipes": "reference",
    "completion": "reference",
    "chat": "serving",
    "evaluate": "serving",
    "generate": "serving",
    "serve": "serving",
}


def module_of(command: str) -> str:
    return f"launch.{FOLDERS.get(command, 'commands')}.{command}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 done, 2 a command or configuration that has to be corrected, before
    anything started, 130 interrupted, 141 the reader of its output has gone (as in `octavo runs | head -1`), 1 every
    other failure."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not leave_closed_pipes():
            raise
        return 128 + signal.SIGPIPE


def leave_closed_pipes() -> bool:
    """Let the outputs of this process whose readers have gone write into nothing, so that nothing more fails for them.
    Return False if all outputs have their readers."""
    left = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream, 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):  # no flush: its text may be gone already
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
            left = True
    return left


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    started = False
    try:
        if not words or (words[0].startswith("-") and HELP.intersection(words)):
            print(_help(words))
            return 0 if words else 2
        if words[0] == "--version":
            print(_versions())
            return 0
        name, *rest = words
        if name == "__complete":  # for the scripts of `octavo completion`
            from launch.reference.complete import complete

            print(*complete(" ".join(rest), {name: module_of(name) for name in COMMANDS}), sep="\n")
            return 0
        if name not in COMMANDS:
            raise _no_such_command(name)
        with exiting_on_interrupt():
            from trainer.config.command_line import Parser

            command = importlib.import_module(module_of(name))
        work = command.prepare(Parser(f"octavo {name}", f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}."), rest)
        started = True
        return work()
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:
        return report(error, started=started)
    except KeyboardInterrupt:
        print("interrupted" if started else INTERRUPTED, file=sys.stderr)
        return 130


def _no_such_command(name: str) -> CommandError:
    from trainer.config.say import did_you_mean

    text = f"octavo {name}: no such command; use {one_of(COMMANDS)}{did_you_mean(name, COMMANDS)}"
    return CommandError(text, where="octavo", value=name, allowed=tuple(COMMANDS))


def _help(words: Sequence[str]) -> str:
    from trainer.config.recipes.groups import overview

    commands = {**COMMANDS, "--version": "print the versions of Octavo, torch and Python"}
    lines = [f"  octavo {name:10} {what}" for name, what in commands.items()]
    more = "octavo COMMAND --help lists the options; add --config-dir DIR to include the recipes in DIR."
    return "\n".join(["usage: octavo COMMAND ...", "", *lines, "", more, "", overview(words)])


def _versions() -> str:
    """One line for a bug report."""
    import importlib.metadata
    import platform

    found = []
    for package in ("octavo", "torch"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} (not installed as a package)")
    return ", ".join([*found, f"Python {platform.python_version()}"])


if __name__ == "__main__":
    sys.exit(main())
