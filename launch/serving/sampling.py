"""Options about how tokens are drawn, for the commands that generate."""

from __future__ import annotations

import argparse

from trainer.config.command_line import Parser, number, whole_number
from trainer.engine.request import Sampling


def add_sampling(parser: Parser) -> None:
    """Take --temperature, --top-p, --top-k, --min-p and --seed."""
    add = parser.add_argument
    add(
        "--temperature",
        type=number(lambda value: 0 <= value < float("inf"), "a number of 0 or more"),
        default=1.0,
        metavar="T",
        help="logits are divided by it; 0: always the most likely token (default: 1)",
    )
    add(
        "--top-p",
        type=number(lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
        default=1.0,
        metavar="P",
        help="draw from the fewest most likely tokens that reach this probability (default: 1, all)",
    )
    add("--top-k", type=whole_number(0), default=0, metavar="K", help="draw from the K most likely tokens (0: all)")
    add(
        "--min-p",
        type=number(lambda value: 0 <= value <= 1, "a number from 0 to 1"),
        default=0.0,
        metavar="P",
        help="draw from tokens at least this fraction as likely as the most likely one (default: 0)",
    )
    add("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help="seed of the first answer (default: 0)")


def sampling_of(options: argparse.Namespace, number: int) -> Sampling:
    """Settings of the answer `number`, whose seed is that many above --seed."""
    return Sampling(options.temperature, options.top_k, options.top_p, options.min_p, options.seed + number)
