"""The fault with which a command refuses its words."""

import importlib

import pytest

from parallel.errors import Fault, UserError
from trainer.config.command_line import Parser


def refused(command: str, *words: str) -> Fault:
    """The only fault of `octavo COMMAND WORDS`, found before any work starts."""
    module = importlib.import_module(f"launch.commands.{command}")
    with pytest.raises(UserError) as caught:
        module.prepare(Parser(f"octavo {command}", "A command."), words)
    (fault,) = caught.value.faults
    assert "\n" not in fault.text
    return fault
