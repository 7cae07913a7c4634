"""Environments from options.

{"tools": ["calculator", {"name": "table", "records": "alloys.csv", "columns": "columns.yaml"}], "reward": "math",
 "turns": 4}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config.rl.rewards import check_environment, read_options
from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.environments.calculator import CALCULATOR
from trainer.rl.environments.table import Records, table_tool
from trainer.rl.environments.tools import Tool, ToolEnvironment
from trainer.rl.rewards.base import build_reward

WHERE = "rl.environment"


def build_environment(cfg: Any, where: str = WHERE, root: Path = Path()) -> ToolEnvironment:
    """A question with these tools. where: the key that gives the options, for errors. root: of paths.

    Raises EnvironmentFailed, and RewardError for its reward."""
    if faults := [*check_environment(cfg, where, reward=False)]:
        raise EnvironmentFailed(faults)
    offered = [_tool(tool, root) for tool in cfg["tools"]]
    reward = build_reward(cfg["reward"], f"{where}.reward")
    rest = {key: value for key, value in cfg.items() if key not in ("tools", "reward")}
    return ToolEnvironment("tools", offered, reward, **rest)


def read_environment(text: str, reward: str, root: Path = Path()) -> ToolEnvironment:
    """The environment of `rl.environment`, whose final answers are worth what `rl.reward` says. root: of paths.

    Raises EnvironmentFailed, and RewardError for its reward."""
    if faults := [*check_environment(text, WHERE, reward=True)]:
        raise EnvironmentFailed(faults)
    options = read_options(text, WHERE)
    assert isinstance(options, Mapping)
    return build_environment({"reward": reward, **options}, WHERE, root)


def _tool(cfg: str | Mapping[str, Any], root: Path) -> Tool:
    options = {"name": cfg} if isinstance(cfg, str) else cfg
    if options["name"] == "calculator":
        return CALCULATOR
    return table_tool(Records(root / options["records"], root / options["columns"]))
