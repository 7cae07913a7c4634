"""A box with curves, as lines of SVG: what the pictures in docs/ are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COLOURS = ["#444444", "#d1495b", "#2a7fb8", "#5b8c5a", "#8d6a9f", "#d08c2e", "#3aa6a0", "#a0522d", "#c2479f", "#7a8b2a"]
Curve = Sequence[tuple[float, float]]  # step and value


def panel(curves: Mapping[str, Curve], left: float, title: str, tick: float, colours: Sequence[str]) -> list[str]:
    """Curves over the steps in a box of 400 x 270 whose lower left corner is at (left, 310), with a line at every
    multiple of `tick`."""
    values = [value for curve in curves.values() for _, value in curve]
    low, high = tick * (min(values) // tick), tick * (max(values) // tick + 1)
    steps = max(curve[-1][0] for curve in curves.values())

    def x(step: float) -> float:
        return left + 400 * step / steps

    def y(value: float) -> float:
        return 310 - 270 * (value - low) / (high - low)

    parts = [f'<text x="{left}" y="25" font-weight="bold">{title}</text>']
    for number in range(round((high - low) / tick) + 1):
        value = low + number * tick
        parts.append(f'<line x1="{left}" x2="{left + 400}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#666666">{value:g}</text>')
    between = max(1, int(steps) // 3)
    between -= between % 10 ** (len(str(between)) - 1)  # one digit and zeros
    for step in range(0, int(steps) + 1, between):
        parts.append(f'<text x="{x(step):.1f}" y="328" text-anchor="middle" fill="#666666">{step}</text>')
    for colour, curve in zip(colours, curves.values(), strict=False):
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts
