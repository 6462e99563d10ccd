"""From a checkpoint to a file that runs without this package, and back to detections."""
