"""A detector that is exported in seconds."""

from __future__ import annotations

from pathlib import Path

from small_runs import CONFIG


def one_stage_config(folder: Path) -> str:
    """The file of a config with ResNet-18 and one stage."""
    file = folder / "one_stage.yaml"
    file.write_text(f"_BASE_: {CONFIG}\nMODEL: {{SparseRCNN: {{NUM_HEADS: 1}}}}\n")
    return str(file)
