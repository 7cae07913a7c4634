#!/usr/bin/env bash
# torch 2.13.0: a pipeline stage holds receive buffers for every micro-batch of a step, not for those in flight.
#
# 1F1B keeps as many micro-batches in flight as there are stages after the one in question, whatever their number in a
# step. torch.distributed.pipelining.PipelineStage still allocates a buffer for each micro-batch of the step when the
# schedule first runs, one for its activations and one for its gradients, and keeps them all until the end of the run.
# The memory therefore grows with gradient accumulation: 8 times as many micro-batches take 8 times the bytes. At 768
# micro-batches of 8,192 tokens x 4,096 bf16 values that is 51 GB of activations on every stage but the first.
#
# Output seen:
#   4 micro-batches: buffers of 4 micro-batches on the last of 2 stages, 16 KiB; in flight at most 1
#   32 micro-batches: buffers of 32 micro-batches on the last of 2 stages, 128 KiB; in flight at most 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
cat >run.py <<'PY'
import sys, torch, torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

WIDTH, ROWS = 64, 16  # of a micro-batch: 4 KiB in fp32
dist.init_process_group("gloo")
rank, as_expected = dist.get_rank(), True
for micro_batches in (4, 32):
    stage = PipelineStage(torch.nn.Linear(WIDTH, WIDTH), rank, 2, torch.device("cpu"))
    in_flight = 0

    def count(*_, stage=stage):
        global in_flight
        in_flight = max(in_flight, len(stage.fwd_cache) + 1)

    stage.submod.register_forward_hook(count)
    schedule = Schedule1F1B(stage, micro_batches, loss_fn=torch.nn.functional.mse_loss)
    x = torch.randn(micro_batches * ROWS, WIDTH)
    for _ in range(2):  # the first step runs every stage once more to learn the shapes
        in_flight = 0
        schedule.step(x, target=x) if rank == 0 else schedule.step(target=x)
    if rank == 1:
        buffers = {info.buffer.untyped_storage().data_ptr(): info.buffer.untyped_storage().nbytes()
                   for infos in stage.args_recv_info.values() for info in infos}
        print(f"{micro_batches} micro-batches: buffers of {len(buffers)} micro-batches on the last of 2 stages, "
              f"{sum(buffers.values()) // 1024} KiB; in flight at most {in_flight}")
        as_expected &= len(buffers) == micro_batches and in_flight == 1
dist.barrier()
dist.destroy_process_group()
sys.exit(not as_expected)
PY
"$work/venv/bin/torchrun" --nproc-per-node 2 run.py
