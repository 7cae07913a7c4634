"""Images and signals of requests: equal to a training batch, prefixes by their content, and what is refused."""

import random

import numpy as np
import pytest
import torch

from tests.trainer.data.media.illustrated import ids, image, rules, wave, with_markers
from tests.trainer.engine.asked import assert_as_trained, serve
from tests.trainer.model.tiny import build, model_config, randomise_norms
from trainer.config.compose import compose
from trainer.data.batch import media_of
from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Recording
from trainer.data.media.rules import ImageKind, MediaRules, SignalKind
from trainer.data.media.signals import SignalRule
from trainer.data.windows import Prepared
from trainer.engine import engine as engine_module
from trainer.engine.engine import Engine
from trainer.engine.media import place_media, prepare_medium
from trainer.engine.request import Request, RequestError, Sampling
from trainer.model.exact.blocks import KEYS
from trainer.model.exact.switch import make_exact
from trainer.model.multimodal import Multimodal
from trainer.run.sample import generate
from trainer.stages.forward import Whole

RULES = rules()


def recording(number, steps=300):
    return Recording(wave(number, steps), 100.0, ("a", "b"), ("", ""))


@pytest.fixture(scope="module")
def model():
    cfg = compose(["recipe=toy_multimodal"]).model
    with torch.device("meta"):
        made = Multimodal(cfg)
    made.to_empty(device="cpu").init_weights(seed=3)
    randomise_norms(made)
    return make_exact(made)


def kinds(cfg):
    image_kind = ImageKind(RULES.image.rule, cfg.image_token)
    return {"image": image_kind, "signal": SignalKind(SignalRule(max_tokens=8), cfg.signal_token)}


def asked_with_media(cfg, count, rng):
    """Prompts of 70 tokens, one of three images, 60 tokens, all the same up to here; then other media and text."""
    of = kinds(cfg)
    start = [rng.randrange(4000) for _ in range(70)]
    found = []
    for number in range(count):
        media = [prepare_medium("image", of["image"], image(number % 3, 3, 2), "x")]
        ids = [*start, *[cfg.image_token] * 6, *start[:60]]
        for _ in range(rng.randrange(3)):
            ids += [rng.randrange(4000) for _ in range(rng.randrange(1, 30))]
            kind = rng.choice(["image", "signal"])
            given = image(rng.randrange(99), 1, 2) if kind == "image" else recording(rng.randrange(1, 99), 900)
            media.append(prepare_medium(kind, of[kind], given, "x"))
            ids += [of[kind].token] * media[-1].tokens
        ids += [rng.randrange(4000) for _ in range(rng.randrange(1, 70))]
        found.append(
            Request(ids, rng.randrange(1, 12), Sampling(seed=number, top_k=50), media=media, score_prompt=True)
        )
    return found


def test_answers_are_those_of_one_training_pass_with_the_media(model, monkeypatch):
    rng = random.Random(1)
    asked = asked_with_media(model.cfg, 14, rng)
    runs, genuine = [], engine_module.embed
    monkeypatch.setattr(engine_module, "embed", lambda *given: runs.append(given[1].digest) or genuine(*given))
    answers = serve(Engine(model, cache_tokens=2000, batch=5, chunk=37), asked, rng)
    everything = [medium for one in asked for medium in one.media]
    media = media_of([Prepared(one.kind, 0, 0, one.tokens, one.value) for one in everything])
    tokens = [model.cfg.image_token, model.cfg.signal_token]
    assert not any(token in tokens for answer in answers.values() for token in answer.ids)
    assert_as_trained(model, asked, answers, images=media.images, signals=media.signals)
    assert any(answer.reused > KEYS for answer in answers.values())  # an image and all before it
    assert 0 < len(runs) < len(everything)  # no tower runs for a medium of a prefix that is found again


