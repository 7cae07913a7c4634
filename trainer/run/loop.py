"""One training run, top to bottom: build five components, loop, leave behind a checkpoint and a sample of text."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from parallel.mesh import Meshes
from parallel.world import World, WorldError, start_world
from trainer import kernels
from trainer.checkpoint.state import restore_generators, training_tensors
from trainer.checkpoint.store import CheckpointError, CheckpointStore, Saved
from trainer.config import coerce
from trainer.config.errors import ConfigError, report
from trainer.config.keys import Config
from trainer.data import DataError, build_data
from trainer.data.batch import Batch
from trainer.metrics.record import MetricsLog, device_peak
from trainer.model.decoder import Decoder
from trainer.model.experts.module import make_backend
from trainer.objectives import build_objective, freeze_unused
from trainer.objectives.base import Scalar, Scalars, Totals, read_totals
from trainer.optim.native import build_engine, lr_at
from trainer.parallelize import build_meshes, parallelize
from trainer.precision import DTYPES, narrow_moments, refusal
from trainer.run import directory as rundir
from trainer.run.announce import announcements
from trainer.run.evaluate import evaluate
from trainer.run.host_memory import prepare_host_memory
from trainer.run.sample import generate
from trainer.run.step import accumulate_gradients
from trainer.run.stop import StopRequest
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.kept_source import published_weights


class RunError(RuntimeError):
    """The run cannot go on; the message says why and what would help."""


def train(cfg: Config) -> int:
    """Train `cfg` to its last step, on every rank of a torchrun launch or alone.

    Returns the exit code: 0 done, 1 failed (one line on stderr where it is the user's to mend), 2 a run directory that
    cannot be used, 130 or 143 stopped by SIGINT or SIGTERM after saving.
    """
    world = World()
    held = contextlib.ExitStack()  # the run directory's lock
    try:
        world = start_world(cfg.train.device, cfg.parallel.timeout_s)
        world.watch.at("start: configuration")
        if world.device.type == "cpu":
            prepare_host_memory()
        world.agree("configuration", coerce.digest(coerce.to_dict(cfg)))
        _refuse_what_a_rank_lacks(cfg, world)
        kernels.use(cfg.train.kernels)
        run = _choose_directory(cfg, world, held)
        if run.status == "finished":
            if world.rank == 0:
                print(rundir.finished_line(run, cfg))
            return 0
        return Trainer(cfg, run, world).run()
    except ConfigError as error:
        return report(error) if world.rank == 0 else 2
    except (DataError, WorldError, CheckpointError, HuggingFaceError, RunError) as error:
        if world.watch.report_failure(error):
            print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if world.watch.report_failure(error):
            raise
        return 1
    except KeyboardInterrupt:
        if world.rank == 0:
            print("interrupted before the first step; there is nothing to save", file=sys.stderr)
        return 130
    finally:
        world.close()
        held.close()


class Trainer:
    """The five components of a run and the position it has reached."""

    def __init__(self, cfg: Config, run: rundir.RunDir, world: World) -> None:
        torch.manual_seed(cfg.train.seed)
        self.cfg, self.directory, self.world = cfg, run.path, world
        fill = published_weights(cfg, run, world)
        world.watch.at("start: data")
        damage: list[str] = []
        self.data = build_data(cfg.data, seed=cfg.train.seed, vocab_size=cfg.model.vocab_size, warn=damage.append)
        damage = sorted({line for of_rank in world.gather(damage) for line in of_rank})
        world.agree("corpus", self.data.fingerprint)
        world.watch.at("start: model")
        self.meshes = build_meshes(cfg, world.device.type)
        self.objective = build_objective(cfg.train)
        self.model = build_model(cfg, world, self.meshes, fill)
        shard_group = self.meshes.shard_group if self.meshes else None
        self.engine = build_engine(self.model, cfg.optim, world, shard_group, narrow_moments(cfg.precision))
        self.engine.prepare()
        world.extend_timeouts()
        self.store = CheckpointStore(
            self.directory / rundir.CHECKPOINTS, keep=cfg.checkpoint.keep, world=world, warn=self._warn_early
        )
        world.watch.at("start: loading the checkpoint")
        self.early_warnings = [*(f"goes on with {change}" for change in run.changes), *damage]
        self.step = self.sample = self.saved_step = 0  # steps done, samples seen, step of the last checkpoint
        self.faults = 0  # samples of this start that were replaced, as they could not be read
        self.resumed = self._resume()
        try:
            self.log = MetricsLog(
                self.directory,
                cfg.logging,
                resume_step=self.step,
                total_steps=cfg.train.steps,
                flops_per_token=cfg.model.flops_per_token(cfg.data.seq_len),
                peak_flops=_peak_flops(cfg, world),
                config=coerce.to_dict(cfg),
                rank=world.rank,
            )
        except OSError as error:
            raise RunError(f"{self.directory} cannot be written: {error}; make room, or use another run.dir") from error
        self.unread: list[tuple[dict[str, Any], Totals]] = []  # steps whose scalars are still on the device

    def run(self) -> int:
        """The loop. Every rank takes every branch alike."""
        cfg, world = self.cfg.train, self.world
        try:
            self._announce()
            with StopRequest(silent=lambda: world.rank > 0 or world.watch.failed) as stop:
                while self.step < cfg.steps:
                    world.watch.at(f"step {self.step + 1}: data")
                    batches = self._next_batches()
                    units, tokens, faults, interrupts, terminations = world.sum_counts(
                        sum(self.objective.count(batch) for batch in batches),
                        sum(batch.num_tokens for batch in batches),
                        sum(len(batch.faults) for batch in batches),
                        stop.asked(signal.SIGINT),
                        stop.asked(signal.SIGTERM),
                    )
                    if interrupts or terminations:
                        return self._stop(signal.SIGTERM if terminations else signal.SIGINT)
                    if faults:
                        self._tell_faults(batches)
                    self._train_step(batches, units, tokens)
                    if self.step % cfg.log_every == 0:
                        self._read_metrics()
                    if cfg.eval_every and self.step % cfg.eval_every == 0 and self.step < cfg.steps:
                        self._evaluate()
                    if self.cfg.checkpoint.every and self.step % self.cfg.checkpoint.every == 0:
                        self._save()
                    self._tell(self.store.finished())
                return self._finish()
        finally:
            if world.size == 1:  # several ranks cannot count on each other after an error
                self._tell(self.store.wait())
            self.log.close()

    # ---- the step

    def _next_batches(self) -> list[Batch]:
        """This rank's micro-batches of the next step. Micro-batch j of all ranks together is one contiguous range of
        samples, so that any number of ranks with the same product of ranks and micro_batch sees the same ones."""
        micro, world = self.cfg.train.micro_batch, self.world
        firsts = range(self.sample, self.sample + self.cfg.train.global_batch, micro * world.size)
        return [self.data.train_batch(first + world.rank * micro, micro) for first in firsts]

    def _tell_faults(self, batches: list[Batch]) -> None:
        """Log the samples of all ranks that were replaced. Raises `RunError` where they are too many."""
        mine = [line for batch in batches for line in batch.faults]
        lines = [line for of_rank in self.world.gather(mine) for line in of_rank]
        for line in lines:
            self.log.event({"event": "warning", "step": self.step + 1, "message": line})
        self.faults += len(lines)
        if self.faults > self.cfg.data.max_skips:
            raise RunError(
                f"{self.faults} samples could not be read since this start (data.max_skips={self.cfg.data.max_skips}); "
                f"the last: {lines[-1]}. `octavo data check` finds what is damaged"
            )

    def _train_step(self, batches: list[Batch], units: int, tokens: int) -> None:
        """One optimizer step. Nothing in it waits for the device.

        units: what the objective's main loss is a mean over; tokens: what the rates are made of; both of all ranks.
        """
        cfg, world = self.cfg, self.world
        totals = accumulate_gradients(
            self.model,
            self.engine,
            self.objective,
            batches,
            units,
            world,
            step=self.step + 1,
            reshard_experts=cfg.parallel.reshard_experts,
        )
        self.step += 1
        self.sample += cfg.train.global_batch
        world.watch.at(f"step {self.step}: optimizer")
        norm, (in_a_row, skipped) = self.engine.step(self.step, cfg.train.steps)
        alike = {"grad_norm": norm, "skipped_in_a_row": in_a_row, "skipped": skipped}
        totals.add(Scalars({name: Scalar(value, ranks="same") for name, value in alike.items()}))
        facts = {"step": self.step, "lr": lr_at(self.step, cfg.optim, cfg.train.steps), "tokens": tokens}
        self.unread.append((facts, totals))

    def _read_metrics(self) -> None:
        """The one place that waits for the device. Raises `RunError` after too many skipped steps in a row."""
        if not self.unread:
            return
        self.world.watch.at(f"step {self.step}: metrics")
        numbers = read_totals([totals for _, totals in self.unread], self.world)
        worst = max(int(of_step.pop("skipped_in_a_row")) for of_step in numbers)
        records: list[dict[str, Any]] = [
            {**facts, **of_step, "skipped": int(of_step["skipped"])}
            for (facts, _), of_step in zip(self.unread, numbers, strict=True)
        ]
        self.unread.clear()
        self.log.write(records)
        limit = self.cfg.train.max_skipped
        if worst >= limit:
            self._tell(self.store.wait())
            raise RunError(
                f"{worst} steps in a row had a gradient that was not finite (train.max_skipped={limit}); they changed "
                "no weight. Lower optim.lr, lengthen optim.warmup_steps or look at the data of these steps; "
                f"the last checkpoint is {self._last_checkpoint()}"
            )

    # ---- beside the step

    def _evaluate(self, *, final: bool = False) -> None:
        self._read_metrics()
        self.world.watch.at(f"evaluation after step {self.step}")
        start, cfg = time.perf_counter(), self.cfg.train
        found: dict[str, Any] = evaluate(
            self.model, self.objective, self.data, self.world, batches=cfg.eval_batches, micro_batch=cfg.micro_batch
        )
        if final and self.world.rank == 0:
            found |= self.objective.baselines(self.data)
        record: dict[str, Any] = {"event": "evaluation", "step": self.step, **found}
        self.log.event({**record, "seconds": round(time.perf_counter() - start, 3)})

    def _show_samples(self) -> None:
        """Continue each source's prompt, so that a person sees what was learned. Every rank takes part with its share
        of the weights; all make the same texts, and rank 0 logs them."""
        self.world.watch.at("sample of text")
        if not self.cfg.train.sample_tokens:
            return
        prompts, tokenizer = self.data.prompts(), self.data.tokenizer
        encoded = [tokenizer.encode(prompt) for prompt in prompts.values()]
        # A compiled block would be compiled again for every length.
        eager = torch.compiler.set_stance("force_eager") if self.cfg.train.compile else contextlib.nullcontext()
        with eager:
            texts = generate(
                self.model,
                encoded,
                tokens=self.cfg.train.sample_tokens,
                window=self.cfg.data.seq_len,
                eos_id=tokenizer.eos_id,
                seed=self.cfg.train.seed,
                world=self.world,
            )
        for source, prompt, text in zip(prompts, encoded, texts, strict=True):
            self.log.event(
                {"event": "sample", "step": self.step, "source": source, "text": tokenizer.decode(prompt + text)}
            )

    def _save(self) -> None:
        self._read_metrics()
        self.world.watch.at(f"checkpoint of step {self.step}")
        facts = {"sample": self.sample, "data": self.data.fingerprint}
        tensors = training_tensors(self.model, self.engine, self.world.rank)
        self._tell(self.store.save(self.step, tensors, facts))
        self.saved_step = self.step

    def _tell(self, saved: Saved | None) -> bool:
        """Log how a save ended. False where it failed."""
        if saved is None:
            return True
        record: dict[str, Any] = {"step": self.step}
        if saved.error is None:
            facts = {"size_bytes": saved.size, "write_seconds": round(saved.seconds, 3)}
            self.log.event({**record, "event": "checkpoint", "message": f"step-{saved.step} is saved", **facts})
        else:
            message = f"checkpoint step-{saved.step} was not saved: {saved.error}; the older ones are kept"
            self.log.event({**record, "event": "warning", "message": message})
        return saved.error is None

    def _resume(self) -> bool:
        """Load the newest whole checkpoint, if there is any."""
        tensors = training_tensors(self.model, self.engine, self.world.rank)
        manifest = self.store.load(tensors, self._same_data)
        if manifest is None:
            return False
        restore_generators(tensors, self.world.rank)
        self.step = self.saved_step = manifest["step"]
        self.sample = manifest["sample"]
        return True

    def _same_data(self, manifest: dict[str, Any]) -> None:
        was, now = manifest["data"], self.data.fingerprint
        if was == now:
            return
        change = f"their fingerprint was {was[:12]} and is now {now[:12]}"
        if not self.cfg.data.allow_changed:
            raise CheckpointError(
                f"{self.directory} was trained on other data: {change}. Restore the corpus (data.cache_dir, the "
                "packages it is made of), use another run.dir, or go on with what is there now: data.allow_changed=true"
            )
        self._warn_early(f"goes on with other data: {change}")

    # ---- beginning and end

    def _announce(self) -> None:
        for message in self.early_warnings:
            self.log.event({"event": "warning", "step": self.step, "message": message})
        for record in announcements(
            self.cfg,
            self.world,
            self.meshes,
            device=_device_name(self.world),
            resumed=self.step if self.resumed else 0,
            directory=self.directory,
        ):
            self.log.event({"step": self.step, **record})

    def _finish(self) -> int:
        """Save before the last evaluation: what was trained is safe, whatever happens while it is looked at."""
        if self.saved_step != self.step:
            self._save()
        self._evaluate(final=True)
        self._show_samples()
        if not self._all_saved():
            if self.world.rank == 0:
                print(
                    f"error: the last checkpoint could not be saved; {self._last_checkpoint()} is kept", file=sys.stderr
                )
            return 1
        message = f"{self.step} steps are in {self.directory}; a larger train.steps goes on from there"
        self.log.event({"event": "done", "step": self.step, "message": message})
        return 0

    def _stop(self, number: signal.Signals) -> int:
        if self.saved_step != self.step:
            self._save()
        self._read_metrics()
        saved = self._all_saved()
        if self.world.rank == 0:
            again = "the same command continues it"
            if self.cfg.train.resume == "never":
                again = f"run.dir={self.directory} train.resume=auto continues it"
            text = f"stopped by {number.name} after step {self.step}; saved in {self._last_checkpoint()}; {again}"
            if not saved:
                text = f"error: stopped by {number.name}, but step {self.step} could not be saved; "
                text += f"{self._last_checkpoint()} is kept"
            with contextlib.suppress(OSError):  # the terminal may be what went away
                print(text, file=sys.stderr, flush=True)
        return 128 + number if saved else 1

    def _all_saved(self) -> bool:
        """Wait for the save in flight. True where the newest checkpoint is of the last step."""
        self.world.watch.at("the last checkpoint")
        ended_well = self._tell(self.store.wait())
        # Rank 0 wrote the manifest, and another machine may see the directory late.
        return bool(self.world.broadcast(ended_well and rundir.last_step(self.directory) == self.step))

    def _last_checkpoint(self) -> str:
        step = rundir.last_step(self.directory)
        return str(self.directory / rundir.CHECKPOINTS / f"step-{step}") if step else "none"

    def _warn_early(self, message: str) -> None:
        """Warnings of the load come before the log is open, which has to know where the record is cut."""
        self.early_warnings.append(message)


def build_model(
    cfg: Config, world: World, meshes: Meshes | None, fill: Callable[[Decoder], None] | None = None
) -> Decoder:
    """The model of `cfg` on this rank's device, spread over the meshes. `fill` gives it its weights; None: random ones,
    from `train.seed`."""
    with torch.device("meta"):
        model = Decoder(cfg.model, DTYPES[cfg.precision.linears])
    freeze_unused(model, build_objective(cfg.train))
    for layer in model.blocks:
        layer.moe.experts.backend = make_backend(cfg.precision.experts, cfg.model.expert_backend)
    parallelize(model, meshes, cfg, world.device.type)
    model.to_empty(device=world.device)
    if fill is not None:
        fill(model)
    else:
        model.init_weights(cfg.train.seed)
    world.broadcast_module(model)
    return model


def _refuse_what_a_rank_lacks(cfg: Config, world: World) -> None:
    """Raises `ConfigError` on every rank where the machine of one cannot do what `cfg` asks for."""
    fused = kernels.refusal(cfg.train.kernels, cfg.precision.payload, world.device)
    mine = [refusal(cfg.precision, world.device), fused]
    for rank, (host, errors) in enumerate(world.gather((socket.gethostname(), [line for line in mine if line]))):
        if errors:
            where = f"rank {rank} (host {host}): " if world.size > 1 else ""
            raise ConfigError([where + line for line in errors])


def _choose_directory(cfg: Config, world: World, held: contextlib.ExitStack) -> rundir.RunDir:
    """Rank 0 chooses, locks and prepares the run's directory; every rank learns it, or that it cannot be used."""
    run, errors = None, []
    if world.rank == 0:
        try:
            run = rundir.choose(cfg)
            if run.status != "finished":
                held.enter_context(rundir.hold(run.path))
                rundir.prepare(run, cfg)
        except ConfigError as error:
            errors = error.errors
    run, errors = world.broadcast((run, errors))
    if run is None or errors:
        raise ConfigError(errors)
    return run


def _device_name(world: World) -> str:
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"


def _peak_flops(cfg: Config, world: World) -> float | None:
    peak = device_peak(_device_name(world), cfg.precision.linears)
    return peak * world.size if peak else None
