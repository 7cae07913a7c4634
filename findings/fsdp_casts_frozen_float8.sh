#!/usr/bin/env bash
# torch 2.13.0 (FSDP2, fully_shard): frozen float8 codes reach the forward pass as bfloat16 numbers.
#
# A frozen parameter of dtype float8_e4m3fn, for example the published codes of a weight that adapters are trained for,
# is sharded as one byte an element. With MixedPrecisionPolicy(param_dtype=bfloat16), as adapters beside it want, FSDP
# counts it among floating-point weights and casts it before the all-gather: the module sees a bfloat16 tensor of the
# codes' values. Twice the bytes travel and stay, and a view as bytes, with which kernels and scales take codes, has
# twice the columns, without a warning. requires_grad=False does not matter, though FSDP leaves frozen parameters out
# where it checks that dtypes agree. The same bytes as uint8 pass unchanged.
#
# Output seen:
#   float8_e4m3fn arrives as torch.bfloat16, bytes of a row: 4 -> 8
#   uint8 arrives as torch.uint8, bytes of a row: 4 -> 4
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
codes = torch.tensor([[1.0, 448.0, 0.0137, -3.0]]).to(torch.float8_e4m3fn)
seen = {}

class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = nn.Parameter(base, requires_grad=False)
        self.adapter = nn.Parameter(torch.ones(4))

    def forward(self, x):
        seen["dtype"], seen["bytes"] = self.base.dtype, self.base.detach().view(torch.uint8).shape[1]
        return x * self.adapter

found = []
for base in (codes, codes.view(torch.uint8)):
    module = Adapted(base)
    fully_shard(module, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    module(torch.ones(4)).sum().backward()
    found.append((str(seen["dtype"]), seen["bytes"]))
    print(f"{str(base.dtype).split('.')[1]} arrives as {seen['dtype']}, bytes of a row: 4 -> {seen['bytes']}")
dist.destroy_process_group()
sys.exit(found != [("torch.bfloat16", 8), ("torch.uint8", 4)])
PY
