"""Crops with texts of their own, whose images a recorded captioner can distinguish."""

from trainer.corpora.captions.crops import Crop, Kind, crop_id

PDF = "cd" * 32
BOX = (50.0, 60.0, 250.0, 200.0)
MATERIALS = ("silicon", "graphite", "zirconia", "perovskite", "aluminium", "magnetite", "tungsten")
METHODS = ("resistivity", "absorbance", "viscosity", "hardness", "permittivity", "luminescence", "porosity")


def subject(number: int) -> tuple[str, str]:
    return MATERIALS[number % len(MATERIALS)], METHODS[number // len(MATERIALS) % len(METHODS)]


def made_crop(number: int, kind: Kind = "figure") -> Crop:
    """A crop whose image is `crop 17`: what captioners of tests answer depends on it."""
    material, method = subject(number)
    return Crop(
        id=crop_id(PDF, number + 1, BOX, kind),
        pdf=PDF,
        document="papers/made.pdf",
        page=number + 1,
        page_size=(595.0, 842.0),
        box=BOX,
        kind=kind,
        label=f"Fig. {number + 1}",
        caption=f"Fig. {number + 1}: The {method} of {material} samples against temperature (K).",
        context=f"We measured the {method} of {material} between 100 K and {300 + number} K.",
        text=f"{method} temperature (K)",
        image=f"crop {number}".encode(),
        format="png",
        width=400,
        height=280,
        dpi=144.0,
        found_by="embedded",
        licence="CC-BY-4.0",
        source="made",
    )


def good_answer(number: int) -> str:
    """A description that every rule accepts."""
    material, method = subject(number)
    return (
        f"The figure is a line plot that shows how the {method} of {material} depends on the temperature. The lower "
        f"axis is labelled temperature and has the unit kelvin, with ticks from 100 to {300 + number}. The left axis "
        f"gives the {method} in arbitrary units on a linear scale. A solid blue curve rises slowly at first, bends "
        "near the middle of the range and levels off towards the right edge, while a dashed orange curve stays almost "
        f"flat. Circles mark single samples of {material}, and their error bars are smaller than the symbols. The "
        "legend in the upper corner names both curves, and no other label is printed inside the frame."
    )
