"""LMDeploy's own operators beside `tests/bench/lmdeploy_operators.py`: shares of equal elements, as JSON.

LMDeploy's folder and this checkout are on PYTHONPATH. Its Triton kernels run in Triton's interpreter, which does not
compute in bf16 (it multiplies the bits): they are given fp16, and fp32 where bf16 is summed in fp32. Its casts to e4m3
lose the carry of a mantissa that rounds up to the next power of two.
"""

from __future__ import annotations

import importlib
import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from lmdeploy.lite.quantization.weight.quant_utils import quant_blocked_fp8
from lmdeploy.pytorch.backends.default import rotary_embedding
from lmdeploy.pytorch.backends.default.apply_rotary_emb import DefaultApplyRotaryEmbImpl
from lmdeploy.pytorch.backends.default.moe import DefaultSoftmaxTopKImpl
from lmdeploy.pytorch.backends.default.norm import DefaultRMSNormImpl
from lmdeploy.pytorch.backends.rotary_embedding import FopeParameters
from lmdeploy.pytorch.kernels.cuda import activation, apply_rotary_pos_emb, blocked_gemm_fp8, rms_norm
from lmdeploy.pytorch.kernels.cuda.moe import fused_moe

from tests.bench import lmdeploy_operators as restated

BF16 = torch.bfloat16
torch.manual_seed(0)


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), (found.shape, expected.shape)
    return float((found.float() == expected.float()).double().mean())


def normal(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


@triton.jit
def fast_expf(x):
    return tl.exp(x)


def kernels_module(name: str):
    module = importlib.import_module(f"lmdeploy.pytorch.kernels.cuda.{name}")
    module.get_device_props = lambda _: {"multi_processor_count": 4, "warps_per_sm": 64, "blocks_per_sm": 32}
    return module


for name in ("rms_norm", "activation", "blocked_gemm_fp8"):
    kernels_module(name)
activation.fast_expf = fast_expf  # the interpreter has no function of CUDA's library
rotary_embedding._rotary_embedding_fwd = rotary_embedding._rotary_embedding_fwd.__wrapped__

found: dict[str, float] = {}
x, weight = normal(6, 256), (1 + 0.1 * torch.randn(256)).to(BF16)
expected = restated.rms_norm(x, weight, 1e-6)
found["rms_norm, default"] = share(DefaultRMSNormImpl(256, 1e-6).forward(x, weight), expected)
x, weight = x.half(), weight.half()
found["rms_norm, kernel"] = share(rms_norm(x, weight, 1e-6), restated.rms_norm(x, weight, 1e-6))

logits = torch.randn(16, 64)
for groups in (8, 1):
    probabilities, ids = DefaultSoftmaxTopKImpl(8, -1, groups if groups > 1 else -1).forward(logits)
    own_probabilities, own_ids = restated.route(logits, groups, 8)
    found[f"experts, {groups} groups"] = share(ids, own_ids)
    found[f"probabilities, {groups} groups"] = share(probabilities, own_probabilities)
found["renormalise"] = share(fused_moe._renormalize(probabilities, True), restated.renormalise(probabilities))

positions = torch.arange(0, 3000, 300)
rope = rotary_embedding.RotaryEmbeddingImpl(64, 10_000)
frequencies = restated.inverse_frequencies(10_000.0, 64)
found["frequencies"] = share(rope.inv_freq, frequencies)
cos, sin = (table[0, :, :32] for table in rope.forward(normal(1, 10, 64), positions[None]))
own_cos, own_sin = restated.rope_tables(positions, frequencies, BF16)
found["rope, cos"], found["rope, sin"] = share(cos, own_cos), share(sin, own_sin)

kept = 20
coefficients = [torch.eye(kept) + 0.1 * torch.randn(2, kept, kept) for _ in range(2)]
parameters = FopeParameters(num_inv_freq=kept, num_key_value_heads=2, fope_sep_head=True, inv_freq=frequencies)
fope = rotary_embedding.FopeRotaryEmbeddingImpl.__new__(rotary_embedding.FopeRotaryEmbeddingImpl)
torch.nn.Module.__init__(fope)
fope.head_dim, fope.attention_scaling, fope.params, fope.inv_freq = 64, 1.0, parameters, frequencies[:kept]
tables = fope.forward(normal(1, 10, 64), positions[None], coefficients[1], coefficients[0])
own = restated.fope_tables(positions, frequencies, coefficients[0], coefficients[1], 32, BF16)
for name, table, own_table in zip(("cos", "sin"), tables, own, strict=True):
    found[f"fope, {name}"] = share(table[0, :, :, :32], own_table)

for name, dtype in (("default", BF16), ("kernel", torch.float16)):
    q, k = normal(10, 4, 64, dtype=dtype), normal(10, 2, 64, dtype=dtype)
    cos, sin = own_cos.to(dtype), own_sin.to(dtype)
    whole = [torch.cat((table, table), -1) for table in (cos, sin)]
    apply = DefaultApplyRotaryEmbImpl().forward if name == "default" else apply_rotary_pos_emb
    more = {"inplace": False} if name == "default" else {}
    made = apply(q, k, *whole, **more)
    expected = [restated.rotate(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (q, k)]
    for side, one, own_one in zip("qk", made, expected, strict=True):
        found[f"rotate {side}, {name}"] = share(one, own_one)

gate_up = normal(12, 2 * 128, dtype=torch.float16)
found["silu_and_mul, kernel"] = share(activation.silu_and_mul(gate_up), restated.gated(*gate_up.chunk(2, -1)))
outputs, weights = normal(7, 8, 256, dtype=torch.float32), torch.softmax(torch.randn(7, 8), -1)
found["moe_reduce, kernel"] = share(fused_moe.moe_reduce(outputs, weights), restated.combine(outputs, weights))

for fmt in (None, "ue8m0"):
    given = torch.randn(256, 384).to(BF16) * 0.02
    made, own = quant_blocked_fp8(given, torch.float8_e4m3fn, 128, fmt), restated.quantise_weight(given, fmt)
    for part, one, own_one in zip(("codes", "scales"), made, own, strict=True):
        found[f"weights, {fmt}, {part}"] = share(one, own_one)
    x = normal(5, 512, dtype=torch.float16) * torch.logspace(-2, 2, 5).half()[:, None]
    x[2, 3], x[3, 200] = 448.0, 28.0  # the largest of a tile is 448 times a power of two
    made, own = blocked_gemm_fp8.quant_fp8(x, 128, scale_fmt=fmt), restated.quantise_activation(x, fmt)
    for part, one, own_one in zip(("codes", "scales"), made, own, strict=True):
        found[f"activations, {fmt}, {part}"] = share(one, own_one)

print(json.dumps(found))
