"""Hugging Face directories, in and out: the one place that knows their names, layouts and files.

    hf_files     the tensors of a directory's safetensors files, and where; reports files that are not whole
    map          stored tensors <-> parts of the parameters of a `Decoder`
    towers       the parts that a text run does not train: their names, and a `Multimodal` read with them
    config_json  what each key of a config.json means for the function of the weights
    hf_config    config.json <-> ModelConfig
    hf_survey    a directory against what it should hold
    hf_read      values and slices of them, FP8 included, into a model on any layout
    dtypes       the dtype that each tensor is written in
    hf_write     a stream of tensors into a new directory
    kept_source  the parts of the source directory that a run keeps because it does not train them
    opened       a source of tensors to export, opened and verified
    export       a training checkpoint as a Hugging Face directory

`hf_files`, `map`, `towers`, `hf_config` and `hf_survey` start without torch.
"""
