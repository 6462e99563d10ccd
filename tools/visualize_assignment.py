#!/usr/bin/env python3
"""Draws which proposals of each stage learn from which ground truth: Hungarian matching beside DLA's transport.

Takes the images from ``DATASETS.TEST``. With ``MODEL.WEIGHTS ''``
the model is untrained. ``dsrcnn visualize assignment`` draws the same for a run.

    python tools/visualize_assignment.py --config-file configs/shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml \\
        --image 000001 MODEL.WEIGHTS output/demo/model_final.pth
"""

from __future__ import annotations

from dynamic_sparse_rcnn.cli.visualize import run_tool

if __name__ == "__main__":
    run_tool("assignment", __doc__)
