"""Texts from tables of records: a narration of every record, and some of its tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from trainer.corpora.science.draw import Draw
from trainer.corpora.science.narrate import narrate
from trainer.corpora.science.records import Table, groups
from trainer.corpora.science.tasks import Task, tasks

NARRATION = "narration"


@dataclass(frozen=True)
class Text:
    """One document. task: a prompt with one right answer; None for a narration."""

    origin: str  # the group of its records, which a corpus keeps in one split
    table: str
    key: str  # of the record that it was made for
    name: str
    form: str
    template: str
    text: str
    task: Task | None = None
    model: str = ""  # the model that wrote the reasoning before the answer, if any


def texts(source: str, tables: Sequence[Table], *, seed: int, tasks_per_record: int) -> Iterator[Text]:
    """The texts of all records of a source, group by group. A text is a pure function of its record, the records of the
    source and the seed; a task that repeats one of its group is left out. tasks_per_record: number of forms to use for
    each record, 0 to 4."""
    for group in groups(source, tables):
        seen: set[str] = set()
        for record in group.records:
            draw = Draw(str(seed), source, group.table.name, record.key, record.name)
            text, template = narrate(record, group.table, draw.part(NARRATION))
            whose = (group.origin, group.table.name, record.key, record.name)
            yield Text(*whose, NARRATION, template, text)
            for task in islice(tasks(record, group.table, group.records, draw), tasks_per_record):
                if task.text in seen:  # two records may be compared with the same others
                    continue
                seen.add(task.text)
                yield Text(*whose, task.form, task.template, task.text, task)
