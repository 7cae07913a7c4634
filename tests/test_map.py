"""The map of the code: sizes of files and folders, which room imports which, no circles, no process-wide switches."""

import ast
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("trainer", "parallel", "launch")
MODULES_PER_FOLDER = 12
LINES, TEST_LINES = 400, 600

# Each room of trainer/ imports only rooms to its right; storage imports nothing of ours.
ROOMS = [
    "__main__",
    "start",
    "api",
    "run",
    "rl",
    "evaluation",
    "engine",
    "parallelize",
    "corpora",
    "stages",
    "objectives",
    "weights",
    "checkpoint",
    "optim",
    "metrics",
    "data",
    "chat",
    "kernels",
    "precision",
    "model",
    "config",
    "storage",
]
# corpora are made before a run, by commands or trainer.api; a run reaches them only through the toys' builders, and the
# check of the packages that these need
CORPORA_DOORS = (
    "trainer.corpora.toy",
    "trainer.corpora.pairs.toy",
    "trainer.corpora.chats.toy",
    "trainer.corpora.questions.toy",
    "trainer.corpora.needed",
)
# these belong to trainer/storage alone
DISK = re.compile(r"\bos\.(?:replace|rename|fsync|fdatasync)\b|\.rename\(|\bflock\b")
MUTATORS = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}


@cache
def sources() -> dict[str, str]:
    """Text of every tracked Python file, by its path from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    return {path: (ROOT / path).read_text() for path in listed if path and (ROOT / path).is_file()}


@cache
def modules() -> dict[str, ast.Module]:
    """Syntax tree of every module of trainer, parallel and launch, by its dotted name."""
    return {dotted(path): ast.parse(text) for path, text in sources().items() if path.split("/")[0] in CODE}


def dotted(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def packages_of(module: str) -> list[str]:
    """Packages whose `__init__` runs before `module`: for a.b.c these are a and a.b."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


@cache
def imports() -> dict[str, set[str]]:
    """Modules of ours that run when each module is imported: those it names, inside functions and under TYPE_CHECKING
    too, and the packages around it and them."""
    graph: dict[str, set[str]] = {}
    for name, tree in modules().items():
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}": node.module for alias in node.names}
                found |= {long if long in modules() else short for long, short in full.items()}
        found |= {package for module in {name, *found} for package in packages_of(module)}
        graph[name] = {module for module in found if module in modules()} - {name}
    return graph


def room(module: str) -> str:
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "trainer" and rest else package


def long_files() -> set[str]:
    limits = dict.fromkeys(CODE, LINES) | {"tests": TEST_LINES}
    return {
        f"long: {path}"
        for path, text in sources().items()
        if text.count("\n") > limits.get(path.split("/")[0], text.count("\n"))
    }


def crowded_folders() -> set[str]:
    counts = Counter(
        str(Path(path).parent) for path in sources() if path.split("/")[0] in CODE and not path.endswith("__init__.py")
    )
    return {f"crowded: {folder}" for folder, count in counts.items() if count > MODULES_PER_FOLDER}


def arrow_allowed(importer: str, imported: str) -> bool:
    a, b = importer.split(".")[0], imported.split(".")[0]
    if a != b:
        return (
            CODE.index(b) < CODE.index(a)
            if a == "launch"
            else (a, b) == ("trainer", "parallel") and (room(importer) != "storage")
        )
    if a != "trainer" or imported == "trainer" or room(importer) == room(imported):
        return True
    if room(imported) == "corpora":
        doors = {name for door in CORPORA_DOORS for name in (door, *packages_of(door))}
        return imported in doors or room(importer) == "api"
    return room(imported) in ROOMS and ROOMS.index(room(importer)) < ROOMS.index(room(imported))


def wrong_arrows() -> set[str]:
    return {
        f"arrow: {importer} -> {imported}"
        for importer, found in imports().items()
        for imported in found
        if not arrow_allowed(importer, imported)
    }


def circles() -> set[str]:
    """Groups of modules that import each other, directly or not."""
    graph = imports()
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [*graph[start]]
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo.extend(graph[module])
        reach[start] = seen
    groups = {frozenset(m for m in reach[start] if start in reach[m]) for start in graph if start in reach[start]}
    return {f"circle: {', '.join(sorted(group))}" for group in groups}


def _bound_names(function: ast.AST) -> set[str]:
    """Names that are local to a function: its arguments and all it assigns."""
    nodes = list(ast.walk(function))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}


def _changed_by(function: ast.AST) -> set[str]:
    """Names whose object a function changes in place: by item, by attribute, or by a method such as append."""
    changed = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            changed.add(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            changed.add(node.func.value)
    return {node.id for node in changed if isinstance(node, ast.Name)}


def process_wide_switches() -> set[str]:
    """`global` statements, and objects of a module (ours or an imported module of ours) that a function changes."""
    found = set()
    for module, tree in modules().items():
        own = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" in modules()
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                found |= {f"switch: {module}.{name}" for name in node.names}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                changed = _changed_by(node) & (own | imported) - _bound_names(node)
                found |= {f"switch: {module}.{name}" for name in changed}
    return found


def disk_primitives_outside_storage() -> set[str]:
    return {
        f"disk: {path}"
        for path, text in sources().items()
        if path.split("/")[0] in CODE and not path.startswith("trainer/storage/") and DISK.search(text)
    }


def imports_between_tests() -> set[str]:
    found = set()
    for path, text in sources().items():
        if not path.startswith("tests/"):
            continue
        for node in ast.walk(ast.parse(text)):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            # the last part that names a module: helpers have no test_ in front
            found |= {
                f"tests: {path} imports {name}"
                for name in names
                if name.startswith("tests.")
                and f"{name.replace('.', '/')}.py" in sources()
                and name.rpartition(".")[2].startswith("test_")
            }
    return found


RULES = [
    long_files,
    crowded_folders,
    wrong_arrows,
    circles,
    process_wide_switches,
    disk_primitives_outside_storage,
    imports_between_tests,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_map_is_kept(rule):
    violations = rule()
    assert not violations, "\n".join(sorted(violations))
