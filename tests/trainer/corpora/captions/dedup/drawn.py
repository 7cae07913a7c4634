"""Figures drawn for tests: different ones with the same axes, and copies of each.

A style is a drawing program with its fonts, lines and colours. Of the styles in TUNED the limits of the code were
chosen; those in HELD_OUT were drawn afterwards. "seaborn" and "classic" have another shape than the rest.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainer.corpora.captions.crops import Crop, Kind, crop_id, rounded
from trainer.corpora.captions.dedup.rows import read_decisions
from trainer.corpora.captions.dedup.stage import run_dedup
from trainer.corpora.captions.tables import part_path, write_part

Picture = Image.Image
Floats = NDArray[np.float64]
TUNED = ("plain", "pillow")
HELD_OUT = ("grid", "ggplot", "serif", "dark", "seaborn", "classic")
KINDS = ("peak", "spectrum", "sines", "bars", "scatter", "heat")
COPIES = ("finer", "coarser", "jpeg", "colours", "margin")
COLOURS = {"tab:blue": (31, 119, 180), "crimson": (220, 20, 60), "black": (0, 0, 0), "seagreen": (46, 139, 87)}
MAPS = ("viridis", "inferno", "jet", "coolwarm")


@dataclass(frozen=True)
class Figure:
    """A figure before it is drawn. kind: one of KINDS. data: what distinguishes it from others of its kind."""

    style: str
    kind: str
    data: Floats


def figure(style: str, kind: str, seed: int) -> Figure:
    random = np.random.default_rng([seed, KINDS.index(kind)])
    x = np.linspace(0, 1, 300)
    if kind == "peak":
        centre, width, height = random.uniform(0.2, 0.8), random.uniform(0.03, 0.12), random.uniform(0.3, 1)
        return Figure(style, kind, height * np.exp(-(((x - centre) / width) ** 2)))
    if kind == "spectrum":
        count = random.integers(4, 10)
        places, heights, widths = (random.uniform(*span, count) for span in ((0.05, 0.95), (0.2, 1), (0.004, 0.02)))
        lines = heights / (1 + ((x[:, None] - places) / widths) ** 2)
        return Figure(style, kind, np.minimum(lines.sum(axis=1), 1.2))
    if kind == "sines":
        rate, phase, height = random.uniform(2, 8), random.uniform(0, 6.28), random.uniform(0.2, 0.5)
        return Figure(style, kind, 0.5 + height * np.sin(6.28 * rate * x + phase))
    if kind == "bars":
        return Figure(style, kind, random.uniform(0.1, 1, 6))
    if kind == "scatter":
        return Figure(style, kind, random.uniform(0.05, 0.95, (40, 2)))
    places, widths = random.uniform(0, 1, (5, 2)), random.uniform(0.08, 0.3, 5)
    heights = random.uniform(-1, 1, 5)
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 40)), axis=-1)
    far = ((grid[..., None, :] - places) ** 2).sum(axis=-1)
    return Figure(style, kind, (heights * np.exp(-far / widths**2)).sum(axis=-1))


def draw(shown: Figure, *, dpi: int = 100, colour: int = 0) -> Picture:
    """A picture of 480 x 360 pixels at 100 dpi (seaborn: 600 x 300, classic: 420 x 420). colour: which of four colours
    or colour maps."""
    return (_pillow if shown.style == "pillow" else _matplotlib)(shown, dpi, colour)


def copy_of(shown: Figure, how: str, seed: int = 0) -> Picture:
    """One of COPIES, or "cropped" (5 % less on each side), of a figure."""
    random = np.random.default_rng([seed, COPIES.index(how) if how in COPIES else len(COPIES)])
    if how == "finer":
        return draw(shown, dpi=int(random.integers(130, 220)))
    if how == "colours":
        return draw(shown, colour=int(random.integers(1, 4)))
    first = draw(shown)
    if how == "coarser":
        share = random.uniform(0.45, 0.9)
        return first.resize((round(first.width * share), round(first.height * share)), Image.Resampling.BICUBIC)
    if how == "jpeg":
        file = io.BytesIO()
        first.save(file, "JPEG", quality=int(random.integers(30, 90)))
        return Image.open(file).convert("RGB")
    if how == "margin":
        left, top, right, bottom = random.integers(1, 40, 4).tolist()
        wider = Image.new("RGB", (first.width + left + right, first.height + top + bottom), first.getpixel((0, 0)))
        wider.paste(first, (left, top))
        return wider
    x, y = first.width // 20, first.height // 20
    return first.crop((x, y, first.width - x, first.height - y))


def logo(seed: int, side: int) -> Picture:
    """A picture of a few shapes, at a side of `side` pixels."""
    random = np.random.default_rng([seed, 99])
    picture = Image.new("RGB", (400, 400), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(5):
        x0, y0 = random.integers(0, 240, 2).tolist()
        width, height = random.integers(60, 160, 2).tolist()
        fill = tuple(random.integers(0, 200, 3).tolist())
        (pen.ellipse if random.random() < 0.5 else pen.rectangle)((x0, y0, x0 + width, y0 + height), fill=fill)
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _matplotlib(shown: Figure, dpi: int, colour: int) -> Picture:
    import matplotlib.style
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    library = matplotlib.style.library
    settings: dict[str, Any] = {
        "plain": {},
        "grid": {"axes.grid": True, "font.size": 12, "lines.linewidth": 2.5},
        "ggplot": dict(library["ggplot"]),
        "dark": dict(library["dark_background"]),
        "serif": {"font.family": "serif", "xtick.direction": "in", "axes.spines.top": False, "lines.linewidth": 0.9},
        "seaborn": {**library["seaborn-v0_8-darkgrid"], "figure.figsize": (6.0, 3.0), "scatter.marker": "D"},
        "classic": {**library["classic"], "figure.figsize": (4.2, 4.2)},
    }[shown.style]
    with rc_context({"figure.figsize": (4.8, 3.6), **settings}):
        page = Page(dpi=dpi)
        axes = page.add_subplot()
        paint: Callable[[Any, int], None] = _PAINTERS.get(shown.kind, _curve)
        paint((axes, shown.data), colour)
        axes.set(xlabel="Energy (eV)", ylabel="Intensity (a.u.)")
        canvas = FigureCanvasAgg(page)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())


def _colour(number: int) -> str:
    from matplotlib import rcParams

    name = list(COLOURS)[number]
    return "white" if name == "black" and rcParams["figure.facecolor"] == "black" else name


def _curve(what: tuple[Any, Floats], colour: int) -> None:
    axes, data = what
    axes.plot(np.linspace(0, 1, len(data)), data, color=_colour(colour))
    axes.set(xlim=(0, 1), ylim=(0, 1.25))


def _bars(what: tuple[Any, Floats], colour: int) -> None:
    axes, data = what
    axes.bar(range(len(data)), data, color=_colour(colour))
    axes.set(ylim=(0, 1.1))


def _scatter(what: tuple[Any, Floats], colour: int) -> None:
    axes, data = what
    axes.scatter(data[:, 0], data[:, 1], s=18, color=_colour(colour))
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _heat(what: tuple[Any, Floats], colour: int) -> None:
    axes, data = what
    axes.imshow(data, cmap=MAPS[colour], extent=(0, 1, 0, 1), aspect="auto")


_PAINTERS: dict[str, Callable[[Any, int], None]] = {"bars": _bars, "scatter": _scatter, "heat": _heat}


def _pillow(shown: Figure, dpi: int, colour: int) -> Picture:
    """Drawn at four times the size without a plotting library, and reduced."""
    size = (round(4.8 * dpi), round(3.6 * dpi))
    fine = Image.new("RGB", (1920, 1440), "white")
    pen, fill = ImageDraw.Draw(fine), list(COLOURS.values())[colour]
    left, top, width, height = 240, 80, 1600, 1200
    data = shown.data

    def at(x: float, y: float) -> tuple[float, float]:
        return left + width * x, top + height * (1 - y)

    if shown.kind == "heat":
        from matplotlib import colormaps

        share = (data - data.min()) / np.ptp(data)
        colours = (colormaps[MAPS[colour]](share)[:, :, :3] * 255).astype(np.uint8)
        fine.paste(Image.fromarray(colours).resize((width, height), Image.Resampling.BILINEAR), (left, top))
    elif shown.kind == "scatter":
        for x, y in data:
            middle_x, middle_y = at(x, y)
            pen.rectangle((middle_x - 14, middle_y - 14, middle_x + 14, middle_y + 14), fill=fill)
    elif shown.kind == "bars":
        for place, value in enumerate(data):
            pen.rectangle((*at((place + 0.2) / 6, value / 1.1), *at((place + 0.8) / 6, 0)), fill=fill)
    else:
        points = [at(x, y / 1.25) for x, y in zip(np.linspace(0, 1, len(data)), data, strict=True)]
        pen.line(points, fill=fill, width=7, joint="curve")
    pen.rectangle((left, top, left + width, top + height), outline="black", width=6)
    for step in range(6):
        pen.line((*at(step / 5, 0), *at(step / 5, -0.03)), fill="black", width=6)
        x, y = at(step / 5, -0.04)
        pen.text((x - 30, y), f"{step * 20}", fill="black", font_size=52)
        x, y = at(0, step / 5)
        pen.line((x - 30, y, x, y), fill="black", width=6)
        pen.text((x - 110, y - 26), f"{step / 5:g}", fill="black", font_size=52)
    return fine.resize(size, Image.Resampling.LANCZOS)


def crop_of(picture: Picture, number: int, kind: Kind = "figure") -> Crop:
    """A crop of page `number` of a document of its own."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return crop_of_file(file.getvalue(), picture.size, number, kind)


