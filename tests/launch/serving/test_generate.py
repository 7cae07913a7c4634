"""`octavo generate` on a run and on its export, and transformers on the same export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.cli import main
from parallel.errors import UserError
from tests.launch.refused import every_fault, refused
from tests.printed import error_line
from tests.trainer.data.media import illustrated
from tests.trainer.data.small_mixture import make_mixture
from tests.trainer.illustrated_run import train_illustrated
from tests.trainer.tiny_run import tiny_config
from trainer import api
from trainer.config.keys import LoraConfig
from trainer.engine.engine import Engine
from trainer.engine.load import GENERATES, open_source
from trainer.engine.request import Request, Sampling
from trainer.run.process import train
from trainer.weights.export import export

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "a text about"
MODEL = {"vocab_size": 320, "router_groups": 1, "positions": "rope", "max_position": 200, "init_std": 0.3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    cfg = tiny_config(directory, model=MODEL, steps=1)
    with pytest.MonkeyPatch.context() as patch:
        cfg.data = make_mixture(tmp_path_factory.mktemp("mixture"), patch)
    assert train(cfg) == 0
    return directory


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export(run, run.parent / "exported", dtype="fp32")
    return run.parent / "exported"


def answer(capsys, *words: object) -> str:
    assert main(["generate", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_model_whose_answers_depend_on_others_is_a_warning(run, monkeypatch):
    monkeypatch.setattr("trainer.model.exact.check.dependent_products", lambda model: ["64 x 7 x 9"])
    with pytest.warns(UserWarning, match="64 x 7 x 9") as caught:
        api.load(run, device="cpu")
    assert [one.filename for one in caught if "64 x 7 x 9" in str(one.message)] == [__file__]  # the caller's line


def test_three_lines_of_python_continue_a_text_and_score_it(run, exported, capsys):
    model = api.load(run)
    text = model.generate(PROMPT, max_tokens=20, seed=3)
    assert answer(capsys, run, PROMPT, "--max-tokens", 20, "--seed", 3) == text + "\n"
    assert api.load(exported, device="cpu").generate([PROMPT], 20, seed=3) == [text]
    (whole,) = model.complete([PROMPT], 20, seed=3, stop=["zq"], alternatives=2)
    assert len(whole.scores.ids) == len(whole.ids)
    scored = model.score(PROMPT)
    ids = model.source.prompt(PROMPT)
    assert "".join(token for token, _ in scored) == model.source.tokenizer.decode(ids[1:])
    assert all(log_prob < 0 for _, log_prob in scored)
    assert model.complete([ids], 0, score_prompt=True)[0].prompt_scores.log_probs.tolist() == [x for _, x in scored]
    with pytest.raises(TypeError):
        model.generate(PROMPT, 5, heat=1.0)


def test_a_run_of_adapters_generates_as_its_merged_export(exported, tmp_path):
    cfg = tiny_config(tmp_path / "run", model=MODEL, steps=3, lr=0.1)
    cfg.checkpoint.init_from, cfg.lora = str(exported), LoraConfig(target="all", rank=2, alpha=4.0)
    assert train(cfg) == 0
    export(tmp_path / "run", tmp_path / "merged", dtype="fp32")
    scores = []
    for directory in (tmp_path / "run", tmp_path / "merged", exported):
        (answer,) = api.load(directory, device="cpu").complete([[5, 9, 40, 7]], 0, score_prompt=True)
        scores.append(answer.prompt_scores.log_probs)
    assert np.allclose(scores[0], scores[1], rtol=0, atol=1e-6)
    assert np.abs(scores[0] - scores[2]).max() > 0.01


def test_a_conversation_goes_through_the_template_of_the_directory(exported, tmp_path):
    directory = tmp_path / "chat"
    shutil.copytree(exported, directory)
    model = api.load(directory, device="cpu")
    messages = [{"role": "user", "content": PROMPT}]
    with pytest.raises(UserError) as caught:
        model.chat(messages)
    assert caught.value.where == str(directory)
    (directory / "chat_template.jinja").write_text(
        "{% for one in messages %}{{ one.role }} {{ one.content }}<|endofdocument|>{% endfor %}"
        "{% if add_generation_prompt %}assistant {{ mood }}{% endif %}"
    )
    rendered = f"user {PROMPT}<|endofdocument|>assistant happy"
    ids = model.source.prompt(rendered, opening=False)
    (answer,) = model.complete([ids], 30, seed=4)
    assert model.chat(messages, 30, values={"mood": "happy"}, seed=4) == answer.text
    assert model._ends == {model.source.tokenizer.eos_id}
    place = next(place for place, token in enumerate(answer.ids) if place > 3 and answer.ids.index(token) == place)
    model._ends = frozenset({answer.ids[place]})
    cut = model.chat(messages, 30, values={"mood": "happy"}, seed=4)
    assert cut == model.source.tokenizer.decode([*answer.ids[:place]])


def test_the_notebook_runs_from_top_to_bottom(run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/generate").symlink_to(run)
    cells = json.loads((ROOT / "docs/generation.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    program = "\nprint('\\0', end='')\n".join(code)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(part.strip() for part in done.stdout.split("\0"))
    assert len(done.stdout.split("\0")) == len(code)


def test_a_run_its_step_and_its_export_continue_alike(run, exported, capsys):
    shown = answer(capsys, run, PROMPT, "--max-tokens", 20, "--seed", 3)
    assert len(shown) > 4
    assert answer(capsys, run / "checkpoints/step-1", PROMPT, "--max-tokens", 20, "--seed", 3) == shown
    assert answer(capsys, exported, PROMPT, "--max-tokens", 20, "--seed", 3) == shown
    assert answer(capsys, exported, PROMPT, "--max-tokens", 20, "--seed", 4) != shown


def test_several_answers_have_consecutive_seeds(run, capsys):
    alone = [answer(capsys, run, PROMPT, "--max-tokens", 9, "--seed", seed)[:-1] for seed in (5, 6)]
    together = answer(capsys, run, PROMPT, "--max-tokens", 9, "--seed", 5, "--n", 2)
    assert together == f"--- 1 of 2, seed 5\n{alone[0]}\n--- 2 of 2, seed 6\n{alone[1]}\n"


def test_options_reach_the_engine(run, capsys):
    words = (run, PROMPT, "--max-tokens", 30)
    greedy = answer(capsys, *words, "--temperature", 0)
    assert answer(capsys, *words, "--top-k", 1) == answer(capsys, *words, "--top-p", 1e-9) == greedy
    assert answer(capsys, *words, "--min-p", 1) == greedy
    stop = greedy[2:4]
    assert len(stop.strip()) == 2
    assert answer(capsys, *words, "--temperature", 0, "--stop", "never", "--stop", stop) == (
        greedy[: greedy.find(stop)] + "\n"
    )


def test_greedy_text_is_that_of_transformers(exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(exported).eval(), AutoTokenizer.from_pretrained(exported)
    source = open_source(exported)
    engine = Engine(source.load(torch.device("cpu")))
    for text in (PROMPT, "b", "something longer than the others"):
        prompt = tokenizer(text)["input_ids"]
        assert source.prompt(text) == prompt
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
        (found,) = engine.generate([Request(prompt, 40, Sampling(temperature=0.0), source.stop_ids)])
        assert list(found.ids) == ids


def test_what_cannot_generate_is_refused_before_it_starts(run, exported, tmp_path):
    fault = refused("generate", str(run), "x " * 300)
    assert fault.where == "prompt"
    assert "199" in fault.allowed
    assert "max_tokens" not in fault.text  # which was not typed
    fault = refused("generate", str(run), PROMPT, "--max-tokens", "199")
    assert (fault.where, fault.value) == ("--max-tokens", 199)
    assert refused("generate", str(run), PROMPT, "--top-p", "0").where == "--top-p"
    assert "--max-tokens=199" in fault.text
    assert [one.where for one in every_fault("generate", str(run), "", "--stop", "")] == ["--stop"]
    mute = tmp_path / "mute"
    shutil.copytree(exported, mute)
    (mute / "tokenizer.json").unlink()
    assert refused("generate", str(mute), "x").where == "tokenizer"
    synthetic = tmp_path / "synthetic"
    assert train(tiny_config(synthetic, steps=1)) == 0
    assert refused("generate", str(synthetic), "x").where == "tokenizer"
    text = (synthetic / "config.yaml").read_text()
    (synthetic / "config.yaml").write_text(text.replace("objective: next_token", "objective: contrastive"))
    fault = refused("generate", str(synthetic), "x")
    assert (fault.where, fault.value) == ("train.objective", "contrastive")


def test_a_prompt_that_is_not_utf_8_is_refused(run):
    words = os.fsdecode(b"a \xff")  # as Python reads such bytes of a command line
    fault = refused("generate", str(run), words, "--max-tokens", "2")
    assert (fault.where, fault.value, fault.allowed) == ("prompt", words, "text in UTF-8")


@pytest.fixture(scope="module")
def with_towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run whose model has towers, its export, and media."""
    tmp_path = tmp_path_factory.mktemp("towers")
    export(train_illustrated(tmp_path), tmp_path / "exported", dtype="fp32")
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(illustrated.image(number, 1, 2))
    for name, rate in (("wave", 25.0), ("fast", 75.0)):
        np.savez(tmp_path / f"{name}.npz", signal=illustrated.wave(3), fs=rate)
    return tmp_path


