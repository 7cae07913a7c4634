"""Every error for a user names its place in a field, and tests check its fields, so that its text may be reworded."""

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import wording

CHECKOUT = Path(__file__).resolve().parent.parent


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def user_errors(trees: Mapping[str, ast.Module]) -> set[str]:
    """Names of UserError and of all classes below it."""
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"UserError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def passes_faults_on(call: ast.Call) -> bool:
    """True for one argument that holds faults: a list, a comprehension, `.faults` or `faults`."""
    if len(call.args) != 1 or call.keywords:
        return False
    given = call.args[0]
    if isinstance(given, ast.Call):  # {text: fault ...}.values()
        return name_of(given.func) == "values" and isinstance(given.func, ast.Attribute)
    return isinstance(given, ast.List | ast.ListComp | ast.GeneratorExp) or name_of(given) == "faults"


def without_a_place(tree: ast.Module, errors: set[str]) -> Iterator[tuple[int, str]]:
    """Line and class of each error or fault that is made from a text without `where`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or name_of(node.func) not in errors | {"Fault"}:
            continue
        places = [keyword.value for keyword in node.keywords if keyword.arg == "where"]
        if name_of(node.func) == "Fault":
            places += node.args[1:2]
        elif not places and passes_faults_on(node):
            continue
        if not places or (isinstance(places[0], ast.Constant) and not places[0].value):
            yield node.lineno, name_of(node.func)


@functools.cache
def parsed(*packages: str) -> dict[str, ast.Module]:
    files = [file for package in packages for file in (CHECKOUT / package).rglob("*.py")]
    return {str(file.relative_to(CHECKOUT)): ast.parse(file.read_text()) for file in sorted(files)}


def test_every_error_for_a_user_names_its_place():
    trees = parsed("trainer", "parallel", "launch")
    errors = user_errors(trees)
    assert {"ConfigError", "CommandError", "DataError", "HuggingFaceError", "CheckpointError"} < errors
    found = [f"{file}:{line}: {name}" for file, tree in trees.items() for line, name in without_a_place(tree, errors)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("class A(UserError): pass\nclass B(A): pass\nraise B('x')", 1),
        ("raise UserError(f'{path}/{error}') from error", 1),
        ("raise UserError(text)", 1),
        ("raise UserError(str(error), value=3)", 1),
        ("raise UserError('x', where='')", 1),
        ("Fault('x')", 1),
        ("raise errors.UserError('x')", 1),
        ("raise UserError([Fault('x')])", 1),
        ("raise UserError([Fault('x', 'key')])", 0),
        ("raise UserError('x', where=str(path))", 0),
        ("raise UserError(error.faults)", 0),
        ("raise UserError(replace(fault, text='') for fault in faults)", 0),
        ("raise ValueError('x')", 0),
    ],
)
def test_a_text_without_a_place_is_found(source, count):
    tree = ast.parse(source)
    assert len(list(without_a_place(tree, user_errors({"a.py": tree})))) == count


def test_no_test_depends_on_the_wording_of_an_error():
    errors = user_errors(parsed("trainer", "parallel", "launch"))
    found = [
        f"{file}:{line}: {what}; check .where, .value and .allowed, or with tests.printed.error_line what a line names"
        for file, tree in parsed("tests").items()
        for line, what in wording.found_in(tree, errors)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("with pytest.raises(AError, match='this is not a file'): f()", 1),
        ("with pytest.raises(AError, match=rf'{path}: this is\\ not a'): f()", 1),
        ("with pytest.raises((ValueError, errors.AError), match='cannot be read'): f()", 1),
        ("with pytest.raises(AError, match=said): f()", 1),
        ("with pytest.raises(AError, match='train.steps'): f()", 0),
        ("with pytest.raises(ValueError, match='this is not a file'): f()", 0),
        ("def f():\n with raises(AError) as e: g()\n assert 'a' in str(e.value)", 1),
        ("def f():\n with raises(AError) as e: g()\n error = e.value\n assert str(error) == 'a'", 1),
        ("def f():\n try: g()\n except AError as e: assert 'a' in str(e)", 1),
        ("def f():\n with raises(AError) as e: g()\n assert e.value.where == str(path)", 0),
        ("def f():\n with raises(AError) as e: g()\n assert e.value.where == 'cannot be read'", 0),
        ("def f():\n with raises(AError) as e: g()\n assert 'cannot be read' in e.value.lines[0]", 1),
        ("def f():\n with raises(AError) as e: g()\n assert 'train.steps' in e.value.faults[0].text", 0),
        ("def f():\n with raises(ValueError) as e: g()\n assert 'a' in str(e.value)", 0),
        ("assert 'error: a cannot be read' in capsys.readouterr().err", 1),
        ("assert re.match('a file cannot be', done.stderr)", 1),
        ("assert 'train.steps=3' in done.stderr", 0),
        ("error_line(printed, path, 'cannot be read')", 1),
        ("error_line(printed, path, 'step 3', 4)", 0),
    ],
)
def test_a_check_of_the_wording_is_found(source, count):
    assert len(list(wording.found_in(ast.parse(source), {"AError"}))) == count
