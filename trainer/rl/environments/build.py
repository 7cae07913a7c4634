"""Environments from options.

{"tools": ["calculator", {"name": "table", "records": "alloys.csv", "columns": "columns.yaml"}], "reward": "math",
 "turns": 4}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parallel.errors import one_of
from trainer.config.say import did_you_mean
from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.environments.calculator import CALCULATOR
from trainer.rl.environments.table import Records, table_tool
from trainer.rl.environments.tools import Tool, ToolEnvironment
from trainer.rl.rewards.base import build_reward

TOOLS = ("calculator", "table")
OPTIONS = ("tools", "reward", "turns", "calls", "longest", "system", "guide")


def check_options(given: Mapping[str, Any], known: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raise EnvironmentFailed for unknown and missing options."""
    for key in given:
        if key not in known:
            text = f"{where}.{key}: there is no such option; use {one_of(known)}{did_you_mean(key, known)}"
            raise EnvironmentFailed(text, where=f"{where}.{key}", value=key, allowed=tuple(known))
    for key in needed:
        if key not in given:
            raise EnvironmentFailed(f"{where}.{key} is missing", where=f"{where}.{key}", allowed="a value")


def build_environment(cfg: Any, where: str = "rl.environment", root: Path = Path()) -> ToolEnvironment:
    """A question with these tools. where: the key that gives the options, for errors. root: of paths.

    Raises EnvironmentFailed, and RewardError for its reward."""
    if not isinstance(cfg, Mapping):
        allowed = "{tools: [TOOL, ...], OPTION: VALUE}"
        raise EnvironmentFailed(f"{where} is not {allowed}", where=where, value=cfg, allowed=allowed)
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
