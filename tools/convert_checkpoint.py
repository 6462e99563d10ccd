#!/usr/bin/env python3
"""Converts a checkpoint; the same as ``dsrcnn convert``.

python tools/convert_checkpoint.py --config-file configs/coco/sparse_rcnn_R_50_FPN_300pro_3x.yaml \\
    mmdetection.pth sparse_rcnn.safetensors
"""

from __future__ import annotations

import sys

from dynamic_sparse_rcnn.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))
