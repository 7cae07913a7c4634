"""The model against published code: transformers' Qwen3-MoE, and stored results of Intern-S1 and Intern-S1-Pro."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.model.tiny import (
    assert_close,
    gradients,
    logits,
    next_tokens,
    randomise_norms,
    relative,
    summed_loss,
)
from trainer.model.decoder import Decoder
from trainer.weights.hf_read import from_huggingface

BOUND = 1e-5


def loss_and_gradients(model: Decoder, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean next-token cross-entropy, and its gradients under Hugging Face names."""
    labels = next_tokens(input_ids)
    summed, _ = summed_loss(model, input_ids, labels, chunk=32)
    loss = summed / (labels >= 0).sum()
    loss.backward()
    return loss.detach(), huggingface_names(model, gradients(model))


def huggingface_names(model: Decoder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of our parameters' shapes, cut into those of a checkpoint: q, k, v and each expert by itself."""
    cfg = model.cfg
    head_rows = [n * cfg.head_dim for n in (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads)]
    named = {"embed_tokens": tensors["embed"], "norm": tensors["norm"], "lm_head": tensors["lm_head"]}
    for layer in range(cfg.num_layers):
        ours = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in tensors.items()}
        theirs = {
            "input_layernorm": ours["attention_norm"], "post_attention_layernorm": ours["moe_norm"],
            "self_attn.o_proj": ours["attention.out"],
            "self_attn.q_norm": ours["attention.q_norm"], "self_attn.k_norm": ours["attention.k_norm"],
            "mlp.gate": ours["moe.router.weight"],
        }  # fmt: skip
        theirs |= zip(
            [f"self_attn.{letter}_proj" for letter in "qkv"], ours["attention.qkv"].split(head_rows), strict=True
        )
        for expert in range(cfg.num_experts):
            theirs[f"mlp.experts.{expert}.gate_proj"] = ours["moe.experts.w13"][expert, 0]
            theirs[f"mlp.experts.{expert}.up_proj"] = ours["moe.experts.w13"][expert, 1]
            theirs[f"mlp.experts.{expert}.down_proj"] = ours["moe.experts.w2"][expert]
        named |= {f"layers.{layer}.{name}": tensor for name, tensor in theirs.items()}
    return named


def unified(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names without prefix and suffix; stacked experts [E, 2I, H] and [E, H, I] taken apart."""
    named = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("model.").removeprefix("language_model.").removesuffix(".weight")
        if short.endswith("experts.gate_up_proj"):
            for expert, rows in enumerate(tensor):
                gate, up = rows.chunk(2)
                named[short.replace("gate_up_proj", f"{expert}.gate_proj")] = gate
                named[short.replace("gate_up_proj", f"{expert}.up_proj")] = up
        elif short.endswith("experts.down_proj"):
            named |= {short.replace("down_proj", f"{expert}.down_proj"): part for expert, part in enumerate(tensor)}
        else:
            named[short] = tensor
    return named


def conventional(model: Decoder) -> Decoder:
    """Published code differentiates the routing weights as they are."""
    for layer in model.blocks:
        layer.moe.router.gradient = "conventional"
    return model


def assert_logits(found: Tensor, expected: Tensor) -> None:
    assert relative(found, expected) <= BOUND
    assert (found - expected).abs().max() <= BOUND


def test_one_group_is_qwen3_moe_of_transformers(tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    theirs = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
            head_dim=16, num_experts=12, num_experts_per_tok=3, moe_intermediate_size=40, norm_topk_prob=True,
            initializer_range=0.1, rms_norm_eps=1e-5, max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0}, attn_implementation="eager",
        )
    )  # fmt: skip
    randomise_norms(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = conventional(from_huggingface(tmp_path))

    selected: dict[str, list[Tensor]] = {"theirs": [], "ours": []}
    for theirs_layer, ours_layer in zip(theirs.model.layers, ours.blocks, strict=True):
        theirs_layer.mlp.gate.register_forward_hook(lambda _m, _i, out: selected["theirs"].append(out[2]))
        ours_layer.moe.router.register_forward_hook(lambda _m, _i, out: selected["ours"].append(out[0]))
    input_ids = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(input_ids=input_ids, labels=input_ids)
    expected.loss.backward()
    found = logits(ours, input_ids)
    assert len(selected["ours"]) == len(selected["theirs"]) == 2
    for ids, reference_ids in zip(selected["ours"], selected["theirs"], strict=True):
        assert torch.equal(ids, reference_ids)
    assert_logits(found, expected.logits)
    loss, grads = loss_and_gradients(ours, input_ids)
    assert relative(loss, expected.loss) <= BOUND
    reference_grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert_close(grads, unified(reference_grads), BOUND)


@pytest.fixture(params=["interns1", "interns1_pro"])
def published(request: pytest.FixtureRequest, reference: Path) -> Path:
    directory = reference / "tiny" / str(request.param)
    if not (directory / "ref.safetensors").exists():
        pytest.skip(f"no reference results in {directory}")
    return directory


def test_published_logits_loss_and_gradients(published):
    stored = load_file(published / "ref.safetensors")
    model = conventional(from_huggingface(published))
    assert model.cfg.router_groups == {"interns1": 1, "interns1_pro": 8}[published.name]
    assert model.cfg.positions == {"interns1": "rope", "interns1_pro": "fope"}[published.name]
    assert_logits(logits(model, stored["text_input_ids"]), stored["text_logits"])
    loss, grads = loss_and_gradients(model, stored["text_input_ids"])
    assert relative(loss.view(1), stored["text_loss"]) <= BOUND
    assert_close(grads, unified(load_file(published / "text_grads.safetensors")), BOUND)


def test_every_text_tensor_is_read(published):
    """Bitwise: what is written is what the model holds, and nothing of the text model is left unread."""
    model = from_huggingface(published)
    stored = {
        name: tensor
        for name, tensor in load_file(published / "model.safetensors").items()
        if "language_model." in name or name.startswith("lm_head")
    }
    held = huggingface_names(model, dict(model.named_parameters()))
    if model.cfg.positions == "fope":
        held |= {f"rotary_emb.{name}": buffer for name, buffer in model.rotary.named_buffers()}
    assert_close(held, unified(stored), 0.0)


def test_published_position_tables_and_gate(reference):
    directory = reference / "tiny" / "interns1_pro"
    if not (directory / "ref.safetensors").exists():
        pytest.skip(f"no reference results in {directory}")
    stored, model = load_file(directory / "ref.safetensors"), from_huggingface(directory)
    kept = json.loads((directory / "config.json").read_text())["text_config"]["head_dim"] // 2
    for found, name in zip(model.rotary(torch.arange(40), torch.float32), ("cos", "sin"), strict=True):
        expected_BnSd = stored[name]
        assert torch.equal(expected_BnSd[..., :kept], expected_BnSd[..., kept:])
        for row in expected_BnSd:
            assert relative(found.squeeze(2).transpose(0, 1), row[..., :kept]) <= BOUND
    assert model.cfg.fope_frequencies() == len(stored["inv_freq"])

    router, gate_in = model.blocks[0].moe.router, stored["gate_in"].flatten(0, 1)
    ids, weights, stats = router(gate_in)
    assert torch.equal(ids, stored["gate_ids"])
    assert relative(F.linear(gate_in, router.weight), stored["gate_logits"]) <= BOUND
    assert relative(weights, stored["gate_weights"]) <= BOUND
    assert relative(stats.log_z_squared, stored["gate_logits"].logsumexp(-1).square().sum()) <= BOUND
