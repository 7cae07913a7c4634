"""The options of `octavo captions` for the stages `captions` and `quality`."""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from launch.paths import check_all, must_exist, only_with
from trainer.config.command_line import Parser, above_zero, number, whole_number
from trainer.config.errors import CommandError

if TYPE_CHECKING:
    from trainer.corpora.captions.describing import Describing

# with their defaults; None: none
OF_CAPTIONERS = {
    "prompts": None, "words": 1000, "image_only": False, "drop_failed": False, "most_requests": inf,
    "most_tokens": inf, "most_money": inf, "deadline": inf, "discriminator": None, "threshold": 0.5, "label": None,
}  # fmt: skip


def add_describing(parser: Parser) -> None:
    add = parser.add_argument_group(
        "captions", "describe the crops by vision models on servers (see docs/captions_describe.md)"
    ).add_argument
    add(
        "--captioners",
        metavar="FILE",
        help="YAML file with a captioner for each route; without it no captions are made",
    )
    add("--prompts", metavar="FILE", help="YAML file with prompts, in place of the built-in ones")
    add("--words", type=whole_number(1), metavar="N", help="longest caption that prompts ask for (1000)")
    add("--image-only", action="store_true", default=None, help="leave the document's text out of prompts")
    add("--drop-failed", action="store_true", default=None, help="drop crops that have no answer after all tries")
    add("--most-requests", type=whole_number(1), metavar="N", help="most answers, over all starts")
    add("--most-tokens", type=whole_number(1), metavar="N", help="most tokens of prompts and answers, over all starts")
    add("--most-money", type=above_zero("100"), metavar="X", help="most that answers may cost, by the file's prices")
    add("--deadline", type=above_zero("3600"), metavar="S", help="seconds after which this start asks for nothing more")
    add = parser.add_argument_group("quality", "drop captions by rules, and by a classifier").add_argument
    add("--discriminator", metavar="DIR", help="directory of a sequence classifier of transformers")
    add(
        "--threshold",
        type=number(isfinite, "a number, such as 0.5"),
        metavar="X",
        help="least score of a caption that is kept (0.5)",
    )
    add("--label", metavar="NAME", help="class of good captions, by name or number (the last)")


def read_describing(options: argparse.Namespace) -> Describing | None:
    """None without --captioners. Raises CommandError, and DataError for a file of captioners or prompts."""
    given = {name: value for name in OF_CAPTIONERS if (value := getattr(options, name)) is not None}
    if options.captioners is None:
        if given:
            faults = [only_with(f"--{name.replace('_', '-')}", value, "--captioners") for name, value in given.items()]
            raise CommandError(faults)
        return None
    for one, other in (("threshold", "discriminator"), ("label", "discriminator")):
        if one in given and other not in given:
            raise CommandError([only_with(f"--{one}", given[one], f"--{other}")])
    if find_spec("httpx") is None:
        remedy = "pip install -e '.[captions]'"
        raise CommandError(f"--captioners needs httpx; {remedy}", where="--captioners", value="httpx", allowed=remedy)
    files = [path for path in (options.captioners, options.prompts, options.discriminator) if path is not None]
    check_all(*(partial(must_exist, path, "give an existing file or directory") for path in files))

    from trainer.corpora.captions.describe.captioner import Captioner
    from trainer.corpora.captions.describe.endpoints import read_endpoints
    from trainer.corpora.captions.describe.prompts import BUILT_IN
    from trainer.corpora.captions.describe.stage import CaptionOptions
    from trainer.corpora.captions.describing import Describing
    from trainer.corpora.captions.quality.discriminator import read_config
    from trainer.corpora.captions.quality.stage import QualityOptions

    chosen = argparse.Namespace(**{**OF_CAPTIONERS, **given})
    endpoints = read_endpoints(Path(options.captioners))
    for route, endpoint in endpoints.items():
        Captioner(endpoint, f"{options.captioners}: {route}").close()  # its address and key can be used
    captions = CaptionOptions(
        endpoints,
        Path(chosen.prompts) if chosen.prompts else BUILT_IN,
        words=chosen.words,
        printed=not chosen.image_only,
        drop_failed=chosen.drop_failed,
        requests=chosen.most_requests,
        tokens=chosen.most_tokens,
        money=chosen.most_money,
        seconds=chosen.deadline,
    )
    captions.identity()  # reads the prompts
    discriminator = Path(chosen.discriminator) if chosen.discriminator else None
    if discriminator is not None:
        read_config(discriminator)
        if find_spec("transformers") is None:
            remedy = "pip install transformers"
            text = f"--discriminator needs transformers, which is not installed; {remedy}"
            raise CommandError(text, where="--discriminator", value="transformers", allowed=remedy)
    quality = QualityOptions(discriminator=discriminator, threshold=chosen.threshold, label=chosen.label)
    return Describing(captions, quality)
