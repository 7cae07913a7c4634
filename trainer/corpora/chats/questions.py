"""Short conversations about elements and temperatures: answers, thinking, calls of a tool and what follows them.

Every conversation is a function of its number alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.data.hashing import mix64

Message = dict[str, Any]

# Name -> (symbol, protons)
ELEMENTS: Mapping[str, tuple[str, int]] = {
    "hydrogen": ("H", 1), "helium": ("He", 2), "carbon": ("C", 6), "nitrogen": ("N", 7), "oxygen": ("O", 8),
    "neon": ("Ne", 10), "sodium": ("Na", 11), "silicon": ("Si", 14), "sulfur": ("S", 16), "argon": ("Ar", 18),
    "potassium": ("K", 19), "calcium": ("Ca", 20), "iron": ("Fe", 26), "copper": ("Cu", 29), "zinc": ("Zn", 30),
    "silver": ("Ag", 47), "tin": ("Sn", 50), "gold": ("Au", 79), "mercury": ("Hg", 80), "lead": ("Pb", 82),
}  # fmt: skip
NAMES = tuple(ELEMENTS)
SYSTEM = "Answer in one short sentence."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "to_kelvin",
            "description": "Converts a temperature.",
            "parameters": {"type": "object", "properties": {"celsius": {"type": "integer"}}},
        },
    }
]


def conversation(number: int) -> dict[str, Any]:
    """One record in OpenAI's form: of each five, two with an answer, one with two questions, one with thinking, one
    with a call."""
    draw, other = (int(hashed) for hashed in (mix64(number, 1)[0], mix64(number, 2)[0]))
    name = NAMES[draw % len(NAMES)]
    kind = number % 5
    system = [{"role": "system", "content": SYSTEM}] if number % 2 else []
    if kind == 4:
        return {"messages": [*system, *_calls(draw % 100)], "tools": TOOLS}
    if kind == 3:
        return {"messages": [*system, *_thinks(name, NAMES[(draw + 1 + other % (len(NAMES) - 1)) % len(NAMES)])]}
    messages = [*system, *_asks(name)]
    return {"messages": messages + _asks(NAMES[other % len(NAMES)]) if kind == 2 else messages}


def _asks(name: str) -> list[Message]:
    return [
        {"role": "user", "content": f"What is the symbol of {name}?"},
        {"role": "assistant", "content": f"The symbol of {name} is {ELEMENTS[name][0]}."},
    ]


def _thinks(one: str, other: str) -> list[Message]:
    protons = {name: ELEMENTS[name][1] for name in (one, other)}
    thought = f"{one} has {protons[one]} protons, {other} has {protons[other]}."
    return [
        {"role": "user", "content": f"Which has more protons, {one} or {other}?"},
        {
            "role": "assistant",
            "reasoning_content": thought,
            "content": f"It is {max(protons, key=protons.__getitem__)}.",
        },
    ]


def _calls(celsius: int) -> list[Message]:
    call = {"id": "call_1", "type": "function", "function": {"name": "to_kelvin", "arguments": {"celsius": celsius}}}
    return [
        {"role": "user", "content": f"What is {celsius} °C in kelvin?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": f"{celsius + 273} K"},
        {"role": "assistant", "content": f"It is {celsius + 273} K."},
    ]
