#!/usr/bin/env bash
# torch 2.13.0: zero-bubble pipeline schedules over FSDP2 give wrong or missing weight gradients, without an error.
#
# ScheduleInterleavedZeroBubble splits the backward pass into gradients of inputs and gradients of weights. Over stages
# whose blocks are sharded by fully_shard with its default resharding, most weight gradients of later stages are None or
# wrong; the loss is right and the parts that learn hide it. With reshard_after_forward=False all are right. Schedule1F1B
# is right either way.
#
# Output seen (two pipeline ranks of two stages, each over two FSDP ranks; 4 blocks a stage):
#   default resharding: 12 of 16 weight gradients are wrong or missing
#   reshard_after_forward=False: 0 of 16
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
cat >train.py <<'PY'
import os, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import ScheduleInterleavedZeroBubble

dist.init_process_group("gloo")
rank = dist.get_rank()
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
place = mesh["pp"].get_local_rank()
STAGES, BLOCKS, WIDTH = 4, 4, 16


class Stage(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


def mean_square(output, target):
    return ((output - target) ** 2).mean()


torch.manual_seed(99)
inputs, targets = torch.randn(8, WIDTH), torch.randn(8, WIDTH)
stages = [Stage(seed) for seed in range(STAGES)]
whole = torch.nn.Sequential(*stages)
mean_square(whole(inputs), targets).backward()
wanted = [[block.weight.grad.clone() for block in stage.blocks] for stage in stages]

wrong = {}
for reshard in (True, False):
    mine = [Stage(seed) for seed in (place, place + 2)]
    for stage in mine:
        for block in stage.blocks:
            fully_shard(block, mesh=mesh["dp"], reshard_after_forward=reshard)
        fully_shard(stage, mesh=mesh["dp"], reshard_after_forward=reshard)
    parts = [PipelineStage(stage, place + 2 * i, STAGES, torch.device("cpu"), group=mesh["pp"].get_group())
             for i, stage in enumerate(mine)]
    schedule = ScheduleInterleavedZeroBubble(parts, n_microbatches=4, loss_fn=mean_square)
    schedule.step(*([inputs] if place == 0 else []), **({"target": targets} if place == 1 else {}))
    wrong[reshard] = 0
    for i, stage in enumerate(mine):
        for block, want in zip(stage.blocks, wanted[place + 2 * i]):
            grad = None if block.weight.grad is None else block.weight.grad.full_tensor()
            wrong[reshard] += grad is None or not torch.allclose(grad, want, rtol=1e-4, atol=1e-6)
counts = torch.tensor([wrong[True], wrong[False]])
dist.all_reduce(counts, group=mesh["pp"].get_group())
if rank == 0:
    total = STAGES * BLOCKS
    print(f"default resharding: {counts[0]} of {total} weight gradients are wrong or missing")
    print(f"reshard_after_forward=False: {counts[1]} of {total}")
dist.destroy_process_group()
sys.exit(not (counts[0] > 0 and counts[1] == 0))
PY
"$work/venv/bin/torchrun" --nproc-per-node 4 train.py
