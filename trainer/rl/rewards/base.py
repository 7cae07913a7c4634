"""Questions, rewards of answers to them, and the rewards by name.

    reward = build_reward({"name": "sum", "parts": ["math", "format"], "weights": [1.0, 0.1]})
    verdict = reward(question, "... The answer is \\boxed{42}.")

A reward never raises for what a model wrote: an answer that cannot be read is worth 0, and the verdict says why. It
raises RewardError for a question that it cannot grade, and for options that do not fit.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import wraps
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

from parallel.errors import UserError
from trainer.chat.template import Message
from trainer.config.rl.rewards import check_reward, parts_of, read_options


class RewardError(UserError):
    """A reward that cannot be built, or a question that it cannot grade. `where` is the option or the question."""


def check_package(reward: str, package: str, module: str) -> None:
    """Raise RewardError if the package that a reward imports later is not installed."""
    if find_spec(module) is None:
        remedy = "pip install -e '.[rewards]'"
        text = f"name={reward} needs {package}, which is not installed; {remedy}"
        raise RewardError(text, where="name", value=reward, allowed=remedy)


@dataclass(frozen=True)
class Question:
    """A prompt, and what a reward needs. prompt: a text, or the messages of a conversation. answer: the reference, or a
    list of references, each of them right. data: further values of the record, such as `unit` or `options`."""

    number: int
    prompt: str | Sequence[Message]
    answer: Any
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """value: in [0, 1], unless a combination says otherwise. reason: a sentence for people, empty where there is
    nothing to add."""

    value: float
    reason: str = ""


class Reward(Protocol):
    """Grades answers, on several threads at a time. One whose class has `waits = False` computes its value without a
    process or a server, and is called on one thread. Raises RewardError for a question that it cannot grade."""

    def __call__(self, question: Question, answer: str) -> Verdict: ...


def any_reference(call: Callable[[Any, Question, str], Verdict]) -> Callable[[Any, Question, str], Verdict]:
    """A reward's `__call__` that takes several references, too, and gives the best of their verdicts."""

    @wraps(call)
    def best(self: Any, question: Question, answer: str) -> Verdict:
        if not isinstance(question.answer, list | tuple):
            return call(self, question, answer)
        verdicts = [call(self, replace(question, answer=one), answer) for one in question.answer]
        return max(verdicts, key=lambda verdict: verdict.value)

    return best


@runtime_checkable
class Counting(Protocol):
    """A reward that counts what it did: a judge's requests, answers that ran into a deadline."""

    def counts(self) -> Mapping[str, float]: ...


@runtime_checkable
class Closing(Protocol):
    """A reward that holds processes or connections."""

    def close(self) -> None: ...


# Named, not imported: each module imports its library when it is built.
REWARDS: Mapping[str, str] = {
    "exact": "trainer.rl.rewards.text.Exact",
    "overlap": "trainer.rl.rewards.overlap.Overlap",
    "final": "trainer.rl.rewards.text.Final",
    "format": "trainer.rl.rewards.text.Format",
    "math": "trainer.rl.rewards.math.Math",
    "quantity": "trainer.rl.rewards.quantity.Quantity",
    "choice": "trainer.rl.rewards.choice.Choice",
    "molecule": "trainer.rl.rewards.chemistry.Molecule",
    "code": "trainer.rl.rewards.code.tests.Code",
    "judge": "trainer.rl.rewards.judge.Judge",
    "sum": "trainer.rl.rewards.combine.Sum",
    "product": "trainer.rl.rewards.combine.Product",
    "kind": "trainer.rl.rewards.combine.Kind",
}


def build_reward(cfg: str | Mapping[str, Any], where: str = "rl.reward") -> Reward:
    """The reward of this name, with its options: `exact`, or `{"name": "exact", "case": false}`. Rewards in `parts` are
    built the same way. where: the key that gives it, for errors. Raises RewardError."""
    if faults := [*check_reward(cfg, where)]:
        raise RewardError(faults)
    options = read_options(cfg, where) if isinstance(cfg, str) else cfg
    assert isinstance(options, Mapping)
    module, _, kind = REWARDS[options["name"]].rpartition(".")
    made = getattr(importlib.import_module(module), kind)
    given = {key: value for key, value in options.items() if key != "name"}
    if "parts" in given:
        parts = {at: build_reward(part, f"{where}.{at}") for at, part in parts_of(given["parts"])}
        named = isinstance(given["parts"], Mapping)
        given["parts"] = dict(zip(given["parts"], parts.values(), strict=True)) if named else tuple(parts.values())
    try:
        built: Reward = made(**given)
    except RewardError as error:  # of one option, which knows its name but not its place
        raise RewardError(
            f"{where}.{error}", where=f"{where}.{error.where}", value=error.value, allowed=error.allowed
        ) from None
    return built


@runtime_checkable
class Many(Protocol):
    """A reward, or an environment, in several processes. at_once: requests that these answer side by side."""

    @property
    def at_once(self) -> int: ...


def at_once(of: object, otherwise: int) -> int:
    """The threads that wait for a reward or an environment; `otherwise`, where it is in this process."""
    return of.at_once if isinstance(of, Many) else otherwise


def score_all(reward: Reward, asked: Sequence[tuple[Question, str]], threads: int = 8) -> list[Verdict]:
    """The verdicts on (question, answer) pairs, in their order. Threads wait for judges and processes side by side;
    what waits for neither is quicker without.

    The first error is raised at once: others may still wait for a judge that hangs. `close_reward` ends these.
    """
    if not _waits(reward):
        return [reward(*pair) for pair in asked]
    pool = ThreadPoolExecutor(at_once(reward, threads), thread_name_prefix="reward")
    try:
        futures = [pool.submit(reward, *pair) for pair in asked]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future in done and (error := future.exception()) is not None:
                raise error
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def counts_of(reward: Reward) -> Counter[str]:
    """Figures of a reward and of its parts by name, since it was built."""
    found: Counter[str] = Counter()
    if isinstance(reward, Counting):
        found.update(reward.counts())  # type: ignore[arg-type]
    for part in _parts(reward):
        found.update(counts_of(part))
    return found


def _waits(reward: Reward) -> bool:
    """False for one that computes its value here and now, as its class says by `waits`."""
    parts = _parts(reward)
    return any(map(_waits, parts)) if parts else bool(getattr(reward, "waits", True))


def close_reward(reward: Reward) -> None:
    """End the processes and connections of a reward and of its parts."""
    if isinstance(reward, Closing):
        reward.close()
    for part in _parts(reward):
        close_reward(part)


def _parts(reward: Reward) -> Sequence[Reward]:
    parts = getattr(reward, "parts", ())
    return [*(parts.values() if isinstance(parts, Mapping) else parts)]
