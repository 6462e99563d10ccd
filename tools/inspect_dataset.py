#!/usr/bin/env python3
"""Shows what is in data sets before a training; the same as ``dsrcnn inspect``.

python tools/inspect_dataset.py coco:data/train.json:data/images coco:data/val.json:data/images
"""

from __future__ import annotations

import sys

from dynamic_sparse_rcnn.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["inspect", *sys.argv[1:]]))
