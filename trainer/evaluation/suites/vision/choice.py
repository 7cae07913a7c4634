"""Multiple choice over images: MicroVQA, MSEarth-MCQ and XLRS-Bench, as VLMEvalKit reads and scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, find_file, find_files
from trainer.evaluation.scorers import choices
from trainer.evaluation.suite import Item, Message, Scored, Suite, Summary, mean, mean_of
from trainer.evaluation.suites.tasks import listed, user, with_images
from trainer.evaluation.suites.vision import images

_LETTERS = "ABCDEFGHIJKLMNOP"


def options_of(row: Row) -> dict[str, str]:
    """The options in the columns A, B, C, ... up to the first that is missing or empty."""
    found = {}
    for letter in _LETTERS:
        if not (text := row.text(letter, missing="")):
            break
        found[letter] = text
    return found


def reader(name: str, wording: Callable[[Row, Mapping[str, str]], str]) -> Callable[[Path], Iterator[Item]]:
    """Reads one of VLMEvalKit's tables: index, image, question, A, B, ..., answer, and category where it has one."""

    def read(directory: Path) -> Iterator[Item]:
        path = find_file(directory, name)
        for row, paths in images.table(directory, path, "question", "A", "answer"):
            options = options_of(row)
            right = row.choice("answer", options)
            meta: dict[str, Any] = {"options": options}
            if category := row.text("category", missing=""):
                meta["category"] = category
            yield Item(row.name("index"), with_images(wording(row, options), *paths), right, meta)

    return read


def _hint(row: Row) -> str:
    hint = row.text("hint", missing="")
    return f"Hint: {hint}\n" if hint else ""


def _question(row: Row, options: Mapping[str, str]) -> str:
    question = f"Question: {row.text('question')}\nOptions:\n{listed(options)}"
    return f"{_hint(row)}{question}Answer with the letter of the right option."


def _caption(row: Row, options: Mapping[str, str]) -> str:
    return (
        f"A multiple-choice question about the image.\n\n{_hint(row)}Caption:\n {row.text('question')}\n"
        f"Options:\n{listed(options)}Choose by the image, with the letter or the text of the option, without more."
    )


def judge(item: Item, answer: str) -> list[Message] | None:
    """Asks which option an answer means, where the rules find none."""
    options = item.meta["options"]
    if choices.option(answer, options):
        return None
    return user(
        "Which option does the answer below mean? Reply with its letter alone, or with Z if it means none of them.\n\n"
        f"Options:\n{listed(options)}\nAnswer: {answer}"
    )


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    options = item.meta["options"]
    found = choices.option(answer, options) or (choices.option(verdict, options) if verdict else None)
    return {"correct": found == item.reference, "parsed": found is not None, "letter": found}


def read_xlrs(directory: Path) -> Iterator[Item]:
    """Rows of the parts' .jsonl or .tsv: index, image, question, `multi-choice options`, answer, two categories."""
    needed = ("question", "multi-choice options", "answer", "category", "l2-category")
    for path in find_files(directory, "XLRS-Bench*.jsonl", "XLRS-Bench*.tsv"):
        for row, paths in images.table(directory, path, *needed):
            right = row.text("answer")
            if set(right) - set("ABCDE"):
                raise row.wrong("answer", "letters A to E")
            meta = {"category": f"{row.text('category')}/{row.text('l2-category')}"}
            text = f"{row.text('question')}{row.text('multi-choice options')}"
            yield Item(f"{path.stem}/{row.name('index')}", with_images(text, *paths), right, meta)


def score_xlrs(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    found = choices.letters(answer)
    return {"correct": set(found) == set(item.reference), "parsed": found != ""}


def summarise_xlrs(scored: Sequence[Scored]) -> Summary:
    """The mean over the tasks (macro), with the mean over the questions (micro) beside it."""
    all_questions = mean_of("correct")(scored)
    tasks = list(all_questions.categories.values())
    return Summary(mean(tasks), {"micro": all_questions.value}, all_questions.categories)


_KIT = "VLMEvalKit: dataset/image_mcq.py, utils/matching_util.py"


def _with_judge(
    name: str, domain: str, file: str, reported: float, wording: Callable[[Row, Mapping[str, str]], str]
) -> Suite:
    """A suite of one of VLMEvalKit's tables, whose judge reads what the rules do not."""
    return Suite(
        name=name,
        domain=domain,
        metric="accuracy in per cent; a judge reads answers in which the rules find no option",
        metric_source=_KIT,
        where_data=images.where(file),
        reported=reported,
        read=reader(file, wording),
        score=score,
        summarise=mean_of("correct"),
        judge=judge,
        judge_needed=False,
        modalities=("image",),
    )


SUITES = (
    _with_judge("MicroVQA", "biology", "MicroVQA.tsv", 63.3, _question),
    _with_judge("MSEarth-MCQ", "earth science", "MSEarthMCQ.tsv", 65.2, _caption),
    Suite(
        name="XLRS-Bench",
        domain="earth science",
        metric="accuracy in per cent, averaged over the tasks; all right options and no other",
        metric_source="VLMEvalKit: dataset/image_mcq.py, XLRSBench",
        where_data="XLRS-Bench-lite_part0.jsonl to part14 (initiacms/XLRS-Bench-lite_VLM on Hugging Face)",
        reported=52.8,
        read=read_xlrs,
        score=score_xlrs,
        summarise=summarise_xlrs,
        modalities=("image",),
    ),
)
