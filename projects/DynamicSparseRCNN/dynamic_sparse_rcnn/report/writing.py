"""Reports of runs as HTML files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..data.datasets import register_dataset
from ..errors import EXPECTED_ERRORS
from ..file_io import whole_file
from . import sections
from .detections import DetectionAnalysis, analyze_detections
from .page import Section, render
from .recorded import RESULTS, RecordedEvaluation, RecordedRun, read_run
from .sections import ReportedRun, next_commands

logger = logging.getLogger(__name__)


def write_report(run_folder: str | Path) -> Path:
    """Writes ``report.html`` into the folder of a run, whole or killed in the middle, and gives its path.

    Nothing is trained and no detector is run: the report is of what the run has logged and saved.

    Raises:
        FileNotFoundError: the run has left nothing to report.
    """
    return write_comparison([run_folder], Path(run_folder) / "report.html")


def write_comparison(run_folders: Sequence[str | Path], output: Path) -> Path:
    """Writes one report of several runs, laid over each other; of a single run the log tells how to go on.

    Args:
        run_folders: see :func:`write_report`.
        output: the file; gives its path back.

    Raises:
        FileNotFoundError: a run has left nothing to report.
    """
    recorded = [read_run(folder) for folder in run_folders]
    for run in recorded:
        if not (run.curves or run.evaluations):
            raise FileNotFoundError(
                f"{run.folder} has neither metrics.json nor inference/{RESULTS}: name the folder of a run that has "
                "logged something, or of an evaluation"
            )
    runs = [_analyze(name, run) for name, run in zip(_distinct_names(recorded), recorded, strict=True)]
    names = [one.name for one in runs]
    page = render(" and ".join(names) if len(names) > 1 else f"Run {names[0]}", build_sections(runs))
    with whole_file(output) as file:
        file.write(page.encode())
    if len(runs) == 1 and (commands := list(next_commands(runs[0]))):
        logger.info("\n  ".join(["Next commands:", *commands]))
    return output


def build_sections(runs: Sequence[ReportedRun]) -> list[Section]:
    """All that there is to report, in order."""
    datasets = list(dict.fromkeys(name for one in runs for name in one.analyses))
    return [
        sections.overview(runs),
        sections.training(runs),
        *(
            sections.detections("Detections" if len(datasets) == 1 else f"Detections {number}", name, runs)
            for number, name in enumerate(datasets, 1)
        ),
        sections.method(runs),
        sections.data(runs),
        sections.configuration(runs),
    ]


def _distinct_names(runs: Sequence[RecordedRun]) -> list[str]:
    """Those of their folders, or with the folders above where these are alike."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _analyze(name: str, run: RecordedRun) -> ReportedRun:
    analyses: dict[str, DetectionAnalysis] = {}
    roots: dict[str, str] = {}
    warnings = list(run.warnings)
    for evaluation in run.evaluations:
        try:
            json_file, roots[evaluation.dataset] = _find_truth(evaluation)
            analysis = analyze_detections(json_file, evaluation.results_file)
        except EXPECTED_ERRORS as error:
            warnings.append(
                f"the detections of {evaluation.results_file} are not reported: {str(error) or repr(error)}"
            )
            continue
        if analysis is None:
            warnings.append(f"the detector has found nothing on {evaluation.dataset}")
        else:
            analyses[evaluation.dataset] = analysis
    return ReportedRun(name, run, analyses, roots, warnings)


def _find_truth(evaluation: RecordedEvaluation) -> tuple[str, str]:
    """The COCO file that an evaluation was against, and what its images' names are relative to."""
    written = sorted(evaluation.results_file.parent.glob("*_coco_format.json"))
    if len(written) == 1:
        return str(written[0]), ""
    register_dataset(evaluation.dataset)
    metadata = MetadataCatalog.get(evaluation.dataset)
    if not metadata.get("json_file"):
        raise FileNotFoundError(
            f"their ground truth, *_coco_format.json, is not beside them, and {evaluation.dataset} has no COCO file"
        )
    return PathManager.get_local_path(metadata.json_file), metadata.get("image_root", "")
