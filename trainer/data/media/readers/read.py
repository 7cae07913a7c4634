"""Read a recording of any known format. The formats' libraries are imported where they are used (extra `signals`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.data.errors import DataError
from trainer.data.media.readers import arrays, biosignals, edf, netcdf, sound, tables
from trainer.data.media.readers.recording import Options, Recording, Source, check_options, checked, chosen, excerpt


@dataclass(frozen=True)
class Format:
    """One format: its reader, the options that it takes beside `channels` and `rate`, and its suffixes."""

    read: Callable[[Source, Options, str], Recording]
    options: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()


FORMATS = {
    "wfdb": Format(biosignals.read_wfdb, (), (".hea", ".dat")),
    "edf": Format(edf.read_edf, (), (".edf", ".bdf", ".rec")),
    "miniseed": Format(biosignals.read_miniseed, (), (".mseed", ".miniseed", ".msd")),
    "audio": Format(sound.read_audio, (), (".wav", ".flac", ".ogg", ".aiff", ".aif")),
    "hdf5": Format(arrays.read_hdf5, ("variable", "time", "time_axis"), (".h5", ".hdf5", ".he5")),
    "netcdf": Format(netcdf.read_netcdf, ("variable", "time", "time_axis"), (".nc", ".nc4", ".cdf")),
    "numpy": Format(arrays.read_numpy, ("variable", "time", "time_axis"), (".npy", ".npz")),
    "csv": Format(tables.read_csv, ("time",), (".csv",)),
    "tsv": Format(tables.read_tsv, ("time",), (".tsv",)),
    "parquet": Format(tables.read_parquet, ("time",), (".parquet",)),
}
SUFFIXES = {suffix: name for name, known in FORMATS.items() for suffix in known.suffixes}

# Formats of other libraries, and what writes a file that is read.
TO_EDF, TO_WAV = "write EDF with mne: raw.export('a.edf')", "convert it to WAV or FLAC"
TO_PARQUET, TO_NPZ = (
    "write Parquet with pandas: table.to_parquet('a.parquet')",
    "write numpy.savez('a.npz', signal=..., fs=...)",
)
REMEDIES = {
    **dict.fromkeys((".fif", ".set", ".fdt", ".vhdr", ".eeg", ".cnt", ".gdf", ".mff"), TO_EDF),
    **dict.fromkeys((".mp3", ".m4a", ".aac", ".au", ".caf", ".w64", ".wma", ".sph"), TO_WAV),
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".feather", ".orc", ".dta", ".sas7bdat"), TO_PARQUET),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".pt", ".abf", ".tdms", ".smr", ".nev", ".ns5"), TO_NPZ),
    **dict.fromkeys((".sac", ".segy", ".sgy", ".gse2", ".seg2"), "write miniSEED with obspy: stream.write('a.mseed')"),
    ".mat": f'give format="hdf5" if MATLAB wrote it with -v7.3, else {TO_NPZ}',
    **dict.fromkeys((".txt", ".asc"), 'give format="csv" or format="tsv", by what separates its columns'),
    ".opus": 'give format="audio"',
    ".zarr": "write netCDF with xarray: dataset.to_netcdf('a.nc')",
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zip", ".zst"), "unpack it"),
}
# First bytes of files, for bytes whose format is not given, with those from the ninth on where they matter.
MAGIC = (
    (b"RIFF", b"WAVE", "audio"), (b"RF64", b"WAVE", "audio"), (b"FORM", b"AIF", "audio"), (b"fLaC", b"", "audio"),
    (b"OggS", b"", "audio"), (b"0       ", b"", "edf"), (b"\xffBIOSEMI", b"", "edf"), (b"\x93NUMPY", b"", "numpy"),
    (b"\x89HDF\r\n\x1a\n", b"", "hdf5"), (b"CDF", b"", "netcdf"), (b"PAR1", b"", "parquet"),
)  # fmt: skip


def read_recording(
    source: Path | str | bytes,
    *,
    where: str,
    format: str | None = None,
    channels: Sequence[str] = (),
    rate: float | None = None,
    variable: str | None = None,
    time: str | None = None,
    time_axis: int | None = None,
    start: float | None = None,
    seconds: float | None = None,
) -> Recording:
    """A recording from a file, or from the bytes of one.

    Args:
        where: names the recording in errors. format: one of `FORMATS`; by default the path's suffix decides, or the
            first bytes.
        channels: names of those to read, in this order; all by default. rate: in Hz, instead of the file's own.
        variable: of HDF5, netCDF and NumPy files with several. time: the name of the times, in seconds unless the file
            says otherwise, of tables and arrays; steps missing between them become NaN. time_axis: of arrays. start,
            seconds: of the excerpt to return, as in `excerpt`; by default all of it.
    Returns: a `Recording` in fp32 or fp64, with NaN for everything that is missing.
    Raises: DataError for a file that cannot be read or is truncated, a library that is not installed, channels of
        several sampling rates, times that are not a grid, an option that the format does not have or of another
        type, a rate that is not finite and above 0, or an excerpt that is not inside.
    """
    check_options(
        where, format=format, channels=channels, rate=rate, variable=variable, time=time, time_axis=time_axis,
        start=start, seconds=seconds,
    )  # fmt: skip
    if isinstance(source, str):
        source = Path(source)
    name = format or _format_of(source, where)
    if name not in FORMATS:
        raise DataError(
            f"{where}: no format {name}; use {', '.join(FORMATS)}", where=where, value=name, allowed=tuple(FORMATS)
        )
    chosen_format = FORMATS[name]
    given = {"variable": variable, "time": time, "time_axis": time_axis}
    unknown = [key for key, value in given.items() if value is not None and key not in chosen_format.options]
    if unknown:
        raise DataError(
            f"{where}: {name} files have no option {unknown[0]}", where=where, value=unknown[0],
            allowed=("channels", "rate", *chosen_format.options),
        )  # fmt: skip
    options = Options(variable, time, time_axis, tuple(channels), rate)
    try:
        found = chosen_format.read(source, options, where)
    except DataError:
        raise
    except Exception as error:  # the libraries raise errors of every kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: {name} that cannot be read: {reason}", where=where, value=reason) from error
    found = chosen(checked(found, where), channels, where)
    found = found if rate is None else replace(found, rate=rate)
    return checked(excerpt(found, start, seconds, where), where)


def _format_of(source: Source, where: str) -> str:
    """The format by the suffix of a path, or by the first bytes. Raises DataError."""
    if isinstance(source, bytes):
        for first, ninth, name in MAGIC:
            if source.startswith(first) and source[8:].startswith(ninth):
                return name
    suffix = source.suffix.lower() if isinstance(source, Path) else ""
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in REMEDIES:
        text = f"{where}: {suffix} files are not read; {REMEDIES[suffix]}"
        raise DataError(text, where=where, value=suffix, allowed=REMEDIES[suffix])
    text = f"{where}: the format of {suffix or 'bytes'} is not known; give format={', '.join(FORMATS)}"
    raise DataError(text, where=where, value=suffix, allowed=tuple(FORMATS))
