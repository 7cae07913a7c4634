"""The figures of `upcycle_study` as the tables and the picture of docs/upcycling.md."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from tests.bench.panel import COLOURS, panel

LAST = 20  # steps whose mean is a curve's point


def nats(look: Mapping[str, Any]) -> float:
    """Held-out loss, the mean over the sources."""
    return fmean(look["heldout"].values())


def tables(figures: Mapping[str, Any]) -> list[str]:
    """Markdown: each change alone, then the arms."""
    return [*changes(figures), "", *arms(figures)]


def changes(figures: Mapping[str, Any]) -> list[str]:
    none = nats(figures["changes"]["none"])
    rows = ["| what is changed, with nothing trained | held-out loss | change |", "|---|---|---|"]
    for name, look in figures["changes"].items():
        rows.append(f"| {name} | {nats(look):.4f} | {nats(look) - none:+.4f} |")
    return rows


def arms(figures: Mapping[str, Any]) -> list[str]:
    steps, base = figures["steps"], figures["arms"]["base"]
    rows = [
        f"| arm | loss right after | to base | after {steps} steps | to base | distance of copies | busiest "
        "expert | idle experts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in figures["arms"].items():
        way = list(arm["distance"].values())
        cells = [
            name,
            f"{nats(arm['start']):.4f}",
            f"{nats(arm['start']) - nats(base['start']):+.4f}",
            f"{nats(arm['end']):.4f}",
            f"{nats(arm['end']) - nats(base['end']):+.4f}",
            f"{way[0]:.3g}, {way[-1]:.3g}" if way else "",
            f"{arm['end']['busiest']:.1f}x",
            f"{arm['end']['idle']:.1%}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def picture(figures: Mapping[str, Any]) -> str:
    """Two panels over the steps: how far each arm's loss is above the base's, and how far copies are apart."""
    arms = figures["arms"]
    base = arms["base"]["loss"]
    above = {name: [x - y for x, y in zip(arm["loss"], base, strict=True)] for name, arm in arms.items()}
    losses = {
        name: [(n, fmean(values[max(0, n - LAST) : n])) for n in range(1, len(values) + 1)]
        for name, values in above.items()
    }
    copies = {
        name: [(int(step), value) for step, value in arm["distance"].items()]
        for name, arm in arms.items()
        if arm["distance"]
    }
    colour = dict(zip(arms, COLOURS, strict=False))
    legend = [
        f'<text x="{50 + 300 * (number % 3)}" y="{352 + 20 * (number // 3)}" fill="{colour[name]}" '
        f'font-weight="bold">{name}</text>'
        for number, name in enumerate(arms)
    ]
    height = 365 + 20 * ((len(arms) - 1) // 3)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" font-family="sans-serif" '
            'font-size="13">',
            f'<rect width="960" height="{height}" fill="white"/>',
            *panel(losses, 50, f"nats above the base by step, means of {LAST}", 0.02, list(colour.values())),
            *panel(copies, 530, "distance of an expert's copies", 0.1, [colour[name] for name in copies]),
            *legend,
            "</svg>\n",
        ]
    )
