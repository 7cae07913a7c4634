"""Science records as text: tables of what was measured, told in prose and asked in tasks.

`SCIENCE` are sources like those of `trainer.corpora.packages`: their text is made of what installed packages hold,
without importing them. Each document's origin is a group of records; all that is ever said of a record has that one
origin.
"""

from trainer.corpora.science.tables.builtin import SCIENCE

__all__ = ["SCIENCE"]
