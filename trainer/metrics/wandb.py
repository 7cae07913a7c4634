"""wandb as a view of the record: the one module that imports it."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.config.keys import LoggingConfig
from trainer.metrics.console import LogRecord

NUMBERS = (int, float, dict)  # what wandb can draw
FLUSH_KEY, FLUSH_S = "x_transaction_log_flush_interval", 1.0  # seconds; wandb's own 15 lose all of a short run


class Wandb:
    """The one place that knows wandb. Raises whatever wandb raises: MetricsLog turns that into one warning line."""

    def __init__(self, run_dir: Path, cfg: LoggingConfig, config: Mapping[str, Any]) -> None:
        import wandb

        self.note = ""
        mode: Literal["online", "offline"] = "online" if cfg.wandb == "online" else "offline"
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode = "offline"
            self.note = f"wandb is not logged in: kept offline, `wandb sync {run_dir}/wandb/offline-run-*` uploads it"
        self._run = wandb.init(
            project=cfg.wandb_project,
            name=run_dir.name,
            id=_wandb_id(run_dir),
            resume="allow",
            dir=str(run_dir),
            mode=mode,
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off", **_flushed(wandb.Settings)),
        )

    def advance(self, step: int, seconds_left: float) -> None:
        pass

    def during(self, what: str) -> None:
        pass

    def steps(self, records: list[LogRecord], seconds_left: float) -> None:
        for record in records:
            self._run.log({name: value for name, value in record.items() if value is not None}, step=record["step"])

    def event(self, record: LogRecord) -> None:
        kind = record["event"]
        values = {f"{kind}/{key}": _numbers(value) for key, value in record.items() if isinstance(value, NUMBERS)}
        values.pop(f"{kind}/step", None)
        values = {name: value for name, value in values.items() if value != {}}
        if values:
            self._run.log(values, step=record["step"])

    def close(self) -> None:
        self._run.finish()


def _flushed(settings: Any) -> dict[str, Any]:
    """The setting by which what is logged reaches the run's file within FLUSH_S, so that it survives a SIGKILL; {} for
    versions of wandb that lack it. There is no call that flushes."""
    known = FLUSH_KEY in getattr(settings, "model_fields", {})
    return {FLUSH_KEY: FLUSH_S} if known else {}


def _numbers(value: Any) -> Any:
    """A value of the record without the entries that have none."""
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def _wandb_id(run_dir: Path) -> str:
    """Kept in the run's directory, so that a resumed run continues its curves and its namesakes elsewhere do not."""
    path = run_dir / "wandb-id"
    if not path.exists():
        path.write_text(f"{run_dir.name}-{secrets.token_hex(4)}\n")
    return path.read_text().strip()
