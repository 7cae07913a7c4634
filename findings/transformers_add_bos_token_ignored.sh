#!/usr/bin/env bash
# transformers 5.23.0: add_bos_token of a tokenizer_config.json is ignored where there is a tokenizer.json.
#
# The template in tokenizer.json alone decides. A directory that says add_bos_token=true and has no template gives no
# first token, and one that says false and has a template gives one; the attribute of the loaded tokenizer is False
# both times. A model then trains on other ids than those that its configuration describes, without a message.
#
# Output seen (tokens of "low", for LlamaTokenizer):
#   no template, add_bos_token=True: low (False); template, add_bos_token=False: <s> low (False)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json, pathlib, sys
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

pathlib.Path("saved").mkdir()
made = Tokenizer(models.BPE(unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
special = ["<unk>", "<s>", "</s>"]
made.train_from_iterator(["low lower lowest"] * 9, trainers.BpeTrainer(show_progress=False, special_tokens=special))


def loaded(add_bos_token):
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": add_bos_token,
              "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    made.save("saved/tokenizer.json")
    pathlib.Path("saved/tokenizer_config.json").write_text(json.dumps(config))
    found = AutoTokenizer.from_pretrained("saved")
    tokens = " ".join(found.convert_ids_to_tokens(found("low")["input_ids"]))
    return f"add_bos_token={add_bos_token}: {tokens} ({found.add_bos_token})"


first = loaded(True)
made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
second = loaded(False)
print(f"no template, {first}; template, {second}")
sys.exit((first, second) != ("add_bos_token=True: low (False)", "add_bos_token=False: <s> low (False)"))
PY
