#!/usr/bin/env bash
# datasets 5.2.0 (pyarrow 26.0.1): one number in a column of strings changes the strings.
#
# A JSON Lines file whose column holds strings and, in one row, a number is read without an error. The column's feature
# becomes Json, and every string in it is then parsed as JSON when a row is read: "007" comes back as the integer 7,
# "1.50" as 1.5, "true" as True, "null" as None. The same file without the number returns the strings as they were
# written. Code that expects an error, or the number turned into a string, gets other answers than the file holds.
#
# Output seen:
#   all strings: ['007', '1.50', 'true', 'null', 'water'] Value('string')
#   one number:  [7, 1.5, True, None, 'water', 3] Json(decode=True)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HOME="$work/home" HF_HUB_OFFLINE=1 TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json, sys
from datasets import load_dataset

strings = ["007", "1.50", "true", "null", "water"]

def read(name, values):
    with open(name, "w") as file:
        file.writelines(json.dumps({"answer": value}) + "\n" for value in values)
    rows = load_dataset("json", data_files=name, split="train")
    return [row["answer"] for row in rows], rows.features["answer"]

plain, plain_feature = read("strings.jsonl", strings)
mixed, mixed_feature = read("mixed.jsonl", [*strings, 3])
print("all strings:", plain, plain_feature)
print("one number: ", mixed, mixed_feature)
sys.exit(plain != strings or mixed != [7, 1.5, True, None, "water", 3])
PY
