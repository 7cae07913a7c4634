"""The packages of the corpora, and the commands that install them."""

from __future__ import annotations

import importlib.metadata

EXTRAS = {
    "rdkit": "science",
    "scikit-bio": "science",
    "pillow": "media",
    "pypdfium2": "captions",
}  # that install them; others: `toy`
# Installed without what it needs, whose pins exclude ours: its files are read, and it is not imported.
ALONE = {"aeon": "aeon==1.6.0"}


def install(*packages: str) -> str:
    """The commands that install distributions."""
    extras = sorted({EXTRAS.get(name, "toy") for name in packages if name not in ALONE})
    commands = [f"pip install -e '.[{','.join(extras)}]'"] if extras else []
    if alone := sorted({ALONE[name] for name in packages if name in ALONE}):
        commands.append(f"pip install --no-deps {' '.join(alone)}")
    return " && ".join(commands)


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
