"""The faults with which a command refuses its words."""

import importlib

import pytest

from launch.cli import module_of
from parallel.errors import Fault, UserError
from trainer.config.command_line import Parser


def every_fault(command: str, *words: str) -> tuple[Fault, ...]:
    """The faults of `octavo COMMAND WORDS`, found before any work starts."""
    module = importlib.import_module(module_of(command))
    with pytest.raises(UserError) as caught:
        module.prepare(Parser(f"octavo {command}", "A command."), words)
    assert not any("\n" in fault.text for fault in caught.value.faults)
    return caught.value.faults


def refused(command: str, *words: str) -> Fault:
    """The only fault of `octavo COMMAND WORDS`."""
    (fault,) = every_fault(command, *words)
    return fault
