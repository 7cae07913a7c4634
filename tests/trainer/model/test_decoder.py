"""The whole model: its size, its inputs, its initial weights, and the dtypes in which its parts really run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.model.tiny import (
    assert_close,
    build,
    gradients,
    logits,
    model_config,
    next_tokens,
    random_ids,
    relative,
    summed_loss,
)
from trainer.config.compose import compose, list_groups
from trainer.model.decoder import Decoder
from trainer.model.dual_encoder import make_decoder


@pytest.mark.parametrize("recipe", list_groups()["model"])
def test_built_module_has_as_many_parameters_as_its_configuration_says(recipe):
    pairs = recipe.startswith("vision_")
    cfg = compose(["recipe=vision_contrastive" if pairs else "recipe=toy", f"model={recipe}", "data.seq_len=64"]).model
    with torch.device("meta"):
        model = make_decoder(cfg)
        text = dict(Decoder(replace(cfg, vision=None, signals=None, embedding=None)).named_parameters())
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters()) == cfg.num_params() == model.num_params()
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name not in text]
    assert sorted(shapes) == sorted(cfg.tower_shapes())
    billions = {"intern_s1_pro_text": "916.56", "intern_s1_text": "235.10"}
    assert f"{cfg.num_params() / 1e9:.2f}" == billions.get(recipe, f"{cfg.num_params() / 1e9:.2f}")


def test_flops_are_those_of_the_operations_that_run():
    """Counted by torch over forward and backward. It counts all S x S scores, the formula the causal half of them, and
    not FoPE's mixing of tables."""
    cfg, batch, seq_len = model_config(expert_backend="loop", positions="rope"), 2, 16
    model, ids = build(cfg), random_ids(cfg, batch, seq_len)
    # The counter knows no addition in place; it hands over shapes.
    in_place = {torch.ops.aten.addmm_: lambda _into, left, right, **_: 2 * left[0] * left[1] * right[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        summed, _ = summed_loss(model, ids, next_tokens(ids), chunk=8)
        summed.backward()
    beyond_causal = 12 * cfg.num_layers * cfg.num_heads * cfg.head_dim * (seq_len - (seq_len + 1) / 2)
    assert counter.get_total_flops() / (batch * seq_len) == cfg.flops_per_token(seq_len) + beyond_causal


def test_embeddings_in_place_of_ids():
    model = build(model_config())
    ids = random_ids(model.cfg, 2, 9)
    embeds = model.embed.detach()[ids]
    assert torch.equal(model(embeds=embeds).hidden, model(ids).hidden)
    for inputs in ({}, {"ids": ids, "embeds": embeds}):
        with pytest.raises(ValueError, match=r"either ids .* or embeds"):
            model(**inputs)


def test_replayed_expert_ids_of_every_layer():
    model = build(model_config())
    ids = random_ids(model.cfg, 2, 9)
    chosen: list[Tensor] = []
    hooks = [
        layer.moe.router.register_forward_hook(lambda _m, _i, out: chosen.append(out[0])) for layer in model.blocks
    ]
    hidden = model(ids).hidden
    for hook in hooks:
        hook.remove()
    own = torch.stack(chosen)
    assert torch.equal(model(ids, expert_ids=own).hidden, hidden)
    others = (own + 1) % 6 + own // 6 * 6  # the next expert of the same group
    for layer in range(2):
        changed = own.clone()
        changed[layer] = others[layer]
        assert relative(model(ids, expert_ids=changed).hidden, hidden) > 1e-3
        assert torch.equal(
            model(ids, expert_ids=changed).routing.counts[layer].nonzero().flatten(),
            others[layer].unique(),
        )


def test_the_summed_loss_is_that_of_the_logits():
    model = build(model_config(), dtype=torch.float64)
    ids = random_ids(model.cfg, 2, 9)
    labels = next_tokens(ids)
    summed, stats = summed_loss(model, ids, labels, chunk=5)
    picked = torch.log_softmax(logits(model, ids), dim=-1)[:, :-1].gather(-1, ids[:, 1:, None])
    assert relative(summed, -picked.sum()) <= 1e-12
    assert stats.counts.shape == stats.probabilities.shape == (2, 12)
    assert stats.counts.sum(1).tolist() == [18 * 4, 18 * 4]


def test_one_token_through_the_whole_model():
    model = build(model_config())
    ids = random_ids(model.cfg, 1, 1)
    assert logits(model, ids).shape == (1, 1, 61)
    summed, _ = summed_loss(model, ids, ids)
    summed.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
def test_a_step_repeats_bitwise(backend):
    model = build(model_config(expert_backend=backend))
    ids = random_ids(model.cfg, 2, 9)
    runs = []
    for _ in range(2):
        summed, _ = summed_loss(model, ids, next_tokens(ids))
        summed.backward()
        runs.append({"loss": summed.detach()} | gradients(model))
    assert_close(*runs, 0.0)


def initialised(seed: int = 5, **changed: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = Decoder(model_config(**changed))
    model.to_empty(device="cpu").init_weights(seed)
    return model.state_dict()


def test_initial_values_depend_on_seed_name_and_expert_alone():
    """Not on what else exists: fewer experts or layers leave the values of the others as they are."""
    full = initialised()
    assert_close(initialised(), full, 0.0)
    fewer_layers = initialised(num_layers=1)
    assert_close(fewer_layers, {name: full[name] for name in fewer_layers}, 0.0)
    for name, part in initialised(num_experts=8).items():
        if ".experts." in name:
            assert torch.equal(part, full[name][:8])
        elif ".router." not in name:
            assert torch.equal(part, full[name])
    other_seed = initialised(seed=6)
    drawn = {name: tensor for name, tensor in full.items() if tensor.ndim > 1}
    for name, tensor in drawn.items():
        assert not torch.equal(tensor, other_seed[name]), name
    everything = [part for name, t in drawn.items() for part in (t if "experts" in name else [t])]
    heads = [tuple(part.flatten()[:8].tolist()) for part in everything]
    assert len(set(heads)) == len(heads)  # no two tensors or experts start alike
    assert {name for name, tensor in full.items() if tensor.ndim == 1 and (tensor == 1.0).all()} == full.keys() - drawn


def test_initial_matrices_are_normal_with_the_configured_spread():
    for name, tensor in initialised(hidden_size=96, vocab_size=300, init_std=0.03).items():
        if tensor.ndim > 1 and "rotary" not in name:
            assert tensor.std().item() == pytest.approx(0.03, rel=5 / tensor.numel() ** 0.5), name
            assert abs(tensor.mean().item()) < 5 * 0.03 / tensor.numel() ** 0.5, name


class Dtypes(TorchDispatchMode):
    """Notes the dtype of each matrix multiplication by the sizes of its operands, and of everything made."""

    def __init__(self) -> None:
        super().__init__()
        self.matmuls: dict[tuple[int, ...], set[torch.dtype]] = {}
        self.made: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left, right = args[-2:]
            self.matmuls.setdefault(tuple(right.shape), set()).update({left.dtype, right.dtype, out.dtype})
        # Position frequencies, the only vectors beside sums, are made in fp32 and then widened.
        if isinstance(out, Tensor) and out.is_floating_point() and out.ndim > 1:
            self.made.add(out.dtype)
        return out


def test_bf16_compute_leaves_masters_router_and_head_in_fp32():
    cfg = model_config(expert_backend="loop")
    model, reference = build(cfg, compute_dtype=torch.bfloat16), build(cfg)
    ids = random_ids(cfg, 2, 9)
    seen: dict[str, tuple[torch.dtype, ...]] = {}
    for name in ("attention", "moe.experts", "moe.router"):
        module = model.blocks[1].get_submodule(name)
        module.register_forward_hook(
            lambda _m, args, out, name=name: seen.update(
                {name: (args[0].dtype, (out[1] if name == "moe.router" else out).dtype)}
            )
        )
    with Dtypes() as dtypes:
        found = logits(model, ids)
    bf16, fp32 = torch.bfloat16, torch.float32
    assert seen == {"attention": (bf16, bf16), "moe.experts": (bf16, bf16), "moe.router": (bf16, fp32)}
    hidden, heads, kept = cfg.hidden_size, cfg.num_heads * cfg.head_dim, cfg.fope_frequencies()
    assert dtypes.matmuls == {
        (kept, cfg.num_kv_heads * kept): {fp32},
        (hidden, heads + 2 * cfg.num_kv_heads * cfg.head_dim): {bf16}, (heads, hidden): {bf16},
        (hidden, cfg.expert_width): {bf16}, (cfg.expert_width, hidden): {bf16},
        (hidden, cfg.num_experts): {fp32}, (hidden, cfg.vocab_size): {fp32},
    }  # fmt: skip
    assert found.dtype == fp32
    assert model(ids).hidden.dtype == bf16
    assert not torch.equal(found, found.bfloat16().float())  # the head's result was never rounded
    assert relative(found, logits(reference, ids)) < 0.1
    summed, stats = summed_loss(model, ids, next_tokens(ids))
    assert summed.dtype == stats.probabilities.dtype == stats.log_z_squared.dtype == fp32
    summed.backward()
    assert {p.dtype for p in model.parameters()} == {fp32}
    assert {grad.dtype for grad in gradients(model).values()} == {fp32}


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
def test_an_fp64_model_is_fp64_throughout(backend):
    model = build(model_config(expert_backend=backend), dtype=torch.float64)
    ids = random_ids(model.cfg, 2, 9)
    with Dtypes() as dtypes:
        found = logits(model, ids)
        summed, stats = summed_loss(model, ids, next_tokens(ids))
        (summed + stats.probabilities.sum() + stats.log_z_squared.sum()).backward()
    assert dtypes.made == {torch.float64}
    assert {found.dtype, summed.dtype} | {t.dtype for t in stats[:3]} == {torch.float64}
    assert {grad.dtype for grad in gradients(model).values()} == {torch.float64}
