"""EDF, EDF+ and BDF through pyedflib, with what it refuses put right first.

pyedflib refuses recordings with gaps (EDF+D), headers that are not ASCII (`µV`), and recordings that were not closed
(-1 data records). It reads a copy here, whose header says otherwise; the units and the gaps are those of the file.

Source: Kemp and Olivan, "European data format 'plus' (EDF+)", Clin. Neurophysiol. 114 (2003).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import (
    MOST_VALUES,
    Options,
    Recording,
    Source,
    library,
    one_rate,
    pick,
    unique,
)

FIXED, PER_SIGNAL = 256, 256  # bytes of a header
# of a field of signals: its first byte over the number of signals, its width
LABEL, DIMENSION, SAMPLES = (0, 16), (96, 8), (216, 8)
ANNOTATIONS = {2: "EDF Annotations", 3: "BDF Annotations"}  # a label, by bytes of a sample


@dataclass(frozen=True)
class Header:
    """Facts of a header that pyedflib does not give, or would not accept."""

    labels: list[str]
    units: list[str]
    samples: list[int]  # of each signal in a data record
    records: int
    plus: bool  # EDF+ or BDF+
    has_gaps: bool
    width: int  # bytes of a sample
    plain: bytes  # the header as pyedflib accepts it

    @property
    def size(self) -> int:
        return len(self.plain)

    @property
    def annotations(self) -> list[int]:
        """The places of signals with annotations, by their label, which only they may have."""
        own = ANNOTATIONS[self.width]
        return [place for place, label in enumerate(self.labels) if label == own]


def read_edf(source: Source, options: Options, where: str) -> Recording:
    """Channels of one sampling rate, in the units of the header. NaN fills the gaps of EDF+D; records start at the
    nearest step.

    Raises: DataError for a file that is shorter than its header says, as well.
    """
    pyedflib = library("pyedflib", where)
    data = source if isinstance(source, bytes) else source.read_bytes()
    header = _header(data, where)
    with tempfile.TemporaryDirectory() as folder:  # pyedflib reads paths only
        path = Path(folder, "recording.edf")
        path.write_bytes(header.plain + data[header.size :])
        with pyedflib.EdfReader(str(path), pyedflib.DO_NOT_READ_ANNOTATIONS) as file:
            # Annotations of EDF+ are signals of the header that pyedflib does not count.
            counted = [
                place for place in range(len(header.labels)) if not (header.plus and place in header.annotations)
            ]
            places = [place for place in counted if place not in header.annotations]
            names = unique(header.labels[place] for place in places)
            if not names:
                raise DataError(f"{where}: an EDF file without signals", where=where, value=0)
            columns = pick(names, options.channels or names, where)
            numbers = [counted.index(places[column]) for column in columns]
            rates = [float(file.getSampleFrequency(number)) for number in numbers]
            rate = one_rate(dict(zip((names[column] for column in columns), rates, strict=True)), where)
            values = np.stack([file.readSignal(number) for number in numbers], axis=1)
    if header.has_gaps:
        values = _placed(values, _onsets(data, header, where), rate, where)
    return Recording(
        values,
        rate,
        tuple(names[column] for column in columns),
        tuple(header.units[places[column]] for column in columns),
    )


def _header(data: bytes, where: str) -> Header:
    width = 3 if data[:1] == b"\xff" else 2  # BDF
    try:
        count, records = int(data[252:256]), int(data[236:244])
        size = FIXED + count * PER_SIGNAL

        def fields(field: tuple[int, int]) -> list[bytes]:
            first = FIXED + field[0] * count
            return [data[start : start + field[1]] for start in range(first, first + field[1] * count, field[1])]

        samples = [int(text) for text in fields(SAMPLES)]
    except ValueError as error:
        raise DataError(f"{where}: not an EDF or BDF file: {error}", where=where, value=data[:8]) from error
    whole = (len(data) - size) // (width * sum(samples) or 1)
    records = whole if records == -1 else records
    if records > whole or min(records, whole) < 1:
        raise DataError(
            f"{where}: {whole} data records of EDF, {records} by the header", where=where, value=whole, allowed=records
        )
    reserved = data[192:236]
    plain = bytearray(data[:size])
    plain[192:236] = reserved.replace(b"F+D", b"F+C")
    plain[236:244] = b"%-8d" % records
    start = 1 if width == 3 else 0  # the first byte of BDF is 255
    plain[start:] = bytes(byte if 32 <= byte < 127 else ord("_") for byte in plain[start:])
    return Header(
        [_text(label) for label in fields(LABEL)], [_text(unit) for unit in fields(DIMENSION)], samples, records,
        reserved[:4] in (b"EDF+", b"BDF+"), b"F+D" in reserved, width, bytes(plain),
    )  # fmt: skip


def _text(field: bytes) -> str:
    try:
        return field.decode().strip()
    except UnicodeDecodeError:
        return field.decode("latin-1").strip()


def _onsets(data: bytes, header: Header, where: str) -> npt.NDArray[np.float64]:
    """Seconds at which the data records start: the first annotation of each."""
    annotations = header.annotations
    found = []
    record = header.width * sum(header.samples)
    for number in range(header.records if annotations else 0):
        start = header.size + number * record + header.width * sum(header.samples[: annotations[0]])
        text = data[start : start + header.width * header.samples[annotations[0]]]
        found.append(text.split(b"\x14")[0].split(b"\x15")[0])
    try:
        onsets = np.array([float(text) for text in found])
    except ValueError:
        onsets = np.zeros(0)
    if len(onsets) != header.records:
        raise DataError(f"{where}: EDF+D whose data records do not say when they start", where=where, value=len(onsets))
    return onsets


def _placed(
    values: npt.NDArray[np.float64], onsets: npt.NDArray[np.float64], rate: float, where: str
) -> npt.NDArray[np.float64]:
    length = len(values) // len(onsets)
    starts = np.rint((onsets - onsets[0]) * rate).astype(np.int64)
    if (np.diff(starts) < length).any():
        raise DataError(f"{where}: EDF+D whose data records overlap", where=where, value=float(np.diff(onsets).min()))
    steps = int(starts[-1]) + length
    if steps * values.shape[1] > MOST_VALUES:
        raise DataError(
            f"{where}: {steps:,} steps with the gaps; cut it at the gaps", where=where, value=steps, allowed=MOST_VALUES
        )
    placed = np.full((steps, values.shape[1]), np.nan)
    for start, part in zip(starts, np.split(values, len(onsets)), strict=True):
        placed[start : start + length] = part
    return placed
