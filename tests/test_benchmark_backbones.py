"""The benchmark of backbones: what it counts, on models whose counts are known."""

from __future__ import annotations

import timm
import torch
from backbones import CONFIGS, count_gflops, images_per_second, make_detector
