#!/usr/bin/env bash
# Pillow 13.0.0: a grey TIFF whose white is 0 is inverted when it has 8 bits, but not when it has 16.
#
# PhotometricInterpretation 0 (WhiteIsZero) says that 0 is white. Pillow turns such values around for 1 to 8 bits, so a
# caller who relies on that for scans and radiographs gets 16-bit ones as negatives, without a message. The tag has to be
# read by the caller: image.tag_v2[262].
#
# Output seen (the values 0, 100, 255 stored in 8 and in 16 bits, with tag 262 = 1 and = 0):
#   8 bits: [0, 100, 255] and [255, 155, 0]; 16 bits: [0, 100, 255] and [0, 100, 255]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import io, struct, sys
import numpy as np
from PIL import Image


def read(bits, white_is_zero):
    values = np.array([[0, 100, 255]], f"uint{bits}")
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    data = bytearray(file.getvalue())
    place = data.index(struct.pack("<HHI", 262, 3, 1)) + 8  # the value of the tag, a short
    assert data[place] == 1
    data[place] = not white_is_zero
    image = Image.open(io.BytesIO(bytes(data)))
    assert image.tag_v2[262] == (not white_is_zero)
    return np.asarray(image)[0].tolist()


found = "; ".join(f"{bits} bits: {read(bits, False)} and {read(bits, True)}" for bits in (8, 16))
print(found)
sys.exit(found != "8 bits: [0, 100, 255] and [255, 155, 0]; 16 bits: [0, 100, 255] and [0, 100, 255]")
PY
