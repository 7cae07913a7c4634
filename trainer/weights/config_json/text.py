"""The text model of a config.json: its type, and keys that ask for another function of the same weights.

No torch here. Where transformers 4 and 5 read two keys differently, and the two differ, the file is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.weights.config_json.keys import (
    AROUND_TEXT,
    DEFAULTS,
    DESCRIBING,
    GROUPED,
    TEXT_MODELS,
    functional,
    functional_rope,
    unknown,
    unknown_rope,
)
from trainer.weights.hf_files import CONFIG, HuggingFaceError
from trainer.weights.section import Section, object_under

ROPE_OBJECTS = ("rope_scaling", "rope_parameters")  # the first wins in transformers 5, unless it is null or empty


def text_section(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the text model."""
    return object_under(config, "text_config") or config


def open_text(config: dict[str, Any]) -> tuple[Section, Section]:
    """The text model of a config.json and its rotary embedding, with the values that absent keys have for its type.

    Raises HuggingFaceError for a model type that may not be this model, and for keys that contradict each other.
    """
    text = text_section(config)
    kind = _model_type(config, text)
    defaults = DEFAULTS[kind]
    named, scaling = _rope(text)
    at_top, inside = text.get("rope_theta"), scaling.get("rope_theta")
    if None not in (at_top, inside) and at_top != inside:
        raise _contradiction("rope_theta", at_top, f"{named}.rope_theta", inside)
    if at_top is None and inside is None and ("rope_theta" in text or "rope_theta" not in defaults):
        remedy = "a number in the text model or in its rope_parameters"
        raise HuggingFaceError(
            f"{CONFIG}: no rope_theta, neither in the text model nor in its rope_parameters",
            where="rope_theta",
            allowed=remedy,
        )
    experts, others = text.get("num_experts"), text.get("num_local_experts")
    if None not in (experts, others) and experts != others:
        raise _contradiction("num_local_experts", others, "num_experts", experts)
    if text is not config:
        for key in DESCRIBING & config.keys():
            here, there = config[key], text.get(key, defaults.get(key))
            if here is not None and here != there:
                raise _contradiction(key, here, f"text_config.{key}", there)
    return Section(text, "for the text model", defaults), Section(scaling, "in the text model's rope_scaling")


def require_this_function(config: dict[str, Any], text: Section, rope: Section, head_dim: int, layers: int) -> None:
    """Raises HuggingFaceError naming the first key with a value that makes the weights another function."""
    sections: list[Mapping[str, Any]] = [text.values] if text.values is config else [config, text.values]
    for key, value, neutral in _functional(sections, text.defaults, head_dim, layers):
        found = f"{key}={json.dumps(value)}"
        if all(section.get(key) is None for section in sections):
            found = f"{key} is missing, so it means {json.dumps(value)}, which"
        raise _refused(key, value, neutral, found)
    for key, value, neutral in functional_rope(rope.values):
        raise _refused(key, value, neutral, f"{key}={json.dumps(value)} {rope.where}")
    grouped = {key: rope.values[key] for key in ("fope_init_factor", "fope_pad_sin") if key in rope.values}
    if text.values.get("router_n_groups") not in (None, 1):
        grouped["router_n_groups"] = text.values["router_n_groups"]
    kind = text.values["model_type"]
    for key, value in grouped.items() if kind != GROUPED else ():
        raise HuggingFaceError(
            f"{CONFIG}: {key}={json.dumps(value)} has no meaning for model_type={kind}; use model_type={GROUPED}",
            where=key,
            value=value,
            allowed=f"model_type={GROUPED}",
        )
    for key, value in rope.values.items():
        if isinstance(value, dict) and key != "fope_init_factor":
            raise _refused(key, value, (), f"{key}={json.dumps(value)} {rope.where}")


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Keys of a config.json whose meaning is not known, where they are: `key`, `text_config.key`, ..."""
    text = text_section(config)
    at = "" if text is config else "text_config."
    found = [f"{at}{key}" for key in unknown(text)]
    if text is not config:
        found = [*unknown(config), *found]
    named, scaling = _rope(text)
    return [*found, *(f"{at}{named}.{key}" for key in unknown_rope(scaling))]


def _functional(
    sections: list[Mapping[str, Any]], defaults: Mapping[str, Any], head_dim: int, layers: int
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """As `functional` of each section; then of the defaults of keys that the text model lacks."""
    for section in sections:
        yield from functional(section, head_dim, layers)
    lacking = {key: value for key, value in defaults.items() if sections[-1].get(key) is None}
    yield from functional(lacking, head_dim, layers)


def _model_type(config: dict[str, Any], text: dict[str, Any]) -> str:
    """The text model's type, a key of DEFAULTS."""
    kind = text.get("model_type")
    if kind not in TEXT_MODELS:
        raise _refused("model_type", kind, TEXT_MODELS, _model_type_found(kind, "for the text model"))
    around = config.get("model_type")
    if text is not config and around is not None and around not in AROUND_TEXT:
        where = "model_type" if around not in TEXT_MODELS else "text_config"
        raise _refused(where, around, AROUND_TEXT, _model_type_found(around, "around a text_config"))
    return str(kind)


def _model_type_found(kind: Any, where: str) -> str:
    return f"no model_type {where}" if kind is None else f"model_type={json.dumps(kind)} {where}"


def _rope(text: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The object about the rotary embedding, with its key; an empty one where there is none."""
    found = {key: value for key in ROPE_OBJECTS if (value := object_under(text, key))}
    if len(found) == 2 and found[ROPE_OBJECTS[0]] != found[ROPE_OBJECTS[1]]:
        raise _contradiction(*ROPE_OBJECTS[1:], found[ROPE_OBJECTS[1]], ROPE_OBJECTS[0], found[ROPE_OBJECTS[0]])
    return next(iter(found.items()), (ROPE_OBJECTS[1], {}))


def _contradiction(key: str, value: Any, other: str, there: Any) -> HuggingFaceError:
    remedy = "keep the one that the model was trained with"
    return HuggingFaceError(
        f"{CONFIG}: {key}={json.dumps(value)}, but {other}={json.dumps(there)}, and programs differ in which they "
        f"read; {remedy}",
        where=key,
        value=value,
        allowed=there,
    )


def _refused(key: str, value: Any, allowed: tuple[Any, ...], found: str) -> HuggingFaceError:
    values = " and ".join(f"{key}={json.dumps(neutral)}" for neutral in allowed)
    need = f"only {values or f'models without {key}'} {'is' if len(allowed) == 1 else 'are'}"
    return HuggingFaceError(
        f"{CONFIG}: {found} is not supported; {need}", where=key, value=value, allowed=allowed or "no such key"
    )
