import zipfile

import numpy as np
import pytest

from trainer.corpora.captions.routing.corpus import read_packages
from trainer.corpora.captions.routing.features import counted_features, together, words_of
from trainer.corpora.captions.routing.texts import package_texts, prose, split
from trainer.data.errors import DataError

MODULE = '''
"""Seismic waveforms of one station, corrected for the response of its instrument, as quakery reads them.

The spectra are smoothed with the window of Konno and Ohmachi before ratios are taken.
"""
import os
raise SystemExit("a docstring is read without running the module")

def amplitude(trace, taper=0.05):
    """Peak ground velocity of a trace, in metres per second, after a taper of both of its ends.

    Parameters
    ----------
    trace : Trace
        Counts of the digitiser, at a constant rate, with the gaps filled by a straight line.
    taper: float

    >>> amplitude(read())

    See :func:`~quakery.response.remove` for what `Trace` has to hold::

        secret_code(here)

    Attenuation follows :math:`e^{-\\\\alpha r}` beyond the near field of the fault.
    """
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheels") / "quakery-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("quakery/waves.py", MODULE)
        archive.writestr("quakery/broken.py", "def (")
        archive.writestr("quakery/tests/test_waves.py", MODULE.replace("Seismic", "Untrue"))
        archive.writestr("quakery/_vendor/other.py", MODULE.replace("Seismic", "Foreign"))
        about = (
            "Name: quakery\n\nEarthquake records of regional networks, searched by magnitude, depth and origin time."
        )
        archive.writestr("quakery-1.0.dist-info/METADATA", about)
    return path


def test_a_wheel_gives_its_documentation_without_code_names_and_tests(wheel):
    texts = package_texts(wheel)
    whole = " ".join(f"{text.caption} {text.context}" for text in texts)
    for found in ("Seismic waveforms", "Konno and Ohmachi", "Peak ground velocity", "Counts of the digitiser",
                  "beyond the near field", "Earthquake records"):  # fmt: skip
        assert found in whole
    for absent in ("quakery", "Untrue", "Foreign", "secret_code", "float", "Parameters", ">>>", "alpha", ":func:"):
        assert absent not in whole
    assert [text.caption for text in texts if text.caption.startswith("Peak")] == [
        "Peak ground velocity of a trace, in metres per second, after a taper of both of its ends."
    ]
    assert package_texts(wheel) == texts


def test_a_file_that_is_not_a_wheel_is_reported(tmp_path):
    path = tmp_path / "x.whl"
    path.write_bytes(b"PK not quite")
    with pytest.raises(DataError) as caught:
        package_texts(path)
    assert caught.value.where == str(path)


def test_long_documentation_is_several_texts_and_short_is_none():
    sentence = "Velocity of the wind above the boundary layer of the tropical ocean. "
    assert [len(f"{t.caption} {t.context}".split()) for t in split(sentence * 20)] == [120, 120]
    assert not [*split("Return self.")]
    assert prose("A line.\n\nReturns\n-------\nx : int\n    Depth in metres.") == "A line.\n\nDepth in metres."


def test_features_do_not_depend_on_labels_hyphens_and_ligatures():
    numbers, times = counted_features("Flow of efficient heat transfer", "")
    assert (np.diff(numbers.astype(np.int64)) > 0).all()
    plain, broken = "efficient heat transfer", "e\ufb03cient heat trans-\nfer"
    for label, text in (("Fig. 2.", plain), ("Table S1:", plain), ("Figure 3 |", broken), ("Abb. 4a:", plain)):
        found = counted_features(f"{label} Flow of {text}", "")
        assert (found[0] == numbers).all()
        assert (found[1] == times).all()
    assert words_of("Schrödinger, 2 K und H2O") == ["schrodinger", "und"]
    in_context = counted_features("", "Flow of efficient heat transfer")
    assert (in_context[0] == numbers).all()
    assert (2 * in_context[1] == times).all()
    both = together([in_context, counted_features("Flow of sand", "")])
    assert set(both[0]) == {*numbers, *counted_features("Flow of sand", "")[0]}
    assert both[1].sum() == in_context[1].sum() + counted_features("Flow of sand", "")[1].sum()


def test_every_subject_has_packages_to_train_on_and_others_held_out():
    packages = read_packages()
    parts = {(one.subject, one.part) for one in packages}
    assert len(parts) == 14
    assert len({one.name for one in packages}) == len(packages)


@pytest.mark.parametrize("text", ["- 1", "life: {train: {a: '1'}}\nearth: {train: {a: '1'}}", "art: {train: {a: '1'}}",
                                  "life: {test: {a: '1'}}", "{", "life: [1]"])  # fmt: skip
def test_a_wrong_list_of_packages_is_reported(tmp_path, text):
    path = tmp_path / "packages.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_packages(path)
    assert caught.value.where == str(path)
