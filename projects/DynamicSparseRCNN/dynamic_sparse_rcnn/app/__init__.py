"""A page to try a detector on, in a browser on the same machine."""
