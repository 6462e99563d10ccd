import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from dynamic_sparse_rcnn.visualization import method
from dynamic_sparse_rcnn.visualization.cascade import draw_assignment, draw_proposal_stages
from dynamic_sparse_rcnn.visualization.drawing import draw_boxes
from dynamic_sparse_rcnn.visualization.figures import draw_annotations, draw_detections_beside_ground_truth, image_grid

NAMES = ("circle", "square", "triangle")
GRAY = 90
CAPTION = 28  # pixels above every panel
GAP = 6


def gray_image(height: int = 400, width: int = 500) -> np.ndarray:
    return np.full((height, width, 3), GRAY, np.uint8)


def ground_truth(boxes: list[list[float]], classes: list[int]) -> Instances:
    instances = Instances((400, 500))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def detections(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Instances:
    instances = Instances((400, 500))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def split_panels(picture: np.ndarray, width: int, count: int) -> list[np.ndarray]:
    """The panels of a one-row picture without their captions."""
    assert picture.dtype == np.uint8 and picture.shape[1] == count * (width + GAP) - GAP
    return [picture[CAPTION:, i * (width + GAP) : i * (width + GAP) + width] for i in range(count)]


def changed(panel: np.ndarray) -> np.ndarray:
    return np.abs(panel.astype(int) - GRAY).max(axis=2) > 2


def border_distance(shape: tuple[int, ...], box: list[float]) -> np.ndarray:
    """(H,W) Chebyshev distance of every pixel centre from the outline of the box."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    outward = np.maximum(np.maximum(box[0] - x, x - box[2]), np.maximum(box[1] - y, y - box[3]))
    return np.abs(outward)


def test_boxes_are_drawn_on_their_outline_only_and_side_by_side():
    true_box, found_box = [60.0, 50.0, 220.0, 180.0], [280.0, 200.0, 450.0, 350.0]
    picture = draw_detections_beside_ground_truth(
        gray_image(), ground_truth([true_box], [1]), detections([found_box], [0.8], [1]), NAMES
    )
    panels = split_panels(picture, 500, 2)
    for panel, box in zip(panels, (true_box, found_box), strict=True):
        assert panel.shape == (400, 500, 3)
        distance = border_distance(panel.shape, box)
        label = np.zeros(panel.shape[:2], bool)
        label[int(box[1]) - 10 : int(box[1]) + 25, int(box[0]) - 10 : int(box[0]) + 120] = True
        assert changed(panel)[(distance < 1) & ~label].all()
        assert not changed(panel)[(distance > 4) & ~label].any()
        assert changed(panel)[label & (distance > 4)].any(), "the label is missing"


def test_a_class_has_one_color_in_both_panels_and_another_than_other_classes():
    first, second = [50.0, 50.0, 150.0, 150.0], [300.0, 200.0, 450.0, 350.0]
    picture = draw_detections_beside_ground_truth(
        gray_image(),
        ground_truth([first, second], [0, 2]),
        detections([first, second], [0.9, 0.6], [2, 0]),
        NAMES,
    )
    left, right = split_panels(picture, 500, 2)
    colors = [tuple(panel[y, x]) for panel in (left, right) for x, y in ((100, 150), (400, 350))]
    assert colors[0] == colors[3] and colors[1] == colors[2]
    assert colors[0] != colors[1]


def test_the_best_of_equal_boxes_is_the_one_that_is_seen():
    box = [50.0, 50.0, 150.0, 150.0]
    pictures = [
        draw_detections_beside_ground_truth(gray_image(), ground_truth([], []), detections(*found), NAMES)
        for found in (([box], [0.9], [2]), ([box] * 3, [0.9, 0.6, 0.4], [2, 0, 1]))
    ]
    alone, together = (split_panels(picture, 500, 2)[1][100, 150] for picture in pictures)
    assert tuple(alone) == tuple(together)


def test_detections_below_the_score_threshold_are_left_out():
    boxes = [[50.0, 50.0, 150.0, 150.0], [300.0, 200.0, 450.0, 350.0]]
    truth = ground_truth([], [])
    found = detections(boxes, [0.3, 0.29], [0, 0])
    picture = draw_detections_beside_ground_truth(gray_image(), truth, found, NAMES)
    right = changed(split_panels(picture, 500, 2)[1])
    kept, left_out = (border_distance(right.shape, box) < 1 for box in boxes)
    assert right[kept].mean() > 0.9
    assert not right[left_out].any()


def test_no_ground_truth_and_no_detection_leave_the_image_as_it_is():
    picture = draw_detections_beside_ground_truth(gray_image(), ground_truth([], []), detections([], [], []), NAMES)
    for panel in split_panels(picture, 500, 2):
        assert (panel == GRAY).all()


def test_small_images_are_enlarged_and_their_boxes_with_them():
    box = [32.0, 16.0, 96.0, 112.0]
    picture = draw_detections_beside_ground_truth(
        gray_image(128, 128), ground_truth([box], [0]), detections([], [], []), NAMES
    )
    panel, _ = split_panels(picture, 384, 2)
    assert changed(panel)[border_distance(panel.shape, [3 * side for side in box]) < 1].all()
    assert not changed(panel)[80:330, 110:280].any()


@pytest.mark.parametrize("index", [-1, 3])
def test_a_class_without_a_name_is_an_error(index):
    with pytest.raises(ValueError, match="no name"):
        draw_detections_beside_ground_truth(
            gray_image(), ground_truth([[1.0, 1.0, 9.0, 9.0]], [index]), detections([], [], []), NAMES
        )


def stages_of_three_proposals() -> torch.Tensor:
    """(3,3,4): three proposals that move to the right and grow, never touching each other."""
    start = torch.tensor([[30.0, 30, 80, 80], [30, 150, 80, 200], [30, 270, 80, 320]])
    step = torch.tensor([120.0, 0, 140, 20])
    return torch.stack([start + stage * step for stage in range(3)])


def test_a_highlighted_proposal_keeps_its_color_through_the_stages():
    boxes = stages_of_three_proposals()
    picture = draw_proposal_stages(gray_image(), boxes, torch.rand(2, 3), highlighted=[2, 0])
    panels = split_panels(picture, 500, 3)
    colors = {
        index: {
            tuple(panel[int(box[3]), int(box[0] + box[2]) // 2].tolist())
            for panel, box in zip(panels, boxes[:, index], strict=True)
        }
        for index in range(3)
    }
    assert all(len(seen) == 1 for seen in colors.values())
    assert len(set.union(*colors.values())) == 3
    red, green, blue = next(iter(colors[1]))
    assert red == green == blue, "a proposal that is not highlighted must be gray"


def test_proposals_are_drawn_on_their_outlines_only():
    boxes = stages_of_three_proposals()
    picture = draw_proposal_stages(gray_image(), boxes, torch.rand(2, 3), highlighted=[])
    for panel, proposals in zip(split_panels(picture, 500, 3), boxes.tolist(), strict=True):
        distance = np.min([border_distance(panel.shape, box) for box in proposals], axis=0)
        assert changed(panel)[distance < 1].all()
        assert not changed(panel)[distance > 4].any()


def test_seven_panels_of_six_stages_fill_two_rows():
    boxes = torch.rand(7, 5, 2).repeat(1, 1, 2) * 100
    boxes[..., 2:] += 50
    picture = draw_proposal_stages(gray_image(), boxes, torch.rand(6, 5), highlighted=[0])
    assert picture.shape == (2 * (400 + CAPTION + GAP) - GAP, 4 * (500 + GAP) - GAP, 3)


def test_grid_puts_images_in_reading_order_on_white():
    images = [np.full((10 + i, 20, 3), i, np.uint8) for i in range(3)]
    grid = image_grid(images, columns=2)
    assert grid.shape == (2 * 12 + GAP, 2 * 20 + GAP, 3)
    assert (grid[:10, :20] == 0).all()
    assert (grid[:11, 20 + GAP :] == 1).all()
    assert (grid[12 + GAP :, :20] == 2).all()
    assert (grid[10:12, :20] == 255).all() and (grid[12 + GAP :, 20 + GAP :] == 255).all()


def test_an_assignment_has_a_row_of_stages_and_the_color_of_the_ground_truth():
    truth = torch.tensor([[50.0, 50, 150, 150], [300, 200, 450, 350]])
    apart = truth + torch.tensor([0.0, 40, 0, 40])
    stage_boxes = torch.stack([apart, apart.flip(0)])
    picture = draw_assignment(gray_image(), truth, stage_boxes, torch.tensor([[0, -1], [-1, 0]]), "any")
    first, second = split_panels(picture, 500, 2)
    for panel in (first, second):
        assert tuple(panel[100, 150]) == tuple(panel[189, 100])  # ground truth 0 and its proposal
        assert tuple(panel[275, 300]) != tuple(panel[389, 400])  # ground truth 1, which has none


def test_grid_is_no_wider_than_its_images():
    assert image_grid([gray_image(8, 9)], columns=5).shape == (8, 9, 3)


@pytest.mark.parametrize(
    ("images", "columns"),
    [([], 2), ([gray_image()], 0), ([np.zeros((4, 4), np.uint8)], 1), ([np.zeros((4, 4, 3))], 1)],
)
def test_grid_refuses_what_is_not_a_list_of_images(images, columns):
    with pytest.raises(ValueError, match="image"):
        image_grid(images, columns)


def test_annotations_are_drawn_in_the_color_of_their_class_and_crowds_in_gray() -> None:
    annotations = Instances(
        (60, 80),
        gt_boxes=Boxes(torch.tensor([[10.0, 10, 30, 30], [40, 10, 70, 50]])),
        gt_classes=torch.tensor([0, 1]),
        gt_is_crowd=torch.tensor([False, True]),
    )
    picture = draw_annotations(np.zeros((60, 80, 3), np.uint8), annotations, ["a", "b"], "image", 4.0)
    assert picture.shape[1] == 320 and picture.shape[0] > 240
    panel = picture[-240:].astype(int)
    # The lower edges, away from the labels: the first box's color is red, the second's is gray.
    red, green, blue = panel[115:125, 60:100].reshape(-1, 3).max(0)
    assert red > 150 > green + 50 and red > blue + 50
    edge = panel[195:205, 200:260].reshape(-1, 3)
    brightest = edge[edge.sum(1).argmax()]
    assert brightest.min() > 100 and np.ptp(brightest) < 20
    with pytest.raises(ValueError, match="have no name"):
        draw_annotations(np.zeros((60, 80, 3), np.uint8), annotations, ["a"], "image", 4.0)


@pytest.mark.parametrize("opacity", [1.0, 0.25])
def test_boxes_of_low_opacity_let_the_image_show_through(opacity):
    picture = draw_boxes(gray_image(), np.array([[50.0, 60, 150, 160]]), [(255, 0, 0)], opacity=opacity)
    blended = [opacity * color + (1 - opacity) * GRAY for color in (255, 0, 0)]
    assert picture[160, 100].tolist() == pytest.approx(blended, abs=1)


@pytest.mark.parametrize("box", [[-1e9, -1e9, 1e9, 1e9], [float("nan")] * 4, [30, 30, 10, 10], [600, 10, 700, 50]])
def test_boxes_of_any_numbers_can_be_drawn(box):
    assert draw_boxes(gray_image(), np.array([box]), [(255, 0, 0)], ["label"]).shape == (400, 500, 3)


def test_images_of_16_bits_are_drawn_as_the_detector_sees_them(tiny_cfg, tmp_path, monkeypatch):
    pixels = np.full((48, 64), 100 * 256, np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), pixels)
    drawn = []
    monkeypatch.setattr(method, "draw_detections_beside_ground_truth", lambda image, *_: drawn.append(image))
    monkeypatch.setattr(method.MetadataCatalog.get("of 16 bits"), "thing_classes", NAMES, raising=False)
    tiny_cfg.DATASETS.TEST = ("of 16 bits",)
    record = {"file_name": str(tmp_path / "deep.png"), "height": 48, "width": 64, "annotations": []}
    method.visualize_detections(tiny_cfg, lambda _: [{"instances": detections([], [], [])}], record)
    assert drawn[0].tolist() == [[[100] * 3] * 64] * 48


def test_crowds_are_drawn_as_such_and_a_record_without_annotations_is_an_error(tiny_cfg, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((48, 64, 3), np.uint8))
    drawn = []
    monkeypatch.setattr(method, "draw_detections_beside_ground_truth", lambda _, truth, *rest: drawn.append(truth))
    monkeypatch.setattr(method.MetadataCatalog.get("with crowds"), "thing_classes", NAMES, raising=False)
    tiny_cfg.DATASETS.TEST = ("with crowds",)
    box = {"bbox": [1.0, 2.0, 9.0, 9.0], "bbox_mode": 0, "category_id": 0}
    record = {"file_name": str(tmp_path / "image.png"), "height": 48, "width": 64}

    def detector(_: object) -> list[dict[str, Instances]]:
        return [{"instances": detections([], [], [])}]

    method.visualize_detections(tiny_cfg, detector, record | {"annotations": [box, box | {"iscrowd": 1}]})
    assert drawn[0].gt_is_crowd.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"image\.png has no annotations to draw"):
        method.visualize_detections(tiny_cfg, detector, record)
