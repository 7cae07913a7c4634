"""The GPU bench at a tiny size on the CPU: every arm makes the same numbers, and what is counted is what is done.

What no CPU runs is stood in for: `torch._scaled_grouped_mm` by its formula, after its own checks of shapes and strides
on meta tensors; Transformer Engine by modules of the same signature.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.gpu import experts, gemms, peer_te, sections, table
from tests.bench.gpu.__main__ import run
from tests.bench.gpu.clock import Arm, Clock, Skipped, Timing, distance
from tests.bench.gpu.layer import Layers
from tests.bench.gpu.routing import Size, Slice, draw_logits, plant, shares
from tests.bench.gpu.sections import SECTIONS, measure
from tests.bench.gpu.table import COLUMNS, Row, header, line, not_run, with_fp8_targets
from trainer.model.experts import BACKENDS
from trainer.model.router import select_experts
from trainer.te_support import RECIPES

TINY = Slice(hidden=64, width=32, experts=16, heads=4, kv_heads=2, head_dim=16)
CPU = torch.device("cpu")
SIZE = Size(TINY, 24, "zipf", torch.float32, CPU)


def operands(size: Size = SIZE) -> gemms.Operands:
    return gemms.Operands(size.part, size.ids(), size.dtype)


def close(arm: Arm, expected: Arm, tolerance: float) -> None:
    assert arm.results is not None
    assert expected.results is not None
    assert distance(arm.results(), expected.results()) < tolerance


# ---- routing


def test_the_skew_is_zipf_over_each_groups_experts():
    part, tokens = Slice(), 20_000
    ids = select_experts(draw_logits(part, tokens, "zipf"), part.groups, part.per_token)
    found = torch.bincount(ids.flatten(), minlength=part.experts).view(part.groups, -1) / tokens
    expected = shares("zipf", 8)
    assert expected[0] == pytest.approx(0.3679, abs=1e-4)
    assert expected[0] / expected[7] == pytest.approx(8)
    # four standard deviations of a count of 20,000
    assert (found.sort(-1, descending=True).values - expected).abs().max() < 4 * (0.37 * 0.63 / tokens) ** 0.5
    assert len(set(found.argmax(-1).tolist())) > 1, "the most wanted expert stands in the same place of every group"
    even = select_experts(draw_logits(part, tokens, "uniform"), part.groups, part.per_token)
    assert torch.bincount(even.flatten(), minlength=64).float().std() < 4 * (tokens / 8) ** 0.5
    assert torch.equal(ids, select_experts(draw_logits(part, tokens, "zipf"), part.groups, part.per_token))


def test_the_router_selects_what_was_planted():
    logits = draw_logits(TINY, 256, "zipf")
    x, router = torch.randn(256, 64), torch.randn(16, 64) / 8
    assert torch.equal(select_experts(plant(x, router, logits) @ router.T, 8, 8), select_experts(logits, 8, 8))
    layers = Layers(Size(TINY, 256, "zipf", torch.bfloat16, CPU))
    ids, _, _ = layers.moe.router(layers.x)
    assert (ids == select_experts(logits, 8, 8)).float().mean() > 0.98  # x is rounded to bf16


# ---- the clock


def test_arms_take_turns_and_each_round_begins_with_another():
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    Clock(CPU).take_turns(steps, rounds=2)
    assert [calls[first : first + 3] for first in range(0, 12, 3)] == list(map(list, ("abc", "bca", "cab", "abc")))


def test_figures_are_medians_without_the_rounds_that_warm_up(monkeypatch):
    clock, times = Clock(CPU), iter([90.0, 80.0, 3.0, 1.0, 50.0])
    monkeypatch.setattr(clock, "milliseconds", lambda step: next(times))
    assert clock.take_turns({"a": lambda: None}, rounds=3) == {"a": 3.0}


@pytest.mark.gpu
def test_host_syncs_and_memory_are_counted():
    clock = Clock(torch.device("cuda"))
    x = torch.ones(1 << 20, device="cuda")
    assert clock.host_syncs(lambda: x + 1) == 0
    assert clock.host_syncs(lambda: (x.sum().item(), x.tolist(), x.nonzero())) >= 3
    assert clock.extra_bytes(lambda: x + 1) == 4 << 20
    assert clock.milliseconds(lambda: x + 1) > 0


# ---- the arms


@pytest.mark.parametrize("arm", [gemms.loop, gemms.grouped_mm])
@pytest.mark.parametrize("skew", ["uniform", "zipf"])
def test_gemm_arms_make_the_products_of_a_formula(arm, skew):
    size = replace(SIZE, skew=skew)
    given, ids = operands(size), size.ids()
    of_row = ids.flatten()[given.order.slot_of_row]
    assert torch.equal(of_row, of_row.sort().values)
    found = arm(given).results()
    w13, w2 = given.w13[of_row], given.w2[of_row]  # one matrix for each row
    expected = {
        "hidden": torch.einsum("rh,rih->ri", given.x, w13),
        "y": torch.einsum("ri,rhi->rh", given.act, w2),
        "d_act": torch.einsum("rh,rhi->ri", given.dy, w2),
        "dx": torch.einsum("ri,rih->rh", given.d_hidden, w13),
        "d_w2": torch.stack([given.dy[of_row == e].T @ given.act[of_row == e] for e in range(16)]),
        "d_w13": torch.stack([given.d_hidden[of_row == e].T @ given.x[of_row == e] for e in range(16)]),
    }
    assert list(expected) == list(gemms.NAMES)
    assert distance(found, expected) < 1e-5


def test_the_ceiling_makes_the_same_products_where_the_routing_is_even():
    ids = torch.arange(16).view(8, 2).t().repeat(12, 1)  # 24 tokens, each expert 12 times
    given = gemms.Operands(TINY, ids, torch.float32)
    assert gemms.counts_of(given.order.offsets).tolist() == [12] * 16
    close(gemms.equal_split(given), gemms.loop(given), 1e-6)


def test_the_flops_that_are_counted_are_those_that_are_done():
    given, ids = operands(), SIZE.ids()
    for arm in (gemms.loop(given), gemms.equal_split(given)):
        for step, times in ((arm.forward, 1), (arm.both, 3), (arm.weight_gradients, 1)):
            with FlopCounterMode(display=False) as counter:
                step()
            assert counter.get_total_flops() == times * TINY.expert_flops(24)
    loop = experts.backend(BACKENDS["loop"], experts.Inputs(given, ids))
    with FlopCounterMode(display=False) as counter:
        loop.both()
    assert counter.get_total_flops() == 3 * TINY.expert_flops(24)


def test_a_decoder_layers_flops_are_those_of_its_matrices_and_its_causal_attention():
    layers = Layers(replace(SIZE, skew="uniform"))
    layers.moe.experts.backend = BACKENDS["loop"]
    with FlopCounterMode(display=False) as counter:
        layers.block(layers.drawn, layers.cos, layers.sin, layers.docs)
    counted = counter.get_flop_counts()["Global"]
    matrices = sum(flops for op, flops in counted.items() if "attention" not in str(op))
    causal = 2 * 2 * 4 * 16 * sum(range(1, 25))  # scores and values, 4 heads of 16, the n-th token sees n
    assert TINY.decoder_layer_flops(24, 24) == matrices + causal


def scaled_by_formula(left: gemms.Scaled, right: gemms.Scaled, offsets: Tensor) -> Tensor:
    meta = [gemms.Scaled(*(t.to("meta") for t in operand)) for operand in (left, right)]
    shape = REAL_SCALED(*meta, offsets.to("meta")).shape
    if right.codes.ndim == 3:
        a, b = left.codes.float() * left.scale[:, None], right.codes.float() * right.scale[:, None, :]
        made = F.grouped_mm(a, b.contiguous(), offs=offsets)
    else:
        ends = offsets.tolist()
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        scale_a, scale_b = left.scale.view(len(ends), -1, 1), right.scale.view(len(ends), 1, -1)
        made = torch.stack(
            [left.codes[:, part].float() @ right.codes[part].float() for part in parts]
        ) * (scale_a * scale_b)  # fmt: skip
    assert made.shape == shape
    return made


REAL_SCALED = gemms.scaled_grouped_mm


def test_what_is_prepared_for_the_scaled_gemm_is_what_it_wants(monkeypatch):
    monkeypatch.setattr(gemms, "scaled_grouped_mm", scaled_by_formula)
    given = operands()
    arm = gemms.scaled_arm(given)
    close(arm, gemms.loop(given), 0.06)
    assert arm.tolerance > 0.06
    arm.both()


class GroupedLinear(nn.Module):
    """Stands in for Transformer Engine's: its constructor, its parameters, its call."""

    def __init__(self, num_gemms, in_features, out_features, *, bias=True, params_dtype, device, **native):
        super().__init__()
        self.num_gemms, self.native, self.heard = num_gemms, native.pop("use_grouped_tensor", False), []
        assert not bias
        assert not native
        for number in range(num_gemms):
            weight = torch.empty(out_features, in_features, dtype=params_dtype, device=device)
            self.register_parameter(f"weight{number}", nn.Parameter(weight))

    def forward(self, inp, m_splits, is_first_microbatch=None):
        self.heard.append(is_first_microbatch)
        assert isinstance(m_splits, Tensor if self.native else list)
        counts = m_splits.tolist() if self.native else m_splits
        left = len(inp) - sum(counts)
        assert left >= 0 if self.native else left == 0
        weights = [getattr(self, f"weight{number}") for number in range(self.num_gemms)]
        parts = [rows @ weight.T for rows, weight in zip(inp.split([*counts, left])[:-1], weights, strict=True)]
        return torch.cat([*parts, inp.new_zeros(left, weights[0].shape[0])])


