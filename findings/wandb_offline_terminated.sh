#!/usr/bin/env bash
# wandb 0.31.0, offline: a run ended by SIGTERM within its first seconds keeps neither its configuration nor its history.
#
# The offline folder's run-ID.wandb is buffered. After 100 logged values and a SIGTERM (which ends Python without its
# exit handlers) the file is the 7 bytes of its header. sys.exit, an exception and SIGINT write everything. A job that a
# scheduler stops early leaves a run that `wandb sync` lists like any other and that is empty.
#
# Output seen:
#   SIGTERM: 7 bytes; sys.exit: 30304 bytes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" WANDB_MODE=offline WANDB_SILENT=true HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check wandb==0.31.0
cd "$work"
cat >log.py <<'PY'
import os, signal, sys, wandb

run = wandb.init(project="p", dir=sys.argv[1], config={"width": 64})
for step in range(100):
    run.log({"loss": 1 / (step + 1)})
if sys.argv[2] == "terminated":
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(0)
PY
mkdir terminated finished
"$work/venv/bin/python" log.py terminated terminated || true
"$work/venv/bin/python" log.py finished finished
sleep 2
size() { find "$1" -name '*.wandb' -printf '%s\n'; }
echo "SIGTERM: $(size terminated) bytes; sys.exit: $(size finished) bytes"
[ "$(size terminated)" -eq 7 ] && [ "$(size finished)" -gt 1000 ]
