"""Pictures for made papers: plots as PDF by matplotlib, plots drawn by reportlab's charts, and pixels."""

import io
import math
from pathlib import Path

import cairosvg
import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from PIL import Image

UNITS = ("Time (s)", "Energy (eV)", "Wavelength (nm)", "Distance (km)", "Frequency (Hz)", "Temperature (K)")
VALUES = ("Intensity (a.u.)", "Rate (1/s)", "Absorbance", "Amplitude (mV)", "Density", "Error (%)")
LOOKS = ("lines", "scatter", "bars", "heat", "panels", "peaks", "histogram", "errors")


def vector_plot(look: str, rng: np.random.Generator, width: float, height: float, font: str, cairo: bool):
    """The bytes of a one-page PDF of `width` x `height` points, and the box of its ink from the top left.

    cairo: the plot is an SVG that cairo makes a PDF of; its letters are then outlines.
    """
    with matplotlib.rc_context({"pdf.fonttype": 42, "font.family": font, "font.size": 7.0, "axes.linewidth": 0.6,
                                "pdf.compression": 6}):  # fmt: skip
        canvas = Canvas(figsize=(width / 72, height / 72))
        if look == "panels":
            left, right = canvas.subplots(1, 2)
            _draw(left, "lines", rng)
            _draw(right, "scatter", rng)
            left.set_title("(a)", fontsize=7)
            right.set_title("(b)", fontsize=7)
        else:
            _draw(canvas.subplots(), look, rng)
        canvas.tight_layout(pad=0.6)
        tight = canvas.get_tightbbox()
        file = io.BytesIO()
        if cairo:
            canvas.savefig(file, format="svg", metadata={"Date": None})
            file = io.BytesIO(cairosvg.svg2pdf(file.getvalue()))
        else:
            canvas.savefig(file, format="pdf", metadata={"CreationDate": None})
    x0, y0, x1, y1 = (72 * value for value in tight.extents)
    return file.getvalue(), (x0, height - y1, x1, height - y0)


def _draw(axes, look: str, rng: np.random.Generator) -> None:
    x = np.linspace(0, 10, 120)
    if look == "lines":
        for number in range(int(rng.integers(1, 4))):
            axes.plot(
                x, np.sin(x * rng.uniform(0.4, 2.5)) * rng.uniform(0.5, 3) + number, label=f"run {number + 1}", lw=1
            )
        axes.legend(fontsize=6)
    elif look == "scatter":
        axes.scatter(rng.normal(size=80), rng.normal(size=80), s=6, c=rng.uniform(size=80))
    elif look == "bars":
        axes.bar(["A", "B", "C", "D", "E"], rng.uniform(1, 9, 5), yerr=0.4, color="0.6", edgecolor="k", lw=0.5)
    elif look == "heat":
        axes.imshow(rng.uniform(size=(12, 16)), cmap="viridis", aspect="auto")
    elif look == "peaks":
        axes.plot(x, np.exp(-((x - rng.uniform(2, 8)) ** 2) / rng.uniform(0.02, 0.5)), "k-", lw=0.8)
        axes.grid(alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    elif look == "histogram":
        axes.hist(rng.normal(size=400), bins=24, histtype="step")
    else:
        axes.errorbar(x[::12], rng.uniform(1, 4, 10), yerr=0.3, fmt="o", ms=3, capsize=2)
    axes.set_xlabel(UNITS[int(rng.integers(len(UNITS)))])
    axes.set_ylabel(VALUES[int(rng.integers(len(VALUES)))])


def chart(look: str, rng: np.random.Generator, width: float, height: float, font: str):
    """A drawing of reportlab.graphics, and the box of its ink from the top left."""
    from reportlab.graphics.charts.barcharts import VerticalBarChart
    from reportlab.graphics.charts.lineplots import LinePlot
    from reportlab.graphics.charts.piecharts import Pie
    from reportlab.graphics.shapes import Drawing, String

    drawing = Drawing(width, height)
    left, low = 34.0, 26.0
    if look in ("bars", "histogram", "heat"):
        plot = VerticalBarChart()
        plot.data = [tuple(rng.uniform(1, 9, 6)), tuple(rng.uniform(1, 9, 6))]
        plot.categoryAxis.categoryNames = list("ABCDEF")
        plot.categoryAxis.labels.fontName = plot.valueAxis.labels.fontName = font
        plot.categoryAxis.labels.fontSize = plot.valueAxis.labels.fontSize = 7
    elif look == "panels":
        plot = Pie()
        plot.data = list(rng.uniform(1, 9, 5))
        plot.labels = [f"{value:.0f} %" for value in rng.uniform(5, 40, 5)]
        plot.slices.fontName, plot.slices.fontSize = font, 7
    else:
        plot = LinePlot()
        x = np.linspace(0, 10, 60)
        plot.data = [list(zip(x, np.sin(x * rng.uniform(0.4, 2.5)) + number, strict=True)) for number in range(2)]
        plot.xValueAxis.labels.fontName = plot.yValueAxis.labels.fontName = font
        plot.xValueAxis.labels.fontSize = plot.yValueAxis.labels.fontSize = 7
    plot.x, plot.y, plot.width, plot.height = left, low, width - left - 12, height - low - 10
    if look == "panels":
        plot.width = plot.height = min(plot.width, plot.height)
    drawing.add(plot)
    label = UNITS[int(rng.integers(len(UNITS)))]
    drawing.add(String(left + plot.width / 2, 4, label, fontName=font, fontSize=7, textAnchor="middle"))
    x0, y0, x1, y1 = drawing.getBounds()
    return drawing, (max(x0, 0.0), max(height - y1, 0.0), min(x1, width), min(height - y0, height))


def pixels(rng: np.random.Generator, width: int, height: int, mask: bool) -> Image.Image:
    """A picture like a micrograph: blobs on a ground. mask: transparent around a disc."""
    y, x = np.mgrid[0:height, 0:width]
    ground = rng.uniform(60, 120, 3)
    found = np.ones((height, width, 3)) * ground
    for _ in range(14):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.03, 0.12) * width
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (r * r))
        found += blob[..., None] * rng.uniform(-60, 130, 3)
    found += rng.normal(0, 6, found.shape)
    image = Image.fromarray(np.clip(found, 0, 255).astype(np.uint8))
    if mask:
        disc = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2 < 0.25).astype(np.uint8) * 255
        image.putalpha(Image.fromarray(disc))
    return image


def save_pixels(path: Path, rng: np.random.Generator, width: float, height: float, mask: bool, jpeg: bool) -> Path:
    image = pixels(rng, math.ceil(width), math.ceil(height), mask)
    path = path.with_suffix(".jpg" if jpeg and not mask else ".png")
    image.save(path)
    return path
