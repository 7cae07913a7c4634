"""Options that save memory: by as much as the fake build predicts, and without another result; and what the router's
choices cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from parallel.memory import kept
from parallel.memory.live import Peak
from tests.distributed.pool import on_ranks
from tests.trainer.live_run import SMALL, live_step
from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import Config, ParallelConfig, PrecisionConfig
from trainer.config.memory import rank_memory
from trainer.config.ranks import map_ranks
from trainer.model.router import Router
from trainer.run.simulate import simulate_rank

VOCAB, HIDDEN, LAYERS, TOKENS = 96, 32, 4, 256  # tokens of a rank: so many that activations are more than weights
STATE = TOKENS * HIDDEN * 4  # bytes of the hidden states of all tokens
MODEL = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_layers": LAYERS, "num_experts": 8, "experts_per_token": 8,
    "router_groups": 8, "expert_width": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def copy_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LEAST", SMALL)


def config(precision: dict[str, str] | None = None, **train: Any) -> Config:
    cfg = tiny_config("unused", model=MODEL, micro_batch=1, global_batch=1, **{"loss_chunk": 32} | train)
    cfg = replace(cfg, data=replace(cfg.data, seq_len=TOKENS))
    return replace(cfg, precision=replace(cfg.precision, **precision or {}))


@cache
def predicted_plain() -> int:
    return simulate_rank(config(), 1, 0).peak.total


@cache
def plain() -> tuple[Peak, Tensor]:
    return live_step(config())


# train.* -> how much less the peak must be at least, in hidden states
OPTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "selective": ({"recompute": "selective"}, 20),
    "attention": ({"recompute": "attention"}, 4),
    "experts": ({"recompute": "experts"}, 20),
    "full": ({"recompute": "full"}, 30),
    "offload": ({"offload_activations": True}, 15),
    "offload, full": ({"recompute": "full", "offload_activations": True}, 30),
}
QUICK = {"experts", "offload"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in OPTIONS])
def test_an_option_saves_what_is_predicted_and_changes_no_bit(name):
    train, least = OPTIONS[name]
    cfg = config(**train)
    peak, weights = live_step(cfg)
    assert torch.equal(weights, plain()[1])
    predicted = simulate_rank(cfg, 1, 0).peak
    assert predicted.total == pytest.approx(peak.total, rel=0.01)
    assert predicted.host == peak.host
    assert (peak.host > 0) == ("offload" in name)
    saved = predicted_plain() - predicted.total
    assert saved == pytest.approx(plain()[0].total - peak.total, rel=0.02)
    assert saved > least * STATE


def test_the_head_holds_one_chunk_of_logits_and_its_gradients():
    """Two buffers of a chunk's logits; the gradients of the head's weight and of the hidden states; all in fp32."""
    live, chunk = simulate_rank(config(loss_chunk=24), 1, 0).live, 24 * VOCAB * 4
    sizes = Counter((a.operator, a.nbytes) for a in live.allocations if a.where == "forward")
    assert sizes["new_empty", chunk] == 2
    assert sizes["zeros_like", VOCAB * HIDDEN * 4] == 1
    assert sizes["empty_like", STATE] >= 1


def test_inputs_of_blocks_kept_in_fp8_are_a_quarter_of_fp32_and_change_gradients_by_their_rounding():
    found = {}
    for form in ("exact", "fp8"):
        cfg = config({"experts": "fp8_reference", "kept": form}, recompute="full")
        found[form] = live_step(cfg)
        assert simulate_rank(cfg, 1, 0).peak.total == pytest.approx(found[form][0].total, rel=0.01)
    assert not torch.equal(found["exact"][1], found["fp8"][1])


def test_a_recomputed_block_sends_tokens_to_the_experts_of_its_forward_pass(monkeypatch):
    """Selected anew from the rounded inputs, some would be others."""
    passes: list[tuple[Router, Tensor, Tensor]] = []
    forward = Router.forward

    def noted(router, x, ids=None):
        routed = forward(router, x, ids)
        with torch.no_grad():
            passes.append((router, routed[0], forward(router, x)[0]))
        return routed

    monkeypatch.setattr(Router, "forward", noted)
    cfg = config({"experts": "fp8_reference", "kept": "fp8"}, recompute="full")
    live_step(replace(cfg, model=replace(cfg.model, num_experts=32)))
    first, again = passes[:LAYERS], passes[2 * LAYERS - 1 : LAYERS - 1 : -1]
    assert [router for router, *_ in first] == [router for router, *_ in again]
    assert all(torch.equal(ids, repeated) for (_, ids, _), (_, repeated, _) in zip(first, again, strict=True))
    assert not all(torch.equal(ids, anew) for _, ids, anew in again)


# ---- the count without building


def kept_inputs(pp: int, **other: Any) -> Config:
    """Whole layers recomputed, as many micro-batches as reach the steady state. other: keys of `train` or
    `precision`."""
    precision = {"linears": "bf16", "experts": "bf16", "payload": "bf16"}
    precision |= {key: other.pop(key) for key in list(other) if key in PrecisionConfig.__dataclass_fields__}
    cfg = config(precision, recompute="full", **other)
    parallel = ParallelConfig(pp=pp)
    count = map_ranks(parallel, cfg.model, pp).plan.steady(1000) if pp > 1 else 2  # with gradients from before
    return replace(cfg, parallel=parallel, train=replace(cfg.train, global_batch=count))


@pytest.mark.slow
@pytest.mark.parametrize("pp", [1, 2])
def test_inputs_on_the_host_are_counted_without_building(pp):
    """As many bytes less are held on the device as the count says; between two passes of a pipeline there is only the
    last layer's input."""
    plain, moved = kept_inputs(pp), kept_inputs(pp, offload_activations=True)
    built, built_moved = (simulate_rank(cfg, pp, 0).peak for cfg in (plain, moved))
    counted, counted_moved = (rank_memory(cfg, pp) for cfg in (plain, moved))
    one = HIDDEN * TOKENS * 2
    assert counted_moved.moved == counted.activations == built_moved.host == LAYERS * one
    assert built.host == 0
    assert counted_moved.activations == 2 * one
    assert counted_moved.device < built_moved.total
    if pp == 1:
        assert built.total - built_moved.total == counted.device - counted_moved.device
    else:
        assert built.kept - built_moved.kept == counted.activations - one
        assert counted.activations <= built.kept