@pytest.fixture
def stand_in(monkeypatch) -> list[tuple[bool, object]]:
    """A Transformer Engine that multiplies in the inputs' dtype; the list of what was passed to its autocast."""
    heard: list[tuple[bool, object]] = []

    def autocast(*, enabled, recipe):
        heard.append((enabled, recipe))
        return nullcontext()

    pytorch, recipes = ModuleType("transformer_engine.pytorch"), ModuleType("transformer_engine.common.recipe")
    pytorch.GroupedLinear, pytorch.autocast = GroupedLinear, autocast
    for recipe in RECIPES.values():
        setattr(recipes, recipe.name, type(recipe.name, (), {}))
    for module in (pytorch, recipes):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for package in ("transformer_engine", "transformer_engine.common"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    return heard


@pytest.mark.parametrize("variant", peer_te.VARIANTS, ids=lambda variant: variant.name)
def test_transformer_engine_is_given_the_same_work(stand_in, variant):
    given, ids = operands(), SIZE.ids()
    close(peer_te.gemms_arm(variant, given), gemms.loop(given), 1e-5)
    inputs = experts.Inputs(given, ids)
    close(experts.transformer_engine_arm(variant, inputs), experts.backend(BACKENDS["loop"], inputs), 1e-5)
    expected = type(None) if variant.recipe is None else getattr(
        sys.modules["transformer_engine.common.recipe"], RECIPES[variant.recipe].name
    )  # fmt: skip
    assert {(enabled, type(recipe)) for enabled, recipe in stand_in} == {(variant.recipe is not None, expected)}


@pytest.mark.parametrize(("cached", "heard"), [(False, [None, None]), (True, [True, False])])
def test_the_weight_cache_is_filled_once(stand_in, cached, heard):
    given = operands()
    pair = peer_te.GroupedPair(peer_te.Variant("fp8_block", cached=cached), given.w13, given.w2)
    assert [pair.first_microbatch() for _ in range(2)] == heard
    assert pair.into.weight3.data_ptr() == given.w13[3].data_ptr(), "the weights were copied"


@pytest.mark.parametrize("arm", ["torch grouped_mm and autograd", "our loop"])
def test_expert_arms_make_the_same_numbers(arm):
    arms = sections.expert_arms(SIZE)
    close(arms[arm](), arms["ours bf16"](), 1e-5)


def test_the_reference_of_fp8_is_within_the_tolerance_that_fp8_arms_have():
    for arms in (sections.expert_arms(SIZE), sections.moe_arms(SIZE), sections.decoder_arms(SIZE)):
        exact = arms["ours bf16"]()
        build = next(iter(arms.values()))
        rounded = build.func("fp8_reference", *build.args[1:])
        assert isinstance(rounded, Arm)
        off = distance(rounded.results(), exact.results())
        assert 1e-3 < off < rounded.tolerance


# ---- the table


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_has_a_row_for_every_arm(name, device):
    size = SIZE
    if device == "cuda":  # large enough for every recipe's tiles
        part = replace(TINY, hidden=512, width=256)
        size = Size(part, 256, "zipf", torch.bfloat16, torch.device(device))
    rows = list(measure(name, size, 1, Clock(size.device)))
    assert [row.arm for row in rows] == list(SECTIONS[name].arms(size))
    assert rows[0].timing is not None
    for row in rows:
        assert (row.timing is None) != (row.skipped is None)
        assert not (row.skipped or "").startswith("FAILED"), row.skipped
        if row.timing:
            assert row.both_tflops == pytest.approx(3 * row.flops / row.timing.both_ms / 1e9)
            assert line(row).count("|") == header().splitlines()[0].count("|") == len(COLUMNS) + 1
        if device == "cpu" and any(word in row.arm for word in ("fp8", "TE")):
            assert row.skipped
    json.dumps([row.record() for row in rows])


def test_an_arm_that_computes_something_else_has_no_figures(monkeypatch):
    def broken() -> Arm:
        raise RuntimeError("no kernel\n image")

    ones = {"y": torch.ones(4)}
    arms = {
        "first": lambda: Arm(lambda: None, lambda: None, lambda: ones),
        "wrong": lambda: Arm(lambda: None, lambda: None, lambda: {"y": torch.full((4,), 1.1)}),
        "nan": lambda: Arm(lambda: None, lambda: None, lambda: {"y": torch.full((4,), torch.nan)}),
        "broken": broken,
        "left out": lambda: Skipped("no such device"),
    }
    monkeypatch.setitem(SECTIONS, "gemms", sections.Section("", lambda size: arms))
    rows = {row.arm: row for row in measure("gemms", SIZE, 1, Clock(CPU))}
    assert [name for name, row in rows.items() if row.timing] == ["first"]
    assert rows["wrong"].skipped == "FAILED: its results are off by 0.1, more than 0.02"
    assert rows["nan"].skipped == "FAILED: its results are off by inf, more than 0.02"
    assert rows["broken"].skipped == "FAILED: RuntimeError: no kernel image"
    told = not_run(rows.values())
    assert "left out: no such device" in told[-1]
    assert {text.count("|") for text in told} == {len(COLUMNS) + 1}


def test_targets_stand_beside_the_figures():
    timing = Timing(1.0, 2.0, 0, 0)
    arms = ["ours bf16", "ours fp8_block", "ours bf16, fp32 masters", "ours fp8_block, fp32 masters", "TE fp8_block"]
    bf16, fp8, masters, fp8_masters, peer = (
        Row("moe", arm, 8192, "uniform", flops=10**12, timing=timing, target=510.0 if "bf16" in arm else None)
        for arm in arms
    )
    masters = replace(masters, timing=replace(timing, both_ms=4.0))
    assert bf16.both_tflops == pytest.approx(1500)
    assert "| 294% of 510 |" in line(bf16)
    found = [row.target for row in with_fp8_targets([bf16, fp8, masters, fp8_masters, peer])]
    assert found == [510.0, pytest.approx(1950), 510.0, pytest.approx(975), None]
    held = replace(fp8, arm="ours fp8_block, weights held")
    assert with_fp8_targets([bf16, held])[1].target == pytest.approx(1950)
    assert SECTIONS["gemms"].target("torch grouped_mm", 8192) == table.GEMM_BF16
    assert SECTIONS["gemms"].target("TE fp8_block", 8192) == table.GEMM_FP8
    assert SECTIONS["gemms"].target("torch grouped_mm", 4096) is None


def test_a_run_prints_every_section(capsys):
    rows: list[Row] = []
    run(list(SECTIONS), [16], 1, TINY, torch.float32, Clock(CPU), rows)
    out = capsys.readouterr().out
    assert all(section.title in out for section in SECTIONS.values())
    assert {row.section for row in rows} == set(SECTIONS)
    assert out.count("Transformer Engine needs a CUDA device") == 2  # each reason once a section
    assert {row.skew for row in rows if row.section == "moe"} == {"uniform", "zipf"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "tests.bench.gpu"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("bench-gpu needs a CUDA device")
    assert "Traceback" not in done.stderr
