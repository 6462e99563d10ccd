"""The ablation tool: plans, what a run leaves behind, the table."""

from __future__ import annotations

import json
import sys

import ablate
import pytest
import yaml

PRINTED = """
[11/21 10:00:00 d2.evaluation.testing]: copypaste: Task: proposals
[11/21 10:00:00 d2.evaluation.testing]: copypaste: recall50,weight_entropy
[11/21 10:00:00 d2.evaluation.testing]: copypaste: 46.3000,1.3000
[11/21 10:00:00 d2.evaluation.testing]: copypaste: Task: bbox
[11/21 10:00:00 d2.evaluation.testing]: copypaste: AP,AP50,AP75,APs,APm,APl
[11/21 10:00:00 d2.evaluation.testing]: copypaste: 41.1000,54.9000,49.9000,1.0000,2.0000,nan
"""

# Stands in for tools/train_net.py: the AP is the seed, ten times that without NMS.
FAKE_TRAIN_NET = """
import sys
arguments = sys.argv[1:]
value = dict(zip(arguments, arguments[1:]))
if value["SEED"] == "13":
    sys.exit("unlucky")
ap = float(value["SEED"]) * (10 if value.get("NMS") == "off" else 1)
if "RetinaNet" not in arguments:
    print("copypaste: Task: proposals")
    print("copypaste: recall50")
    print(f"copypaste: {ap + 3}")
print("copypaste: Task: bbox")
print("copypaste: AP,AP50,AP75")
print(f"copypaste: {ap},{ap + 1},{ap + 2}")
if "--eval-only" in arguments:
    open(value["MODEL.WEIGHTS"])
else:
    open(value["OUTPUT_DIR"] + "/model_final.pth", "w")
    factor = 1 if "MODEL.KEY" in arguments else 0.5
    with open(value["OUTPUT_DIR"] + "/metrics.json", "a") as file:
        file.write('{"iteration": 99, "total_loss": 1.0, "time": 1.8}\\n')
        for iteration in (49, 100):
            ap = float(value["SEED"]) * min(iteration, 99) * factor
            file.write(f'{{"iteration": {iteration}, "bbox/AP": {ap}}}\\n')
"""


@pytest.fixture
def run_plan(tmp_path, monkeypatch, capsys):
    """Runs a plan with the stand-in, and gives the rows of the table, without its head."""
    fake = tmp_path / "train_net.py"
    fake.write_text(FAKE_TRAIN_NET)
    monkeypatch.setattr(ablate, "TRAIN_NET", fake)
    # The tool sets the number of threads for the runs that it starts.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(seeds: list[int], *flags: str, common: tuple = (), reference: str = "") -> list[str]:
        plan = {
            "reference": reference,
            "config": "some.yaml",
            "seeds": seeds,
            "common": list(common),
            "variants": {"plain": [], "other": ["MODEL.KEY", 1]},
            "evaluations": {"NMS": [], "no NMS": ["NMS", "off"]},
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        arguments = ["ablate.py", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out"), *flags]
        monkeypatch.setattr(sys, "argv", arguments)
        ablate.main()
        return capsys.readouterr().out.splitlines()[2:]

    return run


def test_the_metrics_are_the_boxes_of_the_last_evaluation_printed(tmp_path):
    earlier, other = PRINTED.replace("41.1", "1.0"), PRINTED.replace("bbox", "voc2012").replace("41.1", "2.0")
    (tmp_path / "stdout.txt").write_text(other + earlier + PRINTED + other)
    metrics = ablate.read_metrics(tmp_path)
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "recall50")] == [41.1, 54.9, 49.9, 46.3]


@pytest.mark.parametrize("flags", [(), ("--jobs", "3")])
def test_the_table_has_mean_and_sample_deviation_of_each_variant_and_evaluation(run_plan, tmp_path, flags):
    rows = run_plan([1, 2, 6], *flags)
    assert [row.split("  ")[0] for row in rows] == ["plain", "plain", "other", "other"]
    assert "3.0 ± 2.6" in rows[0] and "4.0 ± 2.6" in rows[0] and "6.0 ± 2.6" in rows[0]
    assert "30.0 ± 26.5" in rows[1]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["other, seed 6"]["metrics"]["no NMS"]["AP"] == 60


def test_one_seed_has_no_spread(run_plan):
    assert "±" not in "".join(run_plan([3]))


def test_finished_runs_are_not_repeated_and_those_of_other_settings_are_refused(run_plan, tmp_path, capsys):
    first = run_plan([1, 2])
    (tmp_path / "train_net.py").write_text("raise SystemExit('must not run')")
    assert run_plan([1, 2]) == first
    with pytest.raises(SystemExit):
        run_plan([1, 2], common=("SOLVER.MAX_ITER", 5))
    assert "evaluations.json is of other settings" in capsys.readouterr().err


