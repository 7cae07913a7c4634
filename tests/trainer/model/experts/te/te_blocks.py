"""A stand-in for Transformer Engine's block-scaled GEMMs that runs on a CPU, with the arguments and the demands of
2.20.2: which orientation a layout reads, the shapes of scales, and the multiples that cuBLASLt wants on Hopper.

Codes are multiplied by their scales here, apart from the project's own code for that.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

E4M3 = "e4m3"
DTYPE = SimpleNamespace(kFloat8E4M3=E4M3)


class Float8BlockQuantizer:
    def __init__(
        self,
        fp8_dtype: Any,
        *,
        rowwise: bool,
        columnwise: bool,
        amax_epsilon: float = 0.0,
        force_pow_2_scales: bool = True,
        block_scaling_dim: int = 2,
    ) -> None:
        assert (fp8_dtype, amax_epsilon, force_pow_2_scales) == (E4M3, 0.0, True)
        assert rowwise
        assert not columnwise, "memory for an orientation that nothing reads"
        self.block_scaling_dim = block_scaling_dim
        self.internal = self.optimize_for_gemm = False


class Float8BlockwiseQTensorStorage:
    def __init__(
        self,
        rowwise_data: Tensor | None,
        rowwise_scale_inv: Tensor | None,
        columnwise_data: Tensor | None,
        columnwise_scale_inv: Tensor | None,
        fp8_dtype: Any,
        quantizer: Any,
        is_2D_scaled: bool,
        fake_dtype: torch.dtype | None = None,
    ) -> None:
        assert fp8_dtype == E4M3
        assert is_2D_scaled == (quantizer.block_scaling_dim == 2)
        self.rows, self.columns = (rowwise_data, rowwise_scale_inv), (columnwise_data, columnwise_scale_inv)
        self.is_2D_scaled = is_2D_scaled


def split_quantize(
    tensor: Tensor, split_sections: list[int], quantizer_list: list[Any], disable_bulk_allocation: bool = False
) -> list[Float8BlockwiseQTensorStorage]:
    assert tensor.is_contiguous()
    assert sum(split_sections) == len(tensor)
    found = []
    for part, quantiser in zip(tensor.split(split_sections), quantizer_list, strict=True):
        assert quantiser.block_scaling_dim == 1
        assert quantiser.internal
        assert quantiser.optimize_for_gemm
        tiles = torch.nn.functional.pad(part.float(), (0, -part.shape[1] % 128)).unflatten(1, (-1, 128))
        scale = torch.exp2(torch.floor(torch.log2(448 / tiles.abs().amax(-1, keepdim=True).clamp(min=1e-30))))
        codes = (tiles * scale).to(torch.float8_e4m3fn).view(torch.uint8).flatten(1)[:, : part.shape[1]]
        scales = torch.nn.functional.pad((1 / scale).squeeze(-1).t(), (0, -len(part) % 4))
        found.append(
            Float8BlockwiseQTensorStorage(
                codes.contiguous(), scales.contiguous(), None, None, E4M3, quantiser, is_2D_scaled=False
            )
        )
    return found


class Gemms:
    """The calls of `general_grouped_gemm`: (layout, the weights' codes)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Tensor]]] = []

    def general_grouped_gemm(
        self,
        A: list[Any],
        B: list[Any],
        out: list[Tensor],
        quantization_params: list[Any],
        out_dtype: torch.dtype,
        layout: str = "TN",
        m_splits: list[int] | None = None,
        gelu: bool = False,
        grad: bool = False,
        accumulate: bool = False,
        bias: Any = None,
        use_bias: bool = False,
        use_split_accumulator: bool = False,
        D_dtype: Any = None,
        single_output: bool = False,
    ) -> None:
        assert single_output
        assert use_split_accumulator, "FP8 GEMMs of tiles are summed in fp32"
        assert len(A) == len(B) == len(quantization_params)
        (whole,) = out
        assert whole.is_contiguous()
        assert whole.dtype == out_dtype
        assert m_splits is not None
        used = []
        for weight, rows, part in zip(A, B, whole.split(m_splits), strict=True):
            codes, scales = weight.rows if layout == "TN" else weight.columns
            assert codes is not None, f"layout {layout} reads the other orientation"
            used.append(codes)
            (x, of_x), (n, k) = rows.rows, codes.shape
            assert x.shape == (len(part), k)
            assert k % 16 == n % 8 == len(x) % 8 == 0, "cuBLASLt takes no others on Hopper"
            assert codes.is_contiguous()
            assert scales.is_contiguous()
            assert scales.shape == (math.ceil(n / 128), 4 * math.ceil(k / 512))
            assert scales.dtype == of_x.dtype == torch.float32
            matrix = codes.view(torch.float8_e4m3fn).double()
            matrix *= scales.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
            values = x.view(torch.float8_e4m3fn).double() * of_x[:, : len(x)].t().repeat_interleave(128, 1)[:, :k]
            part.copy_(values @ matrix.t())
        self.calls.append((layout, used))
