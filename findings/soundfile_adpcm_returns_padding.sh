#!/usr/bin/env bash
# soundfile 0.14.0 with libsndfile 1.2.2 (Python 3.11): WAV in ADPCM or GSM is read longer than it was written.
#
# These codecs store blocks, and the last one is filled up. The chunk `fact` of the file has the real number of frames,
# but libsndfile counts whole blocks: frames, info() and read() include what fills the last one. It is not silence: after
# GSM it reaches full scale. Lengths, durations and labels at the end are wrong, and a model hears a click in every file.
# The caller has to read `fact` and cut. (IMA ADPCM is worse: libsndfile writes the rounded number into `fact` too.)
#
# Output seen (800 frames of noise within -0.5 and 0.5 written):
#   PCM_16: 800 frames
#   MS_ADPCM: 1000 frames, fact 800, up to 0.05 behind the end
#   GSM610: 1280 frames, fact 800, up to 1.00 behind the end
#   G721_32: 840 frames, fact 800, up to 0.03 behind the end
#   IMA_ADPCM: 1010 frames, fact 1010, up to 0.04 behind the end
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import numpy as np
import soundfile

written = np.random.default_rng(0).uniform(-0.5, 0.5, 800)
found = {}
for subtype in ("PCM_16", "MS_ADPCM", "GSM610", "G721_32", "IMA_ADPCM"):
    soundfile.write("a.wav", written, 8000, subtype=subtype)
    values, _ = soundfile.read("a.wav")
    data = open("a.wav", "rb").read()
    place = data.find(b"fact")
    fact = int.from_bytes(data[place + 8 : place + 12], "little") if place > 0 else None
    assert soundfile.info("a.wav").frames == len(values)
    loudest = abs(values[800:]).max(initial=0)
    found[subtype] = (len(values), fact, bool(loudest > 0))
    print(f"{subtype}: {len(values)} frames" + (f", fact {fact}, up to {loudest:.2f} behind the end" if fact else ""))
expected = {
    "PCM_16": (800, None, False), "MS_ADPCM": (1000, 800, True), "GSM610": (1280, 800, True),
    "G721_32": (840, 800, True), "IMA_ADPCM": (1010, 1010, True),
}
sys.exit(found != expected)
PY
