"""Recordings as other libraries write them, compared with what their own readers return."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from trainer.data.errors import DataError
from trainer.data.media.readers.read import read_recording
from trainer.data.media.readers.recording import Recording
from trainer.data.media.readers.times import is_time_name

RANDOM = np.random.default_rng(0)
ECG, RESP = [1.5, 2.5, np.nan, 4.0], [1, 2, 3, 4]


def refused(source: Path, **options) -> DataError:
    with pytest.raises(DataError) as error:
        read_recording(source, where="doc 3", **options)
    assert error.value.where == "doc 3"
    assert len(error.value.lines) == 1
    return error.value


def typed(fault: DataError) -> list[dict]:
    """The options of an error, as a user would type them."""
    return [{key: json.loads(value)} for key, value in re.findall(r'(\w+)=("[^"]*"|\[[^]]*\])', fault.lines[0])]


def same(found: Recording, values, names: tuple[str, ...] = ("ecg", "resp")) -> None:
    np.testing.assert_array_equal(found.values, values)
    assert found.channels == names


class TestPandas:
    pandas = staticmethod(lambda: pytest.importorskip("pandas"))

    def table(self, index=None, name: str | None = None):
        pandas = self.pandas()
        found = pandas.DataFrame({"ecg": ECG, "resp": RESP})
        return found if index is None else found.set_index(pandas.Index(index, name=name))

    @pytest.fixture(params=["csv", "parquet"])
    def write(self, request, tmp_path):
        def write(table, **options) -> Path:
            path = tmp_path / f"a.{request.param}"
            getattr(table, f"to_{request.param}")(path, **options)
            return path

        return write

    def test_row_numbers_are_not_a_channel(self, write):
        values = np.transpose([ECG, RESP])
        same(read_recording(write(self.table()), where="a"), values)
        same(read_recording(write(self.table([7, 8, 9, 10])), where="a"), values)
        for name in ("index", "sample", "Sample #", "frame_number"):
            same(read_recording(write(self.table().assign(**{name: range(5, 9)}), index=False), where="a"), values)
        assert read_recording(write(self.table().assign(index=[5, 6, 7, 9]), index=False), where="a").values.shape == (
            4,
            3,
        )
        again = self.table().reset_index().rename(columns={"index": "Unnamed: 0"})  # of read_csv without index_col
        again.to_csv(path := Path(write(self.table())).with_suffix(".csv"))
        same(read_recording(path, where="a"), values)

    @pytest.mark.parametrize("index", [[0, 1, 3, 4], [0.0, 0.004, 0.012, 0.016], "2024-03-31 00:59:59.996"])
    def test_an_index_with_a_meaning_is_refused_until_one_is_chosen(self, write, index):
        pandas = self.pandas()
        if isinstance(index, str):
            index = pandas.to_datetime(pandas.Series([0, 4, 12, 16]), unit="ms") + pandas.Timedelta(days=19812.04)
        path = write(self.table(index))
        fault = refused(path)
        by_time, by_channels = (read_recording(path, where="a", **options) for options in typed(fault))
        same(by_channels, np.transpose([ECG, RESP]))
        same(by_time, np.transpose([[*ECG[:2], np.nan, *ECG[2:]], [*RESP[:2], np.nan, *RESP[2:]]]))
        assert by_time.rate == pytest.approx(1 if isinstance(index[0], int) else 250)

    def test_times_of_every_type(self, write):
        pandas = self.pandas()
        values = np.transpose([ECG, RESP])
        for index, rate in (
            (pandas.date_range("2024-03-31 00:00", periods=4, freq="1h", tz="Europe/Berlin"), 1 / 3600),
            (pandas.date_range("2024-01-01", periods=4, freq="1D"), 1 / 86400),
            (pandas.timedelta_range("23:59:58", periods=4, freq="1s"), 1.0),
            (pandas.timedelta_range("0s", periods=4, freq="4ms"), 250.0),
        ):
            found = read_recording(write(self.table(index, "at")), where="a", time="at")
            same(found, values)
            assert found.rate == pytest.approx(rate)
        found = read_recording(write(self.table([0, 4, 8, 12], "t_ms")), where="a", time="t_ms")
        assert found.rate == pytest.approx(250)
        assert (
            refused(write(self.table([1.7e12, 1.7e12 + 4, 1.7e12 + 8, 1.7e12 + 12], "at")), time="at").value == 1.7e12
        )
        assert refused(write(self.table([0, 1, np.nan, 3], "at")), time="at").value == 3

    @pytest.mark.parametrize("spelt", ["", "NaN", "nan", "NA", "N/A", "<NA>", "None", "null", "NULL", "#N/A", "-nan"])
    def test_missing_cells_are_those_of_read_csv(self, tmp_path, spelt):
        self.table().to_csv(path := tmp_path / "a.csv", index=False, na_rep=spelt)
        same(read_recording(path, where="a"), self.pandas().read_csv(path).to_numpy())

    @pytest.mark.parametrize(("separator", "allowed"), [(";", None), ("|", None), ("\t", 'give format="tsv"')])
    def test_another_separator_is_named(self, tmp_path, separator, allowed):
        self.table().to_csv(path := tmp_path / "a.csv", index=False, sep=separator, decimal=",")
        fault = refused(path)
        assert fault.value == separator
        assert allowed in (None, fault.allowed)
        self.table().to_csv(path, index=False, sep=separator)
        for options in typed(refused(path)):
            same(read_recording(path, where="a", **options), np.transpose([ECG, RESP]))
            assert refused(path.rename(tmp_path / "a.tsv"), format="csv").value == separator

    def test_other_encodings_and_two_rows_of_names_are_refused(self, tmp_path):
        path = tmp_path / "a.csv"
        self.table().rename(columns={"ecg": "µV"}).to_csv(path, index=False, encoding="latin-1")
        assert refused(path).allowed == "save it as UTF-8"
        self.table().to_csv(path, index=False, encoding="utf-16")
        assert (refused(path).value, refused(path).allowed) == ("UTF-16", "UTF-8")
        self.table().to_csv(path, index=False, encoding="utf-8-sig")
        same(read_recording(path, where="a"), np.transpose([ECG, RESP]))
        self.pandas().concat({"lead": self.table()}, axis=1).to_csv(path, index=False)
        assert refused(path).value == "lead"

    def test_numbers_as_text_are_refused_by_their_type(self, tmp_path):
        self.table().astype({"resp": str}).to_parquet(path := tmp_path / "a.parquet")
        fault = refused(path)
        assert (fault.value, fault.allowed) == (("resp", None, None), ("ecg",))
        same(read_recording(path, where="a", **typed(fault)[0]), np.array([ECG]).T, ("ecg",))

    def test_a_column_that_is_called_time_and_rises_is_not_a_channel(self, write):
        found = self.table().assign(**{"Time (ms)": [0, 4, 8, 12]})
        for options in typed(refused(write(found, index=False))):
            recording = read_recording(write(found, index=False), where="a", **options)
            same(recording, np.transpose([ECG, RESP]))
            assert recording.rate == (None if "channels" in options else pytest.approx(250))
        falling = self.table().assign(time=[3, 1, 2, 0])
        assert read_recording(write(falling, index=False), where="a").channels == ("ecg", "resp", "time")


def test_names_of_times():
    for name in ("time", "t", "Time (s)", "time_ms", "timestamp", "Timestamp [µs]", "datetime"):
        assert is_time_name(name), name
    for name in ("ecg", "ms", "rest", "temp", "T7", "beats", "time_of_flight"):
        assert not is_time_name(name), name


def test_a_header_of_savetxt_and_a_comma_at_the_end_of_each_row(tmp_path):
    path = tmp_path / "a.csv"
    values = RANDOM.normal(size=(5, 2))
    np.savetxt(path, values, delimiter=",", header="ecg,resp")
    same(read_recording(path, where="a"), values)
    np.savetxt(path, values)
    assert refused(path).value == " "
    path.write_text("# Holter 7\necg,resp\n1,2\n3,4\n")
    assert "comments" in refused(path).allowed
    path.write_text("ecg,resp,\n1,2,\n3,4,\n")
    same(read_recording(path, where="a"), [[1, 2], [3, 4]])


VALUES = RANDOM.normal(size=(6, 2))


class TestSavez:
    @pytest.mark.parametrize("rate", [np.array(250.0), 250, np.array([250]), "250", "250 Hz"])
    def test_a_rate_and_names_beside_the_signal(self, tmp_path, rate):
        path = tmp_path / "a.npz"
        np.savez(path, label="normal", signal=VALUES, fs=rate, ch_names=["I", "II"], units=["mV", "uV"])
        found = read_recording(path, where="a")
        same(found, VALUES, ("I", "II"))
        assert (found.rate, found.units) == (250.0, ("mV", "uV"))
        np.savez(path, signal=VALUES, Sampling_Rate=rate, other=VALUES)
        assert read_recording(path, where="a", variable="signal").rate == 250.0
        assert refused(path).allowed == ("signal", "other")

    @pytest.mark.parametrize("unit", ["ms", "us", "ns"])
    def test_times_of_numpy_are_not_counts(self, tmp_path, unit):
        start = np.datetime64("2024-01-01T00:00:00", unit)
        steps = np.arange(6) * np.timedelta64(4, "ms")
        for times in (start + steps, steps.astype(f"m8[{unit}]")):
            np.savez(tmp_path / "a.npz", signal=VALUES, at=times)
            assert read_recording(tmp_path / "a.npz", where="a", time="at").rate == 250.0
        np.savez(tmp_path / "a.npz", signal=VALUES, time_ms=np.arange(6) * 4)
        fault = refused(tmp_path / "a.npz")
        (chosen,) = typed(fault)
        assert read_recording(tmp_path / "a.npz", where="a", variable="signal", **chosen).rate == pytest.approx(250)

    def test_fields_of_records(self, tmp_path):
        records = np.array(
            [(0.0, 1.0, 2, "x"), (0.5, 3.0, 4, "y")], [("t", "f8"), ("a", "f8"), ("b", "i4"), ("s", "U1")]
        )
        np.save(tmp_path / "a.npy", records[["t", "a", "b"]])
        np.savez(tmp_path / "a.npz", records=records[["t", "a", "b"]])
        for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
            found = [read_recording(path, where="a", **options) for options in typed(refused(path))]
            for one in found:
                same(one, [[1, 2], [3, 4]], ("a", "b"))
            assert [one.rate for one in found] == [2.0, None]
        np.save(tmp_path / "a.npy", records)
        fault = refused(tmp_path / "a.npy", time="t")
        assert (fault.value, fault.allowed) == ("s", ("a", "b"))
        same(read_recording(tmp_path / "a.npy", where="a", time="t", **typed(fault)[0]), [[1, 2], [3, 4]], ("a", "b"))

    @pytest.mark.parametrize("values", [np.array(["a"]), np.array(3.0), np.zeros((2, 2), "M8[s]")])
    def test_what_is_not_a_signal_is_refused(self, tmp_path, values):
        np.save(tmp_path / "a.npy", values)
        assert refused(tmp_path / "a.npy").value == str(values.dtype)


class TestH5py:
    @pytest.fixture
    def write(self, tmp_path):
        h5py = pytest.importorskip("h5py")

        def write(fill) -> Path:
            with h5py.File(tmp_path / "a.h5", "w") as file:
                fill(file)
            return tmp_path / "a.h5"

        return write

    def test_attributes_as_text_and_of_every_group_above(self, write):
        def fill(file):
            file.attrs["fs"], file.attrs["unit"] = 100, "V"
            run = file.create_group("subject/run")
            file["subject"].attrs["Sampling Rate"] = "250 Hz"
            file["subject/channel_names"] = ["C3", "C4"]
            data = run.create_dataset("eeg", data=VALUES, chunks=True, compression="gzip", shuffle=True)
            data.attrs["units"] = np.array([b"uV", b"mV"])

        found = read_recording(write(fill), where="a", variable="/subject/run/eeg")
        same(found, VALUES, ("C3", "C4"))
        assert (found.rate, found.units) == (250.0, ("uV", "mV"))

    def test_a_scale_of_the_steps_is_their_times(self, write):
        def fill(file):
            data = file.create_dataset("eeg", data=VALUES)
            file["t"] = np.array([0, 4, 8, 12, 20, 24])
            file["t"].attrs["units"] = "ms"
            file["t"].make_scale("t")
            data.dims[0].attach_scale(file["t"])

        found = read_recording(write(fill), where="a")
        assert found.rate == pytest.approx(250)
        assert np.flatnonzero(np.isnan(found.values[:, 0])).tolist() == [4]

    def test_what_was_never_written_is_missing(self, write):
        def fill(file):
            data = file.create_dataset("eeg", shape=(6, 2), dtype="i2", chunks=(1, 2), fillvalue=-999)
            data[:3] = [[1, 0]] * 3

        same(read_recording(write(fill), where="a"), [[1, 0]] * 3 + [[np.nan] * 2] * 3, ("0", "1"))

    @pytest.mark.parametrize(("key", "value"), [("fs", [250.0, 500.0]), ("fs", "fast"), ("scale_factor", [0.1, 0.2])])
    def test_a_fact_that_cannot_be_used_is_refused(self, write, key, value):
        def fill(file):
            file.create_dataset("eeg", data=VALUES).attrs[key] = value

        path = write(fill)
        assert refused(path).value == tuple(map(str, np.atleast_1d(value)))
        if key == "fs":
            assert read_recording(path, where="a", rate=250.0).rate == 250.0


class TestXarray:
    """Files as xarray's `to_netcdf` writes them."""

    @pytest.fixture
    def write(self, tmp_path):
        netcdf = pytest.importorskip("netCDF4")

        def write(dimensions, times, units, kind="NETCDF4") -> Path:
            sizes = {"time": 6, "t": 6, "channel": 2}
            with netcdf.Dataset(str(tmp_path / "a.nc"), "w", format=kind) as file:
                for name in dimensions:
                    file.createDimension(name, sizes[name])
                step = next(name for name in dimensions if name != "channel")
                time = file.createVariable(step, "f8", (step,))
                time[:] = times
                if units is not None:
                    time.units = units
                if kind == "NETCDF4":
                    labels = file.createVariable("channel", str, ("channel",))
                    labels[:] = np.array(["C3", "C4"], object)
                else:
                    file.createDimension("string2", 2)
                    labels = file.createVariable("channel", "S1", ("channel", "string2"))
                    labels[:] = np.array([[b"C", b"3"], [b"C", b"4"]])
                eeg = file.createVariable("eeg", "f8", dimensions, fill_value=np.nan)
                eeg[:] = VALUES if dimensions[0] == step else VALUES.T
            return tmp_path / "a.nc"

        return write

    @pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_64BIT_OFFSET"])
    @pytest.mark.parametrize(
        "dimensions", [("time", "channel"), ("channel", "time"), ("t", "channel"), ("channel", "t")]
    )
    @pytest.mark.parametrize("units", ["Milliseconds since 2024-01-01", "ms"])
    def test_channels_have_their_labels_and_steps_their_times(self, write, kind, dimensions, units):
        found = read_recording(write(dimensions, np.arange(6) * 4, units, kind), where="a")
        same(found, VALUES, ("C3", "C4"))
        assert found.rate == pytest.approx(250)

    @pytest.mark.parametrize(("times", "units"), [(np.arange(6), "samples"), ([0, 1, 3, 7, 8, 20], None)])
    def test_a_rate_replaces_times_that_cannot_be_used(self, write, times, units):
        path = write(("time", "channel"), times, units)
        refused(path)
        found = read_recording(path, where="a", rate=250.0)
        same(found, VALUES, ("C3", "C4"))
        assert found.rate == 250.0

    def test_variables_of_groups(self, tmp_path):
        netcdf = pytest.importorskip("netCDF4")
        with netcdf.Dataset(str(tmp_path / "a.nc"), "w") as file:
            file.createDimension("time", 6)
            time = file.createVariable("time", "f8", ("time",))
            time[:] = np.arange(6) / 4
            for name in ("one", "two"):
                eeg = file.createGroup(name).createVariable("eeg", "f8", ("time",))
                eeg[:] = VALUES[:, 0] * (1 if name == "one" else 2)
        assert refused(tmp_path / "a.nc").allowed == ("one/eeg", "two/eeg")
        found = read_recording(tmp_path / "a.nc", where="a", variable="two/eeg")
        same(found, VALUES[:, :1] * 2, ("0",))
        assert found.rate == 4.0


