#!/usr/bin/env bash
# transformers 5.23.0 (accelerate 1.15.0, torch 2.13.0, CPU): FP8 matrices whose sizes do not divide by 128 are read with
# the wrong scales, without an error.
#
# A checkpoint with quantization_config fp8 and weight_block_size [128, 128] is dequantised on a CPU. A matrix of 192
# rows has two rows of scales, the second for the last 64 rows. transformers takes the block as 192 / 2 = 96 rows and
# does not look at weight_block_size, so rows 96 to 127 get the second block's scale. Logits stay finite.
#
# Output seen (up_proj of 192 rows; largest error relative to the true value):
#   {'rows 0-95': 0.0, 'rows 96-127': 7.0, 'rows 128-191': 0.0}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

torch.manual_seed(0)
config = Qwen3Config(vocab_size=64, hidden_size=128, intermediate_size=192, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, head_dim=64, tie_word_embeddings=False)
Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained("model")
state = load_file("model/model.safetensors")
name = "model.layers.0.mlp.up_proj.weight"
true = None
for key in [key for key in state if key.endswith("_proj.weight")]:
    rows, columns = state[key].shape
    codes = state[key].float().mul(100).clamp(-400, 400).to(torch.float8_e4m3fn)
    scales = torch.ones(-(-rows // 128), -(-columns // 128))
    scales[1:] *= 8
    grown = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    if key == name:
        true = codes.float() * grown
    state[key], state[f"{key}_scale_inv"] = codes, scales
save_file(state, "model/model.safetensors", {"format": "pt"})
config = json.load(open("model/config.json"))
config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                                 "activation_scheme": "dynamic"}
json.dump(config, open("model/config.json", "w"))
read = AutoModelForCausalLM.from_pretrained("model").state_dict()[name].float()
off = ((read - true).abs() / true.abs().clamp_min(1e-9)).amax(1)
parts = {"rows 0-95": off[:96].max().item(), "rows 96-127": off[96:128].max().item(), "rows 128-191": off[128:].max().item()}
print({part: round(error, 3) for part, error in parts.items()})
sys.exit(not (parts["rows 0-95"] < 0.01 and parts["rows 96-127"] > 1 and parts["rows 128-191"] < 0.01))
PY
