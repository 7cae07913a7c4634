#!/usr/bin/env bash
# transformers 5.23.0: {% generation %} inside a Jinja macro or a captured block marks other characters as the assistant's.
#
# The renderer notes where a generation block starts as the length of the text that was streamed so far. Text inside a
# macro or a {% set %} block is not streamed until that ends, so the start is too early, and the mask has the length of
# the answer but covers what is before it: role names, or a part of the question. A model that is fine-tuned with
# return_assistant_tokens_mask=True then learns to write its own headers, without a message. Templates that write turns
# through a macro (as those with channels do) look right when they are rendered.
#
# Output seen:
#   plain loop: 'two'; macro: '[as'; set: '[us'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HOME="$work/home" HF_HUB_OFFLINE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

characters = {one: number for number, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
library = Tokenizer(models.BPE(vocab=characters, merges=[]))
library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
library.decoder = decoders.ByteLevel()
turn = ("[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}")
loop = "{% for m in messages %}BODY{% endfor %}"
templates = {
    "plain loop": loop.replace("BODY", turn),
    "macro": "{% macro say(m) %}" + turn + "{% endmacro %}" + loop.replace("BODY", "{{ say(m) }}"),
    "set": "{% set text %}" + loop.replace("BODY", turn) + "{% endset %}{{ text }}",
}
chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
seen = {}
for name, template in templates.items():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library)
    tokenizer.chat_template = template
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "[user]one[assistant]two"
    found = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    pairs = zip(found["input_ids"], found["assistant_masks"])
    seen[name] = tokenizer.decode([number for number, trained in pairs if trained])
print("; ".join(f"{name}: {text!r}" for name, text in seen.items()))
sys.exit(seen != {"plain loop": "two", "macro": "[as", "set": "[us"})
PY
