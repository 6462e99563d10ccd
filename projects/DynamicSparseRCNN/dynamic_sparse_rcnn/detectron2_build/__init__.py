"""Builds and installs detectron2 0.6. Needs the standard library and pip alone: it runs before anything is there."""
