"""Crops with texts whose subjects are clear, and some without text."""

from trainer.corpora.captions.crops import Crop, crop_id

TEXTS = (
    ("figure", "Fig. 1. Gene expression in neurons of the mouse cortex.", "Cells were stained with an antibody."),
    ("figure", "Login page of the web application", "Users enter a password; the server sends a request."),
    ("table", "Table 2: Lattice parameters of the perovskite oxide crystals.", ""),
    ("formula", "", "where the eigenvalues of the Hamiltonian are given by the wave function of the quantum state"),
    ("caption", "", ""),
)


def crop(number: int, document: int | None = None) -> Crop:
    """The crop of a text, alone in its document or in that of a number."""
    kind, caption, context = TEXTS[number % len(TEXTS)]
    pdf, box = f"{number if document is None else document:064x}", (10.0, 20.0, 110.0, 220.0 + number)
    known = {
        "id": crop_id(pdf, 1, box, kind), "pdf": pdf, "document": "a.pdf", "page": 1, "page_size": (300.0, 400.0),
        "box": box, "kind": kind, "caption": caption, "context": context, "image": b"\x89PNG", "format": "png",
        "width": 100, "height": 200, "dpi": 150.0, "found_by": "embedded",
    }  # fmt: skip
    return Crop(**{**dict.fromkeys(Crop.__dataclass_fields__, ""), **known})