def test_formats_of_other_libraries_are_refused_with_what_to_write(tmp_path):
    for suffix in (".fif", ".mat", ".mp3", ".xlsx", ".pkl", ".sac", ".gz", ".zarr"):
        fault = refused(tmp_path / f"a{suffix}")
        assert fault.value == suffix
        assert isinstance(fault.allowed, str)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w") as file:  # of MATLAB's -v7.3
        file["x"] = VALUES
    same(read_recording(tmp_path / "a.mat", where="a", **typed(refused(tmp_path / "a.mat"))[0]), VALUES, ("0", "1"))


class TestPyedflib:
    def written(self, folder: Path, labels: tuple[str, ...], rates: tuple[int, ...], kind: int) -> Path:
        pyedflib = pytest.importorskip("pyedflib")
        with pyedflib.EdfWriter(str(folder / "a.edf"), len(labels), file_type=kind) as file:
            for number, (label, rate) in enumerate(zip(labels, rates, strict=True)):
                header = {
                    "label": label, "dimension": "uV", "sample_frequency": rate, "physical_min": -100.0,
                    "physical_max": 100.0, "digital_min": -32768, "digital_max": 32767, "transducer": "",
                    "prefilter": "",
                }  # fmt: skip
                file.setSignalHeader(number, header)
            file.writeSamples([np.full(2 * rate, 10.0 * number) for number, rate in enumerate(rates, 1)])
            if kind:
                file.writeAnnotation(0.5, 0.1, "spike")
        return folder / "a.edf"

    @pytest.mark.parametrize("label", ["ECG Annotations", "BDF Annotations", "Annotations"])
    @pytest.mark.parametrize("kind", [0, 1])
    def test_a_channel_that_is_called_annotations_is_one(self, tmp_path, label, kind):
        path = self.written(tmp_path, (label, "Fp1"), (100, 100), kind)
        pyedflib = pytest.importorskip("pyedflib")
        with pyedflib.EdfReader(str(path)) as file:
            expected = {name: file.readSignal(number) for number, name in enumerate(file.getSignalLabels())}
        found = read_recording(path, where="a")
        assert found.channels == tuple(expected)
        np.testing.assert_array_equal(found.values, np.stack([*expected.values()], axis=1))

    def test_annotations_of_plain_edf_are_left_out(self, tmp_path):
        """pyedflib counts them as a signal there, and not in EDF+."""
        path = self.written(tmp_path, ("EDF Annotations", "Fp1"), (100, 100), 0)
        found = read_recording(path, where="a")
        assert (found.channels, round(found.values.mean())) == (("Fp1",), 20)

    def test_the_remedy_for_several_rates_works_as_typed(self, tmp_path):
        path = self.written(tmp_path, ("EEG Fp1", "SpO2", "EEG Fp2"), (256, 1, 256), 1)
        fault = refused(path)
        found = read_recording(path, where="a", **typed(fault)[0])
        assert (found.rate, found.channels) == (256.0, ("EEG Fp1", "EEG Fp2"))
        assert read_recording(path, where="a", channels=["SpO2"]).rate == 1.0


