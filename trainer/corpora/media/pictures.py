"""Pictures as PNG files: drawings of molecules by RDKit, plots of series by Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 96  # pixels: 3 x 3 tokens of 32
MARGIN = 6
AXES, LINE = (0, 0, 0), (0, 70, 200)


def molecule(smiles: str) -> Any:
    """RDKit's molecule; None where it refuses the SMILES string."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles)


def drawing(found: Any) -> bytes:
    """The picture of a molecule of RDKit."""
    from rdkit.Chem.Draw import rdMolDraw2D

    picture = rdMolDraw2D.MolDraw2DCairo(SIDE, SIDE)
    picture.DrawMolecule(found)
    picture.FinishDrawing()
    png: bytes = picture.GetDrawingText()
    return png


def plot(values: npt.NDArray[np.float64]) -> bytes:
    """A line through the values [T], from left to right, with axes."""
    from PIL import Image, ImageDraw

    low, high = values.min(), values.max()
    span = SIDE - 1 - 2 * MARGIN
    heights = MARGIN + span * (high - values) / ((high - low) or 1.0)
    columns = MARGIN + span * np.arange(len(values)) / max(len(values) - 1, 1)
    image = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    edge = SIDE - MARGIN // 2
    pen.line([(MARGIN // 2, 0), (MARGIN // 2, edge), (SIDE, edge)], fill=AXES)
    pen.line(list(zip(columns.tolist(), heights.tolist(), strict=True)), fill=LINE, width=2)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
