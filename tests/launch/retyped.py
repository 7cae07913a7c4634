"""Type the remedy of a bad command line: on the line itself, or in the recipe file that is at fault."""

from __future__ import annotations

import re
import shlex

from parallel.errors import Fault
from tests.launch.bad_lines import HEAD, Case, fitting
from trainer.config.recipes.groups import KEYS, list_groups
from trainer.config.recipes.references import WRITE_OUT
from trainer.config.recipes.values import example

GROUPS = list_groups()
# Remedies that leave open what to type: the user has to decide it.
OPEN = re.compile(r"valid YAML|a mapping|key=value|--?[\w-]+=[A-Z{]")


def value_of(key: str, allowed: object) -> str | None:
    """The value that a remedy offers for a key, as it is typed; None where it offers nothing that can be typed."""
    if isinstance(allowed, tuple):
        return str(allowed[0]) if allowed else None
    if not isinstance(allowed, str):
        return None
    typed = {"true or false": "true", "text": "abc", WRITE_OUT: example(key)}
    typed |= dict.fromkeys(["a number", "a whole number", "a finite number", "a number above 0"], fitting(key))
    if allowed in typed:
        return typed[allowed]
    if allowed.endswith(" number or null"):
        return "null"
    if "letters, digits" in allowed:
        return "a-b_1.2"
    if found := re.search(r", such as (-?\d[\d.e+-]*)$", allowed):
        return found[1]
    if found := re.fullmatch(r"(\w+)(?:, \w+)* or \w+", allowed):  # a fixed set
        return found[1]
    if found := re.match(r"one of (\S+?)(?:,| or )|a list such as (.+)|.*?(-?\d[\d.e+-]*)", allowed):
        return next(filter(None, found.groups()))
    return None


def retyped(case: Case, fault: Fault) -> list[str] | None:
    """The bad words as the fault's remedy says; None where it is not something to type on this line."""
    where, allowed, bad = fault.where, fault.allowed, case.bad
    meant = re.search(r"did you mean '([^']+)'\?", fault.text)
    value = bad[-1].partition("=")[2]
    if meant:
        near = meant[1]
        if near.startswith("--"):
            return [bad[0].replace(where, near, 1), *bad[1:]]
        if case.kind == "command":
            return [near, *bad[1:]]
        if "=" in near:
            return [near]
        if where in GROUPS or where in KEYS:
            return [f"{where}={near}"]
        return [f"{near}={value}"]
    if allowed == "one of them":
        return bad[: len(bad) // 2]
    if allowed == "remove it":
        return []
    if isinstance(allowed, str) and re.fullmatch(r"--[\w-]+=\S+", allowed):
        return [allowed] if not allowed.rpartition("=")[2].isupper() else None
    if isinstance(allowed, str) and (found := re.search(r"(?:'(?=[\w.]+=))?[\w.]+=[^=]+.*$", allowed)):
        return shlex.split(found[0]) if allowed != "key=value" else None
    if where in (*KEYS, *GROUPS) and (typed := value_of(where, allowed)) is not None:
        return [f"{where}={typed}"]
    return None


def mend(case: Case, fault: Fault) -> dict[str, bytes] | None:
    """The case's files with the fault's remedy typed into the one that it names; None where that is left open."""
    named = re.search(r"(?:from )?\bmine/(\S+?\.yaml)$", fault.text) or re.search(r"\bmine/(\S+?\.yaml)", fault.text)
    if named is None:
        return None
    path = named[1]
    old = case.files[path]
    new = _retyped_file(old, fault)
    return None if new is None or new == old else {**case.files, path: new}


def _retyped_file(data: bytes, fault: Fault) -> bytes | None:
    allowed = fault.allowed
    if allowed == "save the file as UTF-8":
        return data.decode("latin-1").encode()
    if allowed == "save the file as UTF-8 without it":
        return data.decode("utf-8-sig").encode()
    text = data.decode()
    if allowed == HEAD.strip():
        rest = text.partition("\n")[2]
        return f"{HEAD}{rest if 'there is no package' in fault.text else text}".encode()
    lines = text.splitlines()
    at = re.search(r", line (\d+)", fault.text)
    number = int(at[1]) - 1 if at else 0
    mended = _retyped_lines(lines, number, fault)
    return None if mended is None else ("\n".join(mended) + "\n").encode()


def _retyped_lines(lines: list[str], number: int, fault: Fault) -> list[str] | None:
    line, text, allowed = lines[number], fault.text, fault.allowed
    before, after = lines[:number], lines[number + 1 :]
    if found := re.search(r"(?:write|or) (- .+)$|did you mean '(- .+)'\?$", text):
        entry = f"  {found[1] or found[2]}"
        return [*before, *(["defaults:"] if line.startswith("defaults:") else []), entry, *after]
    if found := re.search(r"(?:give its keys|give keys and values|write a list|indent it), (?:such )?as (.+)$", text):
        return [*before, found[1], *after]
    if found := re.search(r"quote it: ((\w+): '(.*)')$", text):
        return [*before, line.replace(f"{found[2]}: {found[3]}", found[1]), *after]
    if "above the first override" in text:
        first = next(place for place, one in enumerate(lines) if "override" in one)
        return [*lines[:first], line, *lines[first:number], *after]
    if "from its defaults" in text:
        return [one for one in lines if not one.startswith("defaults:")]
    if "indent with spaces" in text:
        return [*before, line.replace("\t", "  "), *after]
    if found := re.search(r"(\S+) is given twice; keep one", text):
        return [*before, re.sub(rf"{found[1]}: [^,]+, (?={found[1]})", "", line), *after]
    if allowed == "write its value out":
        return [*before, re.sub(r"&x ", "", line).replace("*x", "1"), *after]
    return _with_another_value(lines, number, fault)


def _with_another_value(lines: list[str], number: int, fault: Fault) -> list[str] | None:
    """A misspelt key, or the value of a key or a group, as the remedy has it."""
    line, where = lines[number], fault.where
    last = where.rpartition(".")[2]
    meant = re.search(r"did you mean '([^']+)'\?$", fault.text)
    if meant and (meant[1] in KEYS or meant[1] == "defaults"):
        changed = line.replace(last, meant[1].rpartition(".")[2])
    else:
        value = meant[1] if meant else value_of(where, fault.allowed)
        if value is None or where not in (*KEYS, *GROUPS):
            return None
        if where in GROUPS:  # an entry of a defaults list
            changed = line.replace(str(fault.value), value)
        else:
            changed = re.sub(
                rf"\b{last}: ('.*'|\{{.*\}}(?=\}})|\[.*\](?=\}})|[^,}}]*)", f"{last}: {value}", line, count=1
            )
    return [*lines[:number], changed, *lines[number + 1 :]]