@pytest.mark.parametrize("fmt", ["16", "212", "24", "80", "32", "508", "516", "524"])
def test_every_format_that_wfdb_writes_is_what_wfdb_reads(tmp_path, fmt):
    wfdb = pytest.importorskip("wfdb")
    options = {"fs": 360, "units": ["mV", "uV"], "sig_name": ["II", "V1"], "fmt": [fmt] * 2}
    if fmt == "16":  # gain, baseline and zero of the converter that are not the usual ones
        digital = RANDOM.integers(-900, 900, (200, 2))
        wfdb.wrsamp(
            "a", d_signal=digital, adc_gain=[200.5, 10.0], baseline=[512, -20], write_dir=str(tmp_path), **options
        )
    else:
        wfdb.wrsamp("a", p_signal=RANDOM.normal(size=(200, 2)), write_dir=str(tmp_path), **options)
    same(read_recording(tmp_path / "a.hea", where="a"), wfdb.rdrecord(str(tmp_path / "a")).p_signal, ("II", "V1"))


def test_segments_of_other_channels_and_a_pause_are_missing(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    values = RANDOM.normal(size=(60, 2))
    for name, part, leads in (("s1", values[:40], ["I", "II"]), ("s2", values[40:, 1:], ["II"])):
        some = {"units": ["mV"] * len(leads), "sig_name": leads, "fmt": ["16"] * len(leads)}
        wfdb.wrsamp(name, fs=100, p_signal=part, write_dir=str(tmp_path), **some)
    (tmp_path / "layout.hea").write_text("layout 2 100 0\n~ 0 200(0)/mV 16 0 0 0 0 I\n~ 0 200(0)/mV 16 0 0 0 0 II\n")
    (tmp_path / "whole.hea").write_text("whole/4 2 100 70\nlayout 0\ns1 40\n~ 10\ns2 20\n")
    found = read_recording(tmp_path / "whole.hea", where="a")
    same(found, wfdb.rdrecord(str(tmp_path / "whole")).p_signal, ("I", "II"))
    assert np.isnan(found.values).sum() == 2 * 10 + 20


@pytest.mark.parametrize(("dtype", "scale"), [("u1", 127), ("i2", 2**15 - 1), ("i4", 2**31 - 1), ("f4", 1), ("f8", 1)])
def test_sound_of_scipy_is_what_soundfile_reads(tmp_path, dtype, scale):
    wavfile, soundfile = pytest.importorskip("scipy.io.wavfile"), pytest.importorskip("soundfile")
    values = RANDOM.uniform(-0.9, 0.9, (300, 2))
    wavfile.write(tmp_path / "a.wav", 8000, (values * scale + (128 if dtype == "u1" else 0)).astype(dtype))
    found = read_recording(tmp_path / "a.wav", where="a")
    same(found, soundfile.read(tmp_path / "a.wav")[0], ("0", "1"))
    np.testing.assert_allclose(found.values, values, atol=2 / scale if scale > 1 else 1e-7)


@pytest.mark.parametrize("subtype", ["MS_ADPCM", "GSM610", "G721_32"])
def test_what_fills_the_last_block_is_not_sound(tmp_path, subtype):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", RANDOM.uniform(-0.5, 0.5, 801), 8000, subtype=subtype)
    expected, _ = soundfile.read(tmp_path / "a.wav")
    assert len(expected) > 801
    for source in (tmp_path / "a.wav", (tmp_path / "a.wav").read_bytes()):
        same(read_recording(source, where="a"), expected[:801, None], ("0",))


def test_flac_that_was_written_to_a_pipe_is_refused(tmp_path):
    """An encoder that cannot seek leaves the number of frames, the last 36 bits of 8 bytes, at 0."""
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", RANDOM.uniform(-0.5, 0.5, 500), 8000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    facts = int.from_bytes(data[18:26], "big")
    assert facts % (1 << 36) == 500
    data[18:26] = (facts - 500).to_bytes(8, "big")
    (tmp_path / "a.flac").write_bytes(data)
    assert "says how long it is" in refused(tmp_path / "a.flac").allowed
