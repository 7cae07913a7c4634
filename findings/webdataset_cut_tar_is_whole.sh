#!/usr/bin/env bash
# webdataset 1.0.2 (Python 3.11): a tar that ends too early is read as a whole one, and its last sample may lack a file.
#
# A tar ends with two blocks of zeros. Python's tarfile, which webdataset reads with, does not ask for them: where a file
# ends between two members, or inside the header of one, iteration ends as if the tar did. Only a cut inside the bytes of
# a member is an error ("unexpected end of data"). A download or a writer that stopped therefore loses samples without a
# word, and where the cut is between KEY.jpg and KEY.txt the last sample comes without its caption.
#
# Output seen:
#   whole:             ['0: jpg txt', '1: jpg txt', '2: jpg txt', '3: jpg txt']
#   between samples:   ['0: jpg txt', '1: jpg txt']
#   inside a header:   ['0: jpg txt', '1: jpg txt']
#   inside a sample:   ['0: jpg txt', '1: jpg txt', '2: jpg']
#   inside a member:   ReadError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io, sys, tarfile
import webdataset

BLOCK, SAMPLE = 512, 512 + 1024 + 512 + 512  # a header and an image of two blocks, a header and a text of one
with tarfile.open("whole.tar", "w") as tar:
    for number in range(4):
        for name, data in ((f"{number}.jpg", b"x" * 1000), (f"{number}.txt", b"caption")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
content = open("whole.tar", "rb").read()

def read(end):
    with open("cut.tar", "wb") as file:
        file.write(content[:end])
    try:
        samples = list(webdataset.WebDataset("cut.tar", shardshuffle=False))
    except tarfile.ReadError as error:
        return type(error).__name__
    return [f"{one['__key__']}: {' '.join(sorted(key for key in one if key[0] != '_'))}" for one in samples]

found = {
    "whole": read(len(content)),
    "between samples": read(2 * SAMPLE),
    "inside a header": read(2 * SAMPLE + 100),
    "inside a sample": read(2 * SAMPLE + 3 * BLOCK),
    "inside a member": read(2 * SAMPLE + BLOCK + 300),
}
for name, what in found.items():
    print(f"{name + ':':<19}{what}")
pairs = ["0: jpg txt", "1: jpg txt", "2: jpg txt", "3: jpg txt"]
expected = [pairs, pairs[:2], pairs[:2], [*pairs[:2], "2: jpg"], "ReadError"]
sys.exit(list(found.values()) != expected)
PY
