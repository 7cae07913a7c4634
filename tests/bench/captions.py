"""Pages per CPU-second on one thread: the layout of `octavo captions`, and pdfplumber's images of the same papers.

python -m tests.bench.captions [PAPERS]     made papers of each look, 1 by default
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

import pdfplumber

from tests.trainer.corpora.captions.papers import TUNED, write_papers
from trainer.corpora.captions.inputs import Input
from trainer.corpora.captions.layout.document import Reading, read_document

DPI = 150.0


def ours(path: Path) -> int:
    """Crops with captions and context, rendered and encoded as PNG. Returns the pages."""
    reading = Reading()
    for _ in read_document(Input(str(path)), DPI, reading):
        pass
    return reading.pages.kept


def theirs(path: Path) -> int:
    """The stored bytes of every image object, and the boxes of what else is drawn, as pdfplumber finds them."""
    with pdfplumber.open(path) as pdf:
        for page in pdf.pages:
            for image in page.images:
                image["stream"].get_data()
            page.close()
        return len(pdf.pages)


def main(each: int) -> None:
    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        paths = [paper.path for paper in write_papers(Path(folder), TUNED, each)]
        for read in (ours, theirs):
            read(paths[0])  # imports
        rates = {}
        for name, read in (("octavo", ours), ("pdfplumber", theirs)):
            started, pages = time.process_time(), 0
            for path in paths:
                pages += read(path)
            rates[name] = pages / (time.process_time() - started)
            print(f"{name}: {rates[name]:.1f} pages per CPU-second, {pages} pages")
        print(f"ratio {rates['octavo'] / rates['pdfplumber']:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
