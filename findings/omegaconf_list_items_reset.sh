#!/usr/bin/env bash
# omegaconf 2.3.1 (hydra-core 1.3.8): overriding one field of a structured list's item resets the others to the class's
# defaults, and a number given to a text field is normalised.
#
# Merging [{"w": 5}] over [{"name": "p", "w": 1}] of a List[Item] does not keep name "p": the list is replaced whole and
# its items are built anew from the class, so name becomes the class default. Hydra's command line reads 1e-3 as a
# number before the text field converts it back: run.tag=1e-3 arrives as "0.001", run.tag=1e3 as "1000.0".
#
# Output seen:
#   item: name 'default' w 5; tags: '0.001' '1000.0'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check hydra-core==1.3.8 omegaconf==2.3.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
from dataclasses import dataclass, field
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

@dataclass
class Item:
    name: str = "default"
    w: int = 0

@dataclass
class Config:
    items_: list[Item] = field(default_factory=list)
    tag: str = ""

base = OmegaConf.merge(OmegaConf.structured(Config), {"items_": [{"name": "p", "w": 1}]})
merged = OmegaConf.merge(base, {"items_": [{"w": 5}]})
item = OmegaConf.to_object(merged).items_[0]
parser = OverridesParser.create()
tags = []
for text in ("1e-3", "1e3"):
    override = parser.parse_override(f"tag={text}")
    tags.append(OmegaConf.merge(base, {"tag": override.value()}).tag)
print(f"item: name {item.name!r} w {item.w}; tags: {tags[0]!r} {tags[1]!r}")
sys.exit(item.name != "default" or item.w != 5 or tags != ["0.001", "1000.0"])
PY
