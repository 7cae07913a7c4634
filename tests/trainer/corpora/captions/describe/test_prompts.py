"""The prompts: many for each kind, each asking for what is visible, drawn by the crop's id."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.corpora.captions.made_crops import made_crop
from trainer.corpora.captions.describe.prompts import DESCRIBED, LISTS, LONGEST, prompt_of, read_templates
from trainer.data.errors import DataError

VISIBLE = {
    "figure": ("axes axis", "unit", "label", "trend"),
    "table": ("row", "column", "unit", "label", "trend"),
    "formula": ("symbol", "unit", "label", "trend"),
}


@pytest.mark.parametrize("kind", DESCRIBED)
def test_a_kind_has_twenty_instructions_that_ask_for_what_is_visible(kind):
    texts = read_templates()[kind]
    assert len({text.casefold() for text in texts}) == len(texts) >= 20
    for text in texts:
        for words in VISIBLE[kind]:
            assert any(word in text.casefold() for word in words.split()), (words, text)


def test_a_crop_has_one_prompt_and_many_crops_have_all_of_them():
    templates = read_templates()
    drawn = Counter(prompt_of(made_crop(number), templates).instruction for number in range(3000))
    instructions, lengths = len(templates["figure"]), len(templates["length"])
    assert len(drawn) == instructions * lengths
    assert max(drawn.values()) < 3 * 3000 / len(drawn)
    crop = made_crop(5)
    assert prompt_of(crop, templates) == prompt_of(replace(crop, image=b"other pixels"), templates)
    assert len({prompt_of(crop, templates, seed=seed).instruction for seed in range(20)}) > 10
    assert all("1000" in text for text in drawn)
    assert "70 words" in prompt_of(crop, templates, words=70).instruction


@pytest.mark.parametrize("kind", DESCRIBED)
def test_the_printed_text_follows_the_instruction(kind):
    crop, templates = made_crop(3, kind), read_templates()
    whole, alone = prompt_of(crop, templates).text, prompt_of(crop, templates, printed=False)
    assert alone.text == alone.instruction
    assert whole.startswith(alone.text)
    assert any(alone.text.startswith(text.strip()) for text in templates[kind])
    assert whole.index(crop.caption) < whole.index(crop.context)
    assert crop.caption not in alone.text
    assert prompt_of(replace(crop, caption="", context=" "), templates) == alone
    long = prompt_of(replace(crop, context="x" * 10**6, caption="y" * 10**6), templates).text
    assert (long.count("x" * 100), long.count("y" * 100)) == (LONGEST["context"] // 100, LONGEST["caption"] // 100)


@pytest.mark.parametrize("text", ["[", "figure: [a]", "{figure: [], table: [a]}"])
def test_a_file_of_templates_without_its_lists_is_refused(tmp_path: Path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_templates(path)
    assert caught.value.where == str(path)


def test_own_templates_replace_the_built_in_ones(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text("\n".join(f"{name}: ['{name} {{words}}']" for name in LISTS))
    made = prompt_of(made_crop(0), read_templates(path), words=9, printed=False)
    assert made.text == "figure {words} length 9"
    path.write_text("\n".join(f"{name}: ['', 3]" for name in LISTS))
    read_templates.cache_clear()
    with pytest.raises(DataError):
        read_templates(path)