def test_an_image_and_a_signal_are_part_of_a_prompt(with_towers, capsys):
    image, signal = with_towers / "0.png", with_towers / "wave.npz"
    words = ("<ts><TS_CONTEXT></ts> see <IMG_CONTEXT> here", "--image", image, "--signal", signal, "--max-tokens", 12)
    shown = answer(capsys, with_towers / "run", *words)
    assert shown == answer(capsys, with_towers / "exported", *words)
    model = api.load(with_towers / "run", device="cpu")
    media = [model.image(image), model.signal(str(signal))]
    assert [medium.tokens for medium in media] == [2, 15]
    assert model.generate(words[0], 12, media=media) + "\n" == shown
    text, ids = "see here", model.source.prompt("see here", media)
    assert len(ids) == len(model.source.prompt(text)) + 2 + 15 + 4
    scores = [
        model.complete([text], 0, score_prompt=True, media=[[model.image(with_towers / name)]])[0].prompt_scores
        for name in ("0.png", "1.png", "0.png")
    ]
    assert np.array_equal(scores[0].log_probs, scores[2].log_probs)
    assert not np.array_equal(scores[0].log_probs[-4:], scores[1].log_probs[-4:])


def test_media_that_cannot_be_given_are_refused(with_towers, run, tmp_path):
    image, directory = str(with_towers / "0.png"), str(with_towers / "run")
    fault = refused("generate", str(run), "x", "--image", image)
    assert (fault.where, fault.value) == (image, "image")
    fault = refused("generate", directory, "x", "--image", str(tmp_path / "none.png"))
    assert (fault.where, fault.value) == (str(tmp_path / "none.png"),) * 2
    fault = refused("generate", directory, "x", "--signal", str(tmp_path / "none.npy"))
    assert (fault.where, fault.value) == (str(tmp_path / "none.npy"),) * 2
    fault = refused("generate", directory, "x", "--signal", str(with_towers / "fast.npz"))
    assert (fault.where, fault.value) == (str(with_towers / "fast.npz"), 15)
    (tmp_path / "text.png").write_text("not an image")
    assert refused("generate", directory, "x", "--image", str(tmp_path / "text.png")).where == str(
        tmp_path / "text.png"
    )
    fault = refused("generate", directory, "<IMG_CONTEXT> <IMG_CONTEXT>", "--image", image)
    assert (fault.where, fault.value) == ("prompt", 1)


