#!/usr/bin/env python3
"""Counts the parameters, FLOPs and activations of a detector by part; the same as ``dsrcnn analyze``.

python tools/analyze_model.py --config-file coco/dynamic_sparse_rcnn_R_50_FPN_300pro_3x.yaml --size 800 1216
"""

from __future__ import annotations

import sys

from dynamic_sparse_rcnn.cli import main

if __name__ == "__main__":
    # The config is positional there.
    arguments = [argument.removeprefix("--config-file=") for argument in sys.argv[1:] if argument != "--config-file"]
    raise SystemExit(main(["analyze", *arguments]))
