"""From a checkpoint to a file that runs without PyTorch, and back to detections."""
