#!/usr/bin/env bash
# megatron-core 0.16.1 (torch 2.13.0): IndexedDatasetBuilder wraps token ids that its dtype cannot hold, without an error.
#
# DType.optimal_dtype(vocab_size) chooses uint16 only below 65,500 entries, which suggests that ids are checked against
# the dtype. A builder made with numpy.uint16 stores id 70000 as 4464, and a builder with its default int32 cuts 1.7 to
# 1. Reading back gives valid ids of other tokens.
#
# Output seen:
#   uint16: [70000, 5] is read back as [4464, 5]; int32: [1.7, 2.0] as [1, 2]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 megatron-core==0.16.1
cd "$work"
"$work/venv/bin/python" - 2>"$work/warnings" <<'PY' || { cat "$work/warnings" >&2; exit 1; }
import sys, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

def round_trip(name, dtype, values):
    builder = IndexedDatasetBuilder(f"{name}.bin", dtype=dtype)
    builder.add_item(torch.tensor(values))
    builder.end_document()
    builder.finalize(f"{name}.idx")
    dataset = IndexedDataset(name)
    return dataset.get(0).tolist()  # a copy: a view must not outlive its dataset

wrapped = round_trip("wrapped", numpy.uint16, [70000, 5])
cut = round_trip("cut", numpy.int32, [1.7, 2.0])
print(f"uint16: [70000, 5] is read back as {wrapped}; int32: [1.7, 2.0] as {cut}")
sys.exit(wrapped != [4464, 5] or cut != [1, 2])
PY
