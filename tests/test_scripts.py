"""The scripts, run as a user runs them, on real MNIST images, in small."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, call, run_script
from PIL import Image

import sample
from utils.system.files import locked


def kill_once_there(path: Path, script: str, *arguments: object, cwd: Path) -> None:
    """Starts a script and kills it, with no chance to clean up, as soon as it has written a file."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the script ended before it could be killed"


def contents(path: Path) -> dict:
    """What a file of torch.save holds, as nested dictionaries of lists and tensors; but for where the teacher lay."""
    content = torch.load(path, weights_only=True)
    content.get("identity", {}).pop("parent_path", None)
    return content


def assert_same(one: object, other: object) -> None:
    """Equality bit for bit of nested dictionaries and lists of tensors."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture
def small_steps(tiny: Path) -> Path:
    """The tiny lesson with many steps, so that there is time to kill it."""
    text = tiny.read_text().replace("num_training_steps: 6", "num_training_steps: 150")
    text = text.replace("num_training_steps_per_iteration: 4", "num_training_steps_per_iteration: 100")
    tiny.write_text(text.replace("save_and_sample_every_n: 2", "save_and_sample_every_n: 50"))
    return tiny


def test_the_lesson_killed_and_continued_is_the_lesson_undisturbed(small_steps, tmp_path):
    """Train, distill twice, sample; both trainings killed with SIGKILL and continued with the same command."""
    config = ["--config_path", small_steps]
    kill_once_there(tmp_path / "output/tiny/training_state.pt", "train.py", *config, cwd=tmp_path)
    assert not (tmp_path / "output/tiny/diffusion-150.pt").exists()
    continued = run_script("train.py", *config, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert "from step 50" in continued.stdout or "from step 100" in continued.stdout
    assert call("train.py", *config, "--output_dir", tmp_path / "undisturbed") == 0
    for name in ("training_state.pt", "diffusion-150.pt"):
        assert_same(contents(tmp_path / "output/tiny" / name), contents(tmp_path / "undisturbed" / name))
    lines = [json.loads(x) for x in (tmp_path / "output/tiny/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 151))

    teacher = tmp_path / "output/tiny/diffusion-150.pt"
    flags = ["--teacher_model_checkpoint", teacher, "--initial_sampling_steps", 4, "--distillation_iterations", 2]
    students = tmp_path / "output/distilled/tiny"
    kill_once_there(students / "2_2/training_state.pt", "distill.py", *config, *flags, cwd=tmp_path)
    continued = run_script("distill.py", *config, *flags, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert f"{Path('output/distilled/tiny/1_4')}: finished, all 100 training steps" in continued.stdout
    assert call("distill.py", *config, *flags, "--output_dir", tmp_path / "undisturbed") == 0
    for name in ("1_4/diffusion-100.pt", "2_2/diffusion-50.pt", "2_2/diffusion-100.pt", "2_2/training_state.pt"):
        assert_same(contents(students / name), contents(tmp_path / "undisturbed" / name))

    student = students / "2_2/diffusion-100.pt"
    assert contents(student)["sampling"]["steps"] == 2
    panels = [f"{teacher}:8", f"{teacher}:2", f"{student}:2"]
    compared = run_script("sample.py", "--compare", *panels, "--num_samples", 9, "--output", "c.png", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    for report in ("teacher, 8 steps: 9 samples in ", "student, 2 steps: 9 samples in ", "wrote c.png"):
        assert report in compared.stdout
    width = Image.open(tmp_path / "c.png").size[0]
    assert width % 3 == 0 and width > 3 * 2 * (3 * 18 + 2)  # panels as wide as the longest label


class Cut(BaseException):
    """A power cut."""


def cut_at_rename(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the process end at its n-th renaming of a finished temporary file, before or after it."""
    rename, count = os.replace, 0

    def replace(source, destination):
        nonlocal count
        count += 1
        if count * 2 > number:
            if number % 2:
                rename(source, destination)
            raise Cut
        rename(source, destination)

    monkeypatch.setattr(os, "replace", replace)


def run_with_cuts(monkeypatch, capsys, *command: object) -> int:
    """Runs a command again and again, each time cut off one file later, until it comes to its end; how often."""
    for number in range(2, 100):
        with monkeypatch.context() as patch:
            cut_at_rename(number % 7 + 2, patch)
            try:
                assert call(*command) == 0, capsys.readouterr().err
            except Cut:
                continue
        return number - 2
    raise AssertionError("never came to its end")


