"""Checkpoints: reading them safely, writing them whole, names of other projects, released ones and those of runs."""

from .files import read_checkpoint, write_checkpoint
from .names import convert_state_dict

__all__ = ["convert_state_dict", "read_checkpoint", "write_checkpoint"]
