"""Router replay: what a rollout selected is selected again in training, and only that."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from parallel.blocks import checkpoint_activations
from tests.trainer.model.tiny import assert_close, build, model_config
from trainer.config.rl.keys import RlConfig
from trainer.engine.engine import Engine
from trainer.engine.request import Request, Sampling
from trainer.model.exact.switch import make_exact
from trainer.model.experts.fp8_reference import Fp8Reference
from trainer.model.replay import Replay
from trainer.objectives.policy import Policy
from trainer.objectives.scalars import GlobalBatch
from trainer.rl.batches import Trained, make_batches, pack
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.rl.routes import checked_routes, padding_routes

SEQ = 32


def noisy(model, strength):
    """Selection by noisy logits in every layer of `model`; the weights are those of the logits themselves."""
    generator = torch.Generator().manual_seed(5)
    for block in model.blocks:
        router = block.moe.router
        genuine = router.ops.route

        def route(z, *rest, genuine=genuine):
            ids, _ = genuine(z + strength * torch.randn(z.shape, generator=generator), *rest)
            weights = torch.softmax(z.gather(-1, ids), -1)
            return ids, weights

        router.route = lambda z, router=router, route=route: route(
            z, router.groups, router.experts_per_token, router.gradient, router.temperature
        )


@pytest.fixture(scope="module")
def made():
    """A model in exact arithmetic, and rollouts of a copy whose routers are noisy."""
    cfg = model_config(balance_coef=0.0, max_position=64)
    model, engine = (make_exact(build(cfg)) for _ in range(2))
    noisy(engine, 0.3)
    requests = [Request([1, 2 + n, 3], 6, Sampling(seed=n)) for n in range(12)]
    answers = Engine(engine, cache_tokens=2048, batch=12).generate(requests)
    rollouts = [
        Rollout(one.prompt, one.ids, one.log_probs, one.routes, np.zeros(len(one.ids), np.int64), one.finish)
        for one in answers
    ]
    return model, rollouts


def batches_of(model, rollouts, seq_len=SEQ, shift=0, micro_batch=2, layers=None):
    trained = [
        Trained(n, one, (-1.0) ** n, np.roll(checked_routes(one, model.cfg, "engine", n), shift, axis=0))
        for n, one in enumerate(rollouts)
    ]
    windows = pack([one.length for one in trained], seq_len)
    count = -(-len(windows) // micro_batch)
    return make_batches(
        trained, windows, micro_batches=count, micro_batch=micro_batch, seq_len=seq_len, model=model.cfg, padding=0,
        routed=True, layers=layers,
    )  # fmt: skip


def k3_of(model, batches, replay="replay"):
    objective = Policy(RlConfig(replay=replay), chunk=1024)
    units = sum(objective.count(batch) for batch in batches)
    found = [objective(model, batch, GlobalBatch(units)) for batch in batches]
    pairs, flips = objective.compared.tolist()
    return sum(one["sum/mismatch/k3"].value.item() for one in found) / units, flips / pairs, found


def test_noise_in_the_selection_shows_without_replay_and_is_gone_with_it(made):
    model, rollouts = made
    batches = batches_of(model, rollouts)
    without, flips, _ = k3_of(model, batches, "record")
    assert without > 1e-4
    assert 0.05 < flips < 0.95
    k3, same_flips, found = k3_of(model, batches)
    assert k3 == 0.0
    assert all(one["mismatch/max"].value.item() == 0.0 for one in found)
    # not the same number: behind the first layer the hidden states differ as well
    assert 0.05 < same_flips < 0.95


def test_routers_get_gradients_under_replay(made):
    model, rollouts = made
    model.zero_grad()
    _, _, found = k3_of(model, batches_of(model, rollouts))
    sum(one.total for one in found).backward()
    for block in model.blocks:
        assert block.moe.router.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_routes_of_the_token_before_raise_the_mismatch(made):
    model, rollouts = made
    assert k3_of(model, batches_of(model, rollouts, shift=1))[0] > 1e-4


def gradients_of(model, batches):
    """With the experts that each router was given, in the order of the passes."""
    seen = []
    hooks = [
        block.moe.router.register_forward_hook(lambda _, __, output: seen.append(output[0].clone()))
        for block in model.blocks
    ]
    model.zero_grad()
    sum(one.total for one in k3_of(model, batches)[2]).backward()
    for hook in hooks:
        hook.remove()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, seen


def test_packing_does_not_change_a_replay(made):
    """Rollouts together in windows of some, in windows of their own, and in one window."""
    model, rollouts = made
    packed, alone = batches_of(model, rollouts), batches_of(model, rollouts, seq_len=8, micro_batch=1)
    together = batches_of(model, rollouts, seq_len=128, micro_batch=1)
    assert len(alone) == 12 > len(packed) > len(together) == 1
    expected, _ = gradients_of(model, packed)
    assert expected["layers.0.moe.router.weight"].abs().sum() > 0
    for batches in (alone, together):
        assert k3_of(model, batches)[0] == 0.0
        assert_close(gradients_of(model, batches)[0], expected, 1e-5)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputation_does_not_change_a_replay(made, recompute):
    """The passes that backward runs again select the same experts."""
    model, rollouts = made
    packed = batches_of(model, rollouts)
    expected, first = gradients_of(model, packed)
    again = make_exact(build(model.cfg))
    checkpoint_activations(again.blocks, recompute, "forward")
    found, seen = gradients_of(again, packed)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
    layers = len(model.blocks)
    forward, backward = seen[: len(first)], seen[len(first) :]
    assert all(map(torch.equal, forward, first))
    if recompute == "full":
        # backward takes the micro-batches in any order, and the layers of each from the last
        assert len(backward) == len(first)
    for ids in backward:
        assert any(torch.equal(ids, one) for one in first), "recomputed with other experts"
    assert len(first) == layers * len(packed)


def test_a_stage_has_the_routes_of_its_own_layers(made):
    """By their numbers in the whole model; stages of a rank need not follow on each other."""
    model, rollouts = made
    last = model.cfg.num_layers - 1
    for whole, part in zip(batches_of(model, rollouts), batches_of(model, rollouts, layers=[last, 0]), strict=True):
        ids, own = (batch.inputs["expert_ids"].flatten(0, 1) for batch in (whole, part))
        assert own.shape[1] == 2 < ids.shape[1] + 1
        replayed = Replay(own, layers=[last, 0])
        for layer in (0, last):
            found = replayed[layer].repeat(lambda: pytest.fail("a router has selected"))
            assert torch.equal(found, ids[:, layer].long())


def test_slices_of_a_sequence_take_its_routes_along(made):
    """Ranks that share a window slice inputs, routes and what the objective reads by one function."""
    from parallel.context.share import Share

    model, rollouts = made
    (batch, *_) = batches_of(model, rollouts)
    for kind in ("ulysses", "ring"):
        parts = [batch.part(Share(kind, 2, rank)) for rank in range(2)]
        whole = {name: of.flatten(0, 1) for name, of in {**batch.inputs, **batch.extra}.items()}
        at = torch.cat([Share(kind, 2, rank).take(torch.arange(2 * SEQ)) for rank in range(2)])
        for name, of in whole.items():
            pieces = [{**part.inputs, **part.extra}[name].flatten(0, 1) for part in parts]
            assert torch.equal(torch.cat(pieces), of[at]), name


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda routes: None, "missing"),
        (lambda routes: routes[:-1], "short"),
        (lambda routes: np.where(np.arange(len(routes))[:, None, None] == 2, 0, routes).astype(np.uint16), "zeros"),
        (lambda routes: routes + np.uint16(1000), "range"),
        (lambda routes: routes[..., ::-1], "slots"),
    ],
)
def test_routes_that_no_router_selects_are_refused(made, change, value):
    model, rollouts = made
    broken = replace(rollouts[3], routes=change(rollouts[3].routes))
    with pytest.raises(RolloutError) as error:
        checked_routes(broken, model.cfg, "an engine", 3)
    assert (error.value.where, error.value.value) == ("an engine", 3)


@pytest.mark.parametrize(
    ("experts", "layers", "zeros", "refused"),
    [
        (256, 4, [2], True),  # 2^32 selections
        (256, 4, [0, 1, 2], True),
        (255, 4, [2], False),
        (2, 2, [0, 2, 3, 4], False),
        (2, 2, [0, 1, 2, 3, 4], True),
    ],
)
def test_rows_of_zeros_are_refused_with_one_expert_per_token_where_none_would_select_them(
    experts, layers, zeros, refused
):
    cfg = model_config(num_experts=experts, num_layers=layers, experts_per_token=1, router_groups=1)
    routes = np.full((5, layers, 1), 1, np.uint16)
    routes[:, 0] = 0  # one layer alone has selected expert 0
    routes[zeros] = 0
    rollout = Rollout((1, 2, 3), (4, 5, 6), np.zeros(3, np.float32), routes, np.zeros(3, np.int64), "stop")
    if refused:
        with pytest.raises(RolloutError) as error:
            checked_routes(rollout, cfg, "an engine", 7)
        assert (error.value.where, error.value.value) == ("an engine", 7)
    else:
        assert np.array_equal(checked_routes(rollout, cfg, "an engine", 7), routes)


def test_rows_for_padding_are_selections_that_load_all_experts(made):
    cfg = made[0].cfg
    rows = padding_routes(64, cfg)
    assert np.array_equal(checked_routes(replace(made[1][0], prompt=(1,) * 59, routes=rows), cfg, "e", 0), rows)
    counts = np.bincount(rows[:, 0].ravel(), minlength=cfg.num_experts)
    assert counts.max() <= 1.2 * counts.min()


def test_quantising_the_masters_on_one_side_brings_the_gap_back():
    """The rollout side has the bf16 rounding of every expert; training quantises the same rounding, or its masters."""
    cfg = model_config(balance_coef=0.0, max_position=64)

    def model(rounding):
        made = build(cfg)
        for block in made.blocks:
            block.moe.experts.backend = Fp8Reference(rounding=rounding)
        return make_exact(made)

    engine = model(None)
    for block in engine.blocks:
        for weight in (block.moe.experts.w13, block.moe.experts.w2):
            weight.data = weight.data.to(torch.bfloat16).float()
    requests = [Request([1, 2 + n, 3], 6, Sampling(seed=n)) for n in range(12)]
    answers = Engine(engine, cache_tokens=2048, batch=12).generate(requests)
    rollouts = [
        Rollout(one.prompt, one.ids, one.log_probs, one.routes, np.zeros(len(one.ids), np.int64), one.finish)
        for one in answers
    ]
    rounded, masters = model(torch.bfloat16), model(None)
    batches = batches_of(rounded, rollouts)
    assert k3_of(rounded, batches)[0] == 0.0
    assert k3_of(masters, batches)[0] > 1e-8


def test_the_last_batch_may_leave_out_windows_of_padding_alone(made):
    model, rollouts = made
    trained = [Trained(n, one, 1.0, checked_routes(one, model.cfg, "engine", n)) for n, one in enumerate(rollouts)]
    shared = {"micro_batch": 5, "seq_len": SEQ, "model": model.cfg, "padding": 0, "routed": True}
    windows = pack([one.length for one in trained], SEQ)
    assert len(windows) % 5
    count = -(-len(windows) // 5)
    whole = make_batches(trained, windows, micro_batches=count, **shared)
    short = make_batches(trained, windows, micro_batches=count, short=True, **shared)
    assert [len(batch.labels) for batch in short] == [5] * (count - 1) + [len(windows) % 5]
    k3, flips, found = k3_of(model, short)
    assert (k3, flips) == k3_of(model, whole)[:2]
    for one, other in zip(found, k3_of(model, whole)[2], strict=True):
        assert one["loss"].value.item() == pytest.approx(other["loss"].value.item(), rel=1e-6)
    nothing = make_batches([], [], micro_batches=2, short=True, **shared)
    assert [len(batch.labels) for batch in nothing] == [5, 1]
