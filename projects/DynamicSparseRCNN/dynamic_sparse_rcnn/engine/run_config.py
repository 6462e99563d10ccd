"""The config that a run keeps in its folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig
from detectron2.engine import default_setup
from detectron2.utils import comm


def set_up(cfg: Any, args: argparse.Namespace, output_dir: str) -> None:
    """detectron2's ``default_setup``, but the ``config.yaml`` of a run that has checkpoints stays what it is.

    An evaluation is not the run; and whether a run can go on with another config shows when its checkpoint has been
    loaded, after which :func:`save_config` writes it.

    Args:
        cfg: of either kind.
        args: detectron2's command line.
        output_dir: the run's folder.
    """
    file = Path(output_dir) / "config.yaml"
    is_of_a_run = args.eval_only or getattr(args, "resume", False)
    has_checkpoints = (file.parent / "last_checkpoint").is_file()
    keeps = comm.is_main_process() and is_of_a_run and has_checkpoints and file.is_file()
    kept = file.read_bytes() if keeps else None
    try:
        default_setup(cfg, args)
    finally:
        if kept is not None:
            file.write_bytes(kept)


def save_config(cfg: Any, output_dir: str) -> None:
    """Writes ``config.yaml``, in the main process."""
    if comm.is_main_process():
        file = Path(output_dir) / "config.yaml"
        if isinstance(cfg, CfgNode):
            file.write_text(cfg.dump())
        else:
            LazyConfig.save(cfg, str(file))
