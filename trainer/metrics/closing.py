"""The last words of a run: its held-out losses, where its files are, and what to do next. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config.checks.validate import validate
from trainer.config.keys import Config
from trainer.metrics.history import RECENT, RECORD, measured, number, read_all, recent_loss

OCTAVO = ("octavo",)
HIGHER_IS_BETTER = ("accuracy", "reward")


def closing_text(run_dir: Path, checkpoint: str) -> str:
    """Held-out results by source, the loss and the tokens of a run, and where it is."""
    losses, tokens, unreadable, evaluations = [], 0, 0, []
    distinct: set[str] = set()  # a start of the run names a document again that an earlier one named
    for record in read_all(run_dir / RECORD) if (run_dir / RECORD).is_file() else ():
        if missed := int(number(record.get("unreadable")) or 0):
            unreadable += missed
            distinct |= {str(record["message"])} if "message" in record else set()
        if record.get("event") == "evaluation":
            evaluations.append(record)
        elif "event" not in record:
            losses.append(number(record.get("loss")))
            tokens += int(number(record.get("tokens")) or 0)
    lines = _heldout_table(evaluations)
    known = [loss for loss in losses if loss is not None]
    if known:
        over = f"the mean of the last {min(RECENT, len(losses))} steps" if len(losses) > 1 else "of the only step"
        lines.append(f"training loss {known[0]:.4f} -> {recent_loss(losses):.4f} ({over}) over {tokens:,} tokens")
    if unreadable:
        lines.append(
            f"unreadable  {len(distinct):,} sample(s) or document(s), replaced or left out in {unreadable:,} place(s): "
            f"warnings in {RECORD}"
        )
    return "\n".join([*lines, f"run         {run_dir}", f"checkpoint  {checkpoint}"])


def next_text(cfg: Config, run_dir: Path, command: Sequence[str], world_size: int) -> str:
    """Commands that work as they are printed, in the directory where the run was started.

    command: of this run, as words: the program, "train", overrides and options; empty where another launcher started
    it, whose command is not known.
    """
    program = shlex.join(command[: command.index("train")] if command else OCTAVO)
    run = shlex.quote(str(run_dir))
    lines = [f"{program} chat {run}"] if cfg.data.name == "chat" else []
    lines += [f"{program} inspect {run}", f"{program} export {run} {shlex.quote(str(_unused(run_dir)))}"]
    if (steps := _more_steps(cfg, world_size)) is not None:
        if command:
            kept = [word for word in command if not word.startswith(("train.steps=", "train.resume="))]
            if cfg.train.resume == "never":  # the command alone would start another run
                kept = [*(word for word in kept if not word.startswith("run.dir=")), f"run.dir={_as_override(run_dir)}"]
            lines.append(shlex.join([*kept, f"train.steps={steps}"]))
        else:
            lines.append(f"# the same command with train.steps={steps} continues the run")
    return "\n".join(["next:", *(f"    {line}" for line in lines)])


def _heldout_table(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    if not evaluations:
        return []
    unigram: dict[str, Any] = next(
        (e["unigram"] for e in reversed(evaluations) if isinstance(e.get("unigram"), dict)), {}
    )
    uniform = next((u for e in reversed(evaluations) if (u := number(e.get("uniform"))) is not None), None)
    series: dict[tuple[str, str], list[tuple[float, int]]] = {}  # (name, source) -> (value, step) of each evaluation
    for evaluation in evaluations:
        for name, values in measured(evaluation).items():
            for source, value in values.items():
                series.setdefault((name, source), []).append((value, evaluation["step"]))
    rows = [("held-out", "unigram" if unigram else "", "best", "at step", "last")]
    for (name, source), found in series.items():
        best, step = (max if name.endswith(HIGHER_IS_BETTER) else min)(found)
        what = name.removeprefix("heldout").strip("_")
        guess = number(unigram.get(source)) if not what else None
        shown = found[-1][0] if found[-1][1] == evaluations[-1]["step"] else None
        rows.append((
            f"{source} {what}".strip(), "" if guess is None else f"{guess:.2f}", f"{best:.2f}", str(step),
            "-" if shown is None else f"{shown:.2f}",
        ))  # fmt: skip
    if len(rows) == 1:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True) if width)
        lines.append(f"{name:<{widths[0]}}  " + "  ".join(aligned))
    return lines + ([f"a uniform guess: {uniform:.2f}"] if uniform is not None else [])


def _unused(run_dir: Path) -> Path:
    """A directory for an export that does not exist yet."""
    path, number = Path("outputs", run_dir.name), 1
    while path.exists():
        number += 1
        path = path.with_name(f"{run_dir.name}-{number}")
    return path


def _more_steps(cfg: Config, world_size: int) -> int | None:
    """A larger train.steps that the configuration allows: a mixture may not have the tokens for any."""
    steps = cfg.train.steps
    for more in (2 * steps, steps + max(1, steps // 10)):
        if not validate(replace(cfg, train=replace(cfg.train, steps=more, resume="auto")), world_size):
            return more
    return None


def _as_override(path: Path) -> str:
    """A path as Hydra reads it in an override."""
    text = str(path)
    return text if all(c.isalnum() or c in "/._-" for c in text) else '"' + text.replace('"', '\\"') + '"'
