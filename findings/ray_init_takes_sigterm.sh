#!/usr/bin/env bash
# ray 2.60.0 (Python 3.11): ray.init() takes the place of the program's own handler of SIGTERM.
#
# On the main thread it installs one that calls sys.exit(15), whatever was installed before, SIG_IGN too, and
# ray.shutdown() does not put the old one back. A program that saves its work on SIGTERM, which Slurm and Kubernetes send
# before they kill, and that connects to Ray afterwards, ends without saving: its handler is not called, and the exit
# code is 15, or 134 where Ray's core aborts the interpreter on its way out (both were seen). SIGINT is left alone, so that
# Ctrl-C works and tests with it pass. signal.signal(signal.SIGTERM, handler) behind ray.init() mends it.
#
# Output seen:
#   handler before ray.init: getsignal has Ray's function, exit code 15 or 134, saved: no
#   handler behind ray.init: getsignal has ours, exit code 0, saved: yes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cd "$work"
cat > program.py <<'PY'
import os
import signal
import sys
import time

import ray


def save(number, frame):
    print("saved", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
if sys.argv[1] == "behind":
    signal.signal(signal.SIGTERM, save)
print("ours" if signal.getsignal(signal.SIGTERM) is save else "Ray's function", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
PY
export HOME="$work" RAY_USAGE_STATS_ENABLED=0 RAY_raylet_start_wait_time_s=300 RAY_AUTH_MODE=disabled
for when in before behind; do
    code=0
    "$work/venv/bin/python" program.py "$when" > output 2> errors || code=$?
    case $code in 15 | 134) code="15 or 134" ;; esac
    grep -q saved output && saved=yes || saved=no
    echo "handler $when ray.init: getsignal has $(head -1 output), exit code $code, saved: $saved"
done | tee found
diff found - <<'TXT'
handler before ray.init: getsignal has Ray's function, exit code 15 or 134, saved: no
handler behind ray.init: getsignal has ours, exit code 0, saved: yes
TXT
