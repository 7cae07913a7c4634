#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.23.0, torch 2.13.0): a per-expert rsLoRA adapter gets another strength where it is loaded.
#
# transformers 5 holds the experts of Qwen3-MoE as stacks, gate and up in one, so PEFT converts an adapter with a pair
# of matrices for every expert as it loads it: gate and up become one adapter of twice the rank, and alpha is doubled
# with it. That keeps alpha / r, but not rsLoRA's alpha / sqrt(r): gate and up are merged (and applied) 1.414 times too
# strong, down as it should be. Nothing is reported. An adapter trained per expert with use_rslora, by transformers 4 or
# another framework, so answers differently from how it was trained. Written with use_rslora=false and an alpha of
# alpha * sqrt(r), the same adapter is loaded right.
#
# Output seen (r 4, 4 experts; what a merge adds, as a multiple of factor * B A):
#   use_rslora=false: gate_up_proj 1.0000, down_proj 1.0000
#   use_rslora=true:  gate_up_proj 1.4142, down_proj 1.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import json, pathlib, sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

R, ALPHA, E, H, I = 4, 8, 4, 16, 8
PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
torch.manual_seed(0)
config = Qwen3MoeConfig(
    vocab_size=32, hidden_size=H, intermediate_size=H, moe_intermediate_size=I, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=E, num_experts_per_tok=2)
a = {name: torch.randn(E, R, I if name == "down_proj" else H) for part in PARTS.values() for name in part}
b = {name: torch.randn(E, H if name == "down_proj" else I, R) for name in a}
delta = {name: torch.cat([b[part] @ a[part] for part in parts], 1) for name, parts in PARTS.items()}

def strengths(rslora):
    folder = pathlib.Path(f"adapter_{rslora}")
    folder.mkdir()
    at = "base_model.model.model.layers.0.mlp.experts"
    save_file({f"{at}.{e}.{name}.lora_{kind}.weight": of[name][e].contiguous()
               for name in a for e in range(E) for kind, of in (("A", a), ("B", b))}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(dict(
        peft_type="LORA", task_type="CAUSAL_LM", r=R, lora_alpha=ALPHA, use_rslora=rslora, target_modules=[*a])))
    model = Qwen3MoeForCausalLM(config)
    before = {name: p.detach().clone() for name, p in model.model.layers[0].mlp.experts.named_parameters()}
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    found, factor = {}, ALPHA / (R**0.5 if rslora else R)
    for name, p in merged.model.layers[0].mlp.experts.named_parameters():
        wanted = factor * delta[name]
        found[name] = ((p.detach() - before[name]) * wanted).sum().item() / wanted.square().sum().item()
    print(f"use_rslora={str(rslora).lower()}:".ljust(17), ", ".join(f"{name} {of:.4f}" for name, of in found.items()))
    return [round(found[name], 3) for name in PARTS]

sys.exit([strengths(False), strengths(True)] != [[1.0, 1.0], [1.414, 1.0]])
PY