@pytest.mark.slow
@pytest.mark.parametrize("pp", [1, 2])
def test_inputs_in_fp8_are_counted_without_building(pp):
    forms: dict[str, Any] = {"kept": "fp8", "experts": "fp8_reference"}
    exact, rounded, away = (
        kept_inputs(pp, **forms | other) for other in ({"kept": "exact"}, {}, {"offload_activations": True})
    )
    row = HIDDEN + 8  # with a scale, padded
    counted, counted_rounded, counted_away = (rank_memory(cfg, pp) for cfg in (exact, rounded, away))
    built, built_rounded, built_away = (simulate_rank(cfg, pp, 0).peak for cfg in (exact, rounded, away))
    selected = LAYERS * TOKENS * exact.model.experts_per_token * 4  # numbers of experts, which stay on the device
    assert (counted_rounded.activations - selected) * 2 * HIDDEN == counted.activations * row
    assert counted_away.activations == 2 * TOKENS * row + selected
    assert counted_away.moved == counted_rounded.activations - selected == built_away.host
    if pp > 1:
        assert built.kept - built_rounded.kept == counted.activations - counted_rounded.activations


def test_regather_keeps_no_gathered_hidden_states():
    """Those of 8 ranks in all layers but the one at work."""
    parallel = ParallelConfig(dp_replicate=1, dp_shard=8, ep=8)
    cfg = replace(config(), parallel=parallel, train=replace(config().train, global_batch=8))
    kept, again = (
        simulate_rank(replace(cfg, parallel=replace(parallel, regather=regather)), 8, 0).peak.total
        for regather in (False, True)
    )
    assert kept - again >= (LAYERS - 1) * 8 * STATE


# ---- the router


ROUTERS = ("uniform", "skewed", "adversarial")
# On a CPU the experts' scratch memory grows with the rows of one expert, from 512 on: here there are no more on a rank.
FEW = 64


def routed(groups: int, device: Literal["cpu", "auto"] = "cpu") -> Config:
    """Eight ranks of 2 of 16 experts, whose tokens choose 8: of each router group one, or any."""
    cfg = config()
    model = replace(cfg.model, num_experts=16, router_groups=groups, num_layers=2)
    parallel = ParallelConfig(dp_replicate=1, dp_shard=8, ep=8)
    train = replace(cfg.train, global_batch=8, device=device)
    return replace(cfg, model=model, parallel=parallel, train=train, data=replace(cfg.data, seq_len=FEW))


def predicted(cfg: Config, router: str, rank: int = 0) -> int:
    return simulate_rank(cfg, 8, rank, router).peak.total


def test_grouped_routing_costs_the_same_whatever_the_router_prefers_and_plain_top_k_does_not():
    """With the kernels of a GPU."""
    grouped, plain = routed(8, "auto"), routed(1, "auto")
    assert len({predicted(grouped, router) for router in ROUTERS}) == 1
    even, skewed, worst = (predicted(plain, router) for router in ROUTERS)
    assert even < skewed < worst
    assert worst > 1.5 * even
    assert predicted(plain, "adversarial", 7) < even


def real_peaks(cfg: Config, router: str) -> int:
    return live_step(cfg, router)[0].total


@pytest.mark.parametrize("groups", [8, pytest.param(1, marks=pytest.mark.slow)], ids=["grouped", "plain top-k"])
def test_real_ranks_agree(groups):
    cfg = routed(groups)
    for router in ("adversarial",) if groups == 8 else ROUTERS:
        found = on_ranks(8, real_peaks, cfg, router, timeout_s=120.0)
        for rank in (0, 7):
            assert predicted(cfg, router, rank) == pytest.approx(found[rank], rel=0.1)
        if router == "adversarial":
            assert max(found) < 1.02 * min(found) if groups == 8 else max(found) > 2 * min(found)
