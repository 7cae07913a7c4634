"""The repository as a whole: its layout, the arrows between packages, the cost of an import, set-up."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from trainer.config.compose import compose

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "parallel", "launch", "recipes")


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("package", "above"), [("parallel", {"trainer", "launch", "tests"}), ("trainer", {"launch", "tests"})]
)
def test_arrows_point_one_way(package, above):
    files = sorted((CHECKOUT / package).rglob("*.py"))
    assert files
    upward = {str(file.relative_to(CHECKOUT)): imported_packages(file) & above for file in files}
    assert not {file: names for file, names in upward.items() if names}


def test_the_top_level_is_as_laid_out():
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.check_output(["git", "ls-files"], cwd=CHECKOUT, text=True).splitlines()
    documents = {"README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt"}
    dotfiles = {".gitignore", ".dockerignore", ".git-blame-ignore-revs", ".ci"}
    folders = {*PACKAGES, "docker", "tests", "docs", "findings"}
    assert {path.split("/")[0] for path in listed} <= folders | documents | dotfiles


@pytest.mark.parametrize(
    ("imports", "absent"),
    [
        ("launch.cli", ("torch", "numpy", "transformers", "datasets", "wandb", "rich")),
        ("trainer.config.keys, trainer.config.compose, trainer.run.directory", ("torch", "numpy")),
        ("trainer.metrics.record", ("torch", "wandb", "rich")),
        ("trainer.data.media.images, trainer.data.media.signals", ("torch", "PIL", "pandas", "scipy")),
        ("trainer.run.process", ("transformers", "datasets", "wandb", "pandas", "scipy")),
    ],
)
def test_an_import_brings_only_what_it_needs(imports, absent):
    program = f"import sys, {imports}; print(*[name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_recipe_is_installed_with_its_package():
    setup = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setup["package-data"]["*"]
    recipes = sorted((CHECKOUT / "recipes").rglob("*.y*ml"))
    assert recipes
    for recipe in recipes:
        assert any(fnmatch(recipe.name, pattern) for pattern in patterns), recipe
        assert (recipe.parent / "__init__.py").exists(), f"{recipe.parent} is not a package, as pkg://recipes needs"


def test_the_table_of_models_is_right():
    _, _, rest = (CHECKOUT / "docs" / "training.md").read_text().partition("| `model=` |")
    text = rest.partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE))
    assert set(rows) == {path.stem for path in (CHECKOUT / "recipes" / "model").glob("*.yaml")}
    for name, row in rows.items():
        recipe = "vision_contrastive_toy" if name.startswith("vision_") else "toy"
        model = compose([f"recipe={recipe}", f"model={name}"]).model
        unit, letter = (1e9, "B") if model.num_params() > 1e9 else (1e6, "M")
        counts = [f"{count / unit:.1f} {letter}" for count in (model.num_params(), model.active_params())]
        sizes = (model.num_layers, model.hidden_size, model.num_experts, model.experts_per_token, model.router_groups)
        assert row.split(" | ") == [*counts, *map(str, sizes)], name


def documents() -> list[Path]:
    return [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md"), *(CHECKOUT / "findings").glob("*.md")]


def test_every_launch_in_the_documents_is_valid():
    """Even if its sizes are too large to run it here."""
    text = "\n".join(path.read_text() for path in documents()).replace("\\\n", " ")
    launches = [
        (ranks, words)
        for ranks, words in re.findall(
            r"^(?:torchrun|octavo train) --nproc-per-node (\d+) (?:-m trainer )?(.*)$", text, re.MULTILINE
        )
        if "..." not in words
    ]
    assert len(launches) > 3
    for ranks, words in launches:
        compose(shlex.split(words, comments=True), world_size=int(ranks))


def test_every_file_that_the_documents_name_exists():
    for document in documents():
        text = document.read_text()
        links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s:]+)\)", text)} - {""}
        assert [link for link in links if not (document.parent / link).exists()] == [], document
        if document.name == "log.md":  # what it names may be gone
            continue
        named = re.findall(r"`((?:trainer|parallel|launch|tests|docker|\.ci)/[\w./-]+)`", text)
        assert [name for name in named if not (CHECKOUT / name).exists()] == [], document


def test_no_file_has_the_marks_of_a_merge():
    command = ["git", "grep", "-lE", "^(<{7} |>{7} |={7}$)"]
    assert subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout == ""


def test_the_readme_is_short():
    assert len((CHECKOUT / "README.md").read_text().split()) <= 1500


def test_the_toy_extra_is_what_the_constraints_pin():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    pins = {line.strip() for line in (CHECKOUT / "constraints.txt").read_text().splitlines()}
    assert set(project["optional-dependencies"]["toy"]) <= pins


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """The files that a set-up reads, nothing built yet, and a torch that is too old in old/."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(CHECKOUT / name, tmp_path)
    (tmp_path / "old" / "torch").mkdir(parents=True)
    (tmp_path / "old" / "torch" / "__init__.py").write_text('__version__ = "2.4.0"')
    (tmp_path / "old" / "torch-2.4.0.dist-info").mkdir()
    (tmp_path / "old" / "torch-2.4.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.4.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("script", "data"),
    [
        ('[ "$1" = -V ] && echo Python 3.10.2 && exit 0; exit 1', ["Python 3.10.2", "3.11"]),
        ('case "$2" in *ensurepip*) exit 1;; esac; PYTHONPATH= exec "$REAL" -S "$@"', ["python3-venv"]),
        ('exec "$REAL" "$@"', ["torch 2.4.0", "2.11"]),
    ],
    ids=["old Python", "no ensurepip", "old torch"],
)
def test_a_set_up_that_cannot_work_says_why_in_one_line(bare_checkout, script, data):
    python = bare_checkout / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "toy", f"PYTHON={python}"],
        cwd=bare_checkout,
        env={"PATH": "/usr/bin:/bin", "REAL": sys.executable, "PYTHONPATH": str(bare_checkout / "old")},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert any(all(datum in line for datum in data) for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr
    assert not (bare_checkout / ".venv" / ".ready-toy").exists()


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (130, 0), (143, 2), (2, 2), (1, 2)])
def test_make_adds_no_error_to_a_run_that_was_interrupted_and_saved(tmp_path, code, expected):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "octavo").write_text(f"#!/bin/sh\necho $*\nexit {code}\n")
    (tmp_path / "bin" / "octavo").chmod(0o755)
    (tmp_path / ".ready-toy").touch()
    words = ["make", "toy", f"VENV={tmp_path}", "ARGS=train.steps=5"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, "Error" in done.stderr) == (expected, expected != 0)
    assert done.stdout == "train recipe=toy train.steps=5\n"


