"""Canaries for the private names of Transformer Engine: each fails where the installed version has changed one.

They read the package's source, so that they also run where it cannot be loaded.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from trainer.model.experts.te import private

SPEC = importlib.util.find_spec("transformer_engine")
LINEAR, BASE, STATE = "pytorch/module/grouped_linear.py", "pytorch/module/base.py", "pytorch/quantization.py"
GEMM, SPLIT = "pytorch/cpp_extensions/gemm.py", "pytorch/module/_split_quantization.py"
BLOCKS = "pytorch/tensor/storage/float8_blockwise_tensor_storage.py"
BLOCK_TENSOR = "pytorch/tensor/float8_blockwise_tensor.py"

# Function of `private` -> the patterns that the source of Transformer Engine must contain, by file.
CANARIES: dict[str, list[tuple[str, str]]] = {
    "machine": [
        ("pytorch/__init__.py", r"\bget_device_compute_capability\b"),
        (LINEAR, r"\btex\.get_cublasLt_version\(\)"),
    ],
    "supports_native_path": [
        ("pytorch/module/__init__.py", r"\bis_module_grouped_tensor_path_supported\b"),
        (LINEAR, r"def is_module_grouped_tensor_path_supported\(\s*\w+[^,]*,\s*\w+[^,]*,?\s*\)"),
    ],
    "autocast": [(STATE, r"enabled and \S*autocast_depth == 0 and not _graph and torch\.is_grad_enabled\(\)")],
    "grouped_linear": [
        (LINEAR, r"\[getattr\(self, f\"weight\{i\}\"\) for i in range\((self\.)?num_gemms\)\]"),
        (LINEAR, r"use_grouped_tensor: Optional\[bool\] = None"),
    ],
    "show_weights": [(LINEAR, r"getattr\(self, f\"weight\{i\}\"\)")],
    "forget_quantised_weights": [
        (BASE, r"self\._fp8_workspaces: Dict\[str, \w+\] = \{\}"),
        (LINEAR, r"self\._fp8_workspaces\[key\] = "),
    ],
    "make_scaling_state": [(BASE, r"def init_fp8_metadata\(self, num_gemms: int = 1\)")],
    "scaling_state": [
        (BASE, r"\"scaling_fwd\" if fwd else \"scaling_bwd\""),
        (STATE, r"self\.scale = torch\.ones\(num_quantizers"),
        (STATE, r"self\.amax_history = torch\.zeros\(\s*recipe\.amax_history_len,\s*num_quantizers"),
    ],
    "make_recipe": [
        ("common/recipe/__init__.py", r"backward_override: "),
        ("common/recipe/__init__.py", r"fp8_quant_fwd_inp = QParams\("),
        ("common/recipe/__init__.py", r"power_2_scale: bool"),
    ],
    "write_gradient_to": [(LINEAR, r"weights\[j\]\.main_grad")],
    "forget_target": [(LINEAR, r"weights\[j\]\.main_grad")],
    "block_weight": [
        (
            BLOCKS,
            r"rowwise_data: Optional\[torch\.Tensor\],\s*rowwise_scale_inv: Optional\[torch\.Tensor\],\s*columnwise",
        ),
        (BLOCKS, r"is_2D_scaled: bool,\s*\*args,\s*fake_dtype: Optional\[torch\.dtype\] = None"),
        (BLOCK_TENSOR, r"if columnwise:\s*return \(scale_dim1, round_up_to_nearest_multiple\(scale_dim0, 4\)\)"),
        ("pytorch/__init__.py", r"\bFloat8BlockwiseQTensorStorage\b"),
    ],
    "multiply_blocks": [
        (LINEAR, r"general_grouped_gemm\(\s*weights_for_dgrad,\s*grad_output,\s*\[dgrad\]"),
        (GEMM, r"_unwrap_tensor\(a, \"rowwise\" if transa else \"columnwise\"\)"),
        (SPLIT, r"tex\.split_quantize\(\s*\w+,\s*\w+,\s*quantizers,"),
        (BLOCK_TENSOR, r"force_pow_2_scales: bool = True,\s*block_scaling_dim: int = 2"),
    ],
    "overwrite_target": [(LINEAR, r"getattr\(\s*weights\[0\], \"overwrite_main_grad\", False\s*\)")],
}


def test_every_private_name_has_a_canary():
    functions = {name for name, _ in inspect.getmembers(private, inspect.isfunction) if not name.startswith("_")}
    own = {name for name in functions if getattr(private, name).__module__ == private.__name__}
    assert own - {"installed"} == CANARIES.keys()


@pytest.mark.skipif(SPEC is None, reason="Transformer Engine is not installed")
@pytest.mark.parametrize("function", CANARIES)
def test_transformer_engine_still_has_what_is_used_of_it(function):
    assert SPEC is not None
    assert SPEC.origin is not None
    for file, pattern in CANARIES[function]:
        text = (Path(SPEC.origin).parent / file).read_text()
        assert re.search(pattern, text), f"{private.installed()}: {file} has no {pattern}; see private.{function}"
