"""Objects followed through a video, by the ``trackers`` package's ByteTrack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .results import Prediction, to_supervision

# ByteTrack follows an object through frames in which its score falls so low.
_LOWEST_SCORE = 0.1


class Tracker:
    """Gives the detections in the frames of one video, in their order, ``track_ids``: -1 until a track is certain.

    Attributes:
        lowest_score: of the detections that :meth:`update` should be given.

    Raises:
        ImportError: ``trackers`` is not installed.
    """

    def __init__(self, frames_per_second: float | None, score_threshold: float) -> None:
        """
        Args:
            frames_per_second: of the video, or None where that is not known.
            score_threshold: of the detections that can start a track, and that :meth:`update` returns. Others only
                keep tracks alive.
        """
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ImportError(
                f"Tracking needs supervision and trackers ({error}): pip install 'dynamic-sparse-rcnn[supervision]'"
            ) from error
        self.lowest_score = min(_LOWEST_SCORE, score_threshold)
        self._score_threshold = score_threshold
        self._tracker = ByteTrackTracker(
            frame_rate=frames_per_second or 30.0,
            track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold,
        )

    def update(self, prediction: Prediction) -> Prediction:
        """The prediction of the next frame, with ``instances.track_ids``."""
        detections = to_supervision(prediction.instances, prediction.labels)
        detections.data["position"] = np.arange(len(detections))
        tracked = self._tracker.update(detections)
        ids = torch.full((len(prediction.instances),), -1, dtype=torch.int64)
        if len(tracked):
            ids[np.asarray(tracked.data["position"])] = torch.as_tensor(np.asarray(tracked.tracker_id)).long()
        instances = prediction.instances[:]
        instances.track_ids = ids
        return replace(prediction, instances=instances[instances.scores >= self._score_threshold])
