"""Figures of rollouts and of the mismatch on the line of every step of `train.objective=policy`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from trainer.objectives.policy import EDGES, SUM
from trainer.rl.producer import Produced


def measure_groups(produced: Produced, version: int) -> dict[str, Any]:
    """Sums over this rank's groups, and the numbers of their questions, for `facts_of`. version: of the weights that
    are trained now."""
    groups = produced.groups
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [float(value) for group in groups for value in group.rewards]
    ages = [version - int(of_token) for rollout in rollouts for of_token in rollout.versions]
    return {
        "groups": len(groups),
        "dropped": sum(not group.teaches for group in groups),
        "rollouts": len(rollouts),
        "reward": sum(rewards),
        "solved": sum(value >= 1 for value in rewards),
        "tokens": sum(len(rollout.ids) for rollout in rollouts),
        "prompt_tokens": sum(len(rollout.prompt) for rollout in rollouts),
        "longest": max((len(rollout.ids) for rollout in rollouts), default=0),
        "cut": sum(rollout.finish != "stop" for rollout in rollouts),
        "age": sum(ages),
        "oldest": max(ages, default=0),
        "questions": [group.sample for group in groups],
        **{f"seconds_{name}": value for name, value in produced.seconds.items()},
        **{f"figure_{name}": value for name, value in produced.figures.items()},
    }


def facts_of(of_ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of a step from the sums of all ranks that read questions of their own. Those of rollouts are None where
    there is none: a round may have too few questions that teach for its last steps."""

    def total(name: str) -> float:
        return sum(one.get(name, 0) for one in of_ranks)

    figures = dict.fromkeys(name for one in of_ranks for name in one if name.startswith("figure_"))
    rollouts, tokens = total("rollouts"), total("tokens")

    def mean(name: str, count: float) -> float | None:
        return total(name) / count if count else None

    def largest(name: str) -> int | None:
        return int(max(one[name] for one in of_ranks)) if rollouts else None

    seconds = max(one["seconds_rollout"] for one in of_ranks)
    return {
        "reward/mean": mean("reward", rollouts),
        "solve_rate": mean("solved", rollouts),
        "questions": spans(number for one in of_ranks for number in one["questions"]),
        "groups": int(total("groups")),
        "groups/dropped": int(total("dropped")),
        "length/mean": mean("tokens", rollouts),
        "length/max": largest("longest"),
        "length/cut": mean("cut", rollouts),
        "staleness/mean": mean("age", tokens),
        "staleness/max": largest("oldest"),
        "rollout/seconds": seconds,
        "rollout/tokens_per_second": total("tokens") / max(seconds, 1e-9),
        "reward/seconds": max(one["seconds_reward"] for one in of_ranks),
        **{name.removeprefix("figure_"): mean(name, rollouts) for name in figures},
    }


def spans(numbers: Iterable[int]) -> list[list[int]]:
    """The first and the last of each run of consecutive numbers, in ascending order."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def with_means(record: Mapping[str, Any]) -> dict[str, Any]:
    """A step's record with means over its trained tokens in the place of sums; null where there is none."""
    found = {name: value for name, value in record.items() if not name.startswith(SUM)}
    sums = {name.removeprefix(SUM): value for name, value in record.items() if name.startswith(SUM)}
    tokens = record["tokens"]

    def mean(value: float) -> float | None:
        return value / tokens if tokens else None

    bins = [int(sums.pop(f"bin_{number}")) for number in range(len(EDGES) + 1)]
    ratio, squared, flips = sums.pop("ratio"), sums.pop("ratio_squared"), sums.pop("flips", None)
    compared = sums.pop("compared", 0)
    found |= {name: mean(value) for name, value in sums.items()}
    found["mismatch/ess"] = ratio**2 / (squared * tokens) if tokens else None
    found["mismatch/histogram"] = dict(zip(bin_names(), bins, strict=True))
    if flips is not None:
        found["replay/flip_rate"] = flips / compared if compared else None
    return found


def bin_names() -> list[str]:
    """Names of the bins of mismatch/histogram, by their bounds."""
    inner = [f"{low:g} to {high:g}" for low, high in pairwise(EDGES)]
    return [f"up to {EDGES[0]:g}", *inner, f"over {EDGES[-1]:g}"]