def crop_of_file(image: bytes, size: tuple[int, int], number: int, kind: Kind = "figure") -> Crop:
    pdf = hashlib.sha256(f"{number}".encode()).hexdigest()
    box = rounded((50.0, 60.0, 50.0 + size[0] / 2, 60.0 + size[1] / 2))
    return Crop(
        id=crop_id(pdf, number + 1, box, kind), pdf=pdf, document=f"{number}.pdf", page=number + 1,
        page_size=(595.28, 841.89), box=box, kind=kind, label="", caption="", context="", text="", image=image,
        format="png", width=size[0], height=size[1], dpi=144.0, found_by="test", licence="", source="",
    )  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """copies, removed: copies of figures, and those dropped for a crop of the same figure. figures, lost: different
    figures, and those without a kept crop. crops: all."""

    copies: int
    removed: int
    figures: int
    lost: int
    crops: int
    left: dict[str, int]  # copies that were not removed, by style, kind and how they were made


def judged(directory: Path, styles: Sequence[str], counts: Mapping[str, int], copies: Sequence[str]) -> Judged:
    """Run the stage on figures, each with one of the kinds of copies, taken in turn. counts: figures of each kind in
    each style; "logo" are logos at five sizes."""
    made: list[tuple[str, str, Picture]] = []  # figure, how the picture was made
    turn = 0
    for style in styles:
        for kind, count in counts.items():
            for seed in range(count):
                if kind == "logo":
                    made += [(f"logo {style} {seed}", "logo", logo(seed, side)) for side in (400, 300, 200, 120, 80)]
                    continue
                shown, how = figure(style, kind, seed), copies[turn % len(copies)]
                turn += 1
                made += [(f"{style} {kind} {seed}", "first", draw(shown))]
                made += [(f"{style} {kind} {seed}", how, copy_of(shown, how, seed))]
    name_of: dict[str, tuple[str, str]] = {}
    crops = []
    for number, (name, how, picture) in enumerate(made):
        crops.append(crop_of(picture, number))
        name_of[crops[-1].id] = name, how
    (directory / "crops").mkdir()
    write_part(part_path(directory / "crops", 0), crops)
    run_dedup(directory / "out", directory / "crops")
    kept: set[str] = set()
    removed = 0
    left: Counter[str] = Counter()
    for one in read_decisions(directory / "out"):
        name, how = name_of[one.id]
        if not one.dropped:
            kept_before = name in kept
            kept.add(name)
            if kept_before:
                left[f"{' '.join(name.split()[:2])} {how}"] += 1
        elif one.of and name_of[one.of][0] == name:
            removed += 1
    names = {name for name, _, _ in made}
    return Judged(len(made) - len(names), removed, len(names), len(names - kept), len(made), dict(left))
