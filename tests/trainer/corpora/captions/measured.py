"""Measure a layout against the truth of made papers."""

from collections import Counter
from collections.abc import Sequence

from tests.trainer.corpora.captions.papers import Paper, Truth
from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.inputs import Input
from trainer.corpora.captions.layout.boxes import iou
from trainer.corpora.captions.layout.document import Reading, read_document

ALIKE = 0.8  # intersection over union, above which a region is found


def measure(papers: Sequence[Paper], kind: str) -> dict[str, float]:
    """Precision, recall, and the share of the found regions whose label and caption are right, and their numbers."""
    counts: Counter[str] = Counter()
    for paper in papers:
        crops = [crop for crop in read_document(Input(str(paper.path)), 36, Reading()) if crop.kind == kind]
        truth = [one for one in paper.truth if one.kind == kind]
        counts["found"] += len(crops)
        counts["truth"] += len(truth)
        for one in truth:
            crop = _match(one, crops)
            if crop is not None:
                crops.remove(crop)
                counts["hits"] += 1
                counts["captions"] += (crop.label, crop.caption) == (one.label, one.caption)
    return {
        **counts,
        "precision": counts["hits"] / max(counts["found"], 1),
        "recall": counts["hits"] / max(counts["truth"], 1),
        "attached": counts["captions"] / max(counts["hits"], 1),
    }


def _match(one: Truth, crops: Sequence[Crop]) -> Crop | None:
    there = [crop for crop in crops if crop.page == one.page and iou(crop.box, one.box) > ALIKE]
    return max(there, key=lambda crop: iou(crop.box, one.box), default=None)
