"""Detectors with backbones of three families learn: on images never seen, the longer the better."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.modeling import build_model
from timm_configs import use_timm, use_vit

from dynamic_sparse_rcnn.data.shapes import ShapesConfig
from dynamic_sparse_rcnn.engine.solver import build_optimizer