@pytest.fixture
def folder_lesson(tiny: Path, tmp_path: Path) -> Path:
    """The tiny lesson on a folder of real digits, which is quicker to load than the whole of MNIST."""
    from torchvision.datasets import MNIST

    digits = MNIST(ROOT / "data", download=True)
    (tmp_path / "digits").mkdir()
    for i in range(20):
        digits[i][0].save(tmp_path / f"digits/{i}.png")
    text = tiny.read_text().replace("name: MNIST", "name: folder").replace(str(ROOT / "data"), str(tmp_path / "digits"))
    tiny.write_text(text)
    return tiny


def test_cut_off_at_any_file_it_writes(folder_lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["--config_path", folder_lesson]
    assert run_with_cuts(monkeypatch, capsys, "train.py", *config) > 3
    assert call("train.py", *config, "--output_dir", "whole") == 0
    flags = ["--initial_sampling_steps", 2, "--distillation_iterations", 2]
    flags += ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt"]
    assert run_with_cuts(monkeypatch, capsys, "distill.py", *config, *flags) > 3
    assert call("distill.py", *config, *flags, "--output_dir", "whole") == 0
    for cut, whole in (("output/tiny", "whole"), ("output/distilled/tiny/2_1", "whole/2_1")):
        names = sorted(path.name for path in Path(whole).iterdir() if path.is_file())
        assert sorted(path.name for path in Path(cut).iterdir()) == names
        for name in names:
            if name.endswith(".pt"):
                assert_same(contents(Path(cut, name)), contents(Path(whole, name)))
            elif name.endswith(".png"):
                assert Path(cut, name).read_bytes() == Path(whole, name).read_bytes()


def test_finished_runs_say_so_and_go_on_when_asked_for_more(folder_lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["--config_path", folder_lesson]
    assert call("train.py", *config) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("output/tiny").iterdir()}
    assert call("train.py", *config) == 0
    assert "output/tiny: finished, all 6 training steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("output/tiny").iterdir()} == before
    assert call("train.py", *config, "--num_training_steps", 9) == 0
    assert "from step 6" in capsys.readouterr().out
    assert contents(Path("output/tiny/diffusion-9.pt"))["step"] == 9

    flags = [*config, "--precision", "auto"]
    flags += ["--teacher_model_checkpoint", "output/tiny/diffusion-9.pt", "--initial_sampling_steps", 4]
    monkeypatch.setattr("utils.checkpoints.compute.gains_by_bfloat16", lambda _: False)
    assert call("distill.py", *flags, "--distillation_iterations", 1) == 0
    monkeypatch.setattr("utils.checkpoints.compute.gains_by_bfloat16", lambda _: True)  # at another hour
    assert call("distill.py", *flags, "--distillation_iterations", 3) == 0
    said = capsys.readouterr().out
    titles = ("to 4 sampling steps", "to 2 sampling steps", "to 1 sampling step")
    assert "1_4: finished, all 4 training steps" in said and all(f"{title} on cpu in fp32" in said for title in titles)
    monkeypatch.setattr("utils.checkpoints.compute.gains_by_bfloat16", lambda _: False)
    assert sorted(os.listdir("output/distilled/tiny")) == [".lock", "1_4", "2_2", "3_1"]
    again = contents(Path("output/distilled/tiny/3_1/diffusion-4.pt"))
    assert call("distill.py", *flags, "--distillation_iterations", 3, "--restart") == 0
    assert_same(contents(Path("output/distilled/tiny/3_1/diffusion-4.pt")), again)
    assert call("distill.py", *flags[:-1], 2, "--distillation_iterations", 2, "--restart") == 0
    assert sorted(os.listdir("output/distilled/tiny")) == [".lock", "1_2", "2_1"]


def test_students_begin_as_their_teacher_and_learn(folder_lesson, tmp_path, monkeypatch):
    """After no more than a step at a vanishing rate, the student is its teacher; at a real one, it is not."""
    monkeypatch.chdir(tmp_path)
    text = folder_lesson.read_text()
    assert call("train.py", "--config_path", folder_lesson) == 0
    flags = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--distillation_iterations", 1]
    teacher = contents(Path("output/tiny/diffusion-6.pt"))["weights"]
    for rate, moved in ("1e-30", False), ("1e-3", True):
        folder_lesson.write_text(text.replace("rate: 1e-3, optimizer", f"rate: {rate}, optimizer"))
        assert call("distill.py", "--config_path", folder_lesson, *flags, "--restart") == 0
        student = contents(Path("output/distilled/tiny/1_512/diffusion-4.pt"))["weights"]
        assert any(not torch.equal(student[name], teacher[name]) for name in teacher) == moved


def test_names_that_the_terminal_cannot_show_are_no_error(tmp_path):
    for k in range(8):
        path = tmp_path / f"pictures/{'猫' if k % 2 else 'dog'}/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 10 * k).save(path)
    text = (TINY % "pictures").replace("name: MNIST", "name: folder").replace("dropout", "num_classes: 2, dropout")
    (tmp_path / "tiny.yaml").write_text(text)
    command = [sys.executable, ROOT / "train.py", "--config_path", "tiny.yaml", "--num_training_steps", "1"]
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONIOENCODING": "cp1252"}, "capture_output": True}
    finished = subprocess.run(command, **options, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert b"?" in finished.stdout and (tmp_path / "output/tiny/diffusion-1.pt").exists()


def test_weights_to_begin_with(folder_lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["--config_path", folder_lesson]
    assert call("train.py", *config) == 0
    text = folder_lesson.read_text()
    folder_lesson.write_text(text.replace("learning_rate: 1e-3", "learning_rate: 1e-30", 1))
    initial = ["--load_model_weights_from_checkpoint", "output/tiny/diffusion-6.pt", "--output_dir", "second"]
    assert call("train.py", *config, *initial) == 0
    first, second = (contents(Path(path, "diffusion-6.pt"))["weights"] for path in ("output/tiny", "second"))
    assert_same(first, second)
    capsys.readouterr()
    assert call("train.py", *config, "--output_dir", "second") == 2
    assert "it started from output/tiny/diffusion-6.pt, not random weights" in capsys.readouterr().err
    own = ["--load_model_weights_from_checkpoint", "second/diffusion-6.pt", "--output_dir", "second"]
    assert call("train.py", *config, *own, "--restart") == 2
    assert "--restart: would delete second/diffusion-6.pt, which this run starts from" in capsys.readouterr().err
    assert Path("second/diffusion-6.pt").exists()
    folder_lesson.write_text(text.replace("num_channels: 1", "num_channels: 1, saturation_margin: 0.1"))
    assert call("train.py", *config, *initial, "--restart") == 0
    assert "saturation_margin is 0.1, but output/tiny/diffusion-6.pt was trained with 0" in capsys.readouterr().out


def test_classes_and_colour_go_all_the_way(folder_lesson, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = folder_lesson.read_text().replace("num_channels: 1", "num_channels: 3")
    folder_lesson.write_text(text.replace("dropout: 0.1", "dropout: 0.1, num_classes: 2"))
    for i, path in enumerate(sorted(Path("digits").glob("*.png"))):
        Path(f"digits/{i % 2}").mkdir(exist_ok=True)
        path.rename(f"digits/{i % 2}/{path.name}")
    config = ["--config_path", folder_lesson]
    assert call("train.py", *config) == 0
    flags = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--distillation_iterations", 1]
    assert call("distill.py", *config, *flags, "--initial_sampling_steps", 3) == 0
    student = "output/distilled/tiny/1_3/diffusion-4.pt"
    assert call("sample.py", "--checkpoint", student, "--sampler", "ancestral", "--num_samples", 5) == 0
    assert Image.open("output/grid.png").size == (2 * (4 * 18 + 2), 18 + 2 * (2 * 18 + 2))  # columns of each class


def test_guidance_is_learned_and_then_an_input(folder_lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = folder_lesson.read_text().replace("dropout: 0.1", "dropout: 0.1, num_classes: 2")
    text = text.replace("training: {", "training: {class_dropout: 0.3, ")
    text = text.replace("distillation:\n  {", "distillation:\n  {guidance: [1, 3], num_conversion_steps: 4, ")
    folder_lesson.write_text(text)
    for i, path in enumerate(sorted(Path("digits").glob("*.png"))):
        Path(f"digits/{'cat' if i % 2 else 'dog'}").mkdir(exist_ok=True)
        path.rename(f"digits/{'cat' if i % 2 else 'dog'}/{path.name}")
    config = ["--config_path", folder_lesson]
    assert call("train.py", *config) == 0
    teacher, folder = "output/tiny/diffusion-6.pt", Path("output/distilled/tiny")
    distill = ["distill.py", *config, "--teacher_model_checkpoint", teacher, "--initial_sampling_steps", 4]
    assert call(*distill, "--distillation_iterations", 1) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "0_conversion", "1_4"]
    converted, student = folder / "0_conversion/diffusion-4.pt", folder / "1_4/diffusion-4.pt"
    said = capsys.readouterr().out
    assert "converting to v and guidance 1 to 3 on cpu" in said and "distilling to 4 sampling steps on cpu" in said
    torch.rand(1)  # the layers that the teacher does not have are drawn from the seed alone
    assert call(*distill, "--distillation_iterations", 1, "--output_dir", "again") == 0
    assert_same(contents(converted), contents(Path("again/0_conversion/diffusion-4.pt")))
    capsys.readouterr()
    before = converted.stat().st_mtime_ns, student.stat().st_mtime_ns
    assert call(*distill, "--distillation_iterations", 2) == 0  # goes on from there
    assert (converted.stat().st_mtime_ns, student.stat().st_mtime_ns) == before
    student = folder / "2_2/diffusion-4.pt"
    for checkpoint in (teacher, converted, student):
        pictures = []
        for flags in (("--guidance", 3), ("--guidance", 3, "--class", "dog"), ("--guidance", 1), ()):
            few = ["--sampling_steps", 2, "--num_samples", 4]
            assert call("sample.py", "--checkpoint", checkpoint, *few, *flags, "--output", "one.png") == 0
            pictures.append(Path("one.png").read_bytes())
        assert pictures[2] == pictures[3] and len(set(pictures)) == 3  # 1 is the default
    capsys.readouterr()
    for checkpoint, flags, message in (
        (student, ["--guidance", 4], f"guidance 4: {student} was distilled for scales from 1 to 3"),
        (student, ["--class", "dgo"], f"class dgo: {student} has no such class; its classes are cat, dog"),
        (student, ["--class", "2"], f"class 2: {student} has no such class; its classes are cat, dog"),
        (teacher, ["--guidance", "-1"], "guidance -1: should be from 0 to 100"),
    ):
        assert call("sample.py", "--checkpoint", checkpoint, *flags, "--output", "two.png") == 2
        assert message in capsys.readouterr().err and not Path("two.png").exists()
    folder_lesson.write_text(text.replace("guidance: [1, 3]", "guidance: null"))
    assert call(*distill, "--distillation_iterations", 1) == 2
    said = capsys.readouterr().err
    assert "another distillation, with a conversion; distillation.guidance and .prediction now require none" in said
    folder_lesson.write_text(text.replace("guidance: [1, 3]", "guidance: [1, 4]"))
    assert call(*distill, "--distillation_iterations", 1) == 2
    assert "distillation.guidance is [1.0, 3.0], not [1.0, 4.0]" in capsys.readouterr().err


def test_a_teacher_of_other_classes_is_refused_and_other_images_are_noted(folder_lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_lesson.write_text(folder_lesson.read_text().replace("dropout: 0.1", "dropout: 0.1, num_classes: 2"))
    for i, path in enumerate(sorted(Path("digits").glob("*.png"))):
        folder = Path(f"digits/{'cat' if i % 2 else 'dog'}")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    config = ["--config_path", folder_lesson]
    assert call("train.py", *config) == 0
    flags = [*config, "--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--initial_sampling_steps", 4]
    Path("digits/dog").rename("digits/ape")
    capsys.readouterr()
    assert call("distill.py", *flags, "--distillation_iterations", 1) == 2
    said = capsys.readouterr().err
    assert "output/tiny/diffusion-6.pt: its class 0 is cat, and that of the data is ape" in said
    assert not Path("output/distilled").exists()
    Path("digits/ape").rename("digits/dog")
    Path("digits/dog/0.png").unlink()
    folder_lesson.write_text(
        folder_lesson.read_text().replace("num_channels: 1", "num_channels: 1, saturation_margin: 0.1")
    )
    assert call("distill.py", *flags, "--distillation_iterations", 2) == 0
    note = "note: the images differ from those that output/tiny/diffusion-6.pt was trained on"
    said = capsys.readouterr().out
    assert (
        note in said
        and "data.saturation_margin is 0.1, but output/tiny/diffusion-6.pt was trained with 0: keep it\n" in said
    )
    assert said.count("note:") == 2  # the second student has seen what its teacher has
    Path("digits/dog/2.png").unlink()
    assert call("distill.py", *flags, "--distillation_iterations", 3) == 2
    said = capsys.readouterr().err
    assert "2_2/diffusion-4.pt: the images have changed since it was trained on them; another --output_dir" in said


def test_a_restart_deletes_nothing_of_a_distillation_that_is_running(folder_lesson, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("train.py", "--config_path", folder_lesson) == 0
    flags = ["--config_path", folder_lesson, "--teacher_model_checkpoint", "output/tiny/diffusion-6.pt"]
    flags += ["--initial_sampling_steps", 4, "--distillation_iterations", 2]
    assert call("distill.py", *flags) == 0
    before = sorted(Path("output/distilled").rglob("*.p*"))
    capsys.readouterr()
    with locked(Path("output/distilled/tiny")):
        assert call("distill.py", *flags, "--restart") == 2
    assert "output/distilled/tiny: another process is writing there" in capsys.readouterr().err
    assert sorted(Path("output/distilled").rglob("*.p*")) == before


def test_a_run_deletes_no_file_that_is_not_its_own(folder_lesson, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, left = Path("output/tiny/.mine.tmp"), Path("output/tiny/.training_state.pt.0123abcd.tmp")
    for folder in (own, Path("output/tiny/.other.0123abcd.tmp")):
        folder.mkdir(parents=True)
    left.write_text("left by a kill")
    assert call("train.py", "--config_path", folder_lesson) == 0
    assert own.is_dir() and not left.exists()


def test_a_restart_that_is_refused_deletes_nothing(folder_lesson, tmp_path, monkeypatch, capsys):
    """With the teacher's folder as the output folder, or a student of the same folder as the teacher."""
    monkeypatch.chdir(tmp_path)
    assert call("train.py", "--config_path", folder_lesson) == 0
    flags = ["distill.py", "--config_path", folder_lesson, "--output_dir", "output/tiny", "--initial_sampling_steps"]
    first = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--distillation_iterations", 1]
    assert call(*flags, 4, *first) == 0
    before = {path: path.read_bytes() for path in Path("output").rglob("*.p*")}
    own = ["--teacher_model_checkpoint", "output/tiny/1_4/diffusion-4.pt", "--distillation_iterations", 1]
    assert call(*flags, 2, *own, "--restart") == 2
    assert "--restart: would delete output/tiny/1_4/diffusion-4.pt" in capsys.readouterr().err
    next(Path("digits").glob("*.png")).unlink()
    assert call(*flags, 4, *first, "--restart") == 2
    assert "output/tiny/diffusion-6.pt: the images have changed since" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("output").rglob("*.p*")} == before


def test_panels_that_cannot_be_compared_say_why_and_labels_tell_models_apart(
    folder_lesson, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert call("train.py", "--config_path", folder_lesson) == 0
    text = folder_lesson.read_text()
    Path("colour.yaml").write_text(text.replace("num_channels: 1", "num_channels: 3"))
    assert call("train.py", "--config_path", "colour.yaml") == 0
    capsys.readouterr()
    panels = ["output/tiny/diffusion-6.pt:2", "output/colour/diffusion-6.pt:2", "output/tiny/diffusion-4.pt:2"]
    assert call("sample.py", "--num_samples", 4, "--compare", *panels, "--output", "c.png") == 0
    said = capsys.readouterr().out
    assert "teacher (colour/diffusion-6), 2 steps: 4 samples" in said
    assert "not compared with the first panel, which has other channels or classes" in said
    assert "teacher (tiny/diffusion-4), 2 steps" in said and said.count("root mean squared difference") == 1
    Path("other/output").mkdir(parents=True)
    shutil.copytree("output/tiny", "other/output/tiny")
    panels = ["output/tiny/diffusion-6.pt:2", "other/output/tiny/diffusion-6.pt:2"]
    assert call("sample.py", "--num_samples", 4, "--compare", *panels, "--output", "d.png") == 0
    assert "teacher (other/output/tiny/diffusion-6), 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "other", "same"),
    [
        ((2, ["ant", "bee"]), (2, ["ant", "bee"]), True),
        ((2, ["ant", "bee"]), (2, ["bee", "ant"]), False),
        ((2, ["ant", "bee"]), (2, None), True),  # unknown
        ((2, None), (3, None), False),
        ((0, []), (0, None), True),
    ],
)
def test_panels_of_other_classes_are_not_compared(first, other, same):
    def model(num_classes: int, names: list[str] | None) -> SimpleNamespace:
        network = SimpleNamespace(num_classes=num_classes)
        return SimpleNamespace(config=SimpleNamespace(network=network), known_class_names=names or [])

    assert sample.same_classes(model(*first), model(*other)) == same
