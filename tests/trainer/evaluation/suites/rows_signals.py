"""Answers of SciTS, 20 of each kind, and the figures of the benchmark's own evaluation."""

from typing import Any

WORDS = "mi|norm|cd norm|hyp|the mi|NORM||mi cd|a hypothesis|normal|cd|MI and CD|no idea|norm|hyp|cd|mi|x|norm cd"
WORDS += "|mi hyp"
LABELS = ["MI", "NORM", "CD", "HYP", "MI", "NORM", "CD", ["MI", "CD"], "HYP", "NORM", ["CD", "HYP"], ["MI", "CD"], "MI"]
LABELS += ["MI", "HYP", "CD", "MI", "NORM", ["NORM", "HYP"], "MI"]
ONE_OR_MORE = [{"gt_class": {"default": label}} for label in LABELS]
SEEN = "no event|at 12 and 30|an anomaly|normal|event at 44|nothing|maybe 3 7|P at 10, S at 25|not seen|yes 5"
TIMES: list[dict[str, Any]] = [
    {"contain": True, "p": 10 + place, "s": 20 + place} if place % 3 else {"contain": False} for place in range(20)
]
# of OpenTSLab/TimeOmni, eval_benchmark.py at 4d4a9f4: classification_eval and detection_eval of these rows;
# tests/trainer/evaluation/published_code.py prints them
CLASSES = [0.75, 0.7458333333333333, 0.7711038961038961]
EVENTS = {
    "STEAD": [0.65, 0.6956521739130435, 1.0, 0.6087731053643405, 0.42857142857142855],
    "MIMII Due": [0.1, 0.5, 0.2, 0.0, 0.0],
}
