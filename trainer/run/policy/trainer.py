"""The training loop of `train.objective=policy`: rounds of rollouts between the steps of `Trainer`.

A round is `rl.updates` steps long. Before its first step the weights get a new version in the rollout engine, and the
producer gives the groups of all its steps; what waits for training is lost when a run is killed, and asked again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from parallel.context.slices import slices
from parallel.errors import UserError
from parallel.layout import Layout
from parallel.mesh import ranks_of_samples
from parallel.world import World
from trainer.config.keys import Config
from trainer.data.batch import Batch
from trainer.metrics.history import RECORD
from trainer.model.exact.switch import make_exact
from trainer.objectives.log_probs import token_log_probs
from trainer.objectives.policy import SUM, Policy
from trainer.objectives.scalars import Scalar, Scalars
from trainer.optim.native import NativeEngine
from trainer.rl.alarm import FLOOR, MismatchAlarm
from trainer.rl.asynchronous.held import UNDER_WAY, name_of, pack_held, read_held
from trainer.rl.batches import Trained, make_batches, pack
from trainer.rl.metrics import facts_of, measure_groups, with_means
from trainer.rl.rewards.base import close_reward
from trainer.rl.rollout.embedded import Embedded, layers_of
from trainer.rl.rollout.led import Led
from trainer.rl.rollout.protocol import Rollout
from trainer.rl.routes import checked_routes
from trainer.rl.servers.remote import Remote
from trainer.rl.tally import Tally
from trainer.rl.workers.placed import PlacedReward
from trainer.run.build import Parts
from trainer.run.directory import RunDir
from trainer.run.loop import Trainer
from trainer.run.policy.engines import build_engine, longest_rollout
from trainer.run.policy.producers import build_producer, questions_ahead
from trainer.run.policy.reference import Reference
from trainer.run.policy.waiting import Ready, hold_steps, needs_old, restore_old, with_old

# on the later lines of a round, by kind: a sum over lines is right, a state was on the first one
LATER: dict[str, int | None] = {"reward": 0, "rollout": None, "rollout_workers": 0}


@dataclass
class _Sync:
    """Seconds and bytes of the weights that were sent since the last line."""

    seconds: float = 0.0
    nbytes: int = 0


class PolicyTrainer(Trainer):
    """Collective over all ranks, as `Trainer`."""

    def __init__(self, cfg: Config, run: RunDir, world: World, parts: Parts) -> None:
        assert isinstance(parts.objective, Policy)
        assert parts.data.questions is not None
        self.objective, self.questions = parts.objective, parts.data.questions
        longest = longest_rollout(cfg, self.questions)
        self.objective.share = parts.forward.share
        if parts.pipeline is not None:
            self.objective.layers = layers_of(parts.stages.values())
        if cfg.rl.exact:
            for stage in parts.stages.values():
                make_exact(stage)
        super().__init__(cfg, run, world, parts)
        context = min(cfg.data.seq_len, cfg.model.max_position)
        self.same, pipeline = ranks_of_samples(parts.meshes.layout if parts.meshes else Layout(), world)
        world.extend_timeouts()
        ahead = questions_ahead(cfg)
        at_once = cfg.train.global_batch * (cfg.rl.updates if ahead else 1) + ahead
        self.engine_name, self.engine = build_engine(
            cfg,
            world,
            parts,
            self.same,
            pipeline,
            rollouts=-(-at_once // parts.place.readers) * cfg.rl.group_size,
            longest=context if cfg.rl.environment else longest,
            version=self.position.step,
        )
        self.led = Led(self.engine, world, self.same)
        self._sent: int | None = None  # the step whose weights the engine has
        self._sync = _Sync()
        self.producer = build_producer(
            cfg, self.questions, self.led, parts.place, name=self.engine_name, context=context
        )
        self.reward = self.producer.reward
        self._tally = Tally(self.reward)
        self._ready: deque[Ready] = deque()
        # Ranks and compiled blocks want passes of one shape, and these losses count padding.
        fixed = world.size > 1 or cfg.train.compile or cfg.model.balance_coef > 0 or cfg.model.z_loss_coef > 0
        self.short = not fixed  # the last batch of a step may have fewer windows
        self.reference = Reference(cfg, run.path, world, parts, self.position.step) if cfg.rl.kl_coef > 0 else None
        floor, fresh = 0.0 if cfg.rl.exact else FLOOR, cfg.rl.max_staleness > 0
        self._alarm = MismatchAlarm(floor, fresh=fresh)
        if world.rank == 0:  # which has cut what a kill left of the last line, and writes the record
            self._alarm = MismatchAlarm.of_record(run.path / RECORD, floor, fresh=fresh)
        self.checkpoints.files = self._files
        self._restore()
        if isinstance(self.reward, PlacedReward) and self.same.rank == 0:  # the ranks that ask
            world.watch.at("start: workers")
            with world.watch.ticking():
                self.reward.start_workers()

    def run(self) -> int:
        try:
            code = super().run()
            self.engine.close()  # collective: after an error the ranks cannot count on each other
            return code
        finally:
            close_reward(self.reward)

    def _next_batches(self) -> list[Batch]:
        if not self._ready:
            with self._saving():
                self._ready.extend(self._start_round())
        return self._ready[0].batches

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Save what was trained before an engine, a judge or an environment fails. Weights and position are whole then,
        but a rank alone does not know whether the others get there."""
        try:
            yield
        except UserError:
            of_engine = isinstance(self.engine, Remote) and self.engine.failed
            everywhere = self.world.size == 1 or of_engine or self.led.failed
            if everywhere and self.position.step:
                self.checkpoints.files = partial(self._files, under_way=False)
                self._save()
                self.checkpoints.complete(self.position, self.log)
            raise

    def _start_round(self) -> list[Ready]:
        """The steps of a round."""
        world, rl, step = self.world, self.cfg.rl, self.position.step
        steps = min(rl.updates, self.cfg.train.steps - step)
        self._send_weights()
        sync, self._sync = self._sync, _Sync()
        world.watch.at(f"step {step + 1}: rollouts")
        with self._serving():
            produced = self.led.lead(lambda: self.producer.produce(self.position.sample, steps))
        counted = self._counted()
        counted |= self._over_ranks("rollout", self.producer.figures() if self.parts.place.counts else {})
        if isinstance(self.engine, Remote):
            counted |= self._over_ranks("rollout_workers", self.engine.counts())
        found: list[Ready] = []
        for number, of_step in enumerate(produced):
            counts = self.parts.place.counts
            of_ranks = world.gather(measure_groups(of_step, step + number) if counts else None)
            facts = facts_of([one for one in of_ranks if one is not None])
            now = sync if number == 0 else _Sync()
            facts |= {"sync/seconds": now.seconds, "sync/bytes": now.nbytes}
            facts |= counted if number == 0 else {name: LATER[name.partition("/")[0]] for name in counted}
            trained = [
                self._trained(group.sample, rollout, float(advantage), member)
                for group in of_step.groups
                if group.teaches
                for member, (rollout, advantage) in enumerate(zip(group.rollouts, group.advantages, strict=True))
            ]
            found.append(Ready(trained, self._batches(trained), facts, of_step.end))
        if needs_old(rl):
            for ready in found:
                ready.batches = [with_old(batch, self._log_probs(batch), rl) for batch in ready.batches]
        self._refer(found)
        return found

    def _serving(self) -> AbstractContextManager[object]:
        """A time of several draws of the run's own modules, whose weights do not change."""
        if self.producer.ahead is None or not isinstance(self.engine, Embedded):
            return nullcontext()
        return self.engine.serving()

    def _refer(self, steps: Sequence[Ready]) -> None:
        """Add the reference's log-probabilities to steps that wait."""
        if self.reference is not None and steps:
            self.world.watch.at(f"step {self.position.step + 1}: reference policy")
            with self.reference.in_place():
                for ready in steps:
                    ready.batches = [self._with_reference(batch) for batch in ready.batches]

    def _send_weights(self) -> None:
        """Give the engine the weights of now, unless it has them: an evaluation may have sent them."""
        step = self.position.step
        if self._sent == step:
            return
        self.world.watch.at(f"step {step + 1}: weights to the rollout engine")
        started = time.perf_counter()
        self.producer.stop()
        self.engine.pause()
        self.engine.load((), step)
        self.engine.resume()
        self._sent = step
        sent = self.engine.last_sync if isinstance(self.engine, Remote) else None
        self._sync.seconds += time.perf_counter() - started if sent is None else sent.seconds
        self._sync.nbytes += 0 if sent is None else sent.nbytes

    def _counted(self) -> dict[str, float]:
        """Figures of the reward on all ranks since the last call, such as `reward/judge/cost`."""
        return self._over_ranks("reward", self._tally.since())

    def _over_ranks(self, kind: str, figures: Mapping[str, float]) -> dict[str, float]:
        """Figures summed over all ranks, under names of their kind."""
        of_ranks = self.world.gather(dict(figures))
        names = sorted(set().union(*of_ranks))
        return {f"{kind}/{name}": sum(one.get(name, 0) for one in of_ranks) for name in names}

    def _files(self, *, under_way: bool = True) -> dict[str, bytes]:
        """The rollouts that wait, and those under way unless these are lost with the engine, for a checkpoint."""
        if under_way:
            try:
                self.producer.stop()
            except UserError:
                if not (isinstance(self.engine, Remote) and self.engine.failed):
                    raise
                under_way = False  # the next round raises it again, on all ranks
        place = self.parts.place
        held = hold_steps(self._ready, self.cfg.data.seq_len)
        held += self.producer.held() if under_way else []
        steps = [{"facts": ready.facts, "end": ready.end} for ready in self._ready]
        if not place.counts or not (held or steps):
            return {}
        return {name_of(place.reader, place.readers): pack_held(held, steps)}

    def _restore(self) -> None:
        """Continue with the rollouts of the checkpoint."""
        place, rl = self.parts.place, self.cfg.rl
        held, steps = read_held(self.checkpoints.loaded, place.reader, place.readers)
        self.producer.restore([one for one in held if one.step == UNDER_WAY])
        for number, step in enumerate(steps):
            mine = [one for one in held if one.step == number]
            trained = [self._trained(one.sample, one.rollout, one.advantage, one.member) for one in mine]
            batches = self._batches(trained)
            if needs_old(rl):
                batches = restore_old(mine, batches, [one.length for one in trained], self.cfg.data.seq_len, rl)
            self._ready.append(Ready(trained, batches, step["facts"], step["end"]))
        self._refer(self._ready)

    def _trained(self, sample: int, rollout: Rollout, advantage: float, member: int) -> Trained:
        cfg = self.cfg
        routes = None if cfg.rl.replay == "off" else checked_routes(rollout, cfg.model, self.engine_name, member)
        return Trained(sample, rollout, advantage, routes)

    def _batches(self, trained: Sequence[Trained]) -> list[Batch]:
        """Micro-batches of what teaches, equally many on every rank."""
        cfg, model = self.cfg, self.cfg.model
        windows = pack([one.length for one in trained], cfg.data.seq_len)
        micro = cfg.train.micro_batch
        needed = max(1, *self.world.gather_count(-(-len(windows) // micro)))
        if self.parts.pipeline is not None:
            needed = self.parts.pipeline.plan.at_least(needed)
        return make_batches(
            trained,
            windows,
            micro_batches=needed,
            micro_batch=micro,
            seq_len=cfg.data.seq_len,
            model=model,
            padding=self.questions.tokenizer.eos_id,
            routed=cfg.rl.replay != "off",
            layers=self.objective.layers,
            short=self.short,
        )

    def _with_reference(self, batch: Batch) -> Batch:
        """The batch with the log-probabilities of its tokens under the weights of the reference, which are in place,
        with the experts that are replayed in training."""
        return replace(batch, extra={**batch.extra, "reference": self._log_probs(batch)})

    @torch.no_grad()
    def _log_probs(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities of a batch's labels under the weights in place, of its shape, on the CPU."""
        assert batch.labels is not None
        share, labels = self.parts.forward.share, batch.labels.flatten()
        moved = batch.part(share).to(self.world.device)
        found, own = self.parts.forward(self.objective.inputs(moved)), None
        if found is not None:
            assert moved.labels is not None
            of_part, chunk = moved.labels.flatten(), self.objective.chunk
            own = token_log_probs(found.model, found.hidden.flatten(0, 1), of_part, chunk).cpu()
        log_probs = torch.zeros(labels.shape)
        for part, values in self.same.gather((share.rank, own)):
            if values is not None:  # of a rank with the last stage
                pieces = slices(share.kind, len(labels), share.ranks)[part]
                for piece, some in zip(pieces, values.split([len(piece) for piece in pieces]), strict=True):
                    log_probs[piece.start : piece.stop] = some
        return log_probs.view(batch.labels.shape)

    def _train_step(self, batches: list[Batch], counts: dict[str, int]) -> None:
        ready, started = self._ready.popleft(), time.perf_counter()
        if self.objective.compared is not None:
            self.objective.compared.zero_()
        super()._train_step(batches, counts)
        self.position.sample = ready.end
        facts, totals = self.unread[-1]
        if self.objective.compared is not None:
            pairs, flips = self.objective.compared.clone()
            totals.add(Scalars({f"{SUM}compared": Scalar(pairs), f"{SUM}flips": Scalar(flips)}))
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()  # the next rollouts wait for it anyway
        seconds = time.perf_counter() - started
        rate = facts["tokens"] / max(seconds, 1e-9)
        facts |= {
            **ready.facts,
            "empty": int(not counts["units"]),
            "train/seconds": seconds,
            "train/tokens_per_second": rate,
        }

    def _update(self, units: int) -> dict[str, torch.Tensor]:
        """As of `Trainer`. A step in which nothing is trained on is not one of zero gradients, by which moments and
        weight decay would move the weights."""
        if units:
            return super()._update(units)
        assert isinstance(self.parts.engine, NativeEngine)
        step = self.position.step
        text = f"step {step} has nothing to train on: the rollouts of each question are worth the same; its weights"
        self._warn_once("empty step", f"{text} and moments stay; the record counts such steps as `empty`")
        return self.parts.engine.drop_gradients()

    def _record(self, record: dict[str, Any]) -> dict[str, Any]:
        found = with_means(record)
        return {**found, **self._alarm.fields(found)}

    def _read_metrics(self) -> None:
        super()._read_metrics()
        for step, text in self._alarm.reports:
            self._event("warning", step=step, message=text)
        self._alarm.reports.clear()

    def _measure(self) -> dict[str, Any]:
        """The share of held-out questions whose most likely answer is right, and what these are worth, by source."""
        with self._saving():
            return self._measure_answers()

    def _measure_answers(self) -> dict[str, Any]:
        place, world, found = self.parts.place, self.world, dict[str, dict[str, float]]()
        self._send_weights()
        for source, asked in self.questions.heldout.items():
            some = asked[: self.cfg.rl.eval_questions][place.reader :: place.readers]
            _, values = self.led.lead(partial(self.producer.answer, some))
            of_ranks = world.gather(values if place.counts else None)
            every = [float(value) for of_rank in of_ranks if of_rank is not None for value in of_rank]
            for name, value in (
                ("heldout_accuracy", sum(value >= 1 for value in every) / len(every)),
                ("heldout_reward", sum(every) / len(every)),
            ):
                found.setdefault(name, {})[source] = value
        return {**found, **self._counted()}
