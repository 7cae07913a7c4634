#!/usr/bin/env bash
# transformers 5.23.0: a rope_scaling without theta discards the theta of rope_parameters, without a message.
#
# A config.json of transformers 5 has rope_theta inside rope_parameters. A tool that adds the old key, even as
# {"rope_type": "default"}, which changes nothing by itself, makes transformers take that object in place of
# rope_parameters. Theta is then the class's default of 10000. A rope_theta at the top would be used, but only where
# the object has none: with another one inside, the one at the top is passed over, which transformers 4 read.
#
# Output seen (theta of a model whose rope_parameters say 1000000):
#   as written: 1000000.0; rope_scaling of the default type added: 10000.0; rope_theta=5 added at the top: 1000000.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json, sys
from transformers import AutoConfig, Qwen3MoeConfig

Qwen3MoeConfig(rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}).save_pretrained("model")
written = json.load(open("model/config.json"))


def theta(**added):
    json.dump(written | added, open("model/config.json", "w"))
    return AutoConfig.from_pretrained("model").rope_parameters["rope_theta"]


found = theta(), theta(rope_scaling={"rope_type": "default"}), theta(rope_theta=5)
print(f"as written: {found[0]}; rope_scaling of the default type added: {found[1]}; rope_theta=5 added at the top: {found[2]}")
sys.exit(found != (1000000.0, 10000.0, 1000000.0))
PY
