"""A server of another model, or one that cuts answers, is noticed from its answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.printed import error_line
from tests.trainer.rl.servers import scenario
from tests.trainer.rl.servers.http_server import repeating
from trainer.config.model import ModelConfig
from trainer.engine.request import Request
from trainer.rl.rollout.protocol import RolloutError
from trainer.rl.servers.lmdeploy import LMDeployEngine
from trainer.rl.servers.lmdeploy_api import other_model, read_rollout

MODEL = ModelConfig(
    vocab_size=320, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, num_experts=8,
    experts_per_token=4, router_groups=1, expert_width=32, positions="rope", max_position=64,
)  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [None, {"num_layers": 3}, {"experts_per_token": 2}, {"vocab_size": 9}, {"router_groups": 4}],
    ids=["the same", "layers", "experts of a token", "vocabulary", "router groups"],
)
def test_another_model_is_refused_when_connecting(changed):
    exchanges = [one for one in scenario.recorded() if one.server == "full"]
    with repeating("full", exchanges, []) as url:
        if changed is None:
            LMDeployEngine(url, model=MODEL).close()
            return
        with pytest.raises(RolloutError) as raised:
            LMDeployEngine(url, model=replace(MODEL, **changed))
    assert raised.value.value == "model"
    assert error_line("\n".join(raised.value.lines))


def test_experts_of_other_groups_show_another_model():
    reply = {"meta_info": {"output_top_logprobs": [[[-1.0, 5]]]}}
    grouped = replace(MODEL, router_groups=4)
    routes = np.array([[[0, 2, 4, 6], [1, 3, 5, 7]]], np.uint16)
    assert other_model(reply, routes, grouped) is None
    assert other_model(reply, routes[..., ::-1], grouped) is not None
    assert other_model(reply, None, grouped) is None


@pytest.mark.parametrize(("asked", "fits"), [(2, True), (3, False)])
def test_an_answer_that_is_shorter_than_its_limit_was_cut_by_the_server(asked, fits):
    reply = {
        "output_ids": [7, 7],
        "meta_info": {
            "prompt_tokens": 1, "completion_tokens": 2, "finish_reason": {"type": "length"},
            "output_token_logprobs": [[-1.5, 7]] * 2, "routed_experts": None,
        },
    }  # fmt: skip
    ask = lambda: read_rollout(reply, Request([1], asked), 0, routes=False, store=lambda _: None)  # noqa: E731
    if fits:
        assert len(ask().ids) == 2
    else:
        with pytest.raises(ValueError, match="session-len"):
            ask()
