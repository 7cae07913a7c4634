"""Sound: WAV, FLAC, Ogg and AIFF."""

from __future__ import annotations

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Options, Recording, Source, library, numbered, opened

UNKNOWN_SIZE = (0, 0xFFFFFFFF)  # of a WAV file that was written to a pipe


def read_audio(source: Source, options: Options, where: str) -> Recording:
    """Integers as shares of their full scale, floats as they are. Channels are "0", "1", ...

    Raises: DataError for a truncated WAV file, which libsndfile reads short without an error.
    """
    soundfile = library("soundfile", where)
    if isinstance(source, bytes):
        head, size = source[:12], len(source)
    else:
        with source.open("rb") as file:
            head, size = file.read(12), source.stat().st_size
    claimed = int.from_bytes(head[4:8], "little")
    if head[:4] == b"RIFF" and claimed not in UNKNOWN_SIZE and claimed + 8 > size:
        raise DataError(
            f"{where}: a WAV file of {size:,} bytes whose header says {claimed + 8:,}",
            where=where, value=size, allowed=claimed + 8,
        )  # fmt: skip
    values, rate = soundfile.read(opened(source), dtype="float64", always_2d=True)
    return Recording(values, float(rate), numbered(values.shape[1]), ("",) * values.shape[1])