def test_a_prefix_is_shared_by_equal_media_alone(model):
    engine, of = Engine(model), kinds(model.cfg)
    tokens = [model.cfg.image_token] * 6

    def ask(number, before=70):
        medium = prepare_medium("image", of["image"], image(number, 3, 2), "x")
        prompt = [*range(5, 5 + before), *tokens, *range(9, 9 + 2 * KEYS)]
        return engine.generate([Request(prompt, 1, media=[medium], score_prompt=True)])[0]

    first, other, again = ask(1), ask(2), ask(1)
    assert (first.reused, other.reused, again.reused) == (0, KEYS, 3 * KEYS)  # the first page has text alone
    assert np.array_equal(first.prompt_scores.log_probs, again.prompt_scores.log_probs)
    assert not np.array_equal(first.prompt_scores.log_probs, other.prompt_scores.log_probs)
    assert ask(1, before=60).reused == 0  # in its first page; a part of the image is in the second
    assert ask(2, before=60).reused == 0


def test_a_drawn_placeholder_is_a_token_like_others(model, monkeypatch):
    """In the texts of a run too, whose forward pass would look for its image."""
    token, genuine = model.cfg.image_token, engine_module.draw
    monkeypatch.setattr(engine_module, "draw", lambda *given: torch.full_like(genuine(*given), token))
    assert generate(Whole(model), [model], [[5, 6]], tokens=3, eos_id=0, seed=1) == [[token] * 3]
    assert Engine(model).generate([Request([5, 6], 3)])[0].ids == (token,) * 3


def test_numbers_of_placeholders_are_checked(model):
    engine, of = Engine(model), kinds(model.cfg)
    medium = prepare_medium("image", of["image"], image(1, 3, 2), "x")
    for prompt, count in (([7] * 9, 0), ([*[model.cfg.image_token] * 5, 7], 5)):
        with pytest.raises(RequestError) as caught:
            engine.submit(Request(prompt, 2, media=[medium]))
        assert (caught.value.where, caught.value.value, caught.value.allowed) == ("media", count, 6)
    with pytest.raises(RequestError) as caught:
        engine.submit(Request([model.cfg.signal_token], 2))
    assert (caught.value.where, caught.value.value, caught.value.allowed) == ("media", 1, 0)
    with pytest.raises(RequestError) as caught:
        Engine(build(model_config())).submit(Request([1] * 6, 2, media=[medium]))
    assert (caught.value.where, caught.value.value) == ("media", "image")


def test_media_are_placed_with_their_markers():
    (image_token, signal_token, opening, closing) = ids("<IMG_CONTEXT>", "<TS_CONTEXT>", "<img>", "</img>")
    start, end = ids("<ts>", "</ts>")
    tokenizer = with_markers()
    one, two = (prepare_medium("image", RULES.image, image(number, 1, 2), "x") for number in (1, 2))
    signal = prepare_medium("signal", RULES.signal, recording(1), "x")
    inside, of_signal = [image_token] * 2, [signal_token] * signal.tokens

    def placed(given, *media, known=RULES):
        return place_media(given, media, known, tokenizer)

    whole = [opening, *inside, closing]
    assert placed([7, 8], one, signal) == [*whole, start, *of_signal, end, 7, 8]
    assert placed([7, image_token, 8], one) == [7, *whole, 8]
    assert placed([7, opening, image_token, closing, 8], one) == [7, *whole, 8]
    assert placed([signal_token, image_token, image_token], one, signal, two) == [
        start,
        *of_signal,
        end,
        *whole,
        *whole,
    ]
    bare = MediaRules(ImageKind(RULES.image.rule, image_token))
    assert placed([7, image_token], one, known=bare) == [7, *inside]
    for given, media in (([7, image_token], [one, two]), ([image_token], [one, signal]), ([image_token] * 2, [one])):
        with pytest.raises(DataError) as caught:
            placed(given, *media)
        assert caught.value.where == "prompt"


def test_what_is_equal_has_equal_digests():
    first = prepare_medium("image", RULES.image, image(1, 1, 2), "x")
    assert prepare_medium("image", RULES.image, image(1, 1, 2, "BMP"), "y").digest == first.digest  # the same pixels
    assert prepare_medium("image", RULES.image, image(2, 1, 2), "x").digest != first.digest
    digests = {
        prepare_medium("signal", RULES.signal, Recording(wave(1), rate, ("a", "b"), ("", "")), "x").digest
        for rate in (100.0, 200.0, None)
    }
    assert len(digests) == 3
