"""The stand-in for Transformer Engine has its signatures, where the package is there to be read (it need not load)."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.model.experts.te import te_blocks, te_stand_in
from trainer.model.experts.te.support import numbers

SPEC = importlib.util.find_spec("transformer_engine")
pytestmark = pytest.mark.skipif(SPEC is None, reason="Transformer Engine is not installed")


def source(path: str) -> ast.Module:
    assert SPEC is not None
    assert SPEC.origin is not None
    if numbers(importlib.metadata.version("transformer-engine")) != (2, 20):
        pytest.skip("another version than the one that the stand-in was made after")
    return ast.parse((Path(SPEC.origin).parent / path).read_text())


def definition(tree: ast.Module, name: str, method: str | None = None) -> Any:
    found = next(node for node in tree.body if getattr(node, "name", None) == name)
    if method is None:
        return found
    return next(node for node in found.body if getattr(node, "name", None) == method)


@pytest.mark.parametrize(
    ("path", "cls", "method", "ours"),
    [
        ("pytorch/module/grouped_linear.py", "GroupedLinear", "__init__", te_stand_in.GroupedLinear.__init__),
        ("pytorch/module/grouped_linear.py", "GroupedLinear", "forward", te_stand_in.GroupedLinear.forward),
        ("pytorch/module/base.py", "TransformerEngineBaseModule", "init_fp8_metadata",
         te_stand_in.GroupedLinear.init_fp8_metadata),
        ("pytorch/cpp_extensions/gemm.py", "general_grouped_gemm", None,
         te_blocks.Gemms().general_grouped_gemm),
        ("pytorch/quantization.py", "autocast", "__init__", te_stand_in.autocast.__init__),
    ],
)  # fmt: skip
def test_arguments(path: str, cls: str, method: str, ours: Callable[..., Any]) -> None:
    theirs = definition(source(path), cls, method).args
    defaults = [ast.literal_eval(value) for value in theirs.defaults]
    names = [argument.arg for argument in theirs.args]
    parameters = inspect.signature(ours).parameters.values()
    assert names == [parameter.name for parameter in parameters]
    assert defaults == [
        parameter.default for parameter in parameters if parameter.default is not inspect.Parameter.empty
    ]


def test_recipes_take_what_is_said_to_them() -> None:
    tree = source("common/recipe/__init__.py")
    for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling"):
        fields = {node.target.id for node in definition(tree, name).body if isinstance(node, ast.AnnAssign)}
        assert "backward_override" in fields
    assert {"amax_history_len", "reduce_amax"} <= {
        node.target.id for node in definition(tree, "DelayedScaling").body if isinstance(node, ast.AnnAssign)
    }
    for name in ("Float8CurrentScaling", "Float8BlockScaling"):
        assigned = {node.targets[0].id for node in definition(tree, name).body if isinstance(node, ast.Assign)}
        assert assigned == {"fp8_quant_fwd_inp", "fp8_quant_fwd_weight", "fp8_quant_bwd_grad"}


def test_quantised_weights_and_delayed_scales_lie_where_we_look() -> None:
    text = ast.unparse(source("pytorch/module/grouped_linear.py"))
    assert "self._fp8_workspaces[key] = ws" in text
    assert "[getattr(self, f'weight{i}') for i in range(self.num_gemms)]" in text
    state = ast.unparse(definition(source("pytorch/quantization.py"), "DelayedScalingRecipeState", "__init__"))
    assert "self.scale = torch.ones(num_quantizers" in state
    assert "self.amax_history = torch.zeros(recipe.amax_history_len, num_quantizers" in state
