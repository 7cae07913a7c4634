"""LMDeploy's model built from DIR on a CPU and filled by its own loader: the keys read, and tensors absent or left."""

import json
import sys

import torch
from lmdeploy.pytorch.config import ModelConfig
from lmdeploy.pytorch.models.patch import build_patched_model
from lmdeploy.pytorch.weight_loader import model_weight_loader
from reads import record

directory = sys.argv[1]
read = record("lmdeploy.pytorch.models", "lmdeploy.pytorch.configurations", "lmdeploy.pytorch.nn")
config = ModelConfig.from_pretrained(directory, trust_remote_code=True, dtype="float32")
model = build_patched_model(config, device=torch.device("cpu"))
tensors = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_floating_point()}
with torch.inference_mode():
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    # Raises for a name that has no parameter, and for another shape.
    model_weight_loader.load_model_weights(model, directory, device=torch.device("cpu"))
    absent = [name for name, tensor in tensors.items() if tensor.isnan().any()]
answer = {
    "class": type(model).__name__,
    "dtype": str(config.hf_config.dtype),
    "absent": absent,
    "filled": {name: 1 - float(tensors[name].isnan().float().mean()) for name in absent},
    "read": {kind: sorted(keys) for kind, keys in read.items()},
}
print(json.dumps(answer))
