"""The alarm of a growing mismatch, on series made by hand and in a run whose engine is disturbed."""

from __future__ import annotations

import json
import math
import random
from contextlib import nullcontext

import pytest
import torch

from tests.trainer.rl.toy import run_toy
from tests.trainer.tiny_run import events
from trainer.rl import alarm as module
from trainer.rl.alarm import EARLY, FLOOR, K3, QUIET, TIMES, MismatchAlarm
from trainer.rl.rollout.embedded import Embedded


def lines(values, first=1):
    return [{"step": step, K3: value, "masked/mis_low": 0.01} for step, value in enumerate(values, first)]


def alarms(values, floor=FLOOR):
    """The steps that are reported, and the field of every line."""
    found = MismatchAlarm(floor)
    fields = [found.fields(line) for line in lines(values)]
    return [step for step, _ in found.reports], [one["mismatch/alarm"] for one in fields]


def test_a_mismatch_of_more_than_five_early_medians_is_reported_though_the_masked_share_is_flat():
    early = [1e-4 * (0.5 + number / EARLY) for number in range(EARLY)]
    median = (early[EARLY // 2] + early[EARLY // 2 - 1]) / 2
    random.Random(0).shuffle(early)
    at, fields = alarms([*early, TIMES * median, 0.99 * TIMES * median, 1.01 * TIMES * median, 1.0])
    assert at == [EARLY + 3]
    assert fields == [*[None] * EARLY, 0, 0, 1, 1]


def test_steps_without_tokens_count_for_nothing():
    at, fields = alarms([None, *[1e-3] * (EARLY - 1), None, 1e-3, None, 6e-3])
    assert at == [EARLY + 4]
    assert fields[-4:] == [None, None, None, 1]


def test_what_is_not_a_number_is_an_alarm_and_no_early_step():
    """In the record it is a text, as JSON has no other way."""
    assert alarms(["nan", *[1e-3] * EARLY, math.inf, "nan"]) == ([EARLY + 2], [*[None] * (EARLY + 1), 1, 1])


@pytest.mark.parametrize(
    ("floor", "early", "later", "expected"),
    [
        (FLOOR, 0.0, [1e-14, 2e-7, FLOOR, 1.1 * FLOOR], [0, 0, 0, 1]),
        (FLOOR, 3e-14, [2e-13, 2e-7, 1.1 * FLOOR], [0, 0, 1]),
        (FLOOR, 1e-6, [1.1e-6, 4.9e-6, 5.1e-6], [0, 0, 1]),
        (0.0, 0.0, [0.0, 0.0, 1e-17, 0.0], [0, 0, 1, 0]),
    ],
)
def test_near_zero_the_floor_decides(floor, early, later, expected):
    """In exact arithmetic it is 0: any difference is one too many."""
    _, fields = alarms([*[early] * EARLY, *later], floor)
    assert fields[EARLY:] == expected


def test_one_that_stays_is_reported_once_and_again_after_quiet_steps():
    loud, quiet = 1e-2, 1e-3
    values = [*[quiet] * EARLY, *[loud] * 3, quiet, loud, *[quiet] * QUIET, loud, loud]
    at, _ = alarms(values)
    assert at == [EARLY + 1, EARLY + 6 + QUIET]


def test_steps_with_tokens_of_older_weights_count_for_nothing_where_rollouts_are_ahead():
    found = MismatchAlarm(fresh=True)
    early = [{**line, "staleness/max": age} for line in lines([1e-3] * EARLY) for age in (0, 3)]
    late = [{**line, "staleness/max": age} for line in lines([1e-2] * 2, first=EARLY + 1) for age in (3, 0)]
    assert {found.fields(line)["mismatch/alarm"] for line in early} == {None}
    assert [found.fields(line)["mismatch/alarm"] for line in late] == [None, 1, None, 1]
    assert found.median == 1e-3


@pytest.mark.parametrize("cut", [0, 3, EARLY, EARLY + 2, EARLY + 8])
def test_a_resumed_run_is_compared_with_its_own_start(tmp_path, cut):
    values = [*[1e-3] * EARLY, 1e-2, 1e-3, *[1e-2] * 8]
    whole = MismatchAlarm()
    expected = [whole.fields(line) for line in lines(values)]
    path = tmp_path / "metrics.jsonl"
    record = [*lines(values[:cut]), {"step": cut, "event": "warning", "message": "x"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in record))
    resumed = MismatchAlarm.of_record(path)
    assert not resumed.reports
    found = [resumed.fields(line) for line in lines(values[cut:], first=cut + 1)]
    assert found == expected[cut:]
    assert resumed.reports == [report for report in whole.reports if report[0] > cut]


def disturb(monkeypatch, after):
    """Noise in the selection of experts by rollouts of weights that are newer than `after` steps."""
    genuine, generator = Embedded.generate, torch.Generator().manual_seed(1)

    def generate(self, *args, **more):
        patched = nullcontext()
        if self.version > after:
            patched = pytest.MonkeyPatch.context()
        with patched as patch:
            for router in [block.moe.router for stage in self.stages for block in stage.blocks] if patch else ():
                logits = router.logits
                noisy = lambda x, logits=logits: (z := logits(x)) + 0.03 * torch.randn(z.shape, generator=generator)  # noqa: E731
                patch.setattr(router, "logits", noisy, raising=False)
            return genuine(self, *args, **more)

    monkeypatch.setattr(Embedded, "generate", generate)


def test_a_run_warns_when_its_engine_starts_to_differ(tmp_path, monkeypatch):
    """Also where it is resumed in between: the early steps are those of its first start."""
    monkeypatch.setattr(module, "EARLY", 3)
    words = ("train.global_batch=8", "rl.group_size=8", "rl.replay=record")
    disturb(monkeypatch, after=5)
    usual = run_toy(tmp_path / "run", *words, "train.steps=6")
    early = [step["mismatch/k3_early"] for step in usual]
    assert early == [None, None, None, 0.0, 0.0, 0.0], "a step without tokens would come later"
    assert [step["mismatch/alarm"] for step in usual] == [None, None, None, 0, 0, 0]
    assert not events(tmp_path / "run", "warning")
    resumed = run_toy(tmp_path / "run", *words, "train.steps=9")
    assert [step["mismatch/k3_early"] for step in resumed[3:]] == [0.0] * 6
    assert [step["mismatch/alarm"] for step in resumed[3:]] == [0, 0, 0, 1, 1, 1]
    assert all(step["masked/mis_low"] + step["masked/mis_high"] < 0.02 for step in resumed)
    (warning,) = [one for one in events(tmp_path / "run", "warning") if K3 in one["message"]]
    assert warning["step"] == 7
