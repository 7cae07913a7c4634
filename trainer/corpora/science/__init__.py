"""Science records as text: tables of measurements, as prose and as tasks.

`tables.builtin.SCIENCE` has sources like those of `trainer.corpora.packages`: their text is made from files of
installed packages, without importing them. The origin of a document is a group of records, and all texts about a record
have that origin.
"""
