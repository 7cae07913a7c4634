"""The requirements of each pipeline schedule, and the stages of each rank. No torch here: configurations are checked
with it before torch is loaded.

The schedules are torch's own (torch/distributed/pipelining/schedules.py): 1F1B (Narayanan et al. 2021,
arXiv:2104.04473, section 2.2.1), interleaved 1F1B (the same, 2.2.2), zero bubble (Qi et al. 2023, arXiv:2401.10241) in
its interleaved form and in a V (Qi et al. 2024, arXiv:2405.15362), and DualPipeV (DeepSeek-AI 2025: half of DualPipe).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from parallel.errors import UserError, one_of


class PipelineError(UserError):
    """A schedule that cannot run; `where` is the key, `allowed` the values that work."""


@dataclass(frozen=True)
class Rule:
    """The requirements of a schedule.

    torch_name: class in torch.distributed.pipelining. stages_per_rank: all numbers that work, or None for any of 1 or
    more; the first is the default. in_a_v: the stages run down the ranks and up again, so that the first rank has the
    first and the last. splits_backward: gradients of inputs and of weights are made at different times, for which
    autograd runs a fused backward function twice and recomputes a block once for each weight.
    """

    torch_name: str
    stages_per_rank: tuple[int, ...] | None
    in_a_v: bool = False
    splits_backward: bool = False


RULES = {
    "1f1b": Rule("Schedule1F1B", (1,)),
    "interleaved_1f1b": Rule("ScheduleInterleaved1F1B", None),
    "interleaved_zero_bubble": Rule("ScheduleInterleavedZeroBubble", None, splits_backward=True),
    "zbv": Rule("ScheduleZBVZeroBubble", (2,), in_a_v=True, splits_backward=True),
    "dualpipev": Rule("ScheduleDualPipeV", (2,), in_a_v=True, splits_backward=True),
}
# torch frees gathered weights of the stages that are not among the next three to run, and gathers them again.
MOST_STAGES_PER_RANK = 3


@dataclass(frozen=True)
class Plan:
    """The stages of a pipeline on its ranks.

    Raises PipelineError for a number of stages that the schedule does not take.
    """

    schedule: str = "1f1b"
    ranks: int = 1
    stages_per_rank: int = 1

    @staticmethod
    def resolve(schedule: str, ranks: int, stages_per_rank: int = 0) -> Plan:
        """The plan of a schedule; `stages_per_rank` 0 selects the schedule's default."""
        allowed = RULES[schedule].stages_per_rank or (2, 3)
        return Plan(schedule, ranks, stages_per_rank or allowed[0])

    def __post_init__(self) -> None:
        allowed = self.rule.stages_per_rank or tuple(range(1, MOST_STAGES_PER_RANK + 1))
        if self.stages_per_rank in allowed:
            return
        others = [name for name, rule in RULES.items() if self.stages_per_rank in (rule.stages_per_rank or (2, 3))]
        other = f", or parallel.schedule={one_of(tuple(others))}" if others else ""
        raise PipelineError(
            f"parallel.schedule={self.schedule} takes parallel.stages_per_rank={one_of(allowed)}, not "
            f"{self.stages_per_rank}; use parallel.stages_per_rank={allowed[0]}{other}",
            where="parallel.stages_per_rank",
            value=self.stages_per_rank,
            allowed=allowed,
        )

    @property
    def rule(self) -> Rule:
        return RULES[self.schedule]

    @property
    def stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.ranks * self.stages_per_rank

    @property
    def owners(self) -> list[int]:
        """The rank of each stage, counted inside the pipeline."""
        if self.rule.in_a_v:
            return [*range(self.ranks), *reversed(range(self.ranks))]
        return [stage % self.ranks for stage in range(self.stages)]

    def of_rank(self, rank: int) -> list[int]:
        """The stages of a rank, in order."""
        return [stage for stage, owner in enumerate(self.owners) if owner == rank]

    def in_flight(self, rank: int, micro_batches: int) -> int:
        """The most micro-batches in flight on a rank at one time. A micro-batch counts once for each stage of the rank,
        from its forward pass to the end of its backward pass."""
        every = micro_batches * self.stages_per_rank
        after = self.ranks - 1 - rank
        return min(every, {
            "1f1b": after + 1,
            "interleaved_1f1b": (self.stages_per_rank - 1) * self.ranks + 2 * after + 1,
            "interleaved_zero_bubble": self.stages,
            "zbv": self.stages,
            "dualpipev": self.stages + 1,
        }[self.schedule])  # fmt: skip

    def steady(self, micro_batches: int) -> int:
        """The fewest micro-batches, at most `micro_batches`, that reach the steady state: every rank has as many in
        flight as with any larger number, and gradients of earlier ones."""
        for fewer in range(self.stages + 2, micro_batches):
            if self.takes(fewer):
                return fewer
        return micro_batches

    def at_least(self, micro_batches: int) -> int:
        """The fewest micro-batches with which the schedule can run, `micro_batches` or more."""
        return next(more for more in count(max(1, micro_batches)) if self.takes(more))

    def require(self, micro_batches: int, of_step: int) -> None:
        """Raise PipelineError for a number of micro-batches that the schedule does not take.

        of_step: sequences of one micro-batch over all ranks, so that the remedy can be a train.global_batch."""
        fit = [n for n in range(max(1, micro_batches - self.stages), micro_batches + 4 * self.stages) if self.takes(n)]
        if micro_batches in fit:
            return
        near = tuple(sorted(sorted(fit, key=lambda n: abs(n - micro_batches))[:2]))
        batches = tuple(n * of_step for n in near)
        raise PipelineError(
            f"parallel.schedule={self.schedule} with {self.stages} stages on {self.ranks} ranks cannot run "
            f"{micro_batches} micro-batch(es) a step; use train.global_batch={one_of(batches)}",
            where="train.global_batch",
            value=micro_batches * of_step,
            allowed=batches,
        )

    def takes(self, micro_batches: int) -> bool:
        """Return True for a number of micro-batches with which the schedule can run."""
        if self.schedule in ("1f1b", "dualpipev"):
            return micro_batches >= self.stages
        if self.schedule == "zbv":
            return micro_batches >= 1
        return micro_batches % max(1, micro_batches // self.ranks) == 0
