"""The page: what stands where, and what happens when something on it moves."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import gradio as gr

from ..data.images import read_image
from ..data.records import Record
from ..errors import describe
from ..modeling.proposals.dynamic import DynamicProposalGenerator
from ..prediction import Predictor
from ..prediction.sources import Frame
from ..visualization.drawing import Image
from .images import read_bounded
from .scene import Scene, find_matchers, look, require_stages

logger = logging.getLogger(__name__)

#: Detections, proposals, assignment, experts' boxes, experts' weights.
Figures = tuple["Image | None", "Image | None", "Image | None", "Image | None", "dict[str, float] | None"]
_NO_FIGURES: Figures = (None, None, None, None, None)
_KEPT_SECONDS = 3600


@contextmanager
def errors_shown() -> Iterator[None]:
    """Within, an error is shown on the page, and its stack trace in the log."""
    try:
        yield
    except Exception as error:
        logger.exception("The page shows an error:")
        raise gr.Error(describe(error), duration=None, print_exception=False) from error


class Page:
    """What the page's elements call.

    Args:
        predictor: whose detector is shown.
        records: annotated images to choose from, by name.
    """

    def __init__(self, predictor: Predictor, records: Mapping[str, Record]) -> None:
        self.predictor = predictor
        self.records = records
        detector = require_stages(predictor.model)
        self.matchers = list(find_matchers(detector))
        self.has_experts = isinstance(detector.proposal_generator, DynamicProposalGenerator)

    def look_at_file(self, path: str | None) -> tuple[Scene | None, None]:
        """Runs the detector on an upload, without one on nothing; and the empty choice of an annotated image."""
        with errors_shown():
            return (look(self.predictor, read_bounded(path)) if path else None), None

    def look_at_record(self, name: str) -> tuple[Scene, None]:
        """Runs the detector on an annotated image; and the empty upload."""
        with errors_shown():
            record = self.records[name]
            return look(self.predictor, Frame(name, read_image(record["file_name"], "RGB")), record), None

    def draw(self, scene: Scene | None, threshold: float, stage: float, matcher: str | None) -> Figures:
        """Draws what is shown of an image."""
        if scene is None:
            return _NO_FIGURES
        with errors_shown():
            return (
                scene.draw_detections(threshold),
                scene.draw_stage(int(stage), threshold),
                scene.draw_assignment(int(stage), str(matcher)),
                scene.draw_experts(threshold),
                scene.weigh_experts(threshold),
            )


def build(page: Page, title: str) -> gr.Blocks:
    """Lays the page out and connects its elements.

    Args:
        page: what they call.
        title: says which detector is shown.
    """
    stages = len(require_stages(page.predictor.model).head.head_series)
    has_records = bool(page.records)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as blocks:
        gr.Markdown(f"# {title}")
        scene = gr.State(None, time_to_live=_KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                upload = gr.Image(
                    label="Image", type="filepath", image_mode=None, sources=["upload", "webcam", "clipboard"]
                )
                choice = gr.Dropdown(list(page.records), value=None, label="Annotated images", visible=has_records)
                threshold = gr.Slider(0, 1, page.predictor.score_threshold, step=0.01, label="Score threshold")
                stage = gr.Slider(0, stages, stages, step=1, label="Stage (0: initial proposals)")
                first = next(iter(page.matchers), None)
                matcher = gr.Radio(page.matchers, value=first, label="Matcher", visible=has_records)
            with gr.Column(scale=2, min_width=320):
                figures = _add_figures(page)
        settings = [scene, threshold, stage, matcher]
        for source, look_at, other in ((upload, page.look_at_file, choice), (choice, page.look_at_record, upload)):
            looked = source.input(look_at, source, [scene, other], api_visibility="private")
            looked.success(page.draw, settings, figures, api_visibility="private")
        for setting in (threshold, stage, matcher):
            setting.change(
                page.draw,
                settings,
                figures,
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )
    return blocks


def _add_figures(page: Page) -> list[gr.Component]:
    """The elements that :meth:`Page.draw` fills, a tab each."""
    with gr.Tab("Detections"):
        detections = _figure("What the detector finds with at least this score.")
    with gr.Tab("Proposals"):
        proposals = _figure("The proposals after the stage. Those that become detections are in color.")
    with gr.Tab("Assignment", visible=bool(page.records and page.matchers)):
        assignment = _figure(
            "What the proposals learn at the stage. A proposal has the color of its object; gray ones learn to be "
            "background."
        )
    with gr.Tab("Experts", visible=page.has_experts):
        experts = _figure("Each expert's boxes, and last the initial proposals that are mixed from them.")
        weights = gr.Label(label="Mean weight of each expert in these proposals", show_heading=False)
    return [detections, proposals, assignment, experts, weights]


def _figure(text: str) -> gr.Image:
    gr.Markdown(text)
    return gr.Image(show_label=False, interactive=False, format="jpeg", buttons=["download", "fullscreen"])
