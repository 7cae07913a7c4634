"""The rules of quality: good descriptions pass, each kind of damage is dropped with its own reason."""

import random
import string

import pytest

from tests.trainer.corpora.captions.made_crops import good_answer, made_crop
from trainer.corpora.captions.describe.prompts import prompt_of, read_templates
from trainer.corpora.captions.quality.rules import REASONS, Rules, reason_against
from trainer.corpora.captions.quality.words import duplicate_share, repeats, top_share, words_of

CROP = made_crop(8)
GOOD = good_answer(8)
PROMPT = prompt_of(CROP, read_templates())
PRINTED = f"{CROP.caption}\n{CROP.context}"

TABLE = """The table has four columns and three rows. The columns are labelled alloy, density in g/cm3, hardness in
HV and melting point in K. The first row, for the aluminium alloy, lists 2.70, 95 and 870; the second
row, for the titanium alloy, lists 4.43, 349 and 1877; and the third row, for the nickel alloy, lists
8.19, 331 and 1609. The density rises from the top to the bottom, while the hardness is largest for
titanium, and the melting points are not ordered in the same way."""
FORMULA = """The formula defines the resistivity as the product of the resistance and the cross section, divided by
the length of the sample. The symbol rho is on the left, and the fraction with R, A and l is on the
right."""
GERMAN = """Die Abbildung zeigt ein Diagramm, in dem der spezifische Widerstand von Graphit gegen die Temperatur
aufgetragen ist. Die waagerechte Achse ist in Kelvin beschriftet, und die senkrechte Achse gibt den Wert
in willkürlichen Einheiten. Eine durchgezogene blaue Kurve steigt zuerst langsam, knickt dann in der
Mitte und wird am rechten Rand flach."""
CHINESE = "该图显示了石墨的电阻率随温度变化的曲线。横轴为温度，单位为开尔文，纵轴为电阻率。" * 3
UNRELATED = """The photograph shows a narrow street between old houses at dusk. Several people with umbrellas walk
towards the camera, and the wet stones reflect the light of two lanterns. On the left there is a small
shop with a green door, and a bicycle leans on its wall. In the background a church tower rises above the
roofs, and the sky is almost dark."""


def random_words(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(80))


def untrained(seed: int) -> str:
    """Bytes drawn at random, as a model without training answers."""
    return bytes(random.Random(seed).choices(range(256), k=400)).decode("utf-8", "replace")


DAMAGED = {
    "short": ["A plot.", "The figure shows one curve.", ""],
    "long": [" ".join(f"{GOOD} In panel {n} the sample number {n} is drawn, by its own key {n * 7}." for n in range(3))
             + " " + " ".join(random_words(n) for n in range(20))],
    "garbled": [untrained(1), untrained(2), GOOD.replace("curve", "cur\ufffd"), GOOD + "<|im_end|>",
                GOOD[:40] + " 17.5 88 91 3 4 5" * 30, GOOD + " ~~~~~~~~~~~~~~~~", GOOD + "x" + "qwertzuiop" * 6],
    "repetition": [GOOD[:200] + " The curve rises and rises again." * 12,
                   "\n".join([GOOD] + ["The axis is in kelvin."] * 9),
                   " ".join(["The blue curve of graphite rises with the temperature"] * 9)],
    "language": [GERMAN, CHINESE, random_words(3)],
    "echo": [PROMPT.instruction + " " + PROMPT.instruction.upper(), PROMPT.instruction],
    "unrelated": [UNRELATED],
}  # fmt: skip


def reason(text: str, kind: str = "figure") -> str | None:
    return reason_against(text, kind, instruction=PROMPT.instruction, printed=PRINTED)


@pytest.mark.parametrize("number", range(0, 49, 4))
def test_a_good_description_passes(number):
    crop = made_crop(number)
    prompt = prompt_of(crop, read_templates())
    printed = f"{crop.caption}\n{crop.context}"
    assert reason_against(good_answer(number), "figure", instruction=prompt.instruction, printed=printed) is None
    assert reason_against(good_answer(number), "figure") is None


def test_tables_may_quote_numbers_and_formulas_may_be_short():
    assert reason_against(TABLE, "table") is None
    assert reason_against(FORMULA, "formula") is None
    assert reason_against(FORMULA[:110], "figure") == "short"


@pytest.mark.parametrize("wanted", REASONS)
def test_damage_is_dropped_with_its_reason(wanted):
    for text in DAMAGED[wanted]:
        assert reason(text) == wanted, text[:80]


def test_a_copy_of_the_printed_caption_is_an_echo():
    printed = " ".join(f"{CROP.caption} {GOOD}".split())
    assert reason_against(GOOD, "figure", printed=printed) == "echo"
    assert reason_against(GOOD, "figure", printed=CROP.caption) is None


def test_what_has_little_text_of_its_own_is_not_called_unrelated():
    assert reason_against(UNRELATED, "figure", printed="Fig. 3") is None
    assert reason_against(UNRELATED, "figure", printed=PRINTED, rules=Rules(related=0)) is None


def test_untrained_answers_do_not_pass():
    assert all(reason(untrained(seed)) is not None for seed in range(30))
    assert all(reason(random_words(seed)) is not None for seed in range(30))


def test_the_shares_of_repetition_are_those_of_their_definition():
    text = "one two three one two three one two four"
    words = words_of(text)
    assert top_share(words, 2, len(text)) == pytest.approx(3 * len("one two") / len(text))
    assert top_share(words, 9, len(text)) == 0
    assert duplicate_share(words, 3, len(text)) == pytest.approx(len("onetwothree") / len(text))
    assert duplicate_share(words, 6, len(text)) == 0
    assert not repeats(GOOD)
    assert not repeats("")


def test_the_measures_of_repetition_agree_with_datatrove():
    """Its filter of repetition, with our words in place of spaCy's, decides alike where no rule of length does."""
    filters = pytest.importorskip("datatrove.pipeline.filters.gopher_repetition_filter")
    tokenizers = pytest.importorskip("datatrove.utils.word_tokenizers")
    from datatrove.data import Document

    class Words(tokenizers.WordTokenizer):
        def word_tokenize(self, text):
            return words_of(text)

        def sent_tokenize(self, text):
            raise NotImplementedError

        def span_tokenize(self, text):
            raise NotImplementedError

    peer = filters.GopherRepetitionFilter(language=Words())
    draw = random.Random(0)
    texts = [text for texts in DAMAGED.values() for text in texts if text.strip()] + [GOOD, TABLE, FORMULA, UNRELATED]
    parts = [sentence for text in (GOOD, TABLE, UNRELATED, FORMULA) for sentence in text.split(".")]
    texts += [draw.choice([".", "\n", ".\n\n"]).join(draw.choices(parts, k=draw.randint(3, 14))) for _ in range(150)]
    texts = [text for text in texts if len(words_of(text)) >= Rules().min_words]
    decided = [peer.filter(Document(text=text.strip(), id="")) is True for text in texts]
    assert 20 < sum(decided) < len(texts) - 20
    assert [not repeats(text) for text in texts] == decided
