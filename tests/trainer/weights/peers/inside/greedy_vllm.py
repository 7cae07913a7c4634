"""Greedy answers of vLLM, and the keys that its model file reads. DIR TOKENS; the input is a list of prompts as ids.

A model with towers is built as text alone, and its vision tower beside it: vLLM asks for an image processor otherwise.
"""

import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}

import torch
from reads import record
from safetensors.torch import load_file
from vllm import LLM, SamplingParams
from vllm.config import get_current_vllm_config, set_current_vllm_config
from vllm.model_executor.models import interns1_pro as pro

directory, tokens = sys.argv[1], int(sys.argv[2])
# 0.32.0 reads self.model_config in this class before it exists; 0.33.0 sets it first.
make_input_norm = pro.build_mm_input_norm
pro.InternS1ProForConditionalGeneration.model_config = None
pro.build_mm_input_norm = lambda _: make_input_norm(get_current_vllm_config().model_config)
with open(f"{directory}/config.json") as file:
    towers = "vision_config" in json.load(file)
read = record("vllm.model_executor.models")
llm = LLM(
    model=directory, dtype="float32", max_model_len=128, max_num_seqs=4, enforce_eager=True, block_size=32,
    trust_remote_code=towers, **({"limit_mm_per_prompt": {"image": 0, "video": 0}} if towers else {}),
)  # fmt: skip
prompts = [{"prompt_token_ids": prompt} for prompt in json.load(sys.stdin)]
outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=tokens))
answers = [list(output.outputs[0].token_ids) for output in outputs]
left = absent = None
if towers:
    config = llm.llm_engine.vllm_config
    with set_current_vllm_config(config), torch.no_grad():
        tower = pro.Qwen3_VisionTransformer(config.model_config.hf_config.vision_config, norm_eps=1e-6, prefix="visual")
    stored = {
        name.removeprefix("model.visual."): tensor
        for name, tensor in load_file(f"{directory}/model-00001-of-00001.safetensors").items()
        if name.startswith("model.visual.")
    }
    names = dict(tower.named_parameters())
    loaded = tower.load_weights(stored.items())
    absent = sorted(names.keys() - loaded)
    left = sorted(set(stored) - {name.replace("qkv_proj", "qkv") for name in loaded} - loaded)
print(json.dumps({"answers": answers, "read": {k: sorted(v) for k, v in read.items()}, "absent": absent, "left": left}))