def test_placeholders_without_media_are_refused(with_towers):
    for directory in (with_towers / "run", with_towers / "exported"):
        for token in ("<IMG_CONTEXT>", "<TS_CONTEXT>"):
            fault = refused("generate", str(directory), f"see {token} here")
            assert (fault.where, fault.value) == ("prompt", token)
        assert open_source(directory).prompt("see <img> here")  # a token without a tower's output


def test_a_directory_that_cannot_be_opened_is_refused_with_what_can(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty", "file"):
        fault = refused("generate", str(tmp_path / name), "x")
        assert (fault.where, fault.allowed) == (str(tmp_path / name), GENERATES)
        assert ("is a file" in fault.text) == (name == "file")
    for missing in (run / "step-7", run / "checkpoints/step-7"):
        fault = refused("generate", str(missing), "x")
        steps = "checkpoints/step-1" if missing.parent == run else "step-1"
        assert (fault.where, fault.allowed) == (str(missing), steps)
    for step in range(2, 21):
        (tmp_path / f"run/step-{step}").mkdir(parents=True)
    assert "of 19" in refused("generate", str(tmp_path / "run/step-99"), "x").allowed


def test_a_prompt_that_starts_with_a_dash(run):
    for words in ((str(run), "-x"), ("--max-tokens", "3", str(run), "-x")):
        fault = refused("generate", *words)
        assert (fault.where, fault.value) == ("prompt", "-x")
        assert "--" in fault.allowed.split()
    fault = refused("generate", str(run), "--", "-x", "--max-tokens", "3")
    assert (fault.where, fault.allowed) == ("--max-tokens", "options come before --")
    assert refused("generate", str(run)).value is None


def test_a_damaged_checkpoint_is_reported(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shard = next((copy / "checkpoints/step-1").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["generate", str(copy), PROMPT]) == 1
    error_line(capsys.readouterr().err, shard.name)


def test_the_kinds_of_experts_of_a_run(run, tmp_path, monkeypatch):
    """fp8_reference keeps its rounding; what needs a GPU's FP8 computes in the dtype of the linears, and says so."""
    found = {}
    for experts in ("fp32", "fp8_reference", "fp8_block"):
        copy = tmp_path / experts
        shutil.copytree(run, copy)
        text = (copy / "config.yaml").read_text()
        assert "experts: fp32" in text
        (copy / "config.yaml").write_text(text.replace("experts: fp32", f"experts: {experts}"))
        source = open_source(copy)
        assert len(source.warnings) == (experts == "fp8_block")
        (done,) = Engine(source.load(torch.device("cpu"))).generate([Request(source.prompt(PROMPT), 1)])
        found[experts] = done.log_probs.tolist()
    assert found["fp8_block"] == found["fp32"] != found["fp8_reference"]


def test_a_prompt_needs_a_tokenizer(tmp_path):
    assert train(tiny_config(tmp_path / "run", steps=1)) == 0
    source = open_source(tmp_path / "run")
    with pytest.raises(UserError):
        source.prompt("x")
    (done,) = Engine(source.load(torch.device("cpu"))).generate([Request([1, 2], 5)])  # token ids will do
    assert len(done.ids) == 5


def test_ranks_that_the_experts_cannot_be_divided_among_are_refused(run):
    fault = refused("generate", str(run), PROMPT, "--nproc-per-node", "3")
    assert (fault.where, fault.value) == ("--nproc-per-node", 3)
    assert fault.allowed


@pytest.mark.slow
def test_ranks_share_the_experts(tmp_path, monkeypatch, capfd):
    """The first rank prints the answer of one process, and an error once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    cfg = tiny_config(tmp_path / "run", model={**MODEL, "router_groups": 2}, steps=1)
    (tmp_path / "mixture").mkdir()
    cfg.data = make_mixture(tmp_path / "mixture", monkeypatch)
    assert train(cfg) == 0
    capfd.readouterr()
    words = ["generate", str(tmp_path / "run"), PROMPT, "--max-tokens", "8", "--n", "2", "--temperature", "0"]
    said = []
    for ranks in ((), ("--nproc-per-node", "2")):
        assert main([*words, *ranks]) == 0
        printed = capfd.readouterr()
        said.append(printed.out)
        assert len([line for line in printed.err.splitlines() if "tokens/s" in line]) == 1
    assert said[0] == said[1]
    (shard, *_) = tmp_path.glob("run/checkpoints/step-1/*.distcp")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main([*words, "--nproc-per-node", "2"]) == 1
    assert capfd.readouterr().err.count(str(shard.name)) == 1
