"""Expanded models on disk, read back, against formulas and against their sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.weights.directories import APART, FUSED
from tests.trainer.weights.upcycle.sources import checkpoint_of, decoder, expanded, opened
from trainer.model.numerics import select_experts
from trainer.weights.beside.remote_code import CLASSES, FILES
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.hf_read import from_huggingface
from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.placement import Expansion
from trainer.weights.upcycle.stream import plan_upcycle

EXACT = {"factor": 4, "groups": 8, "noise": 0.0}


def stored(directory: Path) -> dict[str, Tensor]:
    """All tensors, by the safetensors library."""
    return {name: t for file in sorted(directory.glob("model*.safetensors")) for name, t in load_file(file).items()}


def union_of_parts(tensors: dict[str, Tensor], layer: int, parts: list[list[int]], best: int, x: Tensor) -> Tensor:
    """In fp64, token by token: the renormalised softmax over the `best` experts of each part of the source."""
    at = f"model.language_model.layers.{layer}.mlp."
    gate = tensors[at + "gate.weight"].double()
    y = torch.zeros_like(x)
    for t, token in enumerate(x):
        z = gate @ token
        chosen = [e for part in parts for e in sorted(part, key=lambda e: -z[e].item())[:best]]
        p = torch.softmax(z, 0)[chosen]
        for weight, e in zip(p / p.sum(), chosen, strict=True):
            w = {k: tensors[f"{at}experts.{e}.{k}_proj.weight"].double() for k in ("gate", "up", "down")}
            y[t] += weight * (w["down"] @ (torch.nn.functional.silu(w["gate"] @ token) * (w["up"] @ token)))
    return y


@pytest.mark.parametrize(
    ("experts", "factor", "groups", "per_token", "cuts"),
    [
        (128, 4, 8, 8, "same"), (16, 2, 8, 8, "same"), (16, 4, 8, 16, "same"), (16, 4, 4, 4, "same"),
        (16, 2, 8, 8, "distinct"), (16, 4, 8, 16, "distinct"),
    ],
)  # fmt: skip
def test_the_expanded_layer_gives_the_union_of_the_best_of_each_part(
    tmp_path, experts, factor, groups, per_token, cuts
):
    force = factor == groups
    sizes = {"num_experts": experts, "num_layers": 1, "hidden_size": 16, "expert_width": 8, "experts_per_token": 8}
    path = checkpoint_of(tmp_path / "source", **sizes).write()
    asked = {"factor": factor, "groups": groups, "experts_per_token": per_token, "force": force, "cuts": cuts}
    _, placement = expanded(path, tmp_path / "out", noise=0.0, **asked)
    tensors = stored(path)
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(5))
    model = from_huggingface(tmp_path / "out")
    assert model.cfg.experts_per_token == per_token
    with torch.no_grad():
        found, _ = model.blocks[0].moe(x)
    held, parts = placement.experts_of_groups(0), groups // factor
    sets = [held[first : first + parts] for first in range(0, groups, parts)]
    best = per_token // groups
    if cuts == "same":
        expected = union_of_parts(tensors, 0, sets[0], best, x.double())
        assert ((found - expected).norm() / expected.norm()).item() < 2e-6
        every = torch.arange(groups * best).view(factor, -1)  # each copy of a pick weighs the same
        ids, weights, _ = model.blocks[0].moe.router(x)
        assert torch.equal(weights[:, every[0]], weights[:, every[-1]])
        assert (ids[:, every[0]] == ids[:, every[-1]]).all() == (factor == 1)
    else:
        one = union_of_parts(tensors, 0, sets[0], best, x.double())
        assert ((found - one).norm() / one.norm()).item() > 1e-2  # other sets bring other experts
        everything = union_of_parts(tensors, 0, [part for one in sets for part in one], best, x.double())
        assert ((found - everything).norm() / everything.norm()).item() < 2e-6


def test_intern_s1_is_expanded_whole(tmp_path, reference):
    path, target = reference / "tiny" / "interns1", tmp_path / "out"
    made, placement = expanded(path, target, factor=4, groups=8, noise=0.0)
    source, result = opened(path), opened(target)
    result.require(towers=True)
    assert result.model == made.model
    assert (result.model.num_experts, result.model.router_groups) == (64, 8)
    before, after = stored(path), stored(target)
    towers = {tensor.name for tensor in source.carried}
    assert towers
    assert towers < after.keys()
    names = {}
    for name in after:
        origin = name
        if ".experts." in name:
            head, tail = name.split(".experts.")
            d, matrix = tail.split(".", 1)
            origin = f"{head}.experts.{placement.source_of[int(head.split('.')[3])][int(d)]}.{matrix}"
        names[name] = origin
    assert set(names.values()) == before.keys()
    for name, origin in names.items():
        expected = before[origin]
        if name.endswith("mlp.gate.weight"):
            expected = expected[placement.source_of[int(name.split(".")[3])]]
        assert after[name].dtype == expected.dtype, name
        assert torch.equal(after[name], expected), name
    model, x = from_huggingface(target), torch.randn(20, 64, generator=torch.Generator().manual_seed(3))
    for number, layer in enumerate(model.blocks):
        expected = union_of_parts(before, number, placement.experts_of_groups(number)[:2], 1, x.double())
        found = layer.moe(x)[0].detach()
        assert ((found - expected).norm() / expected.norm()).item() < 2e-6
    config = json.loads((target / "config.json").read_text())
    old = json.loads((path / "config.json").read_text())
    changed = {
        "num_local_experts": 64, "router_n_groups": 8, "model_type": "interns1_pro_text", "num_experts_per_tok": 8,
    }  # fmt: skip
    assert config == {**old, "text_config": {**old["text_config"], **changed}}
    facts = json.loads((target / "manifest.json").read_text())["upcycle"]
    assert facts == json.loads(json.dumps(made.facts))
    assert facts["identical_copies"] is True
    assert facts["expansion"]["factor"] == 4
    assert [warning.split()[0] for warning in facts["warnings"]] == ["noise=0"]


def test_noise_is_on_every_copy_and_gate_row_and_on_nothing_else(tmp_path):
    path = checkpoint_of(tmp_path / "source").write()
    made, placement = expanded(path, tmp_path / "out", factor=4, groups=8)
    assert made.facts["warnings"] == []
    assert made.facts["identical_copies"] is False
    before, after = from_huggingface(path), from_huggingface(tmp_path / "out")
    old, new = before.state_dict(), after.state_dict()
    for name, values in new.items():
        if ".moe." not in name:
            assert torch.equal(values, old[name]), name
            continue
        copies = placement.copies(int(name.split(".")[1]))
        moved = values - old[name][torch.tensor(placement.source_of[int(name.split(".")[1])])]
        assert (moved.flatten(1).norm(dim=1) > 0).all(), name
        assert (moved.norm() / values.norm()).item() == pytest.approx(1e-2, rel=0.1), name
        for expert in copies:
            between = torch.corrcoef(moved[expert].flatten(1))[0, 1:]
            assert between.abs().max() < 5 / moved[0].numel() ** 0.5, name
    again, _ = expanded(path, tmp_path / "again", factor=4, groups=8)
    assert {n: t.tolist() for n, t in stored(tmp_path / "again").items()} == {
        n: t.tolist() for n, t in stored(tmp_path / "out").items()
    }
    assert again.facts == made.facts


def test_a_group_is_the_same_whenever_it_is_made(tmp_path):
    source = opened(checkpoint_of(tmp_path / "source").write())
    expansion = Expansion(factor=4, groups=8)
    made = plan_upcycle(source, expansion)
    assert all(len(bundle.outputs) <= 4 for bundle in made.bundles)

    def bytes_of(number: int) -> list[Tensor]:
        return [run.clone() for run in made.bundles[number].make()]

    forward = [bytes_of(number) for number in range(len(made.bundles))]
    for number in reversed(range(len(made.bundles))):
        assert all(torch.equal(a, b) for a, b in zip(bytes_of(number), forward[number], strict=True))


@pytest.mark.parametrize("layout", [APART, FUSED])
@pytest.mark.parametrize("fp8", [False, True])
def test_sources_in_fp8_and_with_stacked_experts(tmp_path, layout, fp8):
    sizes = {"hidden_size": 160, "expert_width": 144, "num_experts": 4, "experts_per_token": 4, "num_layers": 1}
    made = checkpoint_of(tmp_path / "source", layout, **sizes)
    if fp8:
        made.quantise()
    path = made.write()
    asked = {"factor": 2, "groups": 4}
    result, placement = expanded(path, tmp_path / "out", noise=0.0, **asked)
    tensors = stored(tmp_path / "out")
    experts = [tensor for name, tensor in tensors.items() if name.endswith("proj.weight")]
    assert {tensor.dtype for tensor in experts} == {torch.float8_e4m3fn if fp8 else torch.float32}
    assert len([name for name in tensors if ".experts." in name and name.endswith("weight")]) == 24
    assert ("quantization_config" in result.config) == fp8
    opened(tmp_path / "out").require(towers=True)
    before, after = from_huggingface(path), from_huggingface(tmp_path / "out")
    for name, values in after.state_dict().items():
        expected = before.state_dict()[name]
        if ".moe." in name:
            expected = expected[torch.tensor(placement.source_of[0])]
        assert torch.equal(values, expected), name
    noisy, _ = expanded(path, tmp_path / "noisy", **asked)
    moved = from_huggingface(tmp_path / "noisy").state_dict()["layers.0.moe.experts.w2"]
    distance = (moved - after.state_dict()["layers.0.moe.experts.w2"]).norm() / moved.norm()
    assert distance.item() == pytest.approx(1e-2, rel=0.7 if fp8 else 0.1)
    widths = [warning.startswith("model.") for warning in noisy.facts["warnings"]]
    assert (sum(widths) > 1) == fp8
    others = [warning for warning, width in zip(noisy.facts["warnings"], widths, strict=True) if not width]
    assert ["noise=0.01" in warning and "F8" in warning for warning in others] == [True] * fp8


@pytest.mark.parametrize(
    ("dtype", "matrices", "others"),
    [
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp32", torch.float32, torch.float32),
        ("fp8", torch.float8_e4m3fn, torch.bfloat16),
        ("source", torch.float32, torch.float32),
    ],
)
def test_every_dtype_can_be_written(tmp_path, dtype, matrices, others):
    path = checkpoint_of(tmp_path / "source", num_layers=1).write()
    made, _ = expanded(path, tmp_path / "out", dtype, factor=2, groups=4)
    found = {name: tensor.dtype for name, tensor in stored(tmp_path / "out").items()}
    assert {found[name] for name in found if name.endswith("_proj.weight")} == {matrices}
    assert {found[name] for name in found if name.endswith(("norm.weight", "gate.weight", "embed_tokens.weight"))} == {
        others
    }
    assert made.config["dtype"] == str(others).removeprefix("torch.")
    source, result = from_huggingface(path), from_huggingface(tmp_path / "out")
    limit = {"bf16": 4e-3, "fp32": 0.0, "fp8": 6e-2, "source": 0.0}[dtype]
    moved = result.blocks[0].attention.out - source.blocks[0].attention.out
    assert (moved.norm() / source.blocks[0].attention.out.norm()).item() <= limit
    opened(tmp_path / "out").require(towers=True)


@pytest.mark.parametrize("gain", [0.0, None])
def test_new_positions(tmp_path, gain):
    path = checkpoint_of(tmp_path / "source", num_kv_heads=2, head_dim=32).write()
    made, _ = expanded(path, tmp_path / "out", factor=2, groups=4, positions="fope", fope_gain=gain, seed=7)
    model = from_huggingface(tmp_path / "out")
    cfg = model.cfg
    assert (cfg.positions, cfg.rope_theta, cfg.max_position) == ("fope", 5e6, 262144)
    old = f"{opened(path).model.rope_theta:g}"
    (warning,) = made.facts["warnings"]
    assert all(datum in warning for datum in ("positions=fope", "5e+06", f"--rope-theta {old}"))
    assert cfg.fope_gain == (0.5 if gain is None else 0.0)
    kept = cfg.fope_frequencies()
    assert kept == 12  # of 16: 5e6^(-i/16) > 2 pi / 262144 up to i = 11
    eye = torch.eye(kept).expand(2, -1, -1)
    if gain == 0:
        assert torch.equal(model.rotary.cos_coef, eye)
        assert torch.equal(model.rotary.sin_coef, eye)
    else:  # as a model starts from random weights
        fresh = decoder(7, **vars(cfg))
        assert torch.equal(model.rotary.cos_coef, fresh.rotary.cos_coef)
        assert not torch.equal(model.rotary.cos_coef, model.rotary.sin_coef)
        assert not torch.equal(model.rotary.cos_coef, eye)
    scaling = made.config["text_config"]["rope_scaling"]
    assert scaling == {
        "rope_type": "default", "fope_sep_head": True, "num_inv_freq": None, "fope_init_factor": cfg.fope_gain,
    }  # fmt: skip


def test_the_routers_temperature_divides_gate_rows(tmp_path):
    path = checkpoint_of(tmp_path / "source", num_layers=1).write()
    expanded(path, tmp_path / "out", **EXACT, router_temperature=1.7)
    expanded(path, tmp_path / "plain", **EXACT)
    hot, plain = (from_huggingface(tmp_path / name).blocks[0].moe.router.weight for name in ("out", "plain"))
    torch.testing.assert_close(hot * 1.7, plain)
    x = torch.randn(20, 32)
    assert torch.equal(select_experts(x @ hot.T, 8, 8), select_experts(x @ plain.T, 8, 8))


def test_a_text_models_directory_says_that_it_is_another_model_now(tmp_path):
    """Programs that know no router groups must not take it for a Qwen3-MoE model."""
    made = checkpoint_of(tmp_path / "source", num_layers=1)
    made.config = made.config["text_config"] | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
    made.tensors = {name.replace("model.language_model.", "model."): t for name, t in made.tensors.items()}
    path = made.write()
    result, _ = expanded(path, tmp_path / "out", **EXACT)
    assert result.config["model_type"] == "interns1_pro"
    assert result.config["auto_map"] == CLASSES
    assert FILES.items() <= result.side_files.items()
    assert result.config["architectures"] == ["InternS1ProForConditionalGeneration"]
    assert result.config["text_config"]["model_type"] == "interns1_pro_text"
    assert "model.language_model.embed_tokens.weight" in stored(tmp_path / "out")
    opened(tmp_path / "out").require(towers=True)
    same, _ = expanded(path, tmp_path / "same", factor=1, groups=1, noise=0.0)
    assert same.config["model_type"] == "qwen3_moe"
    assert "auto_map" not in same.config
    assert {n: t.tolist() for n, t in stored(tmp_path / "same").items()} == {
        n: t.tolist() for n, t in stored(path).items()
    }


def test_a_damaged_source_is_refused_before_anything_is_made(tmp_path):
    made = checkpoint_of(tmp_path / "source")
    del made.tensors["model.language_model.layers.1.mlp.experts.3.up_proj.weight"]
    source = opened(made.write())
    expansion = Expansion(factor=4, groups=8)
    with pytest.raises(HuggingFaceError) as refused:
        plan_upcycle(source, expansion)
    (problem,) = refused.value.value
    assert "model.language_model.layers.1.mlp.experts.3.up_proj.weight" in problem


@pytest.mark.parametrize("what", ["mlp.experts.3.up_proj.weight", "mlp.gate.weight"])
def test_a_source_that_is_not_finite_is_named_as_it_is_called_there(tmp_path, what):
    made = checkpoint_of(tmp_path / "source")
    name = f"model.language_model.layers.1.{what}"
    made.tensors[name] = made.tensors[name].detach().clone()
    made.tensors[name][0, 0] = float("nan")
    with pytest.raises(HuggingFaceError) as refused:
        expanded(made.write(), tmp_path / "out", factor=4, groups=8)
    file = tmp_path / "source" / "model.safetensors"
    assert (refused.value.where, refused.value.value, refused.value.allowed) == (str(file), name, "finite numbers")


def test_a_source_with_groups_is_refused(tmp_path):
    source = opened(checkpoint_of(tmp_path / "source", router_groups=2).write())
    expansion: Any = Expansion(factor=4, groups=8)
    with pytest.raises(UpcycleError) as refused:
        plan_upcycle(source, expansion)
    assert (refused.value.where, refused.value.value, refused.value.allowed) == ("router_groups", 2, (1,))
