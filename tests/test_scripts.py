"""The scripts, run as a user runs them, on real MNIST images, in small."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from PIL import Image

import distill
import sample
import train
from utils import cli

SCRIPTS = {"train.py": train, "distill.py": distill, "sample.py": sample}


def call(script: str, *arguments: object) -> int:
    """Runs a script in this process, which saves the seconds that importing PyTorch takes; its exit code."""
    sys.argv = [script, *map(str, arguments)]
    try:
        cli.run(SCRIPTS[script].main)
    except SystemExit as exit:
        return exit.code or 0
    return 0


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
    """What a file of torch.save holds, as nested dictionaries of lists and tensors."""
    return torch.load(path, weights_only=True)


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
    undisturbed = run_script("train.py", *config, "--output_dir", "undisturbed", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for name in ("training_state.pt", "diffusion-150.pt"):
        assert_same(contents(tmp_path / "output/tiny" / name), contents(tmp_path / "undisturbed" / name))
    lines = [json.loads(x) for x in (tmp_path / "output/tiny/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 151))

    teacher = tmp_path / "output/tiny/diffusion-150.pt"
    flags = ["--teacher_model_checkpoint", teacher, "--initial_sampling_steps", 4, "--distillation_iterations", 2]
    students = tmp_path / "output/distilled/tiny"
    kill_once_there(students / "2_2/training_state.pt", "distill.py", *config, *flags, cwd=tmp_path)
    continued = run_script("distill.py", *config, *flags, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert f"{Path('output/distilled/tiny/1_4')}: finished, all 100 steps" in continued.stdout
    undisturbed = run_script("distill.py", *config, *flags, "--output_dir", "undisturbed", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for name in ("1_4/diffusion-100.pt", "2_2/diffusion-50.pt", "2_2/diffusion-100.pt", "2_2/training_state.pt"):
        assert_same(contents(students / name), contents(tmp_path / "undisturbed" / name))

    student = students / "2_2/diffusion-100.pt"
    assert contents(student)["sampling_steps"] == 2
    panels = [f"{teacher}:8", f"{teacher}:2", f"{student}:2"]
    compared = run_script("sample.py", "--compare", *panels, "--num_samples", 9, "--output", "c.png", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    for report in ("teacher, 8 steps: 9 pictures in ", "distilled to 2, 2 steps: 9 pictures in ", "wrote c.png"):
        assert report in compared.stdout
    assert Image.open(tmp_path / "c.png").size[0] == 3 * 2 * (3 * 18 + 2)


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
    assert "output/tiny: finished, all 6 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("output/tiny").iterdir()} == before
    assert call("train.py", *config, "--num_training_steps", 9) == 0
    assert "from step 6" in capsys.readouterr().out
    assert contents(Path("output/tiny/diffusion-9.pt"))["step"] == 9

    flags = [*config, "--teacher_model_checkpoint", "output/tiny/diffusion-9.pt", "--initial_sampling_steps", 4]
    assert call("distill.py", *flags, "--distillation_iterations", 1) == 0
    assert call("distill.py", *flags, "--distillation_iterations", 3) == 0
    assert "1_4: finished, all 4 steps" in capsys.readouterr().out
    assert sorted(os.listdir("output/distilled/tiny")) == ["1_4", "2_2", "3_1"]
    again = contents(Path("output/distilled/tiny/3_1/diffusion-4.pt"))
    assert call("distill.py", *flags, "--distillation_iterations", 3, "--restart") == 0
    assert_same(contents(Path("output/distilled/tiny/3_1/diffusion-4.pt")), again)
    assert call("distill.py", *flags[:-1], 2, "--distillation_iterations", 2, "--restart") == 0
    assert sorted(os.listdir("output/distilled/tiny")) == ["1_2", "2_1"]


def test_students_begin_as_their_teacher_and_learn(folder_lesson, tmp_path, monkeypatch):
    """After no more than a step at a vanishing rate, the student is its teacher; at a real one, it is not."""
    monkeypatch.chdir(tmp_path)
    text = folder_lesson.read_text()
    assert call("train.py", "--config_path", folder_lesson) == 0
    flags = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--distillation_iterations", 1]
    teacher = contents(Path("output/tiny/diffusion-6.pt"))["weights"]
    for rate, moved in ("1e-30", False), ("1e-3", True):
        before, _, after = text.rpartition("learning_rate: 1e-3")
        folder_lesson.write_text(f"{before}learning_rate: {rate}{after}")
        assert call("distill.py", "--config_path", folder_lesson, *flags, "--restart") == 0
        student = contents(Path("output/distilled/tiny/1_512/diffusion-4.pt"))["weights"]
        assert any(not torch.equal(student[name], teacher[name]) for name in teacher) == moved


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
    assert "load_model_weights_from_checkpoint is" in capsys.readouterr().err


def test_classes_and_colour_go_all_the_way(folder_lesson, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = folder_lesson.read_text().replace("num_channels: 1", "num_channels: 3")
    folder_lesson.write_text(text.replace("dropout: 0.1", "dropout: 0.1, num_classes: 2"))
    config = ["--config_path", folder_lesson]
    assert call("train.py", *config) == 0
    flags = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--distillation_iterations", 1]
    assert call("distill.py", *config, *flags, "--initial_sampling_steps", 3) == 0
    student = "output/distilled/tiny/1_3/diffusion-4.pt"
    assert call("sample.py", "--checkpoint", student, "--sampler", "ancestral", "--num_samples", 5) == 0
    assert Image.open("output/grid.png").size == (3 * 18 + 2, 2 * 18 + 2)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_each_flag_with_its_default(script, capsys):
    assert call(script, "--help") == 0
    text = capsys.readouterr().out
    flags = [line for line in text.split("options:")[1].splitlines() if line.startswith("  --")]
    assert len(flags) >= 9
    for part in text.split("options:")[1].split("\n  --")[1:]:
        assert "default" in part or "required" in part, part


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a finished tiny lesson, and with files that are wrong in all the ways there are."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    config = TINY % (ROOT / "data")
    (folder / "tiny.yaml").write_text(config)
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert call("train.py", "--config_path", "tiny.yaml") == 0
        teacher = ["--teacher_model_checkpoint", "output/tiny/diffusion-6.pt", "--initial_sampling_steps", 4]
        assert call("distill.py", "--config_path", "tiny.yaml", *teacher, "--distillation_iterations", 1) == 0
    finally:
        os.chdir(here)
    whole = (folder / "output/tiny/diffusion-6.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[:-1000])
    (folder / "other.pt").write_bytes(b"hello")
    torch.save(torch.load(folder / "output/tiny/diffusion-6.pt") | {"format_version": 99}, folder / "future.pt")
    smaller = torch.load(folder / "output/tiny/diffusion-6.pt")
    smaller["config"]["data"]["image_size"], smaller["config"]["network"]["attention_resolutions"] = 8, []
    torch.save(smaller, folder / "smaller.pt")
    (folder / "broken.yaml").write_text("data: [")
    (folder / "typo.yaml").write_text(config.replace("batch_size", "batch_sise", 1))
    (folder / "odd.yaml").write_text(config.replace("image_size: 16", "image_size: 15"))
    (folder / "wide.yaml").write_text(config.replace("features: 8", "features: 12"))
    (folder / "eps.yaml").write_text(config + "diffusion: {prediction: eps}")
    (folder / "linear.yaml").write_text(config + "diffusion: {schedule: linear}")
    (folder / "range.yaml").write_text(config + "diffusion: {logsnr_max: 10.0}")
    (folder / "a_file").write_text("in the way")
    (folder / "steep.yaml").write_text(config.replace("learning_rate: 1e-3", "learning_rate: 1e30", 1))
    return folder


TRAIN = "train.py --config_path tiny.yaml"
TEACH = "--config_path tiny.yaml --teacher_model_checkpoint output/tiny/diffusion-6.pt"
STUDENT = "output/distilled/tiny/1_4/diffusion-4.pt"
BAD = [
    ("train.py", "the following arguments are required: --config_path"),
    ("train.py --config_path", "argument --config_path: expected one argument"),
    ("train.py --config_path nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory"),
    ("train.py --config_path broken.yaml", "broken.yaml: not a YAML file"),
    ("train.py --config_path typo.yaml", "typo.yaml: training.batch_sise: unknown key, did you mean batch_size?"),
    ("train.py --config_path odd.yaml", "odd.yaml: data.image_size: 15 cannot be divided by 4"),
    ("train.py --config_path other.pt", "other.pt: should be sections of `key: value`, not a str"),
    (f"{TRAIN} --num_training_steps 0", "--num_training_steps: should be greater than 0, not 0"),
    (f"{TRAIN} --num_training_steps many", "argument --num_training_steps: invalid int value: 'many'"),
    (f"{TRAIN} --nonsense 1", "unrecognized arguments: --nonsense 1"),
    (f"{TRAIN} --device gpu", "--device gpu: not on this machine"),
    (f"{TRAIN} --device cuda", "--device cuda: not on this machine"),
    (f"{TRAIN} --output_dir a_file", "a_file: this folder cannot be written: "),
    (f"{TRAIN} --output_dir a_file/deeper", "a_file/deeper: this folder cannot be written: "),
    (f"{TRAIN} --batch_size 4", "training_state.pt: belongs to another run: training.batch_size is 8 there and 4 here"),
    (f"{TRAIN} --seed 1", "training_state.pt: belongs to another run: seed is 0 there and 1 here"),
    (f"{TRAIN} --num_training_steps 3", "number of training steps is 6 there (6 taken) and 3 here"),
    (f"{TRAIN} --load_model_weights_from_checkpoint nowhere.pt", "nowhere.pt: cannot be read: No such file"),
    (f"{TRAIN} --load_model_weights_from_checkpoint truncated.pt", "truncated.pt: truncated, or not a checkpoint"),
    (
        "train.py --config_path wide.yaml --load_model_weights_from_checkpoint output/tiny/diffusion-6.pt",
        "another model than wide.yaml describes: network.features is 8 there and 12 here",
    ),
    ("distill.py", "the following arguments are required: --config_path, --teacher_model_checkpoint"),
    ("distill.py --config_path tiny.yaml --teacher_model_checkpoint nowhere.pt", "nowhere.pt: cannot be read"),
    ("distill.py --config_path tiny.yaml --teacher_model_checkpoint truncated.pt", "truncated.pt: truncated, or not"),
    ("distill.py --config_path tiny.yaml --teacher_model_checkpoint other.pt", "other.pt: truncated, or not a check"),
    ("distill.py --config_path tiny.yaml --teacher_model_checkpoint future.pt", "future.pt: of format version 99"),
    (
        "distill.py --config_path tiny.yaml --teacher_model_checkpoint output/tiny/training_state.pt",
        "training_state.pt: not a checkpoint of this project",
    ),
    ("distill.py " + TEACH.replace("tiny.yaml", "wide.yaml"), "network.features is 8 there and 12 here"),
    ("distill.py " + TEACH.replace("tiny.yaml", "eps.yaml"), "diffusion.prediction is v there and eps here"),
    ("distill.py " + TEACH.replace("tiny.yaml", "linear.yaml"), "diffusion.schedule is cosine there and linear here"),
    ("distill.py " + TEACH.replace("tiny.yaml", "range.yaml"), "diffusion.logsnr_max is 20.0 there and 10.0 here"),
    (f"distill.py {TEACH} --initial_sampling_steps 0", "argument --initial_sampling_steps: should be a whole number"),
    (f"distill.py {TEACH} --distillation_iterations -1", "argument --distillation_iterations: should be a whole"),
    (
        f"distill.py {TEACH} --initial_sampling_steps 12 --distillation_iterations 4",
        "--initial_sampling_steps 12: cannot be halved for 4 --distillation_iterations, at most for 3",
    ),
    (
        f"distill.py {TEACH} --initial_sampling_steps 8 --distillation_iterations 1",
        "1_4: another run's student: --initial_sampling_steps was 4",
    ),
    (f"distill.py {TEACH} --initial_sampling_steps 4 --distillation_iterations 1 --seed 3", "seed is 0 there and 3"),
    (
        f"distill.py {TEACH} --initial_sampling_steps 4 --distillation_iterations 1 "
        "--num_training_steps_per_iteration 9",
        "number of training steps is 4 there (4 taken) and 9 here; --restart begins anew",
    ),
    (
        f"distill.py --config_path tiny.yaml --teacher_model_checkpoint {STUDENT} --initial_sampling_steps 4 "
        "--distillation_iterations 1",
        f"{STUDENT} was distilled for 4 steps, so its first student takes half of them",
    ),
    (f"distill.py {TEACH} --output_dir a_file", "a_file: this folder cannot be written"),
    ("sample.py", "one of the arguments --checkpoint --compare is required"),
    ("sample.py --checkpoint nowhere.pt", "nowhere.pt: cannot be read: No such file"),
    ("sample.py --checkpoint truncated.pt", "truncated.pt: truncated, or not a checkpoint"),
    ("sample.py --checkpoint future.pt", "future.pt: of format version 99; this code reads 1"),
    (f"sample.py --checkpoint {STUDENT} --config_path wide.yaml", "another model than wide.yaml describes"),
    (f"sample.py --checkpoint {STUDENT} --sampling_steps 0", "argument --sampling_steps: should be a whole number"),
    (f"sample.py --checkpoint {STUDENT} --num_samples -2", "argument --num_samples: should be a whole number"),
    (f"sample.py --checkpoint {STUDENT} --sampler euler", "argument --sampler: invalid choice: 'euler'"),
    (f"sample.py --checkpoint {STUDENT} --output grid.gif", "--output grid.gif: should be the name of a .png file"),
    (f"sample.py --checkpoint {STUDENT} --output a_file/grid.png", "a_file: this folder cannot be written"),
    (f"sample.py --checkpoint {STUDENT} --device cuda:7", "--device cuda:7: not on this machine"),
    (f"sample.py --compare {STUDENT}:0", ":0: the number of steps should be a whole number above 0"),
    (f"sample.py --compare {STUDENT}:4 nowhere.pt:4", "nowhere.pt: cannot be read"),
    (f"sample.py --compare {STUDENT}:4 smaller.pt:4", "--compare: pictures of different sizes, 16 and 8 pixels"),
    (f"sample.py --compare {STUDENT}:4 --sampling_steps 4", "--sampling_steps: not with --compare"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_gets_one_line_and_nothing_is_overwritten(command, message, finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    before = tree(finished)
    assert call(*command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{command.split()[0]}: error: ") and message in error
    assert error.count("\n") == 1 and error.endswith("\n")
    assert tree(finished) == before


def test_bad_input_in_a_process_of_its_own(finished):
    done = run_script("sample.py", "--checkpoint", "truncated.pt", cwd=finished)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_learning_rate_too_steep(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert call("train.py", "--config_path", "steep.yaml") == 2
    assert "output/steep: the loss is not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path("output/steep").glob("*.pt"))


def test_a_bug_keeps_its_traceback(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sample, "grid", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("sample.py", "--checkpoint", STUDENT, "--num_samples", 1, "--output", "x.png")
