"""What the build changes in detectron2 v0.6, and why.

v0.6 is from 2021. Each patch is needed by a current release of something that detectron2 builds on, or because there is
no compiled extension. Nothing else is changed.
"""

from __future__ import annotations

from dataclasses import dataclass

COMPILED_OPS = '''"""Stands in for detectron2's compiled extension, which this pure-Python build does not have."""


class CompiledOpUnavailable(AttributeError, NotImplementedError):
    """A compiled operator was used. An AttributeError too, so that hasattr() answers False."""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise CompiledOpUnavailable(
        f"detectron2._C.{name} is a compiled operator, and this detectron2 is a pure-Python build. "
        "Rotated boxes and deformable convolution need detectron2 built from source: "
        "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
    )
'''


class PatchError(ValueError):
    """A patch does not fit the file it is for."""


@dataclass(frozen=True)
class Patch:
    """Replaces `old`, which must occur exactly `count` times in `file`, by `new`."""

    file: str
    old: str
    new: str
    reason: str
    count: int = 1

    def apply(self, source: str) -> str:
        found = source.count(self.old)
        if found != self.count:
            raise PatchError(
                f"patch of {self.file} ({self.reason}) does not fit: expected {self.old!r} "
                f"{self.count} time(s), found {found}. The source is not the one the patches are for."
            )
        return source.replace(self.old, self.new)


CAFFE2 = "PyTorch no longer brings Caffe2"
AMP = "torch 2.4 deprecated torch.cuda.amp for torch.amp"
COMPILED = "a clear error, as for the other compiled operators"
NMS_ROTATED = "    from detectron2 import _C\n\n    return _C.nms_rotated"
NUMPY = "NumPy 1.24 removed the aliases of Python's own types"
PILLOW = "Pillow 10 removed the alias"
FAST_EVAL = "COCO evaluation is pycocotools' own: the fast one is compiled"
PKG_RESOURCES = "setuptools 82 dropped pkg_resources"

PATCHES = (
    Patch("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR", PILLOW),
    Patch("model_zoo/model_zoo.py", "import pkg_resources\n", "import importlib.resources\n", PKG_RESOURCES),
    Patch(
        "model_zoo/model_zoo.py",
        'pkg_resources.resource_filename(\n        "detectron2.model_zoo", os.path.join("configs", config_path)\n',
        'str(\n        importlib.resources.files("detectron2.model_zoo").joinpath("configs", config_path)\n',
        PKG_RESOURCES,
    ),
    Patch(
        "evaluation/coco_evaluation.py",
        "self._use_fast_impl = use_fast_impl",
        "self._use_fast_impl = False",
        FAST_EVAL,
    ),
    Patch(
        "evaluation/coco_evaluation.py",
        "(COCOeval_opt if use_fast_impl else COCOeval)(",
        "COCOeval(",
        FAST_EVAL,
    ),
    Patch("layers/nms.py", "    return torch.ops.detectron2.nms_rotated", NMS_ROTATED, COMPILED),
    Patch(
        "modeling/anchor_generator.py",
        "meshgrid(shifts_y, shifts_x)",
        'meshgrid(shifts_y, shifts_x, indexing="ij")',
        "torch warns that the default will change",
    ),
    Patch(
        "modeling/meta_arch/retinanet.py",
        "get_norm(norm, 1)",
        "get_norm(norm, 32)",
        "a GroupNorm of 32 groups can no longer be made for one channel (FCOS)",
    ),
    Patch("engine/train_loop.py", "torch.cuda.amp import GradScaler", "torch.amp import GradScaler", AMP),
    Patch("engine/train_loop.py", "torch.cuda.amp import autocast", "torch.amp import autocast", AMP),
    Patch("engine/train_loop.py", "with autocast():", 'with autocast("cuda"):', AMP),
    Patch("export/__init__.py", "from .api import *\n", "", CAFFE2),
    Patch("data/build.py", "np.int\n", "int\n", NUMPY),
    Patch("data/build.py", "np.int)", "int)", NUMPY),
    Patch("data/datasets/pascal_voc.py", "np.str)", "str)", NUMPY),
    Patch("evaluation/pascal_voc_evaluation.py", "np.bool)", "bool)", NUMPY, 2),
    Patch("evaluation/sem_seg_evaluation.py", "np.int)", "int)", NUMPY, 2),
    Patch("evaluation/sem_seg_evaluation.py", "np.float)", "float)", NUMPY, 5),
    Patch("structures/masks.py", "np.bool)", "bool)", NUMPY, 3),
    Patch(
        "utils/visualizer.py",
        "return modified_color",
        "return tuple(np.clip(modified_color, 0.0, 1.0))",
        "rounding in colorsys leaves the range 0 to 1 by a little, and matplotlib refuses such colours",
    ),
    Patch("utils/visualizer.py", "np.bool)", "bool)", NUMPY, 3),
    Patch("utils/video_visualizer.py", "np.bool)", "bool)", NUMPY),
)
