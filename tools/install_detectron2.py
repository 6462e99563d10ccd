#!/usr/bin/env python3
"""Installs detectron2 0.6; the same as ``dsrcnn install-detectron2``, before this package is installed.

python tools/install_detectron2.py --constraint constraints.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "projects/DynamicSparseRCNN"))

from dynamic_sparse_rcnn.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["install-detectron2", *sys.argv[1:]]))
