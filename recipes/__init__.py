"""The Hydra tree of configurations: YAML only. Hydra finds a folder of a package by its `__init__.py`."""
