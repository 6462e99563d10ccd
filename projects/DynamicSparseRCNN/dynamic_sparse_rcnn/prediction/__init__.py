"""From images to detections, without a data set."""

from .predictor import Prediction, Predictor
from .sources import Frame, FrameSource, open_source

__all__ = ["Frame", "FrameSource", "Prediction", "Predictor", "open_source"]
