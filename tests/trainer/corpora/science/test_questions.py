"""Questions from records: kinds, the answers that their rewards accept, and splits that share no record."""

from functools import cache
from itertools import islice

import pytest

from trainer.corpora.science.questions import REWARD, held_out, question
from trainer.corpora.science.tables import pubchem
from trainer.corpora.science.tables.builtin import TABLES
from trainer.corpora.science.texts import texts
from trainer.data.errors import DataError
from trainer.rl.rewards.base import Question, build_reward, close_reward

pytest.importorskip("pint", reason="pip install -e '.[rewards]'")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The tables of a source. Of PubChem's, which take seconds to read, those of every twentieth line."""
    ((kind, large),) = pubchem.identity_files()
    few = tmp_path_factory.mktemp("pubchem") / large.name
    few.write_text("\n".join(large.read_text(encoding="utf-8").splitlines()[::20]), encoding="utf-8")

    @cache
    def read(source):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pubchem, "identity_files", lambda: [(kind, few)])
            return TABLES[source]()

    return read


def rows(source, tables, count, *, messages=False):
    made = (question(text, messages=messages) for text in texts(source, tables, seed=3, tasks_per_record=4))
    return [*islice((row for row in made if row is not None), count)]


@pytest.fixture(scope="module")
def reward():
    pytest.importorskip("rdkit", reason="pip install -e '.[rewards]'")
    found = build_reward(REWARD)
    yield found
    close_reward(found)


@pytest.mark.parametrize(
    ("source", "kinds"),
    [("materials", {"quantity", "choice", "text"}), ("pubchem", {"quantity", "choice", "molecule", "text"})],
)
def test_the_reward_of_its_kind_accepts_the_answer_and_not_that_of_another_question(reward, tables, source, kinds):
    found = rows(source, tables(source), 150)
    assert {row["kind"] for row in found} == kinds
    for number, row in enumerate(found):
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        asked = Question(number, row["prompt"], row["answer"], row)
        for answer in answers:
            assert answer == answer.strip()
            assert "\n" not in answer
            assert reward(asked, f" {answer}").value == 1
            assert reward(asked, f"It is known.\n\\boxed{{{answer}}}").value == 1
        assert reward(asked, f"not {answers[0]}").value == 0
        if row["kind"] == "choice":
            others = [letter for letter in "ABCD" if letter != row["answer"]]
            assert [reward(asked, letter).value for letter in others] == [0, 0, 0]
            assert all(option in row["prompt"] for option in row["options"])
            assert len(row["options"]) == 4


def test_messages_ask_for_a_box_and_texts_open_an_answer(tables):
    materials = tables("materials")
    for text, message in zip(
        rows("materials", materials, 20), rows("materials", materials, 20, messages=True), strict=True
    ):
        (said,) = message["prompt"]
        assert said["role"] == "user"
        asked, boxed = said["content"].rsplit("\n", 1)
        assert "\\boxed{}" in boxed
        assert text["prompt"] == f"{asked}\nAnswer: "
        assert text["answer"] == message["answer"]


def test_about_a_tenth_of_the_groups_is_held_out():
    origins = [f"materials/{number}" for number in range(2000)]
    assert 140 < len(held_out(origins)) < 260
    assert held_out(reversed(origins)) == held_out(origins + origins) == held_out(origins)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_of_few_groups_one_at_least_is_held_out_and_one_is_not(count):
    for source in range(200):
        origins = [f"{source}/{number}" for number in range(count)]
        assert 0 < len(held_out(origins)) < count


@pytest.mark.parametrize("origins", [[], ["own/0"], ["own/0", "own/0"]])
def test_one_group_is_not_split(origins):
    with pytest.raises(DataError) as caught:
        held_out(origins)
    assert caught.value.value == len(set(origins))
