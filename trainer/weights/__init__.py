"""Hugging Face directories, in and out: the one place that knows their names, layouts and files.

    files        what tensors the safetensors files of a directory hold, and where; whether the files are whole
    names        which stored tensor is which part of which parameter of a `Decoder`
    towers       what the parts are made of that a text run does not train
    config       config.json <-> ModelConfig
    survey       a directory against what it should hold
    read         values and slices of them, FP8 included, into a model on any layout
    dtypes       what dtype each tensor is written in
    write        a stream of tensors into a new directory
    hashed_file  a file that is hashed while it is written
    carried      what a run keeps of the directory that it began with: the parts that it does not train

`files`, `names`, `towers`, `config` and `survey` start without torch.
"""
