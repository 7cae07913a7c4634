#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.23.0, torch 2.13.0): LoRA on stacked experts is expert-major in A and rank-major in B.
#
# With target_parameters on the stacked experts of Qwen3-MoE (rank r, E experts), lora_A has r*E rows and lora_B r*E
# columns. Rows e*r to e*r+r-1 of A are expert e's, but columns e, E+e, 2E+e, ... of B are: the two halves of one
# adapter use different orders, and neither names nor shapes show it. An exporter that splits both alike mixes experts.
#
# Output seen (r 4, 8 experts):
#   A [32, 16] expert-major, B [32, 32] rank-major: error 5.5e-09; both expert-major: error 1.39
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

R, E = 4, 8
torch.manual_seed(0)
model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=E, num_experts_per_tok=2))
before = model.model.layers[0].mlp.experts.down_proj.detach().clone()
adapted = get_peft_model(model, LoraConfig(r=R, lora_alpha=R, target_parameters=["mlp.experts.down_proj"]))
tensors = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
for parameter in tensors.values():
    torch.nn.init.normal_(parameter)
a = next(p for name, p in tensors.items() if "lora_A" in name).detach().clone()
b = next(p for name, p in tensors.items() if "lora_B" in name).detach().clone()
after = adapted.merge_and_unload().model.layers[0].mlp.experts.down_proj.detach()
delta = after - before
seen = torch.stack([b[:, e::E] @ a[e * R:(e + 1) * R] for e in range(E)])
alike = torch.stack([b[:, e * R:(e + 1) * R] @ a[e * R:(e + 1) * R] for e in range(E)])
errors = [((guess - delta).norm() / delta.norm()).item() for guess in (seen, alike)]
print(f"A {list(a.shape)} expert-major, B {list(b.shape)} rank-major: error {errors[0]:.1e}; "
      f"both expert-major: error {errors[1]:.2f}")
sys.exit(not (errors[0] < 1e-5 and errors[1] > 0.1))
PY