# Modules that may use private names of other packages: torch, DeepSpeed, Transformer Engine and datasets.
SEAMS = {
    "parallel/torch_private.py",
    "parallel/zero/deepspeed_private.py",
    "trainer/model/experts/te/private.py",
    "trainer/corpora/tokenize/datasets_private.py",
    "trainer/weights/remote/modeling_octavo.py",  # runs in transformers, whose models name it so
}
# Private names that the standard library documents.
DOCUMENTED = {"_exit", "_current_frames", "_replace", "_asdict", "_fields"}


def private_names(tree: ast.AST) -> set[str]:
    """Private names that a file imports, reads from an object or passes to `getattr`; not dunder names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {part for part in node.module.split(".") if part.startswith("_")}
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            found |= {arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def own_private_names(tree: ast.AST) -> set[str]:
    """Private names that a file defines: functions, classes, variables and attributes that are assigned."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


def test_private_names_of_other_packages_are_used_behind_their_seams_only():
    files = [file for package in ("trainer", "parallel", "launch") for file in (CHECKOUT / package).rglob("*.py")]
    trees = {str(file.relative_to(CHECKOUT)): ast.parse(file.read_text()) for file in files}
    own = DOCUMENTED.union(*map(own_private_names, trees.values()))
    foreign = {name: private_names(tree) - own for name, tree in trees.items() if name not in SEAMS}
    assert not {name: found for name, found in foreign.items() if found}
    assert {"_foreach_copy_", "_cdata", "_world"} <= private_names(trees["parallel/torch_private.py"]) - own


def test_every_hint_to_install_installs_this_checkout():
    """The project is not in an index, and another project of its name may be."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    by_name = re.compile(r"pip install[^\n]*[\"' ]octavo\b")
    listed = subprocess.check_output(["git", "ls-files"], cwd=CHECKOUT, text=True).splitlines()
    texts = {path: (CHECKOUT / path).read_text(errors="replace") for path in listed if (CHECKOUT / path).is_file()}
    assert not {path for path, text in texts.items() if by_name.search(text)}
    extras = {name for text in texts.values() for name in re.findall(r"-e '\.\[(\w+)\]'", text)}
    assert extras <= set(tomllib.loads(texts["pyproject.toml"])["project"]["optional-dependencies"])
    assert {"wandb", "toy", "science", "data"} <= extras
