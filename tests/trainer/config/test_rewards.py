"""Rewards and environments are checked when a configuration is composed, from tables that are those of the classes."""

import dataclasses
import importlib

import pytest

from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.rl.rewards import ENVIRONMENT, NEEDED, OPTIONS, check_reward, read_options
from trainer.rl.environments.tools import ToolEnvironment
from trainer.rl.rewards.base import REWARDS


@pytest.mark.parametrize(
    ("word", "where", "allowed"),
    [
        ("rl.reward=exakt", "rl.reward", "exact"),
        ("rl.reward='{name: judge}'", "rl.reward.url", None),
        ("rl.reward='{name: exact, cases: true}'", "rl.reward.cases", "case"),
        ("rl.reward='{name: [exact'", "rl.reward", None),
        ("rl.reward='{name: exact, case: \"false\"}'", "rl.reward.case", "true or false"),
        ("rl.reward='{name: exact, case: false, case: true}'", "rl.reward", None),
        ("rl.reward='{name: quantity, relative: .nan}'", "rl.reward.relative", "a number from 0"),
        ("rl.reward='{name: quantity, relative: \"1e-6\"}'", "rl.reward.relative", "a number from 0"),
        ("rl.reward='{name: math, seconds: 0}'", "rl.reward.seconds", "a number above 0"),
        ("rl.reward='{name: code, processes: 1.5}'", "rl.reward.processes", "a whole number from 1"),
        ("rl.reward='{name: sum, parts: [exact], weights: [.inf]}'", "rl.reward.weights", "a list of numbers"),
        ("rl.environment='{tools: [calculator], turns: 2, turns: 3}'", "rl.environment", None),
        ("rl.reward='{name: product, parts: [overlap, exakt]}'", "rl.reward.parts[1]", "exact"),
        ("rl.reward='{name: product, parts: overlap}'", "rl.reward.parts", None),
        ("rl.reward='{name: kind, parts: {a: exact, b: exakt}}'", "rl.reward.parts.b", "exact"),
        ("rl.reward='{name: kind, parts: [exact]}'", "rl.reward.parts", None),
        ("rl.reward='{name: kind, parts: {yes: exact, no: final}}'", "rl.reward.parts", None),
        ("rl.reward='{name: kind, parts: {1: exact}}'", "rl.reward.parts", None),
        ("rl.reward='{name: format, longest: 010}'", "rl.reward.longest", "a whole number from 0"),
        ("rl.reward='{name: math, seconds: 1:30}'", "rl.reward.seconds", "a number above 0"),
        ("rl.reward='{name: math, relative: 0x1}'", "rl.reward.relative", "a number from 0"),
        ("rl.reward='{name: kind}'", "rl.reward.parts", None),
        ("rl.environment='{tools: [abacus]}'", "rl.environment.tools[0]", "calculator"),
        ("rl.environment='{tools: [calculator], turns: 0}'", "rl.environment.turns", None),
        ("rl.environment='{tools: [calculator], reward: {name: maths}}'", "rl.environment.reward", "math"),
        ("rl.environment='{tools: [{name: table, records: a.csv}]}'", "rl.environment.tools[0].columns", None),
        ("rl.environment='{turns: 2}'", "rl.environment.tools", None),
        ("rl.environment=calculator", "rl.environment", None),
    ],
)
def test_a_wrong_reward_or_environment_is_found_before_the_run(word, where, allowed):
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=rl_toy", word], world_size=1)
    (fault,) = caught.value.faults
    assert fault.where == where
    assert fault.allowed
    assert allowed is None or allowed in fault.allowed


def test_a_small_tolerance_is_a_number_however_it_is_written():
    """YAML 1.1 takes 1e-6 for a text: its floats have a point."""
    for written in ("1e-6", "1E-6", "1.0e-6", "+1e-06", "0.000001"):
        assert read_options(f"{{name: math, relative: {written}}}", "rl.reward") == {"name": "math", "relative": 1e-6}
        assert not [*check_reward(f"{{name: math, relative: {written}}}", "rl.reward")]
    assert read_options("{a: -.5, b: -0, c: [12, 0.], d: 1e3}", "") == {"a": -0.5, "b": 0, "c": [12, 0.0], "d": 1000.0}
    assert read_options("{name: format, pattern: 1e}", "rl.reward")["pattern"] == "1e"


def test_the_tables_have_the_options_of_the_classes():
    assert OPTIONS.keys() == REWARDS.keys()
    for name, path in REWARDS.items():
        module, _, kind = path.rpartition(".")
        fields = [one for one in dataclasses.fields(getattr(importlib.import_module(module), kind)) if one.init]
        assert tuple(OPTIONS[name]) == tuple(one.name for one in fields)
        needed = [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING]
        assert NEEDED.get(name, ()) == tuple(needed)
    own = {one.name for one in dataclasses.fields(ToolEnvironment)} - {"name", "offered"}
    assert {*ENVIRONMENT} == own | {"tools"}
