"""Crops asked from a server over HTTP that answers well, badly, late or not at all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.corpora.captions.describe.caption_server import caption_server
from tests.trainer.corpora.captions.made_crops import good_answer, made_crop
from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.describe.ask import GIVE_UP, Asked, Question, asking
from trainer.corpora.captions.describe.budget import Budget
from trainer.corpora.captions.describe.captioner import Captioner, Endpoint
from trainer.corpora.captions.describe.outcomes import caption_in, failure_of
from trainer.data.errors import DataError
from trainer.storage.ledger import Ledger

CROPS = [made_crop(number) for number in range(12)]


def run(
    ledger: Path, url: str, crops: Sequence[Crop] = CROPS, *, budget: Budget | None = None, **endpoint: Any
) -> tuple[Asked, dict[int, str]]:
    """Return what was asked, and the outcome of each crop that has an entry: the caption or the reason without one."""
    one = Endpoint(url, "m", **{"concurrency": 4, "timeout": 20, "retries": 3, "backoff": 0.01, **endpoint})
    budget = budget or Budget()
    with Ledger(ledger) as entries, asking({"general": Captioner(one, "--general")}, budget) as asker:
        asked = asker.ask((Question(crop, f"Describe {crop.page}.", "general") for crop in crops), entries)
        found = {}
        for crop in crops:
            entry = entries.get(asked.keys[crop.id])
            if entry is not None:
                assert entry["crop"] == crop.id
                found[crop.page - 1] = failure_of(entry) or caption_in(entry["text"])
    return asked, found


def test_each_crop_is_asked_once_side_by_side_with_its_image_and_prompt(tmp_path):
    with caption_server(lambda number, before: "slow 0.02") as server:
        asked, found = run(tmp_path / "ledger", server.url)
        assert 1 < server.most <= 4
        assert asked.counts == {"asked": len(CROPS)}
        assert found == {number: good_answer(number) for number in range(len(CROPS))}
        assert server.asked == Counter(range(len(CROPS)))
        assert {(b["model"], b["max_tokens"], b["temperature"], "seed" in b) for b in server.bodies} == {
            ("m", 2048, 0.0, False)
        }
        again, same = run(tmp_path / "ledger", server.url)
    assert again.counts == {"found": len(CROPS)}
    assert same == found
    assert server.asked == Counter(range(len(CROPS)))


def test_bad_answers_are_outcomes_and_misbehaviour_is_tried_again(tmp_path):
    ways = ("well", "refuse", "filter", "cut", "empty", "think", "429", "503", "drop", "aborted", "400", "uncounted")
    once = {"429", "503", "drop", "aborted"}

    def behave(number: int, before: int) -> str:
        how = ways[number % len(ways)]
        return "well" if how.split()[0] in once and before == 1 else how

    with caption_server(behave) as server:
        asked, found = run(tmp_path / "ledger", server.url)
        wanted = {"refuse": "refused", "filter": "refused", "cut": "cut", "empty": "empty", "400": "rejected",
                  "think": "A plot of one curve."}  # fmt: skip
        for number in range(len(CROPS)):
            how = ways[number % len(ways)]
            assert found[number] == wanted.get(how, good_answer(number)), how
            assert server.asked[number] == (2 if how.split()[0] in once else 1), how
        assert asked.counts == {"asked": len(CROPS)}
        before = server.asked.total()
        assert run(tmp_path / "ledger", server.url)[1] == found  # bad answers are not asked again either
        assert server.asked.total() == before
        longer, _ = run(tmp_path / "ledger", server.url, max_tokens=4096)
    assert longer.counts == {
        "asked": 1,
        "found": len(CROPS) - 1,
    }  # the one that was cut


def test_the_wait_that_a_server_asks_for_is_kept(tmp_path):
    with caption_server(lambda number, before: "well" if before else "503 1") as server:
        run(tmp_path / "ledger", server.url, CROPS[:2])
        waits = [second - first for first, second in server.times.values()]
    assert min(waits) >= 1.0


def test_a_slow_answer_is_given_up_at_its_timeout_and_asked_again_by_the_next_start(tmp_path):
    with caption_server(lambda number, before: "slow 9" if number == 3 and before < 2 else "well") as server:
        asked, found = run(tmp_path / "ledger", server.url, CROPS[:6], timeout=0.4, retries=1)
        assert (asked.counts, list(asked.failures)) == ({"asked": 5, "failed": 1}, [CROPS[3].id])
        assert sorted(found) == [0, 1, 2, 4, 5]
        asked, found = run(tmp_path / "ledger", server.url, CROPS[:6], timeout=20)
    assert asked.counts == {"asked": 1, "found": 5}
    assert found[3] == good_answer(3)


@pytest.mark.parametrize(("limit", "most"), [({"requests": 7}, 7), ({"tokens": 4000}, 9), ({"money": 0.004}, 8)])
def test_a_budget_is_not_exceeded_and_a_larger_one_continues(tmp_path, limit, most):
    price = {"price_in": 1.0, "price_out": 2.0, "max_tokens": 200}
    with caption_server() as server:
        budget = Budget(**limit)
        run(tmp_path / "ledger", server.url, CROPS[:1], budget=budget, **price)  # the length of prompts is known now
        with pytest.raises(DataError) as caught:
            run(tmp_path / "ledger", server.url, budget=budget, **price)
        assert caught.value.where == "budget"
        spent = budget.spent
        assert 0 < server.asked.total() == spent.requests <= most
        assert all(getattr(spent, name) <= value for name, value in limit.items())
        asked, found = run(tmp_path / "ledger", server.url, budget=Budget(spent=spent), **price)
    assert asked.counts == {"asked": len(CROPS) - spent.requests, "found": spent.requests}
    assert server.asked == Counter(range(len(CROPS)))
    assert len(found) == len(CROPS)


def test_at_the_end_of_the_time_what_was_sent_is_kept_and_nothing_else_is_sent(tmp_path):
    with caption_server(lambda number, before: "slow 0.3") as server:
        with pytest.raises(DataError) as caught:
            run(tmp_path / "ledger", server.url, budget=Budget(seconds=0.5))
        assert caught.value.where == "budget"
        sent = server.asked.total()
        assert 4 <= sent < len(CROPS)
        asked, _ = run(tmp_path / "ledger", server.url)
    assert asked.counts["found"] == sent
    assert set(server.asked.values()) == {1}


def test_answers_without_a_count_of_tokens_cost_the_longest_answer(tmp_path):
    with caption_server(lambda number, before: "uncounted") as server:
        budget = Budget()
        run(tmp_path / "ledger", server.url, CROPS[:3], budget=budget, max_tokens=500)
    assert (budget.spent.requests, budget.spent.tokens) == (3, 1500)


def test_a_captioner_that_is_down_ends_the_work_and_the_rest_is_asked_later(tmp_path):
    with caption_server(lambda number, before: "well" if number < 2 else "500") as server:
        crops = [made_crop(number) for number in range(GIVE_UP + 30)]
        started = time.monotonic()
        with pytest.raises(DataError) as caught:
            run(tmp_path / "ledger", server.url, crops, retries=0)
        assert time.monotonic() - started < 10
        assert caught.value.where == "--general"
        server.behaviour = lambda number, before: "well"
        asked, found = run(tmp_path / "ledger", server.url, crops)
    assert asked.counts == {"asked": len(crops) - 2, "found": 2}
    assert len(found) == len(crops)


def test_a_key_goes_with_each_request_and_into_no_error_or_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONS_KEY", "secret-1234")
    with caption_server() as server:
        run(tmp_path / "ledger", server.url, CROPS[:3], api_key_env="CAPTIONS_KEY")
        assert server.keys == {"Bearer secret-1234"}
        server.behaviour = lambda number, before: "401"
        with pytest.raises(DataError) as caught:
            run(tmp_path / "ledger", server.url, api_key_env="CAPTIONS_KEY")
    assert [fault for fault in caught.value.faults if "secret" not in fault.text] == list(caught.value.faults)
    assert b"secret" not in (tmp_path / "ledger").read_bytes()
    monkeypatch.setenv("CAPTIONS_KEY", " ")
    with pytest.raises(DataError) as caught:
        run(tmp_path / "ledger", server.url, api_key_env="CAPTIONS_KEY")
    assert caught.value.where == "--general.api_key_env"
