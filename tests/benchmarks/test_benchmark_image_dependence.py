"""The benchmark of what it is worth that proposals depend on the image."""

from __future__ import annotations

import pytest
import torch
from image_dependence import argument_parser, given_weights, main, recorded_weights

from dynamic_sparse_rcnn.data.shapes import ShapesConfig, generate_shapes
from dynamic_sparse_rcnn.engine.trainer import Trainer

SIZES = [(64, 64), (48, 64)]


@pytest.fixture
def generator(tiny_dynamic_cfg):
    return Trainer.build_model(tiny_dynamic_cfg).eval().proposal_generator


def features_of(generator, images: int) -> dict[str, torch.Tensor]:
    channels = generator.expert_features.shape[2]
    return {
        name: torch.randn(images, channels, 64 // stride, 64 // stride)
        for name, stride in zip(generator.in_features, generator.router.strides, strict=True)
    }


def test_recorded_weights_are_those_that_the_generator_gives(generator):
    features = features_of(generator, 2)
    with recorded_weights(generator) as recorded, torch.no_grad():
        given = generator.expert_weights(features, SIZES)
    assert torch.equal(recorded[0], given)
    with torch.no_grad():
        assert torch.equal(generator.expert_weights(features, SIZES), given)


def test_given_weights_go_to_the_images_in_their_order_and_then_the_router_is_asked_again(generator):
    features = features_of(generator, 2)
    with torch.no_grad():
        own = generator.expert_weights(features, SIZES)
        weights = torch.rand(3, *own.shape[1:])
        with given_weights(generator, weights):
            assert torch.equal(generator.expert_weights(features, SIZES), weights[:2])
            assert torch.equal(generator.expert_weights(features, SIZES[:1]), weights[2:])
        assert torch.equal(generator.expert_weights(features, SIZES), own)


@pytest.mark.parametrize("num_experts", [1, 3])
def test_a_detector_whose_router_has_learned_nothing_has_one_ap(tiny_dynamic_cfg, tmp_path, capsys, num_experts):
    """With weights that are all alike; a detector of one expert has no other."""
    paths = generate_shapes(tmp_path, "val", ShapesConfig(num_images=4, image_size=64))
    cfg = tiny_dynamic_cfg
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (f"coco:{paths.json_path}:{paths.image_folder}",)
    cfg.MODEL.SparseRCNN.NUM_CLASSES, cfg.MODEL.SparseRCNN.DPG.NUM_EXPERTS = 5, num_experts
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = str(tmp_path), 0
    detector = Trainer.build_model(cfg)
    if num_experts > 1:
        torch.nn.init.zeros_(detector.proposal_generator.router.logits.weight)
    torch.save({"model": detector.state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    main(argument_parser().parse_args(["--config-file", str(tmp_path / "config.yaml"), str(tmp_path / "model.pth")]))
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[0].endswith("model.pth")
    assert row[1] == row[2] == row[3]
    assert float(row[4]) == pytest.approx(torch.tensor(float(num_experts)).log().item(), abs=1e-3)
    assert float(row[5]) == 0


def test_static_proposals_are_refused(tiny_cfg, tmp_path):
    tiny_cfg.MODEL.SparseRCNN.NUM_CLASSES = 3
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    with pytest.raises(SystemExit, match="static proposals, the same for every image"):
        main(argument_parser().parse_args(["--config-file", str(tmp_path / "config.yaml"), "none.pth"]))
