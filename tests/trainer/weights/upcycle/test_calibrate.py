"""Counts by a forward pass a layer at a time against hooks on the routers of the whole model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import models, pre_tokenizers

from launch.cli import main
from tests.printed import error_line
from tests.trainer.weights.directories import FUSED, checkpoint
from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_read import from_huggingface
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.upcycle import calibrate
from trainer.weights.upcycle.calibrate import count_experts, read_windows
from trainer.weights.upcycle.coactivation import Counts, best_cut, survival
from trainer.weights.upcycle.errors import UpcycleError

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 128, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "num_experts": 16, "experts_per_token": 4, "router_groups": 1, "expert_width": 16, "positions": "fope",
}  # fmt: skip


def model_directory(directory: Path, layout: str = "apart", **sizes: int) -> Path:
    model = Decoder(ModelConfig(**(SIZES | sizes), init_std=0.2))
    model.init_weights(seed=0)
    return checkpoint(directory, model, layout=layout).write()


def opened(directory: Path) -> SourceModel:
    return survey_directory(open_directory(directory))


def token_file(path: Path, tokens: int, seed: int = 0) -> Path:
    np.save(path, np.random.default_rng(seed).integers(0, 128, tokens))
    return path


def hooked_pairs(directory: Path, windows: list[np.ndarray]) -> list[Counter[tuple[int, int]]]:
    """Each layer's (best, second) experts, from the inputs of the whole model's routers."""
    model = from_huggingface(directory)
    found: list[Counter[tuple[int, int]]] = [Counter() for _ in model.blocks]
    for block, counter in zip(model.blocks, found, strict=True):
        router = block.moe.router
        router.register_forward_hook(
            lambda r, arguments, out, c=counter: c.update(
                tuple(pair) for pair in torch.topk(F.linear(arguments[0], r.weight), 2).indices.tolist()
            )
        )
    with torch.no_grad():
        for window in windows:
            model(torch.from_numpy(window)[None])
    return found


@pytest.mark.parametrize("layout", ["apart", FUSED])
def test_counts_are_those_of_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str):
    monkeypatch.setattr(calibrate, "AT_ONE_TIME", 200)
    monkeypatch.setattr(calibrate, "WINDOW", 64)
    directory = model_directory(tmp_path / "model", layout)
    source = opened(directory)
    files = [token_file(tmp_path / "a.npy", 500), token_file(tmp_path / "b.npy", 90, seed=1)]
    windows = read_windows(files, source, 10_000)
    assert sum(len(window) for window in windows) == 590
    counts = count_experts(source, windows, CPU)
    for layer, hooked in enumerate(hooked_pairs(directory, windows)):
        top1, pairs = np.zeros(16, int), np.zeros((16, 16), int)
        for (first, second), times in hooked.items():
            top1[first] += times
            pairs[min(first, second), max(first, second)] += times
        assert (counts.top1[layer] == top1).all()
        assert (counts.pairs[layer] == pairs).all()
    assert counts.tokens == counts.pairs[0].sum() == 590


def test_one_layer_is_in_memory_and_takes_the_values_of_each_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, filled = opened(model_directory(tmp_path / "model")), []
    fill = calibrate.fill
    monkeypatch.setattr(
        calibrate, "fill", lambda module, source: (filled.append(module.state_dict()), fill(module, source))
    )
    count_experts(source, [np.arange(10)], CPU)
    layers = [state for state in filled if any(name.startswith("layers.") for name in state)]
    assert [next(iter(state)).split(".")[1] for state in layers] == ["0", "1", "2"]
    places = [[value.data_ptr() for value in state.values()] for state in layers]
    assert places[0] == places[1] == places[2]


def test_a_cut_by_counts_keeps_at_least_what_the_best_of_20_random_ones_keeps(tmp_path: Path):
    source = opened(model_directory(tmp_path / "model"))
    counts = count_experts(source, read_windows([token_file(tmp_path / "a.npy", 2000)], source, 2000), CPU)
    generator = np.random.default_rng(0)
    for pairs in counts.pairs:
        random = max(survival(pairs, generator.permutation(16).reshape(2, 8).tolist()) for _ in range(20))
        assert survival(pairs, best_cut(pairs, 2, seed=0)) >= random


def test_windows_are_taken_by_turns_until_there_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrate, "WINDOW", 4)
    source = opened(model_directory(tmp_path / "model"))
    np.save(tmp_path / "a.npy", np.arange(10))
    np.save(tmp_path / "b.npy", np.arange(50, 56))
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]

    def taken(tokens: int) -> list[list[int]]:
        return [window.tolist() for window in read_windows(files, source, tokens)]

    assert taken(100) == [[0, 1, 2, 3], [50, 51, 52, 53], [4, 5, 6, 7], [54, 55], [8, 9]]
    assert taken(9) == [[0, 1, 2, 3], [50, 51, 52, 53], [4]]


def test_text_goes_through_the_models_tokenizer(tmp_path: Path):
    directory = model_directory(tmp_path / "model")
    source = opened(directory)
    (tmp_path / "text").write_text("one two two")
    with pytest.raises(UpcycleError) as refused:
        read_windows([tmp_path / "text"], source, 10)
    assert refused.value.where == str(directory / "tokenizer.json")
    assert refused.value.allowed == "a tokenizer.json there, or token ids in .npy files"
    words = tokenizers.Tokenizer(models.WordLevel({"one": 3, "two": 5, "?": 127}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(directory / "tokenizer.json"))
    assert [window.tolist() for window in read_windows([tmp_path / "text"], source, 10)] == [[3, 5, 5]]
    (directory / "tokenizer_config.json").write_text('{"eos_token": ["?"], "model_max_length": 2}')
    for state in ("truncation", "padding", "both"):  # of the last call before the file was saved
        if state != "padding":
            words.enable_truncation(2)
        if state != "truncation":
            words.enable_padding(length=9, pad_id=127, pad_token="?")
        words.save(str(directory / "tokenizer.json"))
        assert [window.tolist() for window in read_windows([tmp_path / "text"], source, 10)] == [[3, 5, 5]]
        words.no_truncation()
        words.no_padding()
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UpcycleError) as refused:
        read_windows([tmp_path / "text"], source, 10)
    assert refused.value.where == str(directory / "tokenizer.json")
    assert refused.value.allowed == "give a tokenizer.json in the format of Hugging Face's tokenizers library"


def test_texts_that_cannot_be_used_are_one_line(tmp_path: Path):
    source = opened(model_directory(tmp_path / "model"))
    np.save(tmp_path / "large.npy", np.array([1, 128]))
    np.save(tmp_path / "real.npy", np.ones(3))
    np.save(tmp_path / "empty.npy", np.ones(0, int))
    (tmp_path / "text.npy").write_text("text")
    np.save(tmp_path / "objects.npy", np.array([1, None]))
    for name, value, allowed in (
        ("large.npy", 128, "0 to 127"),
        ("real.npy", "float64 [3]", "a one-dimensional array of whole numbers"),
        ("empty.npy", 0, "one token or more"),
        ("text.npy", None, "numpy.save of a one-dimensional array of whole numbers"),
        ("objects.npy", None, "numpy.save of a one-dimensional array of whole numbers"),
        ("none.npy", "No such file or directory", "UTF-8 text, or token ids in a .npy file"),
    ):
        with pytest.raises(UpcycleError) as refused:
            read_windows([tmp_path / name], source, 10)
        error = refused.value
        assert (error.where, error.value, error.allowed) == (str(tmp_path / name), value, allowed)
        (line,) = error.lines
        assert str(tmp_path / name) in line


def test_a_router_with_groups_is_refused(tmp_path: Path):
    source = opened(model_directory(tmp_path / "model", router_groups=2))
    with pytest.raises(UpcycleError) as refused:
        count_experts(source, [np.arange(4)], CPU)
    assert refused.value.value == (4, 2)
    assert "num_experts_per_tok=4" in refused.value.lines[0]


def test_the_command_writes_counts_and_says_what_cuts_keep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    directory, out = model_directory(tmp_path / "model"), tmp_path / "counts"
    text = [str(token_file(tmp_path / "a.npy", 300))]

    def run(*more: str) -> int:
        options = {"--counts": str(out), "--tokens": "200", "--device": "cpu"}
        options |= dict(zip(more[::2], more[1::2], strict=True))
        words = [word for option in options.items() for word in option]
        return main(["upcycle", str(directory), "--calibrate", *text, *words])

    assert run() == 0
    counts = Counts.load(out, opened(directory))
    assert counts.tokens == 200
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["layer", "layer", "layer", "all"]
    for layer, line in enumerate(lines[2:5]):
        one, random, several, _ = (float(cell[:-1]) for cell in line.split()[2:])
        assert one == pytest.approx(100 * survival(counts.pairs[layer], best_cut(counts.pairs[layer], 2, 0)), abs=0.2)
        assert random == pytest.approx(100 * 8 / 15, abs=0.05)
        assert random < one < several
    assert run() == 2
    error_line(capsys.readouterr().err, out)
    out.unlink()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, data in (
        (["--groups", "6"], ["--factor=4", "--groups=6", "16"]),
        (["--factor", "0"], ["--factor=0", "--groups=8", "16"]),
        (["--factor", "-2"], ["--factor=-2", "--groups=8", "16"]),
        (["--tokens", "0"], ["--tokens"]),
        (["--device", "cuda"], ["--device=cuda", "cpu", "auto"]),
        (["--counts", str(tmp_path / "none" / "counts")], [tmp_path / "none"]),
    ):
        assert run(*words) == 2
        error_line(capsys.readouterr().err, *data)
