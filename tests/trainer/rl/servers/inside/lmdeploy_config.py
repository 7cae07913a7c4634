"""LMDeploy's own parser of a command line, and the modules that its model is built of. Prints JSON.

python lmdeploy_config.py COMMAND...    a command of `trainer.rl.servers.start`, on a directory that exists
"""

import json
import sys

import torch
from lmdeploy.cli.serve import SubCliServe
from lmdeploy.pytorch import config
from lmdeploy.pytorch.models.patch import BuildModelContext, build_patched_model
from transformers import PretrainedConfig

SubCliServe.add_parsers()
arguments = SubCliServe.subparsers.choices["api_server"].parse_args(sys.argv[4:])
config.is_bf16_supported = lambda device: True  # a GPU's property
made = config.ModelConfig.from_pretrained(
    arguments.model_path,
    dtype=arguments.dtype,
    model_format=arguments.model_format,
    hf_overrides=arguments.hf_overrides,
)
context = BuildModelContext(quant_config=made.quant_config, fp32_lm_head=made.fp32_lm_head)
model = build_patched_model(made, device=torch.device("meta"), build_model_ctx=context)

# A model with towers has its text model's configuration in a section of its own.
nested = PretrainedConfig()
nested.text_config = PretrainedConfig()
nested = config._patch_quantization_config(nested, arguments.model_format)
config.override_hf_config(nested, arguments.hf_overrides)
scope = config.QuantizationConfig.from_config(nested).fp8_quant_scope
inner = getattr(nested.text_config, "quantization_config", {}).get("fp8_quant_scope")

flags = ("logprobs_mode", "enable_return_routed_experts", "enable_abort_handling", "backend", "tp", "generation_config",
         "enable_prefix_caching")  # fmt: skip
found = {
    "dtypes": {name: str(tensor.dtype) for name, tensor in model.state_dict(keep_vars=True).items()},
    "scale_fmt": made.quant_config.scale_fmt,
    "nested": [scope, inner],
    **{flag: getattr(arguments, flag) for flag in flags},
}
print(json.dumps(found))
