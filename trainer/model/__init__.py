"""Plain single-device modules of the Intern-S1 family: decoder, attention, positions, router, experts."""

from trainer.config.keys import ModelConfig
from trainer.model.decoder import Decoder

__all__ = ["Decoder", "ModelConfig"]
