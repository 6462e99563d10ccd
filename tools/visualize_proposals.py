#!/usr/bin/env python3
"""Draws how dynamic proposals are mixed: each expert's boxes beside the boxes mixed from them, a row an image.

Takes the images from ``DATASETS.TEST``, and draws the proposals that differ most among them. With ``MODEL.WEIGHTS ''``
the model is untrained. ``dsrcnn visualize proposals`` draws the same for a run.

    python tools/visualize_proposals.py --config-file configs/shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml \\
        --image 000001 --image 000002 MODEL.WEIGHTS output/demo/model_final.pth
"""

from __future__ import annotations

from dynamic_sparse_rcnn.cli.visualize import run_tool

if __name__ == "__main__":
    run_tool("proposals", __doc__)
