"""The three sources of labelled recordings, with their task forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.corpora.science.recordings import calls, ecg, eeg
from trainer.corpora.science.recordings.forms import Templates
from trainer.corpora.science.recordings.labelled import Survey


@dataclass(frozen=True)
class RecordedSource:
    """A source. title: its task. survey: of a directory. seconds: longer recordings are cut into excerpts of
    this length at most; None for whole ones."""

    name: str
    title: str
    survey: Callable[[Path], Survey]
    templates: Templates
    seconds: float | None


EEG = RecordedSource(
    "eeg_depression",
    "EEG-based detection of depression",
    eeg.survey,
    Templates(
        what=("EEG", "EEG against linked ears", "Electroencephalogram"),
        narration=(
            "This EEG was recorded from {phrase}.",
            "It is the EEG of {phrase}.",
            "The recording is from {phrase}.",
        ),
        open=(
            "Which disorder did the person have whose EEG this is?",
            "What is the psychiatric diagnosis of this person?",
            "With which disorder was the person diagnosed?",
            "Which diagnosis does this EEG belong to?",
        ),
        choice=(
            "Which of these diagnoses did the person have?",
            "To which group does this EEG belong?",
            "Choose the diagnosis of the person whose EEG this is.",
        ),
        yes_no=(
            "Was this EEG recorded from {phrase}?",
            "Is this the EEG of {phrase}?",
            "Does this EEG belong to {phrase}?",
        ),
        opposite=(("Was the person diagnosed with a depressive disorder?", "H"),),
        shown=eeg.shown,
    ),
    30.0,
)
ECG = RecordedSource(
    "ecg_abnormality",
    "detection of abnormalities in an ECG",
    ecg.survey,
    Templates(
        what=("ECG", "12-lead ECG", "Electrocardiogram"),
        narration=("This ECG shows {phrase}.", "The recording shows {phrase}.", "A cardiologist found {phrase}."),
        open=(
            "What does this ECG show?",
            "Which diagnostic classes does this ECG belong to?",
            "What is the finding of this ECG?",
            "Read this ECG. What is the diagnosis?",
        ),
        choice=(
            "Which of these does the ECG show?",
            "Which findings fit this ECG?",
            "Choose the diagnostic classes of this ECG.",
        ),
        yes_no=(
            "Does this ECG show {phrase}?",
            "Do you see {phrase} in this ECG?",
            "Would a cardiologist find {phrase} in this ECG?",
        ),
        opposite=(
            ("Is this ECG abnormal?", ecg.NORMAL),
            ("Is there an abnormality in this ECG?", ecg.NORMAL),
        ),
        several=" There may be more than one.",
    ),
    30.0,
)
CALLS = RecordedSource(
    "marmoset_calls",
    "types of marmoset calls",
    calls.survey,
    Templates(
        what=("Sound", "Sound of a common marmoset", "Recording of a marmoset's voice"),
        narration=(
            "This is {phrase} of a common marmoset.",
            "The sound is {phrase} of a marmoset.",
            "A marmoset makes {phrase}.",
        ),
        open=(
            "Which type of call is this?",
            "What type of marmoset call is heard?",
            "Which call does the marmoset make?",
            "Name the type of this vocalization.",
        ),
        choice=(
            "Which of these types of call is it?",
            "Choose the type of this marmoset call.",
            "Which call is heard?",
        ),
        yes_no=("Is this {phrase}?", "Does the marmoset make {phrase}?", "Is the sound {phrase}?"),
    ),
    None,
)
RECORDED = {source.name: source for source in (EEG, ECG, CALLS)}
