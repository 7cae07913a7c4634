#!/usr/bin/env bash
# torch 2.13.0: HuggingFaceStorageWriter with its defaults keeps one rank's shard; consolidation writes 0 for scalars.
#
# torch.distributed.checkpoint.save(state, storage_writer=HuggingFaceStorageWriter(path)) on two ranks with a sharded
# DTensor ends without an error and leaves model.safetensors and an index that states the full size. The file holds one
# rank's half under the full tensor's name (which rank's varies). With save_distributed=True and
# enable_consolidation=True the sharded tensor is whole, and a tensor without dimensions, such as a scale of 3.5, is
# written as 0.
#
# Output seen:
#   defaults: weight of shape (8, 4) is saved as [4, 4]
#   consolidated: weight [8, 4] correct, scale 3.5 -> 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 safetensors==0.8.0 fsspec==2026.3.0
cd "$work"
cat >save.py <<'PY'
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
weight = distribute_tensor(torch.arange(1.0, 33).view(8, 4), mesh, [Shard(0)])
dcp.save({"weight": weight}, storage_writer=dcp.HuggingFaceStorageWriter("plain"))
dist.barrier()
dcp.save({"weight": weight, "scale": torch.tensor(3.5)}, storage_writer=dcp.HuggingFaceStorageWriter(
    "whole", save_distributed=True, enable_consolidation=True))
dist.barrier()
dist.destroy_process_group()
PY
"$work/venv/bin/torchrun" --nproc-per-node 2 save.py
"$work/venv/bin/python" - <<'PY'
import glob, sys, torch
from safetensors.torch import load_file

def load(folder):
    return {name: tensor for path in glob.glob(f"{folder}/*.safetensors") for name, tensor in load_file(path).items()}

plain, whole = load("plain"), load("whole")
print("defaults: weight of shape (8, 4) is saved as", list(plain["weight"].shape))
right = torch.equal(whole["weight"], torch.arange(1.0, 33).view(8, 4))
print("consolidated: weight", list(whole["weight"].shape), "correct," if right else "wrong,",
      f"scale 3.5 -> {whole['scale'].item()}")
sys.exit(plain["weight"].shape != (4, 4) or not right or whole["scale"].item() != 0)
PY
