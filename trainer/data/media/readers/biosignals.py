"""Recordings of patients and of the ground: WFDB and miniSEED.

All channels of a recording have one sampling rate here. The libraries would average (wfdb) or resample the others.
"""

from __future__ import annotations

import json
import re

import numpy as np

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import (
    MOST_VALUES,
    Options,
    Recording,
    Source,
    library,
    one_rate,
    opened,
    pick,
    unique,
)


def read_wfdb(source: Source, options: Options, where: str) -> Recording:
    """PhysioNet's format, by the path of its header. A rate or gain that the header leaves out stays unknown.

    wfdb would take 250 Hz and 200 steps per mV, and average a channel that has several samples a frame.
    """
    wfdb = library("wfdb", where)
    if isinstance(source, bytes):
        raise DataError(
            f"{where}: a WFDB record has several files; give the path of its header", where=where, allowed="a path"
        )
    name = source.with_suffix("") if source.suffix in (".hea", ".dat") else source
    record = wfdb.rdrecord(str(name), smooth_frames=False, return_res=64)
    names = unique(record.sig_name)
    columns = pick(names, options.channels or names, where)
    frames = record.samps_per_frame
    one_rate({names[column]: float(record.fs * frames[column]) for column in columns}, where)
    rate, calibrated = _wfdb_header(name.with_name(f"{name.name}.hea").read_text(encoding="latin-1"))
    return Recording(
        np.stack([record.e_p_signal[column] for column in columns], axis=1),
        None if rate is None else rate * frames[columns[0]],
        tuple(names[column] for column in columns),
        tuple(record.units[column] if calibrated.get(column, True) else "" for column in columns),
    )


def _wfdb_header(text: str) -> tuple[float | None, dict[int, bool]]:
    """The frame rate, if it is written, and by channel: is there a gain? Signals of other segments are not listed."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rate = float(re.split(r"[/(]", lines[0][2])[0]) if len(lines[0]) > 2 else None
    if "/" in lines[0][0]:
        return rate, {}
    gains = [line[2] if len(line) > 2 else "0" for line in lines[1:]]
    return rate, {column: float(re.split(r"[(/]", gain)[0] or 0) != 0 for column, gain in enumerate(gains)}


def read_miniseed(source: Source, options: Options, where: str) -> Recording:
    """Traces of one sampling rate on one clock, in counts; channels by their SEED id, in the order of the ids.

    NaN fills gaps, what is before or after a channel's own traces, and steps where traces overlap and differ.
    """
    obspy = library("obspy", where)
    stream = obspy.read(opened(source), format="MSEED")
    if options.channels:
        pick(sorted({trace.id for trace in stream}), options.channels, where)
        stream = obspy.Stream([trace for trace in stream if trace.id in options.channels])
    names = sorted({trace.id for trace in stream})
    for name in names:
        rates = sorted({float(trace.stats.sampling_rate) for trace in stream if trace.id == name})
        if len(rates) > 1:
            found = " and ".join(f"{rate:.10g}" for rate in rates)
            others = [one for one in names if one != name]
            remedy = "write a file for each rate" + (f", or choose channels={json.dumps(others)}" if others else "")
            text = f"{where}: {name} has parts of {found} Hz; {remedy}"
            raise DataError(text, where=where, value={name: tuple(rates)}, allowed=remedy)
    rate = one_rate({trace.id: float(trace.stats.sampling_rate) for trace in stream}, where)
    for trace in stream:
        trace.data = trace.data.astype(np.float64)  # under one id there may be several types
    first = min(trace.stats.starttime for trace in stream)
    last = max(trace.stats.endtime for trace in stream)
    steps = round((last - first) * rate) + 1
    if steps * len(names) > MOST_VALUES:
        raise DataError(
            f"{where}: {steps:,} steps with the gaps; cut it at the gaps", where=where, value=steps, allowed=MOST_VALUES
        )
    stream.merge(method=0)
    values = np.full((steps, len(names)), np.nan)
    for trace in stream:
        start = round((trace.stats.starttime - first) * rate)
        data = np.ma.filled(trace.data, np.nan)[: steps - start]
        values[start : start + len(data), names.index(trace.id)] = data
    return Recording(values, rate, tuple(names), ("counts",) * len(names))
