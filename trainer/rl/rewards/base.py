"""Questions, rewards of answers to them, and the rewards by name.

    reward = build_reward({"name": "sum", "parts": ["math", "format"], "weights": [1.0, 0.1]})
    verdict = reward(question, "... The answer is \\boxed{42}.")

A reward never raises for what a model wrote: an answer that cannot be read is worth 0, and the verdict says why. It
raises RewardError for a question that it cannot grade, and for options that do not fit.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from parallel.errors import UserError, one_of
from trainer.chat.template import Message
from trainer.config.say import did_you_mean


class RewardError(UserError):
    """A reward that cannot be built, or a question that it cannot grade. `where` is the option or the question."""


@dataclass(frozen=True)
class Question:
    """A prompt, and what a reward needs. prompt: a text, or the messages of a conversation. answer: the reference.
    data: further values of the record, such as `unit` or `options`."""

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
    def __call__(self, question: Question, answer: str) -> Verdict: ...


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
    "format": "trainer.rl.rewards.text.Format",
    "math": "trainer.rl.rewards.math.Math",
    "quantity": "trainer.rl.rewards.quantity.Quantity",
    "choice": "trainer.rl.rewards.choice.Choice",
    "molecule": "trainer.rl.rewards.chemistry.Molecule",
    "code": "trainer.rl.rewards.code.tests.Code",
    "judge": "trainer.rl.rewards.judge.Judge",
    "sum": "trainer.rl.rewards.combine.Sum",
    "product": "trainer.rl.rewards.combine.Product",
}


def read_options(text: str, where: str) -> Any:
    """The options that a text gives: YAML such as `{name: math, seconds: 5}`; else the text is the name. Raises
    RewardError."""
    if not text.lstrip().startswith("{"):
        return {"name": text}
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        allowed = "a name, or {name: NAME, OPTION: VALUE}"
        said = " ".join(str(error).split())
        raise RewardError(f"{where} cannot be read: {said}; use {allowed}", where=where, value=text,
                          allowed=allowed) from error  # fmt: skip


def build_reward(cfg: str | Mapping[str, Any], where: str = "rl.reward") -> Reward:
    """The reward of this name, with its options: `exact`, or `{"name": "exact", "case": false}`. Rewards in `parts` are
    built the same way. where: the key that gives it, for errors. Raises RewardError."""
    options = read_options(cfg, where) if isinstance(cfg, str) else cfg
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        allowed = "a name, or an object with a name"
        raise RewardError(f"{where} is not {allowed}", where=where, value=cfg, allowed=allowed)
    name = options["name"]
    if name not in REWARDS:
        text = f"{where}={name}: there is no such reward; use {one_of(REWARDS)}{did_you_mean(name, REWARDS)}"
        raise RewardError(text, where=where, value=name, allowed=tuple(REWARDS))
    module, _, kind = REWARDS[name].rpartition(".")
    made = getattr(importlib.import_module(module), kind)
    fields = {one.name: one for one in dataclasses.fields(made) if one.init}
    given = {key: value for key, value in options.items() if key != "name"}
    for key in given:
        if key not in fields:
            text = f"{where}.{key}: the reward {name} has no such option; use {one_of(fields) or 'none'}"
            raise RewardError(
                text + did_you_mean(key, fields), where=f"{where}.{key}", value=key, allowed=tuple(fields)
            )
    for key, one in fields.items():
        if key not in given and one.default is one.default_factory is dataclasses.MISSING:
            text = f"{where}.{key} is missing: the reward {name} needs it"
            raise RewardError(text, where=f"{where}.{key}", allowed="a value")
    if "parts" in given:
        parts = given["parts"]
        if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
            allowed = "a list of rewards"
            raise RewardError(f"{where}.parts is not {allowed}", where=f"{where}.parts", value=parts, allowed=allowed)
        given["parts"] = tuple(build_reward(part, f"{where}.parts[{place}]") for place, part in enumerate(parts))
    try:
        built: Reward = made(**given)
    except RewardError as error:  # of one option, which knows its name but not its place
        raise RewardError(
            f"{where}.{error}", where=f"{where}.{error.where}", value=error.value, allowed=error.allowed
        ) from None
    return built


def score_all(reward: Reward, asked: Sequence[tuple[Question, str]], threads: int = 8) -> list[Verdict]:
    """The verdicts on (question, answer) pairs, in their order. Threads wait for judges and processes side by side."""
    with ThreadPoolExecutor(threads, thread_name_prefix="reward") as pool:
        return list(pool.map(lambda pair: reward(*pair), asked))


def counts_of(reward: Reward) -> Counter[str]:
    """Figures of a reward and of its parts by name, since it was built."""
    found: Counter[str] = Counter()
    if isinstance(reward, Counting):
        found.update(reward.counts())  # type: ignore[arg-type]
    for part in getattr(reward, "parts", ()):
        found.update(counts_of(part))
    return found


def close_reward(reward: Reward) -> None:
    """End the processes and connections of a reward and of its parts."""
    if isinstance(reward, Closing):
        reward.close()
    for part in getattr(reward, "parts", ()):
        close_reward(part)
