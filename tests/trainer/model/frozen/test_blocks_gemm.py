"""The experts of a base in FP8 by Transformer Engine: over a stand-in for it, and on a Hopper GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.fp8 import TILE, fake_quantize
from tests.trainer.model.experts.te import te_stand_in
from tests.trainer.model.tiny import assert_close
from tests.trainer.weights.scaled import EVEN, adapted, stepped, written
from trainer.config.checks.parallel import fp8_sizes
from trainer.config.checks.validate import validate
from trainer.config.compose import compose
from trainer.config.keys import LoraConfig
from trainer.model.experts.te import support
from trainer.model.frozen import blocks_gemm, experts
from trainer.model.frozen.blocks import dequantize, whole
from trainer.model.frozen.blocks_gemm import BlockProducts, transpose
from trainer.model.frozen.experts import ScaledProducts
from trainer.model.lora.gemm import GroupedProducts, Rows
from trainer.model.ops import TORCH

E, N, M, T, K = 6, 256, 640, 37, 2  # five blocks of columns: scales whose rows have to be padded
ROUTED = torch.tensor([1, 2, 4])  # the first, a middle and the last expert have no rows


def matrices(device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Codes [E, N, M] and scales that are not powers of two."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randn(E, N, M, generator=generator).mul_(60).to(torch.float8_e4m3fn).view(torch.uint8)
    return codes.to(device), (torch.rand(E, N // TILE, M // TILE, generator=generator) * 1e-3 + 1e-3).to(device)


def products(kind: Any, scales: Tensor, **options: Any) -> Any:
    made = kind(E, whole([N], M), device=scales.device, **options)
    made.scales.copy_(scales)
    return made


def rows_of(align: int, device: str = "cpu") -> Rows:
    noise = torch.rand(T, len(ROUTED), generator=torch.Generator().manual_seed(1))
    order = RowOrder(ROUTED[noise.argsort(dim=-1)[:, :K]].to(device), E)
    return Rows(order, TORCH.pad_order(order, align))


def tokens(columns: int, device: str = "cpu") -> Tensor:
    return torch.randn(T, columns, generator=torch.Generator().manual_seed(2)).to(device)


@pytest.mark.parametrize("sizes", [(256, 640), (200, 132)])
def test_transposed_codes_and_scales_are_the_transposed_matrix(sizes):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 0x7F, (3, *sizes), generator=generator, dtype=torch.uint8)
    blocks, turned = whole([sizes[0]], sizes[1]), whole([sizes[1]], sizes[0])
    scales = torch.rand(3, *blocks.shape, generator=generator)
    found = dequantize(*transpose(codes, scales), turned, torch.float32)
    assert torch.equal(found, dequantize(codes, scales, blocks, torch.float32).mT)


@pytest.mark.usefixtures("poisoned_memory")
def test_codes_are_read_where_they_are_and_transposed_a_few_at_a_time(monkeypatch):
    gemms = te_stand_in.install(monkeypatch)
    codes, scales = matrices()
    before = codes.clone()
    found, rows = products(BlockProducts, scales), rows_of(BlockProducts.align)
    monkeypatch.setattr(experts, "TILE_BYTES", 2 * codes[0].nbytes)
    x, dy = rows.padded.gather(tokens(M)), rows.padded.gather(tokens(N))
    y, dx = found.forward(x, codes, rows, GroupedProducts()), found.input_gradient(dy, codes, rows, GroupedProducts())
    forward, *backward = gemms.calls
    assert [layout for layout, _ in gemms.calls] == ["TN", "NN", "NN", "NN"]
    assert [matrix.data_ptr() for matrix in forward[1]] == [codes[e].data_ptr() for e in ROUTED]
    turned = [matrix for _, some in backward for matrix in some]
    assert all(torch.equal(matrix, codes[e].t()) for matrix, e in zip(turned, ROUTED, strict=True))
    assert torch.equal(codes, before)
    values = dequantize(codes, scales, whole([N], M), torch.float64)
    for result, rounded, matrix in (
        (y, fake_quantize(x, (1, TILE)), values.mT),
        (dx, fake_quantize(dy, (1, TILE)), values),
    ):
        expected, start = torch.zeros(result.shape, dtype=torch.float64), 0
        for expert, end in enumerate(rows.padded.offsets.tolist()):
            expected[start:end], start = rounded[start:end].double() @ matrix[expert], end
        assert_close({"product": result}, {"product": expected}, 1e-6)


@pytest.mark.parametrize("target", ["attention", "all"])
def test_a_model_has_the_numbers_of_the_reference(tmp_path, target, monkeypatch):
    gemms = te_stand_in.install(monkeypatch)
    source = written(tmp_path / "fp8", EVEN)
    seed = 101  # of tokens whose activations are not at the border of two codes, where another order of a sum counts
    expected = stepped(adapted(source, "fp8", target, experts="fp8_reference"), seed)
    model = adapted(source, "fp8", target, experts="fp8_block")
    for block in model.blocks:
        block.moe.experts.backend.products = GroupedProducts()
    assert_close(stepped(model, seed), expected, 1e-6)
    assert {layout for layout, _ in gemms.calls} == {"TN", "NN"}


def test_where_it_runs(monkeypatch):
    lora, gpu = LoraConfig(target="all", base="fp8"), torch.device("cuda")
    for capability, refused in (((9, 0), False), ((10, 0), True), ((8, 9), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        fault = blocks_gemm.unavailable(lora, "fp8_block", gpu)
        assert (fault is not None) == refused
        assert fault is None or (fault.where, fault.allowed) == ("precision.experts", ("bf16", "fp8_reference"))
        assert blocks_gemm.unavailable(lora, "bf16", gpu) is None
        assert blocks_gemm.unavailable(LoraConfig(), "fp8_block", gpu) is None


def test_the_configuration_takes_it_for_whole_blocks_of_a_base_in_fp8():
    words = ["recipe=lora_intern_s1_pro_8xh200", "precision=fp8_block"]
    cfg = compose(words, world_size=8)
    assert not [fault for fault in validate(cfg, 8) if fault.where.startswith(("precision", "model"))]
    (fault,) = fp8_sizes("fp8_block", compose(["recipe=toy"]).model, 1, frozen=True)
    assert fault.where in ("model.hidden_size", "model.expert_width")
    cfg.lora.base = "linears"
    (fault,) = [fault for fault in validate(cfg, 8) if fault.where == "precision.experts"]
    assert fault.allowed == ("bf16", "fp8_reference")


@pytest.mark.gpu
def test_transformer_engine_has_the_numbers_of_the_reference():
    device = torch.device("cuda")
    reason = support.unavailable("fp8_block", device)
    fault = blocks_gemm.unavailable(LoraConfig(target="all", base="fp8"), "fp8_block", device)
    if reason or fault:
        pytest.skip(reason or str(fault))
    codes, scales = matrices("cuda")
    powers = torch.exp2(torch.floor(torch.log2(scales)))  # others the reference would round once more
    for name, columns in (("forward", M), ("input_gradient", N)):
        results = []
        for made in (products(BlockProducts, powers), products(ScaledProducts, powers, reference=True)):
            rows = rows_of(made.align, "cuda")
            x = rows.padded.gather(tokens(columns, "cuda").bfloat16())
            results.append(getattr(made, name)(x, codes, rows, GroupedProducts())[rows.padded.row_of_slot])
        assert_close({name: results[0]}, {name: results[1]}, 1e-2)
