"""The training loop: from the position a run has reached to its last step."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import torch

from parallel.errors import UserError
from parallel.world import World
from trainer.config import coerce
from trainer.config.errors import report
from trainer.config.keys import Config
from trainer.data.batch import Batch
from trainer.data.media.placed import alike, placed
from trainer.metrics.closing import closing_text, next_text
from trainer.metrics.console import clock
from trainer.metrics.rates import device_peak
from trainer.metrics.record import MetricsLog
from trainer.model.experts.held import held_weights
from trainer.objectives.scalars import Scalar, Scalars, Totals, read_totals
from trainer.optim.finite import not_finite, show_names, skipping
from trainer.optim.schedule import lr_at
from trainer.run.announce import announcements, device_name
from trainer.run.build import Parts
from trainer.run.checkpoints import Checkpoints, Position
from trainer.run.directory import RunDir
from trainer.run.evaluate import evaluate, measure_pairs
from trainer.run.sample import sample_texts
from trainer.run.step import MEDIA, Between, accumulate_gradients, count_step
from trainer.run.stop import StopRequest, report_stop
from trainer.stages.forward import own_parts


class RunError(UserError):
    """The run cannot continue."""


class Trainer:
    """Runs the parts of a run. Every rank takes every branch alike."""

    def __init__(self, cfg: Config, run: RunDir, world: World, parts: Parts) -> None:
        self.cfg, self.directory, self.world, self.parts = cfg, run.path, world, parts
        self.command = run.command
        self.checkpoints = Checkpoints(cfg, run.path, world, parts)
        world.watch.at("start: loading the checkpoint")
        self.resumed = self.checkpoints.resume()
        self.position = self.resumed or Position()
        self.start = self.position.step  # the position moves on
        self.warnings = [run.repaired] if run.repaired else []
        self.warnings += [*(f"continuing with {change}" for change in run.changes), *run.warnings, *parts.warnings]
        self.warnings += self.checkpoints.warnings
        self.first_step = self.position.step  # after which this start continues
        self.replaced = 0  # samples and documents since this start that could not be read
        self.skipped_in_a_row = 0  # up to the last step whose scalars were read
        self.reported: set[str] = set()  # kinds of warnings that are logged once
        self.unread: list[tuple[dict[str, Any], Totals]] = []  # steps whose scalars are still on the device
        self._refuse_broken_weights()
        self.log = self._open_log()

    def run(self) -> int:
        """Train to the last step. Returns the exit code: 0, 1, or 130 and 143 after a signal."""
        cfg, world = self.cfg.train, self.world
        try:
            self._announce()
            with StopRequest(silent=lambda: world.rank > 0 or world.watch.failed) as stop:
                while self.position.step < cfg.steps:
                    world.watch.at(f"step {self.position.step + 1}: data")
                    batches = self._next_batches()
                    counts = count_step(
                        self.parts.objective,
                        batches,
                        world,
                        self.parts.place,
                        model=self.cfg.model,
                        interrupted=stop.requested(signal.SIGINT),
                        terminated=stop.requested(signal.SIGTERM),
                    )
                    if counts["interrupted"] or counts["terminated"]:
                        return self._stop(signal.SIGTERM if counts["terminated"] else signal.SIGINT)
                    if counts["faults"]:
                        counts["again"] = self._log_faults(batches)
                    self._train_step(batches, counts)
                    self.log.advance(self.position.step)
                    self._between_steps()
                return self._finish()
        except BaseException as error:
            self._record_end("stopped" if isinstance(error, KeyboardInterrupt) else "failed", str(error) or repr(error))
            raise
        finally:
            if world.size == 1:  # several ranks cannot count on each other after an error
                self.checkpoints.wait(self.position, self.log)
            self.log.close()

    # ---- the step

    def _next_batches(self) -> list[Batch]:
        """This rank's micro-batches of the next step. Micro-batch j of all ranks together is one contiguous range of
        samples, so that any number of readers with the same product of readers and micro_batch sees the same ones."""
        micro, place, first_of_step = self.cfg.train.micro_batch, self.parts.place, self.position.sample
        firsts = range(first_of_step, first_of_step + self.cfg.train.global_batch, micro * place.readers)
        return [
            placed(self.parts.data.stream.batch(first + place.reader * micro, micro), self.cfg.model)
            for first in firsts
        ]

    def _log_faults(self, batches: list[Batch]) -> int:
        """Log the samples and documents of all ranks that were replaced or left out, each document once; returns how
        many were logged before. Raises `RunError` where they are too many."""
        mine = [line for batch in batches for line in batch.faults] if self.parts.place.counts else []
        lines = [line for of_rank in self.world.gather(mine) for line in of_rank]
        new = [line for line in dict.fromkeys(lines) if line not in self.reported]
        self.reported.update(new)
        for line in new:
            self._event("warning", step=self.position.step + 1, message=line, unreadable=1)
        self.replaced += len(lines)
        limit = self.cfg.data.max_skips
        if self.replaced > limit:
            raise RunError(
                f"{self.replaced} samples could not be read since this start (data.max_skips={limit}); the last: "
                f"{lines[-1]}. `octavo data check` finds what is damaged",
                where="data.max_skips",
                value=self.replaced,
                allowed=f"at most {limit}",
            )
        return len(lines) - len(new)

    def _train_step(self, batches: list[Batch], counts: dict[str, int]) -> None:
        """One optimizer step. Nothing in it waits for the device. counts: as `count_step` returns them."""
        cfg, world, parts, units = self.cfg, self.world, self.parts, counts["units"]
        media = {kind: counts[kind] > 0 for kind in MEDIA}
        batches, load = own_parts(parts.forward, [alike(batch, cfg.model, **media) for batch in batches])
        if parts.pipeline is not None:
            with held_weights(block.moe.experts for stage in parts.stages.values() for block in stage.blocks):
                totals = parts.pipeline.accumulate(batches, units, step=self.position.step + 1)
        else:
            totals = accumulate_gradients(
                parts.model,
                parts.engine,
                parts.objective,
                batches,
                units,
                world,
                step=self.position.step + 1,
                between=Between.of(cfg),
            )
        step = self.position.step = self.position.step + 1
        self.position.sample += cfg.train.global_batch
        world.watch.at(f"step {step}: optimizer")
        totals.add(Scalars({name: Scalar(value, ranks="same") for name, value in self._update(units).items()}))
        facts = {"step": step, "lr": lr_at(step, cfg.optim, cfg.train.steps), "tokens": counts["tokens"]}
        if cfg.model.vision is not None or cfg.model.signals is not None:
            facts |= {kind: counts[kind] for kind in MEDIA} | {"tower_flops": 1000 * counts["tower_kiloflops"]}
        if load is not None:
            facts |= load._asdict()
        if counts.get("again"):
            facts["unreadable"] = counts["again"]
        self.unread.append((facts, totals))

    def _update(self, units: int) -> dict[str, torch.Tensor]:
        """Apply the gradients of the step; returns as `Engine.step`. units: of the step, over all ranks."""
        return self.parts.engine.step(self.position.step, self.cfg.train.steps)

    def _read_metrics(self) -> None:
        """Write the scalars of all steps since the last call: the one place that waits for the device.

        Raises `RunError` after too many skipped steps in a row.
        """
        if not self.unread:
            return
        self.world.watch.at(f"step {self.position.step}: metrics")
        totals = [totals for _, totals in self.unread]
        numbers = read_totals(totals, self.world, stages=self.parts.pipeline is not None)
        in_a_row = [int(of_step.pop("skipped_in_a_row") or 0) for of_step in numbers]
        self.skipped_in_a_row = in_a_row[-1]
        records = [
            self._record({**facts, **of_step, "skipped": int(of_step["skipped"] or 0)})
            for (facts, _), of_step in zip(self.unread, numbers, strict=True)
        ]
        self.log.write(records)
        self.unread.clear()
        if empty := [record["step"] for record in records if record.get("loss", 0.0) is None]:
            text = f"step {empty[0]} has no loss (null in the record): there is no {self.parts.objective.unit} in it"
            self._warn_once("empty step", f"{text}; later steps like it are not reported")
        limit = self.cfg.train.max_skipped
        if max(in_a_row) >= limit:
            self.checkpoints.wait(self.position, self.log)
            raise self._stuck(f"{max(in_a_row)} steps in a row", f" (train.max_skipped={limit})", max(in_a_row))

    def _stuck(self, which: str, limit: str, value: int) -> RunError:
        """The error for steps that were all skipped, with its cause as far as the weights show it. Collective."""
        kept = f"the last checkpoint is {self.checkpoints.newest()}"
        if broken := not_finite(self.parts.stages.values(), self.parts.engine, self.world):
            return RunError(
                f"{which} had a gradient that was not finite{limit}, because weights are not finite: "
                f"{show_names(broken)}. They were finite at the start, so an update spoiled them: use a lower "
                f"optim.lr with train.resume=never; {kept}",
                where=broken[0],
                value=value,
                allowed="a lower optim.lr in a new run",
            )
        why, remedy = skipping(self.cfg.rl.skip_grad_norm)
        return RunError(
            f"{which} {why}{limit}; weights are finite and unchanged. Use {remedy}, or look at the data; {kept}",
            where="train.max_skipped",
            value=value,
            allowed=remedy,
        )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self.reported:
            self.reported.add(kind)
            self._event("warning", message=message)

    # ---- between steps

    def _between_steps(self) -> None:
        cfg, step = self.cfg, self.position.step
        if step % cfg.train.log_every == 0:
            self._read_metrics()
        if cfg.train.eval_every and step % cfg.train.eval_every == 0 and step < cfg.train.steps:
            self._evaluate()
        if cfg.checkpoint.every and step % cfg.checkpoint.every == 0:
            self._save()
        self.checkpoints.poll(self.position, self.log)

    def _evaluate(self, *, final: bool = False) -> None:
        self._read_metrics()
        self.world.watch.at(f"evaluation after step {self.position.step}")
        self.log.during("evaluation")
        start, cfg, parts = time.perf_counter(), self.cfg.train, self.parts
        found: dict[str, Any] = evaluate(
            parts.forward,
            parts.objective,
            parts.data.heldout,
            self.world,
            parts.place,
            batches=cfg.eval_batches,
            micro_batch=cfg.micro_batch,
            report=lambda line: self._warn_once(line, line),
        )
        found |= self._measure()
        if final and self.world.rank == 0:
            found |= parts.objective.baselines(parts.data)
        self._event("evaluation", **found, seconds=round(time.perf_counter() - start, 3))
        measured = [values for values in found.values() if isinstance(values, dict)]
        if empty := sorted({name for values in measured for name, value in values.items() if value is None}):
            text = (
                f"held-out samples of {', '.join(empty)} have no {parts.objective.unit}, so they have no value (null)"
            )
            self._warn_once("empty evaluation", text)

    # what a run of another kind does in a way of its own

    def _record(self, record: dict[str, Any]) -> dict[str, Any]:
        """A step's line."""
        return record

    def _measure(self) -> dict[str, Any]:
        """Held-out measurements beside the objective's: name -> source -> value."""
        cfg, parts = self.cfg.train, self.parts
        if not parts.objective.embeds_pairs:
            return {}
        pairs, micro = cfg.eval_batches * cfg.global_batch, cfg.micro_batch
        forward, place = parts.forward, parts.place
        return measure_pairs(forward, parts.objective, parts.data, self.world, place, pairs=pairs, micro_batch=micro)

    def _log_sample_texts(self) -> None:
        """Continue the prompt of every source, for a person to read. Rank 0 logs; all take part."""
        self.world.watch.at("sample texts")
        cfg, text = self.cfg.train, self.parts.data.text
        if not cfg.sample_tokens or text is None:
            return
        self.log.during("sample texts")
        # A compiled block would be compiled again for every length.
        eager = torch.compiler.set_stance("force_eager") if cfg.compile else contextlib.nullcontext()
        with eager:
            texts = sample_texts(
                self.parts.forward,
                [*self.parts.stages.values()],
                text,
                self.world,
                tokens=cfg.sample_tokens,
                seed=cfg.seed,
            )
        for source, sample in texts.items():
            self._event("sample", source=source, text=sample)

    def _save(self) -> None:
        self._read_metrics()
        self.world.watch.at(f"checkpoint of step {self.position.step}")
        self.log.during("checkpoint")
        self.checkpoints.save(self.position, self.log)

    # ---- start and end

    def _refuse_broken_weights(self) -> None:
        """Raises `RunError` where the weights that the run starts with are not finite: no step could be taken."""
        self.world.watch.at("start: weights")
        broken = not_finite(self.parts.stages.values(), self.parts.engine, self.world)
        if not broken:
            return
        source = self.cfg.checkpoint.init_from
        if self.resumed is not None:
            source = self.checkpoints.newest()
            where, remedy = source, f"remove {source} to continue from an older checkpoint, or use another run.dir"
        else:
            where, remedy = "checkpoint.init_from" if source else "model", "use weights that are finite"
        raise RunError(
            f"weights of {source or 'the new model'} are not finite: {show_names(broken)}; {remedy}",
            where=where,
            value=broken[0],
            allowed=remedy,
        )

    def _open_log(self) -> MetricsLog:
        cfg, world = self.cfg, self.world
        peak = device_peak(device_name(world.device), cfg.precision.linears)
        try:
            return MetricsLog(
                self.directory,
                cfg.logging,
                resume_step=self.position.step,
                total_steps=cfg.train.steps,
                flops_per_token=cfg.model.flops_per_token(cfg.data.seq_len, head=cfg.train.trains_head),
                peak_flops=peak * world.size if peak else None,
                config=coerce.to_dict(cfg),
                rank=world.rank,
            )
        except OSError as error:
            raise RunError(
                f"{self.directory} cannot be written: {error}; free some space, or use another run.dir",
                where="run.dir",
                value=str(self.directory),
                allowed="a directory that can be written",
            ) from error

    def _announce(self) -> None:
        for message in self.warnings:
            self._event("warning", message=message)
        self._event("data", message=self.parts.data.describe())
        found = announcements(self.cfg, self.world, self.parts.meshes, resumed=self.start, directory=self.directory)
        for record in found:
            self.log.event({"step": self.position.step, **record})

    def _finish(self) -> int:
        """Save before the last evaluation: what was trained is then safe, whatever happens during it.

        A start whose steps were all skipped has trained nothing: it fails, and saves no checkpoint of them.
        """
        self._read_metrics()
        steps = self.position.step - self.first_step
        if 0 < steps <= self.skipped_in_a_row:
            raise self._stuck("all steps of this start" if steps > 1 else "the only step of this start", "", steps)
        if self.skipped_in_a_row:
            why = skipping(self.cfg.rl.skip_grad_norm)[0]
            self._event("warning", message=f"the last {self.skipped_in_a_row} step(s) {why} and changed no weight")
        self._save()
        self._evaluate(final=True)
        self._log_sample_texts()
        if not self.checkpoints.complete(self.position, self.log):
            if self.world.rank == 0:
                kept = self.checkpoints.newest()
                text = f"the last checkpoint could not be saved; {kept} is kept"
                report(RunError(text, where=str(self.checkpoints.directory), allowed="a disk with free space"))
            self._record_end("failed", f"step {self.position.step} could not be saved")
            return 1
        self._close_record()
        return 0

    def _close_record(self) -> None:
        """Log what the run has come to, and what to do next."""
        if self.world.rank > 0:
            return
        step = self.position.step
        text = closing_text(self.directory, self.checkpoints.newest())
        text += "\n" + next_text(self.cfg, self.directory, self.command, self.world.size)
        since = f" since step {self.start}" if self.start else ""
        message = f"{step} steps, in {clock(self.log.seconds())}{since}"
        self._event("done", message=message, text=text)

    def _stop(self, number: signal.Signals) -> int:
        self._save()
        saved = self.checkpoints.complete(self.position, self.log)
        if self.world.rank == 0:
            again = f"run.dir={self.directory} train.resume=auto" if self.cfg.train.resume == "never" else None
            report_stop(number, self.position.step, self.checkpoints.newest(), again, saved=saved)
        self._record_end("stopped" if saved else "failed", f"by {number.name}")
        return 128 + number if saved else 1

    def _record_end(self, event: str, message: str) -> None:
        """Record how the run ended, for `octavo runs`; the terminal gets the news elsewhere."""
        self.log.event({"event": event, "step": self.position.step, "message": " ".join(message.split())}, show=False)

    def _event(self, event: str, **fields: Any) -> None:
        self.log.event({"event": event, "step": self.position.step, **fields})
