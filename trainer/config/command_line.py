"""Command lines: one parser class for all commands, and converters for the values of options.

A mistake on a command line is a `CommandError` with the option, the value and what would work there, as it is for a
mistake in a configuration; argparse's usage text and `SystemExit` do not appear.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from parallel.errors import Fault, one_of
from trainer.config import coerce
from trainer.config.errors import CommandError
from trainer.config.recipes.groups import KEYS, overview
from trainer.config.say import did_you_mean, nearest

WIDTH = 80  # characters of a line of the help that argparse does not break
OVERRIDES = "Example overrides: recipe=toy optim.lr=1e-3"


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises `CommandError`, takes arguments and options in any order, and does not
    abbreviate options."""

    def __init__(self, prog: str, description: str) -> None:
        self.added: list[argparse.Action] = []  # the options and arguments
        self.words: Sequence[str] = ()  # of the command line that is read
        self.repeatable: set[str] = set()  # of their names, those that may be given more than once
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            exit_on_error=False,
        )

    def add_overrides(self, words: Sequence[str]) -> None:
        """Take overrides and --config-dir, and list the recipes and options of `words` in the help."""
        self.description = f"{self.description} {OVERRIDES}"
        self.epilog = overview(words)
        self.add_argument("overrides", nargs="*", metavar="override", help="recipe=NAME, GROUP=OPTION or KEY=VALUE")
        self.add_config_dir()

    def add_note(self, text: str) -> None:
        """Put sentences below the help."""
        self.epilog = textwrap.fill(text, WIDTH)

    def add_config_dir(self) -> None:
        """Take --config-dir."""
        self.add_argument(
            "--config-dir",
            action="append",
            default=[],
            metavar="DIR",
            help="directory with more recipes and options; may be repeated",
        )

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        return self._note(super().add_argument, *names, **settings)

    def add_argument_group(self, *names: Any, **settings: Any) -> Any:
        group = super().add_argument_group(*names, **settings)
        group.add_argument = functools.partial(self._note, group.add_argument)  # type: ignore[method-assign]
        return group

    def _note(self, add: Callable[..., argparse.Action], *names: Any, **settings: Any) -> argparse.Action:
        action = add(*names, **settings)
        self.added.append(action)
        if settings.get("action", "store") != "store":
            self.repeatable.update(names)
        return action

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of all arguments and options. Raises `CommandError`; exits only for --help."""
        self._refuse_repeated(words)
        self.words = words
        try:
            options, unknown = self.parse_known_intermixed_args(words)
        except argparse.ArgumentError as error:
            raise CommandError([self._fault(error)]) from None
        if unknown:
            named = [word for word in unknown if word.startswith("-")]  # what follows them are their values
            raise CommandError([self._unknown(word) for word in named or unknown])
        return options

    def _refuse_repeated(self, words: Sequence[str]) -> None:
        """Raises `CommandError` for an option that is given twice, whose last value would win in silence."""
        given = [word.partition("=")[0] for word in words if word.startswith("--")]
        single = {name: action.option_strings[-1] for action in self.added for name in action.option_strings
                  if name not in self.repeatable}  # fmt: skip
        names = [single[name] for name in given if name in single]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CommandError(
                [Fault(f"{name} is given twice; keep one", name, allowed="one of them") for name in twice]
            )

    def error(self, message: str) -> NoReturn:
        """Called by argparse for what concerns no single argument."""
        raise CommandError([self._general_fault(message)])

    def _fault(self, error: argparse.ArgumentError) -> Fault:
        name = error.argument_name
        if name is None:
            return self._general_fault(error.message)
        bad = error.__context__
        if isinstance(bad, BadValue):
            return Fault(f"{name}={bad.value}: use {bad.wording}", name, bad.value, bad.allowed)
        option = next((one for one in self.added if name.split("/")[-1] in one.option_strings), None)
        if option is not None and error.message == "expected one argument":
            example = f"{name.split('/')[-1]}={_example(option)}"
            return Fault(f"{name}: its value is missing; give one, as in {example}", name, allowed=example)
        return Fault(f"{name}: {error.message}", name, allowed=f"see {self.prog} --help")

    def _general_fault(self, message: str) -> Fault:
        remedy = f"see {self.prog} --help"
        missing = re.fullmatch("the following arguments are required: (.*)", message)
        if missing:
            if dashed := self._dashed():
                remedy = f"put -- before it if {dashed} is meant; options come before the --"
                text = f"{self.prog}: missing {missing[1]}, and {dashed} is not an option; {remedy}"
                return Fault(text, missing[1], dashed, remedy)
            return Fault(f"{self.prog}: missing {missing[1]}; {remedy}", missing[1], allowed=remedy)
        return Fault(f"{self.prog}: {message}; {remedy}", self.prog, allowed=remedy)

    def _dashed(self) -> str | None:
        """The first word that starts with - and is not an option, so that it may be meant as an argument."""
        options = [word for word in itertools.takewhile(lambda word: word != "--", self.words) if word[:1] == "-"]
        known = {name for action in self.added for name in action.option_strings}
        return next((word for word in options if word.partition("=")[0] not in known and len(word) > 1), None)

    def _unknown(self, word: str) -> Fault:
        option = word.partition("=")[0]
        if "--" in self.words and any(option in action.option_strings for action in self.added):
            remedy = "options come before --"
            return Fault(f"{option}: {remedy}; move it there", option, None, remedy)
        if not option.startswith("-"):
            remedy = f"see {self.prog} --help"
            return Fault(f"{self.prog}: unexpected argument {word}; {remedy}", word, word, remedy)
        key = option.lstrip("-").replace("-", "_")
        if coerce.find(key, KEYS) is not None and any(a.dest == "overrides" for a in self.added):
            remedy = f"use {key}{word.removeprefix(option) or '=VALUE'}"
            return Fault(f"{option}: a key, which is written without dashes; {remedy}", option, None, remedy)
        # Without the dashes, as every two options resemble each other by those.
        near = nearest(option.lstrip("-"), re.findall(r"--([a-z][a-z-]+)", self.format_help()), cutoff=0.65)
        remedy = f"; did you mean '--{near}'?" if near else f"; see {self.prog} --help"
        return Fault(f"{option}: {self.prog} has no such option{remedy}", option, None, remedy.removeprefix("; "))


def _example(option: argparse.Action) -> str:
    """A value that an option takes, or the word for it where any text will do."""
    try:
        option.type("") if callable(option.type) else None
    except BadValue as error:
        if isinstance(error.allowed, tuple):
            return error.allowed[0]
        if found := re.search(r"\d[\d.e+-]*", error.allowed):
            return found[0]
    except ValueError:  # of int or float
        return str(option.metavar if option.default is None else option.default)
    return str(option.metavar)


class BadValue(argparse.ArgumentTypeError):
    """A value that an option does not take. allowed: the values that it does, or a text that describes them."""

    def __init__(self, value: str, allowed: tuple[str, ...] | str) -> None:
        self.value, self.allowed = value, allowed
        self.wording = allowed if isinstance(allowed, str) else one_of(allowed) + did_you_mean(value, allowed)
        super().__init__(f"{value}: use {self.wording}")


def choice(*values: str, metavar: str | None = None) -> dict[str, Any]:
    """Keyword arguments of `add_argument` for an option with a fixed set of values."""

    def convert(text: str) -> str:
        if text not in values:
            raise BadValue(text, values)
        return text

    return {"type": convert, "metavar": metavar or f"{{{','.join(values)}}}"}


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """A converter for `add_argument(type=...)`: whole numbers from `least` to `most`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise BadValue(text, f"a whole number, {least} or more" if most is None else f"{least} to {most}")
        return value

    return convert


def as_typed(convert: Callable[[str], Any]) -> Callable[[str], str]:
    """A converter for `add_argument(type=...)`: the text itself, if `convert` takes it."""

    def check(text: str) -> str:
        convert(text)
        return text

    return check


def number(fits: Callable[[float], bool], wording: str) -> Callable[[str], float]:
    """A converter for `add_argument(type=...)`: numbers for which `fits` holds, which `wording` describes."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not fits(value):  # false for NaN, as every comparison with it is
            raise BadValue(text, wording)
        return value

    return convert


def above_zero(example: str) -> Callable[[str], float]:
    """A type for argparse: a finite number above 0; `example` is what the error suggests."""
    return number(lambda value: 0 < value < float("inf"), f"a number above 0, such as {example}")
