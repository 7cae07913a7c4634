"""Recordings of every format, written here by the field's own libraries."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.data.errors import DataError
from trainer.data.media.readers.read import FORMATS, read_recording

RANDOM = np.random.default_rng(0)


def refused(source, **options) -> DataError:
    with pytest.raises(DataError) as error:
        read_recording(source, where="doc 3", **options)
    assert error.value.where == "doc 3"
    assert len(error.value.lines) == 1
    return error.value


def equal(found, values, tolerance: float = 0.0) -> None:
    np.testing.assert_allclose(found.values, np.atleast_2d(np.asarray(values, float).T).T, rtol=0, atol=tolerance)


class TestWfdb:
    wfdb = staticmethod(lambda: pytest.importorskip("wfdb"))

    def written(self, folder: Path, **options) -> Path:
        wfdb = self.wfdb()
        fields = {"fs": 360, "units": ["mV", "uV"], "sig_name": ["II", "V1"], "fmt": ["16", "16"]} | options
        wfdb.wrsamp("a", write_dir=str(folder), **fields)
        return folder / "a.hea"

    def test_a_record_keeps_rate_channels_and_units(self, tmp_path):
        values = RANDOM.normal(size=(500, 2))
        found = read_recording(self.written(tmp_path, p_signal=values), where="a")
        equal(found, values, 1e-3)
        assert (found.rate, found.channels, found.units) == (360.0, ("II", "V1"), ("mV", "uV"))
        one = read_recording(tmp_path / "a", where="a", format="wfdb", channels=["V1"])
        equal(one, found.values[:, 1])

    def test_a_missing_step_of_format_212_is_missing(self, tmp_path):
        values = RANDOM.normal(size=(500, 2))
        values[7, 0] = np.nan
        found = read_recording(self.written(tmp_path, p_signal=values, fmt=["212", "212"]), where="a")
        assert np.argwhere(np.isnan(found.values)).tolist() == [[7, 0]]

    def test_channels_of_several_rates_are_not_averaged(self, tmp_path):
        slow, fast = RANDOM.normal(size=100), RANDOM.normal(size=400)
        path = self.written(tmp_path, e_p_signal=[slow, fast], samps_per_frame=[1, 4], fs=100)
        assert refused(path).value == {"II": 100.0, "V1": 400.0}
        found = read_recording(path, where="a", channels=["V1"])
        equal(found, fast, 1e-3)
        assert found.rate == 400.0

    def test_a_rate_and_a_gain_that_are_not_written_stay_unknown(self, tmp_path):
        path = self.written(tmp_path, p_signal=RANDOM.normal(size=(50, 2)))
        rest = path.read_text().splitlines()[1:]
        second = rest[0].split()
        path.write_text("\n".join(["a 2", " ".join([*second[:2], "0", *second[3:]]), *rest[1:]]))
        found = read_recording(path, where="a")
        assert (found.rate, found.units) == (None, ("", "uV"))
        assert len(found.values) == 50

    def test_several_segments_are_one_signal(self, tmp_path):
        values = RANDOM.normal(size=(40, 2))
        for name, part in (("s1", values[:25]), ("s2", values[25:])):
            self.written(tmp_path, p_signal=part, adc_gain=[1000.0, 1000.0], baseline=[0, 0])
            text = (tmp_path / "a.hea").read_text().replace("a.dat", f"{name}.dat")
            (tmp_path / f"{name}.hea").write_text(text.replace("a 2", f"{name} 2", 1))
            (tmp_path / "a.dat").rename(tmp_path / f"{name}.dat")
        (tmp_path / "whole.hea").write_text("whole/2 2 360 40\ns1 25\ns2 15\n")
        equal(read_recording(tmp_path / "whole.hea", where="a"), values, 1e-3)

    def test_a_record_that_is_cut_is_refused(self, tmp_path):
        path = self.written(tmp_path, p_signal=RANDOM.normal(size=(500, 2)))
        (tmp_path / "a.dat").write_bytes((tmp_path / "a.dat").read_bytes()[:100])
        refused(path)
        refused(tmp_path / "b.hea")
        assert refused(b"", format="wfdb").allowed == "a path"


class TestEdf:
    def written(self, folder: Path, signals: list, rates: list[float], units: list[str], kind: int = 1) -> Path:
        pyedflib = pytest.importorskip("pyedflib")
        path = folder / "a.edf"
        with pyedflib.EdfWriter(str(path), len(signals), file_type=kind) as file:
            for number, (rate, unit) in enumerate(zip(rates, units, strict=True)):
                header = {
                    "label": f"C{number}", "dimension": unit, "sample_frequency": rate, "physical_min": -100.0,
                    "physical_max": 100.0, "digital_min": -32768, "digital_max": 32767, "transducer": "",
                    "prefilter": "",
                }  # fmt: skip
                file.setSignalHeader(number, header)
            file.writeSamples(signals)
        return path

    @pytest.mark.parametrize("unit", ["uV", "nV", "mV", ""])
    def test_a_recording_keeps_its_unit(self, tmp_path, unit):
        values = RANDOM.uniform(-90, 90, (2, 512))
        path = self.written(tmp_path, list(values), [256, 256], [unit, unit])
        for source, options in ((path, {}), (path.read_bytes(), {"format": "edf"})):
            found = read_recording(source, where="a", **options)
            equal(found, values.T, 0.01)
            assert (found.rate, found.channels, found.units) == (256.0, ("C0", "C1"), (unit, unit))

    def test_channels_of_several_rates_are_not_resampled(self, tmp_path):
        slow, fast = RANDOM.uniform(-90, 90, 200), RANDOM.uniform(-90, 90, 512)
        path = self.written(tmp_path, [slow, fast], [100, 256], ["uV", "uV"])
        assert refused(path).value == {"C0": 100.0, "C1": 256.0}
        equal(read_recording(path, where="a", channels=["C0"]), slow, 0.01)

    def test_gaps_are_missing(self, tmp_path):
        values = RANDOM.uniform(-90, 90, 4 * 256)
        data = self.written(tmp_path, [values], [256], ["uV"]).read_bytes()
        assert data.count(b"+2\x14\x14") == data.count(b"+3\x14\x14") == 1
        gapped = data.replace(b"EDF+C", b"EDF+D", 1).replace(b"+2\x14\x14", b"+5\x14\x14").replace(b"+3\x14", b"+6\x14")
        found = read_recording(gapped, where="a", format="edf")
        assert len(found.values) == 7 * 256
        equal(found, np.concatenate([values[:512], np.full(3 * 256, np.nan), values[512:]]), 0.01)
        overlap = data.replace(b"EDF+C", b"EDF+D", 1).replace(b"+2\x14\x14", b"+1\x14\x14")
        refused(overlap, format="edf")
        refused(data.replace(b"EDF+C", b"EDF+D", 1).replace(b"+2\x14\x14", b"??\x14\x14"), format="edf")

    @pytest.mark.parametrize("micro", ["µV", "µV".encode("latin-1")])
    def test_units_need_not_be_ascii_and_recordings_not_closed(self, tmp_path, micro):
        values = RANDOM.uniform(-90, 90, 512)
        data = self.written(tmp_path, [values], [256], ["muV"]).read_bytes()
        unit = micro.encode() if isinstance(micro, str) else micro
        data = data.replace(b"muV     ", unit.ljust(8), 1)
        found = read_recording(data, where="a", format="edf")
        assert found.units == ("µV",)
        equal(read_recording(data[:236] + b"-1      " + data[244:], where="a", format="edf"), found.values)
        equal(found, values, 0.01)

    def test_bdf_has_24_bits(self, tmp_path):
        pyedflib = pytest.importorskip("pyedflib")
        values = RANDOM.uniform(-90, 90, 512)
        found = read_recording(self.written(tmp_path, [values], [256], ["uV"], pyedflib.FILETYPE_BDFPLUS), where="a")
        equal(found, values, 0.01)

    def test_cut_files_and_files_without_signals_are_refused(self, tmp_path):
        data = self.written(tmp_path, [np.zeros(512)], [256], ["uV"]).read_bytes()
        for cut in (data[:-100], data[:300], data[:256], b""):
            refused(cut, format="edf")


class TestMiniseed:
    def written(self, *traces: tuple[str, float, np.ndarray, float]) -> bytes:
        obspy = pytest.importorskip("obspy")
        stream = obspy.Stream()
        for channel, start, data, rate in traces:
            header = {"network": "GE", "station": "A", "channel": channel, "sampling_rate": rate}
            stream += obspy.Trace(data, header | {"starttime": obspy.UTCDateTime(start)})
        file = io.BytesIO()
        stream.write(file, format="MSEED")
        return file.getvalue()

    def test_gaps_are_missing_and_channels_share_a_clock(self):
        a, b = np.arange(100, dtype=np.int32), np.arange(60, dtype=np.int32) * 3
        data = self.written(("HHZ", 0, a[:40], 10), ("HHZ", 5, a[50:], 10), ("HHE", 2, b, 10))
        found = read_recording(data, where="a", format="miniseed")
        assert (found.rate, found.channels) == (10.0, ("GE.A..HHE", "GE.A..HHZ"))
        expected = np.full((100, 2), np.nan)
        expected[20:80, 0], expected[:40, 1], expected[50:, 1] = b, a[:40], a[50:]
        equal(found, expected)

    def test_overlaps_that_differ_are_missing_and_types_may_differ(self):
        a, b = np.arange(20, dtype=np.int32), np.arange(10, 30).astype(np.float32)
        same = read_recording(self.written(("Z", 0, a, 1), ("Z", 10, b, 1)), where="a", format="miniseed")
        equal(same, np.arange(30))
        other = read_recording(self.written(("Z", 0, a, 1), ("Z", 10, b + 1, 1)), where="a", format="miniseed")
        assert np.flatnonzero(np.isnan(other.values[:, 0])).tolist() == list(range(10, 20))

    def test_several_rates_are_refused(self):
        a = np.arange(20, dtype=np.int32)
        data = self.written(("Z", 0, a, 10), ("E", 0, a, 20))
        assert refused(data, format="miniseed").value == {"GE.A..E": 20.0, "GE.A..Z": 10.0}
        assert read_recording(data, where="a", format="miniseed", channels=["GE.A..E"]).rate == 20.0
        both = self.written(("Z", 0, a, 10), ("Z", 60, a, 20), ("E", 0, a, 10))
        assert refused(both, format="miniseed").value == {"GE.A..Z": (10.0, 20.0)}
        assert read_recording(both, where="a", format="miniseed", channels=["GE.A..E"]).rate == 10.0

    def test_a_gap_of_years_is_refused(self):
        a = np.arange(20, dtype=np.int32)
        refused(self.written(("Z", 0, a, 100), ("Z", 3e8, a, 100)), format="miniseed")


class TestSound:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "tolerance"),
        [("wav", "PCM_16", 5e-5), ("wav", "FLOAT", 1e-7), ("flac", "PCM_24", 2e-7), ("wav", "PCM_U8", 0.01)],
    )
    def test_integers_are_shares_of_their_full_scale(self, tmp_path, suffix, subtype, tolerance):
        soundfile = pytest.importorskip("soundfile")
        values = RANDOM.uniform(-0.9, 0.9, (800, 2))
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, values, 48_000, subtype=subtype)
        found = read_recording(path, where="a")
        equal(found, values, tolerance)
        assert (found.rate, found.channels, found.units) == (48_000.0, ("0", "1"), ("", ""))
        path.write_bytes(path.read_bytes()[:-200])
        refused(path)
        refused(path.read_bytes(), format="audio")

    @pytest.mark.parametrize(
        ("format", "subtype"),
        [("RF64", "PCM_16"), ("WAVEX", "PCM_16"), ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("FLAC", "PCM_16"),
         ("OGG", "VORBIS"), ("OGG", "OPUS")],
    )  # fmt: skip
    def test_a_file_that_is_cut_anywhere_is_refused(self, format, subtype):
        soundfile = pytest.importorskip("soundfile")
        file = io.BytesIO()
        soundfile.write(file, RANDOM.uniform(-0.9, 0.9, (20_000, 2)), 48_000, format=format, subtype=subtype)
        whole = file.getvalue()
        assert read_recording(whole, where="a", format="audio").steps == 20_000
        for cut in (1, 200, len(whole) // 2, len(whole) - 200):
            refused(whole[:-cut], format="audio")

    def test_a_format_whose_length_is_not_checked_is_refused(self):
        soundfile = pytest.importorskip("soundfile")
        file = io.BytesIO()
        soundfile.write(file, np.zeros(100), 8000, format="AU", subtype="PCM_16")
        assert refused(file.getvalue(), format="audio").value == "AU"

    def test_floats_may_be_beyond_one_and_missing(self, tmp_path):
        soundfile = pytest.importorskip("soundfile")
        values = np.array([0.5, 2.0, np.nan, -3.0], np.float32)
        soundfile.write(tmp_path / "a.wav", values, 8000, subtype="FLOAT")
        equal(read_recording(tmp_path / "a.wav", where="a"), values)


class TestNetcdf:
    def written(self, folder: Path, kind: str = "NETCDF4", units: str = "seconds since 2000-01-01") -> Path:
        netcdf = pytest.importorskip("netCDF4")
        with netcdf.Dataset(str(folder / "a.nc"), "w", format=kind) as file:
            file.createDimension("time", 6)
            file.createDimension("station", 2)
            time = file.createVariable("time", "f8", ("time",))
            time.units = units
            time[:] = [0, 0.5, 1, 1.5, 2.5, 3]
            packed = file.createVariable("packed", "i2", ("time", "station"), fill_value=-999)
            packed.scale_factor, packed.add_offset, packed.units = 0.5, 10.0, "K"
            packed[:4] = 10 + 0.5 * np.arange(8).reshape(4, 2)
            packed[1, 0] = np.ma.masked
            packed[4:] = 20.0
            never = file.createVariable("never", "f4", ("station", "time"))
            never[0, :] = np.arange(6)
            valid = file.createVariable("valid", "f4", ("time",))
            valid.valid_range = np.array([0, 4], "f4")
            valid.set_auto_mask(False)
            valid[:] = np.arange(6)
        return folder / "a.nc"

    @pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC"])
    def test_scale_masks_and_gaps_are_applied(self, tmp_path, kind):
        path = self.written(tmp_path, kind)
        expected = np.array([[10, 10.5], [np.nan, 11.5], [12, 12.5], [13, 13.5], [np.nan] * 2, [20, 20], [20, 20]])
        for source in (path, path.read_bytes()):
            found = read_recording(source, where="a", format="netcdf", variable="packed")
            equal(found, expected)
            assert (found.rate, found.units) == (2.0, ("K", "K"))

    def test_values_that_were_never_written_or_are_not_valid_are_missing(self, tmp_path):
        path = self.written(tmp_path)
        never = read_recording(path, where="a", variable="never")
        assert never.values.shape == (7, 2)  # time is its second dimension, and has a gap
        assert np.isnan(never.values[:, 1]).all()
        assert np.nanmax(read_recording(path, where="a", variable="valid").values) == 4

    def test_a_netcdf_file_read_as_hdf5_has_its_fill_values_masked_too(self, tmp_path):
        pytest.importorskip("h5py")
        path = self.written(tmp_path)
        found = read_recording(path, where="a", format="hdf5", variable="never")
        assert np.nanmax(found.values) == 5

    def test_a_unit_of_no_fixed_length_and_an_unknown_variable(self, tmp_path):
        path = self.written(tmp_path, units="months since 2000-01-01")
        assert refused(path, variable="packed").value == "months"
        assert refused(path, variable="none").allowed == ("packed", "never", "valid")
        assert refused(path).allowed == ("packed", "never", "valid")


class TestHdf5:
    def test_a_dataset_with_attributes(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        values = RANDOM.integers(-100, 100, (2, 300)).astype(">i2")
        values[1, 5] = -999
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.attrs["fs"] = 125
            data = file.create_dataset("leads/raw", data=values)
            data.attrs["units"], data.attrs["scale_factor"], data.attrs["missing_value"] = "mV", 0.5, -999
            data.attrs["channels"] = np.array([b"I", b"II"])
            file["name"] = "a text"
        for source in (tmp_path / "a.h5", (tmp_path / "a.h5").read_bytes()):
            found = read_recording(source, where="a", format="hdf5", time_axis=1)
            expected = values.T * 0.5
            expected[5, 1] = np.nan
            equal(found, expected)
            assert (found.rate, found.channels, found.units) == (125.0, ("I", "II"), ("mV", "mV"))
        equal(read_recording(tmp_path / "a.h5", where="a", time_axis=1, channels=["II"]), expected[:, 1])

    def test_records_and_times(self, tmp_path):
        h5py = pytest.importorskip("h5py")
        table = np.array([(1.0, 5), (2.0, 6), (4.0, 8)], dtype=[("x", "f4"), ("y", "i4")])
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["table"], file["t"] = table, np.array([0, 0.25, 0.75])
        found = read_recording(tmp_path / "a.h5", where="a", variable="table", time="t")
        equal(found, [[1, 5], [2, 6], [np.nan, np.nan], [4, 8]])
        assert (found.rate, found.channels) == (4.0, ("x", "y"))
        assert refused(tmp_path / "a.h5").allowed == ("t", "table")


class TestNumpy:
    @pytest.mark.parametrize("dtype", ["<i2", ">f8", "f2", "u1", "<f4"])
    def test_an_array_of_any_type(self, tmp_path, dtype):
        values = RANDOM.integers(0, 100, (50, 3)).astype(dtype)
        np.save(tmp_path / "a.npy", values)
        found = read_recording(tmp_path / "a.npy", where="a", rate=20.0)
        equal(found, values)
        assert (found.rate, found.channels, found.values.dtype.byteorder) == (20.0, ("0", "1", "2"), "=")

    def test_archives_and_one_axis(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.arange(4), t=np.arange(4) / 8)
        equal(read_recording(tmp_path / "a.npz", where="a", time="t"), np.arange(4))
        assert read_recording(tmp_path / "a.npz", where="a", time="t").rate == 8.0
        assert refused(tmp_path / "a.npz").allowed == ("x", "t")
        np.save(tmp_path / "b.npy", np.array([{}], object), allow_pickle=True)
        refused(tmp_path / "b.npy")
        np.save(tmp_path / "b.npy", np.zeros((2, 2), complex))
        refused(tmp_path / "b.npy")
        assert refused(tmp_path / "b.npy", time_axis=2).allowed == (0, 1)

    def test_more_channels_than_steps_need_an_axis(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((64, 1000)) + np.arange(1000))
        assert refused(tmp_path / "a.npy").value == (64, 1000)
        assert read_recording(tmp_path / "a.npy", where="a", time_axis=1).values.shape == (1000, 64)
        assert read_recording(tmp_path / "a.npy", where="a", time_axis=0).values.shape == (64, 1000)
        np.save(tmp_path / "a.npy", np.ones((10, 32)))  # a short signal of many channels
        assert read_recording(tmp_path / "a.npy", where="a").values.shape == (10, 32)


class TestTables:
    def test_csv_keeps_empty_fields_as_missing(self):
        text = b"t,a,name,b\n0,1,x,2.5\n0.1,,y,3\n0.3,3,z,\n"
        found = read_recording(text, where="a", format="csv", time="t", channels=["a", "b"])
        equal(found, [[1, 2.5], [np.nan, 3], [np.nan, np.nan], [3, np.nan]])
        assert (found.channels, found.units) == (("a", "b"), ("", ""))
        assert found.rate == pytest.approx(10)
        found = read_recording(text.replace(b",", b"\t"), where="a", format="tsv", channels=["b"], rate=3.0)
        equal(found, [2.5, 3, np.nan])
        assert found.rate == 3.0
        assert refused(text, format="csv", channels=["name"]).allowed == ("t", "a", "b")
        assert refused(text, format="csv", time="t").value == ("name", 1, "x")
        assert refused(text, format="csv", channels=["c"]).value == "c"
        assert refused(text, format="csv", time="c").value == "c"
        refused(b"a,b\n1,2\n3\n", format="csv")

    def test_parquet_with_times_of_the_day(self, tmp_path):
        import pyarrow as pa
        from pyarrow import parquet

        times = np.array(["2024-01-01T00:00:00.000", "2024-01-01T00:00:00.004", "2024-01-01T00:00:00.012"], "M8[us]")
        table = pa.table({"at": times, "v": pa.array([1, None, 2**40], pa.int64())})
        parquet.write_table(table, tmp_path / "a.parquet")
        found = read_recording(tmp_path / "a.parquet", where="a", time="at")
        equal(found, [1, np.nan, np.nan, 2**40])
        assert found.rate == pytest.approx(250)
        stored = (tmp_path / "a.parquet").read_bytes()
        equal(read_recording(stored, where="a", format="parquet", channels=["v"]), [1, np.nan, 2**40])
        assert refused(stored, format="parquet").allowed == ('time="at"', 'channels=["v"]')

    @pytest.mark.parametrize("cell", ["ERR", "-", "1_0", "true"])
    def test_a_cell_that_is_not_a_number_is_refused_with_its_place(self, cell):
        fault = refused(f"a,b\n1,2\n3,{cell}\n5,NA\n".encode(), format="csv")
        assert (fault.value, fault.allowed) == (("b", 2, cell), ("a",))

    def test_a_column_that_is_missing_as_a_whole_keeps_its_place(self):
        found = read_recording(b"a,b\n1,\n2,NaN\n", where="a", format="csv")
        equal(found, [[1, np.nan], [2, np.nan]])

    def test_types_do_not_depend_on_the_first_megabyte(self):
        found = read_recording(b"a\n" + b"1000\n" * 300_000 + b"0.5\n", where="a", format="csv")
        assert (found.steps, found.values[-1, 0]) == (300_001, 0.5)

    def test_a_first_row_of_numbers_is_data_unless_it_counts(self):
        found = read_recording(b"1.5,2\n3,4\n", where="a", format="csv")
        equal(found, [[1.5, 2], [3, 4]])
        assert found.channels == ("0", "1")
        equal(read_recording(b"nan\t2.0\n3\t4\n", where="a", format="tsv"), [[np.nan, 2], [3, 4]])
        assert refused(b"0,1\n3,4\n", format="csv").value == ("0", "1")
        assert read_recording(b",0,1\n0,3,4\n", where="a", format="csv").channels == ("0", "1")


def test_the_format_is_the_suffix_or_given(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.bin")
    assert refused(tmp_path / "a.bin").allowed == tuple(FORMATS)
    assert refused(tmp_path / "a.bin", format="mat").value == "mat"
    equal(read_recording(str(tmp_path / "a.bin"), where="a", format="numpy"), np.arange(3))


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_of_something_else_are_one_line(format):
    refused(b"\x00\xff nothing \n of any kind", format=format)


def test_an_option_that_a_format_does_not_have():
    error = refused(b"", format="audio", variable="x")
    assert (error.value, error.allowed) == ("variable", ("channels", "rate"))


@pytest.mark.parametrize(
    ("format", "package"),
    [("wfdb", "wfdb"), ("edf", "pyedflib"), ("miniseed", "obspy"), ("audio", "soundfile"), ("hdf5", "h5py"),
     ("netcdf", "netCDF4")],
)  # fmt: skip
def test_a_missing_package_names_its_extra(monkeypatch, tmp_path, format, package):
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(tmp_path / "a", format=format)
    assert (error.value, error.allowed) == (package, ".[signals]")


def test_excerpts_that_follow_each_other_have_every_step_once(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(1000.0))
    length = 1000 / 128 / 7
    some = [
        read_recording(
            tmp_path / "a.npy", where="a", rate=128, start=round(place * length, 6), seconds=round(length, 6)
        )
        for place in range(7)
    ]
    equal(read_recording(tmp_path / "a.npy", where="a"), np.concatenate([one.values for one in some]))
    assert all(one.rate == 128 for one in some)
    assert refused(tmp_path / "a.npy", start=1.0).allowed == "rate="
    assert refused(tmp_path / "a.npy", rate=128, start=8.0).value == (8.0, None)
    assert refused(tmp_path / "a.npy", rate=128, seconds=1e308).value == (None, 1e308)
    assert refused(tmp_path / "a.npy", rate=128, seconds=True).value is True
