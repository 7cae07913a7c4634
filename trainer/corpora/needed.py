"""The packages that the data of a run need, looked for before anything is built or imported. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from parallel.errors import Fault
from trainer.config.errors import ConfigError
from trainer.config.keys import DataConfig
from trainer.corpora.extras import install, is_installed

DECODER = "pillow"  # of every image


def refuse_missing_packages(data: DataConfig, *, decodes: bool = True) -> None:
    """Raises `ConfigError`, one fault for all packages that are not installed, with the commands that install them.

    decodes: images are read, and not only their tokens counted.
    """
    lacking = {key: [name for name in packages if not is_installed(name)] for key, packages in _needs(data, decodes)}
    lacking = {key: packages for key, packages in lacking.items() if packages}
    if not lacking:
        return
    needs = "; ".join(f"{key} needs {' and '.join(packages)}" for key, packages in lacking.items())
    missing = tuple(dict.fromkeys(name for packages in lacking.values() for name in packages))
    remedy = install(*missing)
    text = f"{needs}: not installed; {remedy}"
    raise ConfigError([Fault(text, next(iter(lacking)), missing, remedy)])


def _needs(data: DataConfig, decodes: bool) -> Iterator[tuple[str, list[str]]]:
    """(key, the packages that what it names needs)."""
    if data.name == "pairs" and (decodes or data.build == "toy"):
        yield "data.pairs", [DECODER]
    if data.name != "mixture":
        return
    known = {}
    if data.build == "toy":
        from trainer.corpora.toy import KNOWN

        known = {path: source.packages for path, source in KNOWN.items()}
    for name, source in data.sources.items():
        packages = [*known.get(source.path, ())]
        if decodes and source.modality == "image":
            packages.append(DECODER)
        yield f"data.sources.{name}", list(dict.fromkeys(packages))
