"""The stateless mixture: the source and window of every sample number, as a pure function of the configuration.

Nothing is imported here. What a recipe may ask for is in `trainer.config.mixture`.
"""
