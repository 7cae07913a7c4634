"""A checkpoint with more experts, made of one with fewer: copies of every expert in the groups of a grouped router.

    placement      what can be expanded, and which expert is a copy of which
    coactivation   cuts chosen by which experts are used together, and the counts that they are chosen by
    calibrate      these counts, of a text
    noise          what tells copies apart
    vocabulary     which row of the tables belongs to which token of another tokenizer
    rows           tables with their rows in that order
    describe       config.json, side files and warnings
    stream         all of an expanded model, as groups of tensors that are not made yet
    dryrun         a source of which only config.json is there
    journal        what is done of a directory, between two starts
    workers        processes that make its files
    engine         the directory

`placement`, `coactivation`, `vocabulary` and `dryrun` start without torch.
"""
