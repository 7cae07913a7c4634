"""Everything in a Hugging Face directory beside its tensors and config.json.

side_files   files and directories that go with a model: tokenizer, templates, processors, code
tokenizer    the tokenizer that a run keeps of its corpora, and what an export makes of it
media        the rules by which a run's images and signals were prepared, and an export's statement of them
preprocessor the rule of images as transformers' processors have it
card         README.md of an export
config_keys  keys of config.json that other programs ask for
readers      which programs read a directory, by its keys and tensor names
"""
