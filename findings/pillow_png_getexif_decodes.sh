#!/usr/bin/env bash
# Pillow 13.0.0: getexif() of a PNG without EXIF decodes all its pixels.
#
# Image.open is lazy, and for JPEG so is getexif(). A PNG may have its eXIf chunk behind the pixels, so
# PngImageFile.getexif() loads the whole image if it has not met one. A scan of a corpus for the sizes of upright images
# (width, height, orientation) then costs a full decode of every PNG, and a truncated PNG fails there with an OSError.
# Looking for b"eXIf" in the bytes first avoids both.
#
# Output seen (a noisy 1000 x 1000 file without EXIF: the share of it that was read):
#   read after open and after getexif: JPEG 0.001 0.001; PNG 0.000 1.000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import io, sys
from PIL import Image


def touched(format):
    """The share of the file that was read after open, and after getexif."""
    file = io.BytesIO()
    Image.effect_noise((1000, 1000), 60).convert("RGB").save(file, format)
    size = len(file.getvalue())
    file.seek(0)
    image = Image.open(file)
    opened = file.seek(0, io.SEEK_CUR) / size
    assert not dict(image.getexif())
    return opened, file.seek(0, io.SEEK_CUR) / size


jpeg, png = touched("JPEG"), touched("PNG")
print(f"read after open and after getexif: JPEG {jpeg[0]:.3f} {jpeg[1]:.3f}; PNG {png[0]:.3f} {png[1]:.3f}")
sys.exit(not (jpeg[1] < 0.1 and png[0] < 0.1 and png[1] > 0.9))
PY
