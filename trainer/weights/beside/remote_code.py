"""The modelling code that an export carries where transformers has no class of its own for it. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import trainer.weights.remote as remote

FILES = {name: Path(remote.__file__).with_name(name) for name in ("configuration_octavo.py", "modeling_octavo.py")}
CLASSES = {
    "AutoConfig": "configuration_octavo.OctavoConfig",
    "AutoModelForCausalLM": "modeling_octavo.InternS1ProForConditionalGeneration",
}
KINDS = ("interns1_pro", "interns1_1")  # two names of one model type
MODELS = ("AutoConfig", "AutoModel")  # keys of auto_map that start so belong to a model's code


def attach_code(config: dict[str, Any], files: Collection[str], *, same_model: bool) -> dict[str, Path]:
    """Name modelling code in `auto_map` of a config.json of Intern-S1-Pro's layout, in place, and return its files.

    Nothing is done for other model types, nor where the code of the source is there and for this model.

    files: of the directory, by their path in it. same_model: the directory's source has the same model type, so that
    its code can read what is written.
    """
    if config.get("model_type") not in KINDS:
        return {}
    mapped = config.get("auto_map")
    mapped = mapped if isinstance(mapped, dict) else {}
    code = {key: code_file(mapped.get(key)) for key in CLASSES}
    if same_model and all(file in files and file not in FILES for file in code.values()):
        return {}
    others = {key: value for key, value in mapped.items() if not key.startswith(MODELS) and code_file(value) in files}
    config["auto_map"] = {**CLASSES, **others}
    return dict(FILES)


def code_file(name: object) -> str | None:
    """The file that an entry of auto_map names: `configuration_x.Config` -> `configuration_x.py`. None for code in
    another repository and for an entry of another kind."""
    return f"{name.partition('.')[0]}.py" if isinstance(name, str) and "--" not in name else None


def reads_with_code(config: Mapping[str, Any], files: Collection[str]) -> tuple[str | None, str | None]:
    """The files of a model and of its configuration that `auto_map` names and that are there."""
    mapped = config.get("auto_map")
    mapped = mapped if isinstance(mapped, dict) else {}
    found = {name: code_file(mapped.get(name)) for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")}
    model = next((found[name] for name in ("AutoModelForCausalLM", "AutoModel") if found[name] in files), None)
    return model, found["AutoConfig"] if found["AutoConfig"] in files else None
