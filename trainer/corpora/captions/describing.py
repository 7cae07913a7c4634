"""The stages `captions` and `quality` of the pipeline, over the crops of an earlier stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.corpora.captions.describe.stage import STAGE as CAPTIONS
from trainer.corpora.captions.describe.stage import CaptionOptions, RoutesOf, run_captions
from trainer.corpora.captions.quality.stage import STAGE as QUALITY
from trainer.corpora.captions.quality.stage import QualityOptions, run_quality
from trainer.corpora.captions.reports import StageReport
from trainer.corpora.captions.tables import read_part
from trainer.storage.progress import OnProgress


@dataclass(frozen=True)
class Describing:
    captions: CaptionOptions
    quality: QualityOptions


def run_describing(
    out: Path, crops: Path, routes_of: RoutesOf, describing: Describing, progress: OnProgress
) -> list[StageReport]:
    """Run both stages in `out`, and return their accounts. Raises DataError, OSError."""
    return [
        run_captions(out / CAPTIONS, crops, routes_of, describing.captions, progress=progress),
        run_quality(out / QUALITY, crops, out / CAPTIONS, describing.quality, progress=progress),
    ]


def one_route(route: str) -> RoutesOf:
    """The routes of crops that all have the same captioner."""
    return lambda part: {crop.id: route for crop in read_part(part, images=False)}
