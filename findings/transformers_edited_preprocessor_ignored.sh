#!/usr/bin/env bash
# transformers 5.24.0 (Python 3.11): an image processor that is saved into a model's directory may never be read again.
#
# Since 5.0 a Processor is saved as one processor_config.json with its image processor inside, and loading prefers that
# section. ImageProcessor.save_pretrained still writes preprocessor_config.json, and an old one stays where it was. So
# after processor.save_pretrained(directory), changing the image size with image_processor.save_pretrained(directory), or
# by hand in preprocessor_config.json as 4.x and most instructions have it, changes nothing for AutoImageProcessor and
# AutoProcessor: no message, the old size is used. transformers 4.57 and other readers of preprocessor_config.json use the
# new one, so training and serving resize differently.
#
# Output seen:
#   processor_config.json: 224, preprocessor_config.json: 336
#   AutoImageProcessor: 224, AutoProcessor: 224
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" HF_HUB_OFFLINE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 pillow==13.0.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import json, sys
from tokenizers import Tokenizer, models
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"[UNK]": 0, "<image>": 1}, unk_token="[UNK]"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", extra_special_tokens={"image_token": "<image>"})
processor = LlavaProcessor(CLIPImageProcessor(size={"shortest_edge": 224}), tokenizer, patch_size=14)
processor.save_pretrained("model")
processor.image_processor.size = {"shortest_edge": 336}
processor.image_processor.save_pretrained("model")

def side(size):
    return size["shortest_edge"]

files = [json.load(open(f"model/{name}.json")) for name in ("processor_config", "preprocessor_config")]
saved = side(files[0]["image_processor"]["size"]), side(files[1]["size"])
loaded = [
    side(AutoImageProcessor.from_pretrained("model").size),
    side(AutoProcessor.from_pretrained("model").image_processor.size),
]
print(f"processor_config.json: {saved[0]}, preprocessor_config.json: {saved[1]}")
print(f"AutoImageProcessor: {loaded[0]}, AutoProcessor: {loaded[1]}")
sys.exit((saved, loaded) != ((224, 336), [224, 224]))
PY
