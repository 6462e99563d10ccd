"""``python -m dynamic_sparse_rcnn.cli``, which torchrun can start."""

from . import main

if __name__ == "__main__":
    raise SystemExit(main())
