"""Make a checkpoint with more experts from one with fewer: copies of every expert in the groups of a grouped router.

    placement      possible expansions, and the source of every copy of an expert
    coactivation   counts of experts that are used together, and cuts chosen by them
    calibrate      counting on a text
    noise          the noise that makes copies differ
    vocabulary     rows of the tables for the tokens of another tokenizer
    rows           the tables with their rows in that order
    describe       config.json, side files and warnings
    stream         the expanded model as groups of tensors, made one group at a time
    dryrun         a source that has only its config.json
    journal        finished files of a directory, kept between two starts
    engine         the directory, written by the processes of storage.workers

`placement`, `coactivation`, `vocabulary` and `dryrun` start without torch.
"""
