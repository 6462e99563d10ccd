"""What is installed: the package, its registrations, and the configs that travel with it."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY

import dynamic_sparse_rcnn
from dynamic_sparse_rcnn import CRITERION_REGISTRY, MATCHER_REGISTRY, add_dynamic_sparse_rcnn_config
from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml"))


def test_importing_the_package_registers_its_parts():
    assert META_ARCH_REGISTRY.get("SparseRCNN") is dynamic_sparse_rcnn.SparseRCNN
    assert META_ARCH_REGISTRY.get("DynamicSparseRCNN") is dynamic_sparse_rcnn.DynamicSparseRCNN
    assert PROPOSAL_GENERATOR_REGISTRY.get("LearnedProposalGenerator")
    assert PROPOSAL_GENERATOR_REGISTRY.get("DynamicProposalGenerator")
    assert BACKBONE_REGISTRY.get("build_timm_fpn_backbone")
    assert BACKBONE_REGISTRY.get("build_vit_sfp_backbone")
    assert CRITERION_REGISTRY.get("SetCriterion")
    assert MATCHER_REGISTRY.get("HungarianMatcher")


IMPORTS = """
import sys
sys.modules["timm"] = None  # as if it were not installed
import dynamic_sparse_rcnn
assert not {"torch", "detectron2", "numpy"} & sys.modules.keys()
dynamic_sparse_rcnn.Matcher
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
META_ARCH_REGISTRY.get("SparseRCNN")
from dynamic_sparse_rcnn import Predictor, SparseRCNN, add_dynamic_sparse_rcnn_config, model_zoo
assert "matplotlib" not in sys.modules
from detectron2.config import get_cfg
cfg = get_cfg()
add_dynamic_sparse_rcnn_config(cfg)
cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
build_backbone(cfg)
"""
KEYS = """
from detectron2.config import get_cfg
from dynamic_sparse_rcnn.config import add_dynamic_sparse_rcnn_config
add_dynamic_sparse_rcnn_config(get_cfg())
from detectron2.modeling import META_ARCH_REGISTRY
META_ARCH_REGISTRY.get("SparseRCNN")
"""


def test_an_import_loads_no_more_than_it_needs_and_a_public_name_registers_all_parts():
    ran = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert "ImportError: this MODEL.BACKBONE.NAME needs timm: pip install" in ran.stderr.splitlines()[-1], ran.stderr


def test_the_keys_register_all_parts():
    subprocess.run([sys.executable, "-c", KEYS], check=True)


def test_unknown_names_are_attribute_errors():
    assert not hasattr(dynamic_sparse_rcnn, "nothing_of_that_name")


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_loads(config):
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(ROOT / config))
    expected = "DynamicSparseRCNN" if Path(config).name.startswith("dynamic_") else "SparseRCNN"
    assert expected == cfg.MODEL.META_ARCHITECTURE


def test_every_key_of_the_public_sparse_rcnn_is_known():
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    model = (
        "NUM_CLASSES NUM_PROPOSALS NHEADS DROPOUT DIM_FEEDFORWARD ACTIVATION HIDDEN_DIM NUM_CLS NUM_REG NUM_HEADS "
        "NUM_DYNAMIC DIM_DYNAMIC CLASS_WEIGHT GIOU_WEIGHT L1_WEIGHT DEEP_SUPERVISION NO_OBJECT_WEIGHT USE_FOCAL "
        "ALPHA GAMMA PRIOR_PROB"
    )
    assert set(model.split()) <= cfg.MODEL.SparseRCNN.keys()
    assert {"OPTIMIZER", "BACKBONE_MULTIPLIER"} <= cfg.SOLVER.keys()


@pytest.mark.parametrize(
    ("depth", "proposals", "crop"), [(50, 100, False), (50, 300, True), (101, 100, False), (101, 300, True)]
)
def test_coco_configs_hold_the_published_recipe(depth, proposals, crop):
    cfg = get_cfg()
    add_dynamic_sparse_rcnn_config(cfg)
    cfg.merge_from_file(str(ROOT / f"configs/coco/sparse_rcnn_R_{depth}_FPN_{proposals}pro_3x.yaml"))
    assert (depth, proposals) == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.SparseRCNN.NUM_PROPOSALS)
    assert cfg.MODEL.WEIGHTS.endswith(f"R-{depth}.pkl")
    assert crop == cfg.INPUT.CROP.ENABLED
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.WEIGHT_DECAY) == (16, 2.5e-5, 1e-4)
    assert (solver.STEPS, solver.MAX_ITER, solver.WARMUP_ITERS) == ((210000, 250000), 270000, 1000)
    assert (solver.CLIP_GRADIENTS.CLIP_TYPE, solver.CLIP_GRADIENTS.CLIP_VALUE) == ("full_model", 1.0)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built in a copy: setuptools leaves its traces beside setup.py."""
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.splitlines():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_has_the_package_and_all_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (scripts,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert "dsrcnn = dynamic_sparse_rcnn.cli:main" in scripts
    assert f"dynamic_sparse_rcnn-{dynamic_sparse_rcnn.__version__}" in wheel.name
    assert {f"dynamic_sparse_rcnn/{config}" for config in CONFIGS} <= names
    package = Path(dynamic_sparse_rcnn.__file__).parent
    files = [*package.rglob("*.py"), *package.glob("released/*"), package / "py.typed", package / "report/page.html"]
    assert {f"dynamic_sparse_rcnn/{file.relative_to(package)}" for file in files} <= names
    assert not [name for name in names if name.startswith(("tests", "tools", "configs"))]


@pytest.fixture
def dsrcnn(wheel, tmp_path, monkeypatch) -> Callable[..., str]:
    """Runs the wheel's command, in an environment without the checkout, and from another folder; gives its output.

    The packages that it needs are those of this environment: only what is installed from the wheel is new.
    """
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # Of a folder that a .pth file names, other .pth files are not read: editable installations are not seen.
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, str(wheel)], check=True)
    where = [str(python), "-c", "import dynamic_sparse_rcnn; print(dynamic_sparse_rcnn.__file__)"]
    assert subprocess.run(where, capture_output=True, text=True, check=True).stdout.startswith(str(site))

    def run(*arguments: str) -> str:
        result = subprocess.run([str(python.with_name("dsrcnn")), *arguments], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.slow
def test_the_wheel_alone_predicts_trains_and_reports(dsrcnn, tmp_path):
    data = generate_shapes(tmp_path / "photos", "train", ShapesConfig(num_images=4)).json_path.parent
    generate_shapes(data, "val", ShapesConfig(num_images=2))
    image = str(next((data / "val").iterdir()))
    assert "there already: kept" in dsrcnn("install-detectron2")
    assert "detections in 1 images" in dsrcnn("predict", image, "--device", "cpu")
    config = ["--config-file", "shapes/dynamic_sparse_rcnn_slim_R_50_FPN_20pro.yaml"]
    options = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]
    trained = dsrcnn("train", "--data", str(data), "--output", "run", *config, *options)
    assert re.fullmatch(r"bbox AP \S+ AP50 \S+ AP75 \S+", trained.splitlines()[-1])
    dsrcnn("report", "run", "--output", "report.html")
    assert "<svg" in Path("report.html").read_text(encoding="utf-8")


def test_citation_and_changelog_are_of_this_version():
    version = dynamic_sparse_rcnn.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
