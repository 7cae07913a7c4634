"""Sound: WAV (RF64 too), FLAC, Ogg and AIFF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import MOST_VALUES, Options, Recording, Source, library, numbered, opened

# By soundfile's names. Of others (MP3, AU, ...) it is not known here how long they say they are.
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "AIFF")
CHUNKED: dict[bytes, Literal["little", "big"]] = {
    b"RIFF": "little",
    b"RF64": "little",
    b"RIFX": "big",
    b"FORM": "big",
}  # byte order of the sizes
UNKNOWN_SIZE = (0, 0xFFFFFFFF)  # of a WAV file that was written to a pipe; RF64 has it elsewhere
# Subtypes of WAV whose last block is filled up: libsndfile returns what fills it as sound.
BLOCKS = ("IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32")
UNKNOWN_FRAMES = 1 << 62  # at least, as libsndfile counts FLAC that was written to a pipe
LAST_PAGE = 4  # a flag of Ogg


def read_audio(source: Source, options: Options, where: str) -> Recording:
    """Integers as shares of their full scale, floats as they are. Channels are "0", "1", ...

    Raises: DataError for a truncated file (libsndfile reads most of them short, without an error), and for a format
        that is not one of `FORMATS`.
    """
    soundfile = library("soundfile", where)
    with soundfile.SoundFile(opened(source)) as file:
        if file.format not in FORMATS:
            raise DataError(
                f"{where}: audio of the format {file.format}; convert it to WAV or FLAC",
                where=where, value=file.format, allowed=FORMATS,
            )  # fmt: skip
        frames, rate = file.frames, float(file.samplerate)
        _check_whole(source, where)
        if frames * file.channels > MOST_VALUES:
            remedy = "cut it" if frames < UNKNOWN_FRAMES else "convert it to a file that says how long it is"
            text = f"{where}: {frames:,} frames of {file.channels} channels by its header; {remedy}"
            raise DataError(text, where=where, value=frames, allowed=remedy)
        values = file.read(frames, dtype="float64", always_2d=True)  # some codecs cannot seek to find it
        in_blocks = file.subtype in BLOCKS
    if len(values) != frames:
        raise _truncated(where, "frames", len(values), frames)
    if in_blocks and (written := _frames_written(source)) in range(1, frames):
        values = values[:written]
    return Recording(values, rate, numbered(values.shape[1]), ("",) * values.shape[1])


def _truncated(where: str, unit: str, has: int, announced: int) -> DataError:
    return DataError(
        f"{where}: a truncated file: it has {has:,} {unit}, and its header announces {announced:,}",
        where=where, value=has, allowed=announced,
    )  # fmt: skip


def _check_whole(source: Source, where: str) -> None:
    """Compare the sizes in a file with the bytes that it has."""
    found = opened(source)
    with open(found, "rb") if isinstance(found, str) else found as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(12)
        if head[:4] in CHUNKED:
            end = max(_ends(file, head, size))
            if end > size:
                raise _truncated(where, "bytes", size, end)
        elif head[:4] == b"OggS" and not _has_last_page(file):
            raise DataError(
                f"{where}: a truncated file: its last page is missing or does not end the stream",
                where=where, value=size, allowed="an Ogg file with its last page",
            )  # fmt: skip


def _ends(file: BinaryIO, head: bytes, size: int) -> Iterator[int]:
    """The ends of the file and of its chunks, by their sizes."""
    order = CHUNKED[head[:4]]
    whole = int.from_bytes(head[4:8], order)
    yield 0 if whole in UNKNOWN_SIZE else whole + 8
    at, wide = len(head), None  # the size of the data in RF64
    while at + 8 <= size:
        file.seek(at)
        name, length = file.read(4), int.from_bytes(file.read(4), order)
        if name == b"ds64":
            yield int.from_bytes(file.read(8), "little") + 8
            wide = int.from_bytes(file.read(8), "little")
        if name in (b"data", b"SSND"):  # of what comes behind, sloppy writers get the sizes wrong
            if length == 0xFFFFFFFF and wide is not None:
                length = wide
            yield 0 if length in UNKNOWN_SIZE else at + 8 + length
            return
        at += 8 + length + length % 2


def _frames_written(source: Source) -> int:
    """The frames of a WAV file by its chunk `fact`; 0 without one."""
    found = opened(source)
    with open(found, "rb") if isinstance(found, str) else found as file:
        head, at = file.read(12), 12
        order = CHUNKED.get(head[:4], "little")
        while len(chunk := file.read(8)) == 8 and chunk[:4] != b"data":
            length = int.from_bytes(chunk[4:], order)
            if chunk[:4] == b"fact":
                return int.from_bytes(file.read(4), order)
            at += 8 + length + length % 2
            file.seek(at)
    return 0


def _has_last_page(file: BinaryIO) -> bool:
    """Return True if the pages of an Ogg file are whole and the last of them ends its stream."""
    at, size, flags = 0, file.seek(0, 2), 0
    while at + 27 <= size:
        file.seek(at)
        header = file.read(27)
        if header[:4] != b"OggS":
            break  # what a tag editor put behind the pages
        flags = header[5]
        at += 27 + header[26] + sum(file.read(header[26]))
        if at > size:
            return False
    return bool(flags & LAST_PAGE)
