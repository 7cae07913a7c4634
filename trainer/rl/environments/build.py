"""Environments by name.

{"name": "tools", "tools": ["calculator", {"name": "table", "records": "alloys.csv", "columns": "columns.yaml"}],
 "reward": "math", "turns": 4}
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parallel.errors import one_of
from trainer.config.say import did_you_mean
from trainer.rl.environments.base import Environment, EnvironmentFailed
from trainer.rl.environments.calculator import CALCULATOR
from trainer.rl.environments.table import Records, table_tool
from trainer.rl.environments.tools import Tool, ToolEnvironment
from trainer.rl.rewards.base import build_reward

# Named, not imported: an adapter imports its library when it is built.
ENVIRONMENTS: Mapping[str, str] = {
    "tools": "trainer.rl.environments.build.build_tools",
    "verifiers": "trainer.rl.environments.verifiers.build_verifiers",
}
TOOLS = ("calculator", "table")
OPTIONS = ("tools", "reward", "turns", "calls", "longest", "system", "guide")


def build_environment(cfg: Mapping[str, Any], where: str = "rl.environment", root: Path = Path()) -> Environment:
    """The environment of this name, with its options. where: the key that gives it, for errors. root: of paths.

    Raises EnvironmentFailed, and RewardError for its reward."""
    name = str(cfg.get("name")) if isinstance(cfg, Mapping) else ""
    if name not in ENVIRONMENTS:
        text = f"{where}.name={name}: there is no such environment; use {one_of(ENVIRONMENTS)}"
        raise EnvironmentFailed(text + did_you_mean(name, ENVIRONMENTS), where=f"{where}.name", value=name,
                                allowed=tuple(ENVIRONMENTS))  # fmt: skip
    module, _, function = ENVIRONMENTS[name].rpartition(".")
    build: Callable[..., Environment] = getattr(importlib.import_module(module), function)
    return build({key: value for key, value in cfg.items() if key != "name"}, where, root)


def check_options(given: Mapping[str, Any], known: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raise EnvironmentFailed for unknown and missing options."""
    for key in given:
        if key not in known:
            text = f"{where}.{key}: there is no such option; use {one_of(known)}{did_you_mean(key, known)}"
            raise EnvironmentFailed(text, where=f"{where}.{key}", value=key, allowed=tuple(known))
    for key in needed:
        if key not in given:
            raise EnvironmentFailed(f"{where}.{key} is missing", where=f"{where}.{key}", allowed="a value")


def build_tools(cfg: Mapping[str, Any], where: str, root: Path) -> ToolEnvironment:
    check_options(cfg, OPTIONS, ("tools", "reward"), where)
    for key in ("turns", "calls", "longest"):
        value = cfg.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            text = f"{where}.{key}={value}: use a whole number from 1"
            raise EnvironmentFailed(text, where=f"{where}.{key}", value=value, allowed="a whole number from 1")
    guide = cfg.get("guide", 0.0)
    if isinstance(guide, bool) or not isinstance(guide, int | float) or not 0 <= guide < 1:
        text, allowed = f"{where}.guide={guide}: use a share from 0 to below 1", "0 to below 1"
        raise EnvironmentFailed(text, where=f"{where}.guide", value=guide, allowed=allowed)
    tools = cfg["tools"]
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        allowed = f"a list of {one_of(TOOLS)}"
        raise EnvironmentFailed(f"{where}.tools is not {allowed}", where=f"{where}.tools", value=tools,
                                allowed=allowed)  # fmt: skip
    offered = [_tool(tool, f"{where}.tools[{place}]", root) for place, tool in enumerate(tools)]
    reward = build_reward(cfg["reward"], f"{where}.reward")
    rest = {key: value for key, value in cfg.items() if key not in ("tools", "reward")}
    return ToolEnvironment("tools", offered, reward, **rest)


def _tool(cfg: str | Mapping[str, Any], where: str, root: Path) -> Tool:
    options = {"name": cfg} if isinstance(cfg, str) else cfg
    name = options.get("name") if isinstance(options, Mapping) else None
    if name == "calculator":
        check_options(options, ("name",), (), where)
        return CALCULATOR
    if name == "table":
        check_options(options, ("name", "records", "columns"), ("records", "columns"), where)
        return table_tool(Records(root / options["records"], root / options["columns"]))
    text = f"{where}={name}: there is no such tool; use {one_of(TOOLS)}{did_you_mean(str(name), TOOLS)}"
    raise EnvironmentFailed(text, where=where, value=name, allowed=TOOLS)
