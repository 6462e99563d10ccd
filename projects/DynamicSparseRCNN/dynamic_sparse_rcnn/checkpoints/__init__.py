"""Checkpoint files: reading them safely, writing them whole, and those of other projects."""

from .convert import convert_state_dict
from .files import read_checkpoint, write_checkpoint

__all__ = ["convert_state_dict", "read_checkpoint", "write_checkpoint"]
