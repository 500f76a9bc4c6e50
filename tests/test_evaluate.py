"""evaluate.py, run as a user runs it, on a lesson so small that its digits are none; the numbers are true anyway."""

import json
import signal
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import ROOT, TINY, call, finish, run_in_processes
from PIL import Image
from torchvision.datasets import MNIST

from utils.checkpoints.checkpoint import load_checkpoint
from utils.evaluation import classifier
from utils.system.files import locked


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """A tiny lesson on a folder of real digits in ten classes, and students of 4 and 2 steps."""
    folder = tmp_path_factory.mktemp("lesson")
    digits = MNIST(ROOT / "data", download=True)
    for i in range(600):
        image, label = digits[i]
        path = folder / f"{'training' if i < 400 else 'test'}/{label}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    data = f"name: folder, test_root: {folder / 'test'}"
    text = (TINY % (folder / "training")).replace("name: MNIST", data)
    (folder / "tiny.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(classifier, "FEWEST_STEPS", 30)
        assert call("train.py", "--config_path", "tiny.yaml") == 0
        flags = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--initial_sampling_steps", 4]
        assert call("distill.py", "--config_path", "tiny.yaml", *flags, "--distillation_iterations", 2) == 0
        yield folder


COMMAND = ["evaluate.py", "--config_path", "tiny.yaml", "--teacher", "output/tiny/diffusion-6.pt"]
STUDENTS = ["--students", "output/distilled/tiny", "--num_samples", 60]
ROWS = [
    "training images",
    "teacher, ddim, 4 steps",
    "teacher, ddim, 2 steps",
    "teacher, ancestral, 4 steps",
    "teacher, ancestral, 2 steps",
    "student, ddim, 4 steps",
    "student, ancestral, 4 steps",
    "student, ddim, 2 steps",
    "student, ancestral, 2 steps",
]


def test_a_table_a_figure_and_results_that_are_not_computed_again(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    monkeypatch.setattr("utils.evaluation.evaluation.NUM_COMPARED", 4)
    assert call(*COMMAND, *STUDENTS, "--sampling_steps", 2, 4, "--samplers", "ddim", "ancestral") == 0
    output = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(output) if line.split()[:2] == ["ratio", "fid"])
    table = output[head + 1 : head + 10]
    assert [line[:27].strip() for line in table] == ROWS
    folder = Path("output/evaluation/tiny")
    assert Image.open(folder / "fid.png").size == (910, 585)
    entries = json.loads((folder / "results.json").read_text())["evaluations"]
    assert len(entries) == 9
    best = min(entry["fid"] for entry in entries[1:5])
    for line, entry in zip(table, entries, strict=True):
        cells = line[27:].split()
        if entry["checkpoint"]:
            ratio = cells.pop(0)
            assert (
                ratio == "base"
                if entry["fid"] == best
                else float(ratio) == pytest.approx(entry["fid"] / best, abs=0.01)
            )
            assert entry["ms_per_sample"] > 0
        assert float(cells[0]) == pytest.approx(entry["fid"], rel=1e-3)
        assert len(entry["classes"]) == 10 and entry["num_samples"] == 60
    assert entries[0]["fid"] < entries[1]["fid"]
    assert entries[5]["checkpoint"] == "output/distilled/tiny/1_4/diffusion-4.pt"
    assert 0 < entries[5]["distance"] < 2 and entries[3]["distance"] is None

    before = (folder / "results.json").stat().st_mtime_ns
    monkeypatch.setattr(classifier, "train_classifier", None)
    assert call(*COMMAND, *STUDENTS, "--sampling_steps", 4, 2, "--samplers", "ddim", "ancestral") == 0
    assert "\n".join(table) in capsys.readouterr().out
    assert (folder / "results.json").stat().st_mtime_ns == before


def test_the_default_rows(lesson, monkeypatch, capsys):
    """DDIM at 32, 16, ..., 1 steps, the ancestral sampler, whose single step would be the same, at 32, 16, ..., 2.

    A further sampler has its rows here, too.
    """
    monkeypatch.chdir(lesson)
    monkeypatch.setattr("utils.evaluation.evaluation.NUM_COMPARED", 1)
    assert call(*COMMAND, "--output_dir", "default", "--num_samples", 2) == 0
    entries = json.loads(Path("default/results.json").read_text())["evaluations"]
    rows = [(entry["sampler"], entry["sampling_steps"]) for entry in entries[1:]]
    ddim = [("ddim", steps) for steps in (32, 16, 8, 4, 2, 1)]
    assert rows == ddim + [("ancestral", steps) for _, steps in ddim[:-1]]
    assert all(entry["variance"] == (0.0 if entry["sampler"] == "ancestral" else None) for entry in entries[1:])


def test_the_variance_is_that_of_the_configuration(lesson, monkeypatch, capsys):
    """Not that of the one that the teacher was trained with; and a sampler that is named twice is one row."""
    monkeypatch.chdir(lesson)
    text = Path("tiny.yaml").read_text().replace("sampling: {", "sampling: {variance: large, ")
    Path("large.yaml").write_text(text)
    flags = ["--samplers", "ancestral", "ancestral", "--sampling_steps", 2, "--output_dir", "large", "--num_samples", 2]
    assert call(COMMAND[0], "--config_path", "large.yaml", *COMMAND[3:], *flags) == 0
    entries = json.loads(Path("large/results.json").read_text())["evaluations"]
    assert [entry.get("variance") for entry in entries] == [None, 1.0]
    assert capsys.readouterr().out.count("teacher, ancestral, 2 steps: FID") == 1


def test_the_teacher_is_clipped_as_its_checkpoint_says_unless_a_flag_says_otherwise(lesson, monkeypatch):
    monkeypatch.chdir(lesson)
    text = Path("tiny.yaml").read_text().replace("sampling: {", "sampling: {clip: true, ")
    Path("clipped.yaml").write_text(text)
    command = [COMMAND[0], "--config_path", "clipped.yaml", *COMMAND[3:], "--samplers", "ancestral"]
    command += ["--sampling_steps", 2, "--output_dir", "clipped", "--num_samples", 2]
    assert call(*command) == call(*command, "--clip") == 0
    entries = json.loads(Path("clipped/results.json").read_text())["evaluations"]
    assert [entry.get("clip") for entry in entries] == [None, False, True]


def test_two_processes_find_what_one_finds(lesson, monkeypatch):
    """And to the last digit: all metrics see the same features in the same order."""
    monkeypatch.chdir(lesson)
    teacher = "output/distilled/tiny/1_4/diffusion-4.pt"  # a student: so the samples of `distance` are of four steps
    command = [*COMMAND[:-1], teacher, *STUDENTS, "--sampling_steps", 2, 4, "--samplers", "ddim", "--batch_size", 32]
    assert call(*command, "--output_dir", "one") == 0
    code, _, errors = finish(run_in_processes(2, *command, "--output_dir", "two", cwd=lesson))
    assert code == 0, errors
    one, two = (json.loads(Path(folder, "results.json").read_text())["evaluations"] for folder in ("one", "two"))
    for entry in (*one, *two):
        entry.pop("ms_per_sample", None)
    assert one == two


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_evaluation_continues(lesson, monkeypatch, capsys, signum):
    from utils.evaluation.evaluation import Evaluation

    monkeypatch.chdir(lesson)
    flags = ["--num_samples", 60, "--samplers", "ancestral", "--sampling_steps", 2, 4]
    command = [*COMMAND, *flags, "--output_dir", signum.name]
    sampler, drawn = Evaluation._sampler, []

    def interrupted(self, candidate):
        drawn.append(candidate)
        if len(drawn) == 2:
            signal.raise_signal(signum)
        return sampler(self, candidate)

    monkeypatch.setattr(Evaluation, "_sampler", interrupted)
    assert call(*command) == 128 + signum
    assert "interrupted; all written files are complete" in capsys.readouterr().err
    finished = len(json.loads(Path(signum.name, "results.json").read_text())["evaluations"])
    assert finished == 2
    assert call(*command) == 0
    entries = json.loads(Path(signum.name, "results.json").read_text())["evaluations"]
    assert len(entries) == 3 and len({json.dumps(entry) for entry in entries}) == 3


def test_a_precision_that_was_measured_once_is_kept(lesson, monkeypatch):
    monkeypatch.chdir(lesson)
    for sampling_steps, gains in ((2, True), (3, False)):
        monkeypatch.setattr("utils.checkpoints.compute.gains_by_bfloat16", lambda _, gains=gains: gains)
        flags = ["--num_samples", 20, "--samplers", "ancestral", "--sampling_steps", sampling_steps]
        assert call(*COMMAND, *flags, "--precision", "auto", "--output_dir", "kept") == 0
    entries = json.loads(Path("kept/results.json").read_text())["evaluations"]
    assert [entry.get("precision") for entry in entries] == [None, "bf16", "bf16"]


def test_inception_without_its_package(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    assert call(*COMMAND, "--features", "inception", "--num_samples", 10) == 2
    error = capsys.readouterr().err
    assert "--features inception: needs a package: pip install torch-fidelity" in error
    assert error.count("\n") == 1


def test_every_student_is_a_row_whatever_its_number_of_steps(lesson, monkeypatch, capsys):
    """Also those that are no power of two, or take more steps than the teacher is sampled with."""
    monkeypatch.chdir(lesson)
    monkeypatch.setattr("utils.evaluation.evaluation.NUM_COMPARED", 1)
    flags = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--initial_sampling_steps", 6]
    flags += ["--distillation_iterations", 2, "--output_dir", "threes"]
    assert call("distill.py", "--config_path", "tiny.yaml", *flags) == 0
    capsys.readouterr()
    flags = ["--students", "threes", "--num_samples", 20, "--sampling_steps", 2, "--samplers", "ddim"]
    assert call(*COMMAND, *flags, "--output_dir", "of_threes") == 0
    table = capsys.readouterr().out
    assert "student, ddim, 6 steps" in table and "student, ddim, 3 steps" in table
    assert call(*COMMAND, *flags, "--student_steps", 3, "--output_dir", "of_threes") == 0
    table = capsys.readouterr().out
    assert "student, ddim, 6 steps" not in table and "student, ddim, 3 steps" in table


def test_matched_students_are_rows_of_their_own_sampler(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    monkeypatch.setattr("utils.evaluation.evaluation.NUM_COMPARED", 1)
    flags = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--sampling_steps", 2]
    assert call("match.py", "--config_path", "tiny.yaml", *flags) == 0
    capsys.readouterr()
    student = next(Path("output/distilled/tiny").glob("*_2/diffusion-4.pt"))
    flags = ["--students", student, "output/matched/tiny", "output/matched/tiny", "--student_steps", 2]
    flags += ["--sampling_steps", 2, "--samplers", "ddim", "--num_samples", 20, "--output_dir", "of_matched"]
    assert call(*COMMAND, *flags) == 0
    table = capsys.readouterr().out.split("ratio", 1)[1]
    students = [line.split("  ")[0] for line in table.splitlines() if line.startswith(("student", "matched"))]
    assert students == ["student, ddim, 2 steps", "matched, ancestral, 2 steps"]


def test_a_teacher_that_is_a_student_is_drawn_at_its_own_number_and_every_scale_has_rows(lesson, monkeypatch):
    from evaluate import candidates_of

    monkeypatch.chdir(lesson)
    teacher = load_checkpoint(next(Path("output/distilled/tiny").glob("1_*/diffusion-4.pt")))
    own = teacher.sampling.steps

    def rows(**arguments) -> list[tuple[str, int, float]]:
        arguments = {"guidance": [1.0], "samplers": ["ddim"], "sampling_steps": None} | arguments
        candidates = candidates_of(Namespace(**arguments), teacher, [])[1:]
        return [(each.sampling.sampler, each.sampling.steps, each.guidance) for each in candidates]

    assert rows() == [("ddim", n, 1) for n in (own, own // 2, own // 4) if n]
    assert rows(samplers=["ancestral"], sampling_steps=[3], guidance=[1.0, 2.0]) == [
        ("ancestral", 3, 1),
        ("ancestral", 3, 2),
    ]


def test_two_evaluations_do_not_write_to_the_same_folder(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    with locked(Path("shared")):
        assert call(*COMMAND, "--num_samples", 10, "--output_dir", "shared") == 2
    assert "shared: another process is writing there" in capsys.readouterr().err
    assert not Path("shared/results.json").exists()


def test_one_test_image_is_no_set(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    for i, path in enumerate(list(Path("test").rglob("*.png"))[:4]):
        copy = Path("single" if i == 0 else "several", f"{i}.png")
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    text = Path("tiny.yaml").read_text().replace(str(lesson / "test"), str(lesson / "single"))
    Path("single.yaml").write_text(text.replace(str(lesson / "training"), str(lesson / "several")))
    command = ["evaluate.py", "--teacher", "output/tiny/diffusion-6.pt", "--num_samples", 3]
    assert call(*command, "--config_path", "single.yaml") == 2
    assert "data.test_root: one image is not enough to compare with" in capsys.readouterr().err
    assert not Path("output/evaluation/single").exists()
