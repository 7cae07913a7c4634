"""Held-out loss and sample texts: the right numbers, and nothing drawn from training's generators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parallel.world import World
from tests.trainer.model.tiny import logits
from tests.trainer.tiny_run import tiny_config
from trainer.data.build import build_data
from trainer.objectives.choose import build_objective
from trainer.objectives.next_token import NextToken
from trainer.run.build import build_model
from trainer.run.evaluate import evaluate
from trainer.run.sample import generate
from trainer.stages.forward import Whole


@pytest.fixture
def parts(tmp_path):
    cfg = tiny_config(tmp_path)
    model = build_model(cfg, World(), None, build_objective(cfg.train))
    return model, build_data(cfg.data, seed=0, vocab_size=cfg.model.vocab_size)


def test_held_out_loss_is_the_mean_over_tokens(parts):
    model, data = parts
    before = torch.get_rng_state()
    found = evaluate(Whole(model), NextToken(chunk=7), data.heldout, World(), batches=3, micro_batch=2)
    assert torch.equal(torch.get_rng_state(), before)
    total, tokens = 0.0, 0
    for batch in (late.read() for late in data.heldout.batches("synthetic", 3, 2)):
        found_logits = logits(model, batch.inputs["ids"], batch.inputs["positions"], batch.cu_seqlens)
        total += F.cross_entropy(found_logits.flatten(0, 1), batch.labels.flatten(), reduction="sum").item()
        tokens += batch.num_tokens
    assert found["heldout"] == {"synthetic": pytest.approx(total / tokens, rel=1e-5)}


def test_texts_side_by_side_are_what_each_would_be_alone(parts):
    model, _ = parts
    with torch.no_grad():
        model.lm_head.mul_(1e5)  # sharp enough that sampling is greedy
    options = {"tokens": 9, "eos_id": 0, "seed": 1}
    prompts = [[5, 6, 7], [9], []]
    together = generate(Whole(model), [model], prompts, **options)
    assert together == [generate(Whole(model), [model], [prompt], **options)[0] for prompt in prompts]
    text = [5, 6, 7]
    for token in together[0]:
        assert token == logits(model, torch.tensor([text]))[0, -1].argmax()
        text.append(token)


def test_a_text_ends_with_its_document_or_at_the_longest_document(parts):
    model, _ = parts
    context = model.cfg.max_position
    (text,) = generate(Whole(model), [model], [[5] * (context - 4)], tokens=9, eos_id=-1, seed=1)
    assert len(text) == 4
    (long,) = generate(Whole(model), [model], [[5] * (context + 9)], tokens=9, eos_id=-1, seed=1)
    assert len(long) == 1
    first = generate(Whole(model), [model], [[5, 6], [7]], tokens=8, eos_id=-1, seed=1)
    end = first[0][3]
    again = generate(Whole(model), [model], [[5, 6], [7]], tokens=8, eos_id=end, seed=1)
    assert again[0] == first[0][: first[0].index(end)]
    assert again[1] == (first[1][: first[1].index(end)] if end in first[1] else first[1])


def test_sampling_repeats_and_leaves_the_generators_alone(parts):
    model, _ = parts
    before = torch.get_rng_state()
    options = {"tokens": 12, "eos_id": 0}
    first = generate(Whole(model), [model], [[1, 2], [3]], seed=4, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(Whole(model), [model], [[1, 2], [3]], seed=4, **options) == first
    assert generate(Whole(model), [model], [[1, 2], [3]], seed=5, **options) != first
