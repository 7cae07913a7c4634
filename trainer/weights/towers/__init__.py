"""The towers of a checkpoint. `names`, `config` and `map` start without torch.

names    names and shapes that a config.json describes
config   config.json -> the towers of a ModelConfig
map      stored tensors <-> parts of the parameters of a `Multimodal`
trained  the towers that a run trains, in its source and in its exports
read     a directory as a `Multimodal`, and back to published names
"""
