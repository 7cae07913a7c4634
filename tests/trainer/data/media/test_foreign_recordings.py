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
    path.write_text("ecg,resp,\n1,2,\n3,4,\n")
    same(read_recording(path, where="a"), [[1, 2], [3, 4]])
