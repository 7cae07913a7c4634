"""The trained model that names the subjects of a document's crops: weights of words, in one file of plain arrays.

    x_f = (1 + log count_f) * rarity_f, over the features f that the model has, divided by its length
    logits_s = x . weights_s + bias_s, of the crop's own text, and of the texts of all crops of its document together
    probabilities = softmax(exp(a + b log(1 + n)) * logits + exp(c + d log(1 + N)) * logits of the document + shift)

n and N are the numbers of known features: a long text says more. a, b, c, d and the shift were fitted on packages that
the weights were not trained on (`fit.py`), so that probabilities are frequencies.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.routing.features import Counted, counted_features, together
from trainer.corpora.captions.routing.subjects import SCIENCE, SUBJECTS
from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file

BUILT_IN = Path(__file__).with_name("subjects.npz")
FORMAT = "octavo-subjects-1"
PRIOR = np.array([0.5 if subject == "other" else 0.5 / len(SCIENCE) for subject in SUBJECTS])  # as `fit` weighs texts
LARGEST = 64  # crops of a document that say what it is about
Floats = NDArray[np.float32]
# F features · S subjects


@dataclass(frozen=True)
class Scored:
    """logits_NS, with the number of known features known_N, of N texts; and those of the document of each."""

    logits_NS: NDArray[Any]
    known_N: NDArray[Any]
    document_NS: NDArray[Any]
    document_known_N: NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """Turns logits into probabilities (see above)."""

    a: float = 0.0
    b: float = 0.0
    c: float = -20.0
    d: float = 0.0
    shift: tuple[float, ...] = (0.0,) * len(SUBJECTS)

    def probabilities(self, scored: Scored) -> NDArray[np.float64]:
        """[N, S]. A text without a known feature is not counted; PRIOR where its document has none either."""
        own = np.exp(self.a + self.b * np.log1p(scored.known_N)) * (scored.known_N > 0)
        document = np.exp(self.c + self.d * np.log1p(scored.document_known_N)) * (scored.document_known_N > 0)
        scaled = scored.logits_NS * own[:, None] + scored.document_NS * document[:, None] + np.asarray(self.shift)
        scaled -= scaled.max(1, keepdims=True)
        raised = np.exp(scaled)
        return np.where((document > 0)[:, None], raised / raised.sum(1, keepdims=True), PRIOR)


@dataclass(frozen=True)
class TextModel:
    """features_F: sorted uint32 numbers of `counted_features`. rarity_F: float16. weights_FS: int8, in units of
    scale_S. facts: how it was trained, and its figures."""

    features_F: NDArray[np.uint32]
    rarity_F: NDArray[np.float16]
    weights_FS: NDArray[np.int8]
    scale_S: Floats
    bias_S: Floats
    calibration: Calibration
    facts: dict[str, Any]

    def probabilities(self, captions: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float64]:
        """The crops of one document: a row for each, a column for each of SUBJECTS; a row's sum is 1."""
        return self.calibration.probabilities(self.score(list(map(counted_features, captions, contexts))))

    def score(self, document: Sequence[Counted]) -> Scored:
        """The texts of one document."""
        count = len(document)
        own = [self.logits(text) for text in document]
        logits, known = self.logits(together(document[:LARGEST]))
        return Scored(
            np.array([row for row, _ in own]), np.array([number for _, number in own]),
            np.tile(logits, (count, 1)), np.full(count, known),
        )  # fmt: skip

    def logits(self, text: Counted) -> tuple[Floats, int]:
        """([S], number of known features)."""
        places, values = known_features(self.features_F, self.rarity_F, text)
        summed = (values[:, None] * self.weights_FS[places]).sum(0, dtype=np.float32) * self.scale_S + self.bias_S
        return summed, len(places)

    def save(self, path: Path) -> None:
        """Write the model; the same model gives the same bytes. Raises OSError."""
        about = json.dumps(
            {"format": FORMAT, "subjects": SUBJECTS, "calibration": vars(self.calibration), "facts": self.facts},
            sort_keys=True,
        )
        arrays: dict[str, Any] = {
            "features": self.features_F, "rarity": self.rarity_F, "weights": self.weights_FS, "scale": self.scale_S,
            "bias": self.bias_S, "about": np.frombuffer(about.encode(), np.uint8),
        }  # fmt: skip
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # its entries are all of 1980-01-01

    @classmethod
    def load(cls, path: Path = BUILT_IN) -> TextModel:
        """Read a model. Nothing in the file is executed. Raises DataError for a file that is not such a model."""
        try:
            with np.load(path, allow_pickle=False) as found:
                about = json.loads(found["about"].tobytes())
                if about["format"] != FORMAT or tuple(about["subjects"]) != SUBJECTS:
                    raise ValueError(f"it is of the format {about['format']}, with the subjects {about['subjects']}")
                raw = about["calibration"]
                a, b, c, d = (float(raw[name]) for name in "abcd")
                calibration = Calibration(a, b, c, d, tuple(float(x) for x in raw["shift"]))
                model = cls(found["features"], found["rarity"], found["weights"], found["scale"], found["bias"],
                            calibration, about["facts"])  # fmt: skip
            count, subjects = len(model.features_F), len(SUBJECTS)
            wanted = [((count,), np.uint32), ((count,), np.float16), ((count, subjects), np.int8),
                      ((subjects,), np.float32), ((subjects,), np.float32)]  # fmt: skip
            arrays = (model.features_F, model.rarity_F, model.weights_FS, model.scale_S, model.bias_S)
            shapes = [(array.shape, array.dtype) for array in arrays]
            if not count or shapes != wanted or len(calibration.shift) != subjects:
                raise ValueError(f"its arrays have the shapes {shapes}")
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            remedy = "name a file that `train` wrote"
            text = f"{path} is not a model of subjects ({error}); {remedy}"
            raise DataError(text, where=str(path), allowed=remedy) from error
        return model


def known_features(
    features_F: NDArray[np.uint32], rarity_F: NDArray[np.float16], text: Counted
) -> tuple[NDArray[np.intp], Floats]:
    """Places in features_F of those that a text has, in rising order, and their values: a vector of length 1, or
    empty."""
    numbers, times = text
    places = np.minimum(np.searchsorted(features_F, numbers), len(features_F) - 1)
    known = features_F[places] == numbers
    places = places[known]
    values = (1 + np.log(times[known])) * rarity_F[places].astype(np.float32)
    length = np.sqrt((values * values).sum())
    return places, values / length if len(places) else values
