"""The process that renders: {"svg": text, "image": path} in, {"rendered", "ssim", "mse"} out."""

from __future__ import annotations

import io
from typing import Any

from trainer.evaluation.scorers.drawing.compare import mean_square, similarity
from trainer.evaluation.scorers.worker import serve

SIDE = 448


def render(svg: str) -> Any:
    """A Pillow image of 448 x 448 RGB pixels on white; None for what cannot be rendered.

    Only data: addresses are followed: a drawing of a model can read neither files nor the network.
    """
    from cairosvg.surface import PNGSurface
    from cairosvg.url import fetch
    from PIL import Image

    def only_data(url: str, kind: str) -> Any:
        if not url.startswith("data:"):
            raise ValueError(f"a drawing must not read {url}")
        return fetch(url, kind)

    try:
        size = {"output_width": SIDE, "output_height": SIDE}
        data = PNGSurface.convert(svg.encode(), background_color="white", url_fetcher=only_data, **size)
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception:
        return None


def compare(question: dict[str, str]) -> dict[str, Any]:
    """The drawing against an image file; one that cannot be rendered is black, as published."""
    from PIL import Image

    drawn = render(question["svg"])
    with Image.open(question["image"]) as image:
        wanted = image.convert("RGB")
    shown = drawn or Image.new("RGB", wanted.size)
    if shown.size != wanted.size:
        shown = shown.resize(wanted.size)
    return {"rendered": drawn is not None, "ssim": similarity(wanted, shown), "mse": mean_square(wanted, shown)}


if __name__ == "__main__":
    serve(compare)
