"""The options of `octavo captions` for the stage `routing`."""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from launch.paths import check_all, must_exist
from trainer.config.command_line import Parser
from trainer.config.errors import CommandError

if TYPE_CHECKING:
    from trainer.corpora.captions.routing.stage import Options


def add_routing(parser: Parser) -> None:
    add = parser.add_argument_group(
        "routing", "choose a captioner for each crop by its subject (see docs/captions_routing.md)"
    ).add_argument
    add(
        "--route",
        action="append",
        default=[],
        metavar="NAME=SUBJECT,...:P",
        help="takes crops whose probability of these subjects is above P; routes are asked in the order given "
        "(science=science:0.5: life, chemistry, earth, materials, physics and mathematics)",
    )
    add("--default-route", default="general", metavar="NAME", help="takes the crops that no other does (general)")
    add(
        "--subjects", metavar="DIR", help="Hugging Face sequence classifier, in place of the built-in model of subjects"
    )


def read_routing(options: argparse.Namespace) -> Options:
    """Raises `CommandError`."""
    from trainer.corpora.captions.routing.routes import SCIENCE_CAPTIONER, captioner
    from trainer.corpora.captions.routing.stage import Options

    check_all(*(partial(captioner, text) for text in options.route))
    if options.subjects is not None:
        must_exist(options.subjects, "give a directory with a sequence classifier")
        if find_spec("transformers") is None:
            remedy = "pip install transformers"
            text = f"--subjects needs transformers, which is not installed; {remedy}"
            raise CommandError(text, where="--subjects", value="transformers", allowed=remedy)
    captioners = tuple(captioner(text) for text in options.route) or (SCIENCE_CAPTIONER,)
    return Options(captioners, options.default_route, None if options.subjects is None else Path(options.subjects))