def test_finished_runs_keep_no_checkpoints(run_plan, tmp_path):
    run_plan([1, 2])
    left = {path.name for path in (tmp_path / "out/plain, seed 1").iterdir()}
    assert left == {"metrics.json", "evaluations.json", "stdout.txt", "NMS", "no NMS"}


def test_a_run_that_fails_ends_it_and_names_its_output(run_plan, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_plan([13, 1])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the run failed, its output is in")
    assert "unlucky" in (tmp_path / "out/plain, seed 13/stdout.txt").read_text()


def test_curves_tell_when_the_reference_is_reached(run_plan, tmp_path):
    # The other reaches 49.5 and 99, what the reference has after 100 iterations, after 100 and 50: their mean is 74.25.
    rows = run_plan([1, 2], reference="plain")
    assert [row.split("  ")[-1].strip() for row in rows[::2]] == ["100 (1 of 2)", "75 ± 35"]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["plain, seed 1"]["curve"] == [[50, 24.5], [100, 49.5]]
    assert "75 ± 35" in (tmp_path / "out/table.txt").read_text()


def test_minutes_are_those_of_the_iterations(run_plan, tmp_path):
    # A hundred of 1.8 seconds.
    assert [row.split()[-1] for row in run_plan([1, 2])[::2]] == ["0.0", "0.0"]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["plain, seed 1"]["minutes"] == pytest.approx(3)


def test_a_detector_without_initial_proposals_has_a_dash_for_them(run_plan):
    rows = run_plan([1], common=("NAME", "RetinaNet"))
    # Before the minutes, which only a variant's first row has.
    assert [row.split()[position] for row, position in zip(rows, (-2, -1, -2, -1), strict=True)] == ["-"] * 4


def test_results_of_another_data_folder_are_not_reused(run_plan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ("DATASETS.TRAIN", "('coco:{data}/train.json',)")
    first = run_plan([1], "--data", "one", common=names)
    (tmp_path / "train_net.py").write_text("raise SystemExit('nothing is left to run')")
    assert run_plan([1], "--data", str(tmp_path / "one"), common=names) == first
    with pytest.raises(SystemExit):
        run_plan([1], "--data", "other", common=names)
    assert "is of other settings than the plan's" in capsys.readouterr().err


def test_a_plan_that_names_no_data_folder_has_the_same_results_with_any(run_plan, tmp_path):
    first = run_plan([1], "--data", "one")
    (tmp_path / "train_net.py").write_text("raise SystemExit('nothing is left to run')")
    assert run_plan([1], "--data", "other") == first


def test_runs_get_the_folder_of_the_data(run_plan, tmp_path, monkeypatch):
    (tmp_path / "train_net.py").write_text(FAKE_TRAIN_NET + "print('training on', value['DATASETS.TRAIN'])")
    monkeypatch.setenv("DATA", "from environment")
    for flags, folder in (((), "from environment"), (("--data", "from option"), "from option")):
        seed = len(folder)
        run_plan([seed], *flags, common=("DATASETS.TRAIN", "('coco:{data}/train.json',)"))
        printed = (tmp_path / f"out/plain, seed {seed}/stdout.txt").read_text()
        assert f"training on ('coco:{folder}/train.json',)" in printed


def test_files_of_a_plan_are_merged(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("{config: a.yaml, seeds: [1], common: [A, 1]}")
    second.write_text("{seeds: [2], common: [B, 2], variants: {one: []}, evaluations: {two: []}}")
    plan = ablate.read_plan([first, second])
    assert (plan.config, plan.seeds, plan.common, plan.variants) == ("a.yaml", [2], ["A", 1, "B", 2], {"one": []})


@pytest.mark.parametrize(
    ("plan", "wrong"),
    [
        ("{config: a.yaml, seeds: [], variants: {one: []}, evaluations: {one: []}}", "keys: seeds. "),
        ("{config: a.yaml, seeds: [1], variant: {one: []}, evaluations: {one: []}}", "keys: variant, variants. "),
        ("", "keys: config, evaluations, seeds, variants. "),
        (
            "{config: a.yaml, seeds: [1], reference: two, variants: {one: []}, evaluations: {one: []}}",
            "the reference 'two' is none of the variants",
        ),
    ],
)
def test_what_is_wrong_with_a_plan_is_named(tmp_path, plan, wrong):
    path = tmp_path / "plan.yaml"
    path.write_text(plan)
    with pytest.raises(ValueError, match=f"plan.yaml: .*{wrong}"):
        ablate.read_plan([path])
