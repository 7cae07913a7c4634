#!/usr/bin/env bash
# tokenizers 0.23.3: a BPE model without an unknown token drops the characters that it lacks, and merges over the gap.
#
# One might expect an error, or the pieces on both sides of the character. Instead the text is encoded as if the character
# had never been there, and pieces that were not neighbours become one token: another word's ids, without a message. The
# offsets are wrong too: they count the token's own bytes from the start of the word, so they may end inside it, or cover
# the dropped character alone. With an unk_token the pieces stay apart.
#
# Output seen (tokens and offsets of a model that knows the letters of "low lower lowest"):
#   lo中w: low 0-3; l中o中w: low 0-2; 中low: low 0-1; lo中w with an unk_token: lo <unk> w
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HUB_OFFLINE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$work/venv/bin/python" - <<'PY'
import sys
from tokenizers import Tokenizer, models, pre_tokenizers, trainers


def trained(model, special):
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(["low lower lowest"] * 9, trainers.BpeTrainer(show_progress=False, special_tokens=special))
    return made


plain, found = trained(models.BPE(), []), []
for text in ("lo中w", "l中o中w", "中low"):
    encoding = plain.encode(text)
    ((start, end),) = encoding.offsets
    found.append(f"{text}: {' '.join(encoding.tokens)} {start}-{end}")
unknown = trained(models.BPE(unk_token="<unk>"), ["<unk>"]).encode("lo中w")
found.append(f"lo中w with an unk_token: {' '.join(unknown.tokens)}")
print("; ".join(found))
seen = ["lo中w: low 0-3", "l中o中w: low 0-2", "中low: low 0-1", "lo中w with an unk_token: lo <unk> w"]
sys.exit(found != seen)
PY
