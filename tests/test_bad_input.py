"""What the scripts say to someone who gives them something wrong."""

import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, call, run_script
from PIL import Image

import sample


@pytest.mark.parametrize("script", ["train.py", "distill.py", "match.py", "sample.py", "evaluate.py", "convert.py"])
def test_help_explains_each_flag_with_its_default(script, capsys):
    assert call(script, "--help") == 0
    text = capsys.readouterr().out
    flags = [line for line in text.split("options:")[1].splitlines() if line.startswith("  --")]
    assert len(flags) >= 8
    for part in text.split("options:")[1].split("\n  --")[1:]:
        assert "default" in part or "required" in part, part


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a finished tiny lesson, and with files that are wrong in all the ways there are."""
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
    smaller["config"]["data"]["image_size"], smaller["config"]["network"]["attention_resolutions"] = 8, [2]
    torch.save(smaller, folder / "smaller.pt")
    (folder / "broken.yaml").write_text("data: [")
    (folder / "typo.yaml").write_text(config.replace("batch_size", "batch_sise", 1))
    (folder / "odd.yaml").write_text(config.replace("image_size: 16", "image_size: 15"))
    (folder / "wide.yaml").write_text(config.replace("features: 8", "features: 12"))
    (folder / "pieces.yaml").write_text(config.replace("batch_size: 8", "batch_size: 8, accumulation_steps: 9"))
    (folder / "eps.yaml").write_text(config + "diffusion: {prediction: eps}")
    (folder / "linear.yaml").write_text(config + "diffusion: {schedule: linear}")
    (folder / "range.yaml").write_text(config + "diffusion: {logsnr_max: 10.0}")
    (folder / "a_file").write_text("in the way")
    steep = config.replace("learning_rate: 1e-3", "learning_rate: 1e30", 1).replace("steps: 6", "steps: 20", 1)
    (folder / "steep.yaml").write_text(steep.replace("save_and_sample_every_n: 2", "save_and_sample_every_n: 20", 1))
    (folder / "no_results").mkdir()
    (folder / "no_results/results.json").write_text("{")
    digits = folder / "digits"
    digits.mkdir()
    Image.new("L", (16, 16)).save(digits / "1.png")
    untested = config.replace("name: MNIST", "name: folder").replace(str(ROOT / "data"), str(digits))
    (folder / "untested.yaml").write_text(untested)
    (folder / "inside.yaml").write_text(untested.replace("name: folder", f"name: folder, test_root: {digits / 'test'}"))
    (folder / "folder.pt").write_bytes(whole)
    return folder


TRAIN = "train.py --config_path tiny.yaml"
TEACH = "--config_path tiny.yaml --teacher_model_checkpoint output/tiny/diffusion-6.pt"
EVALUATE = "evaluate.py --config_path tiny.yaml --teacher"
TEACHER = "output/tiny/diffusion-6.pt"
STUDENT = "output/distilled/tiny/1_4/diffusion-4.pt"
BAD = [
    ("train.py", "the following arguments are required: --config_path"),
    ("train.py --config_path", "argument --config_path: expected one argument"),
    ("train.py --config_path nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory"),
    ("train.py --config_path broken.yaml", "broken.yaml: not a YAML file"),
    ("train.py --config_path typo.yaml", "typo.yaml: training.batch_sise: unknown key, did you mean batch_size?"),
    ("train.py --config_path odd.yaml", "odd.yaml: data.image_size: 15 is not divisible by 4"),
    ("train.py --config_path other.pt", "other.pt: should be sections of `key: value`, not a str"),
    (f"{TRAIN} --num_training_steps 0", "--num_training_steps: should be greater than 0, not 0"),
    (f"{TRAIN} --num_training_steps many", "argument --num_training_steps: invalid int value: 'many'"),
    (f"{TRAIN} --nonsense 1", "unrecognized arguments: --nonsense 1"),
    (f"{TRAIN} --device gpu", "--device gpu: not on this machine"),
    (f"{TRAIN} --device cuda", "--device cuda: not on this machine"),
    (f"{TRAIN} --output_dir a_file", "a_file: this folder is not writable: "),
    (f"{TRAIN} --output_dir a_file/deeper", "a_file/deeper: this folder is not writable: "),
    (f"{TRAIN} --batch_size 4", "training_state.pt: belongs to another run: training.batch_size is 8, not 4"),
    (f"{TRAIN} --seed 1", "training_state.pt: belongs to another run: seed is 0, not 1"),
    (
        f"{TRAIN} --restart --config_path pieces.yaml",
        "training.batch_size: 8 is less than 9, one image for each process and accumulation step",
    ),
    (
        f"{TRAIN} --num_training_steps 3",
        "this run has 6 training steps (6 taken), and 3 are requested; only more steps",
    ),
    (f"{TRAIN} --load_model_weights_from_checkpoint nowhere.pt", "nowhere.pt: cannot be read: No such file"),
    (
        f"{TRAIN} --load_model_weights_from_checkpoint truncated.pt",
        "truncated.pt: truncated or damaged, or not a checkpoint",
    ),
    (
        "train.py --config_path wide.yaml --load_model_weights_from_checkpoint output/tiny/diffusion-6.pt",
        "not the model that wide.yaml describes: network.features is 8, not 12",
    ),
    ("distill.py", "the following arguments are required: --config_path, --teacher_model_checkpoint"),
    ("distill.py --config_path tiny.yaml --teacher_model_checkpoint nowhere.pt", "nowhere.pt: cannot be read"),
    (
        "distill.py --config_path tiny.yaml --teacher_model_checkpoint truncated.pt",
        "truncated.pt: truncated or damaged, or not",
    ),
    (
        "distill.py --config_path tiny.yaml --teacher_model_checkpoint other.pt",
        "other.pt: truncated or damaged, or not a check",
    ),
    ("distill.py --config_path tiny.yaml --teacher_model_checkpoint future.pt", "future.pt: has format version 99"),
    (
        "distill.py --config_path tiny.yaml --teacher_model_checkpoint output/tiny/training_state.pt",
        "training_state.pt: not a checkpoint of this project",
    ),
    ("distill.py " + TEACH.replace("tiny.yaml", "wide.yaml"), "network.features is 8, not 12"),
    ("distill.py " + TEACH.replace("tiny.yaml", "eps.yaml"), "diffusion.prediction is v, not eps"),
    ("distill.py " + TEACH.replace("tiny.yaml", "linear.yaml"), "diffusion.schedule is cosine, not linear"),
    ("distill.py " + TEACH.replace("tiny.yaml", "range.yaml"), "diffusion.logsnr_max is 20.0, not 10.0"),
    (
        f"distill.py {TEACH} --initial_sampling_steps 0",
        "argument --initial_sampling_steps: should be a positive integer",
    ),
    (f"distill.py {TEACH} --initial_sampling_steps 131072", "--initial_sampling_steps 131072: should be at most 32768"),
    (f"distill.py {TEACH} --distillation_iterations -1", "argument --distillation_iterations: should be a positive"),
    (
        f"distill.py {TEACH} --initial_sampling_steps 12 --distillation_iterations 4",
        "--initial_sampling_steps 12: allows at most 3 --distillation_iterations; 4 need a multiple of 8",
    ),
    (
        f"distill.py {TEACH} --initial_sampling_steps 8 --distillation_iterations 1",
        "1_4: belongs to another distillation: --initial_sampling_steps is 4, not 8",
    ),
    (f"distill.py {TEACH} --initial_sampling_steps 4 --distillation_iterations 1 --seed 3", "seed is 0, not 3"),
    (
        f"distill.py {TEACH} --initial_sampling_steps 4 --distillation_iterations 1 "
        "--num_training_steps_per_iteration 9",
        "this run has 4 training steps (4 taken), and 9 are requested; the same value resumes it",
    ),
    (
        f"distill.py --config_path tiny.yaml --teacher_model_checkpoint {STUDENT} --initial_sampling_steps 4 "
        "--distillation_iterations 1",
        f"should be half of the 4 steps that {STUDENT} was distilled for",
    ),
    (f"distill.py {TEACH} --output_dir a_file", "a_file: this folder is not writable"),
    ("sample.py", "one of the arguments --checkpoint --compare is required"),
    ("sample.py --checkpoint nowhere.pt", "nowhere.pt: cannot be read: No such file"),
    ("sample.py --checkpoint truncated.pt", "truncated.pt: truncated or damaged"),
    ("sample.py --checkpoint future.pt", "future.pt: has format version 99; this code reads 6"),
    (f"sample.py --checkpoint {STUDENT} --config_path wide.yaml", "not the model that wide.yaml describes"),
    (f"sample.py --checkpoint {STUDENT} --sampling_steps 0", "argument --sampling_steps: should be a positive integer"),
    (f"sample.py --checkpoint {STUDENT} --num_samples -2", "argument --num_samples: should be a positive integer"),
    (f"sample.py --checkpoint {STUDENT} --sampler euler", "argument --sampler: invalid choice: 'euler'"),
    (
        f"sample.py --checkpoint {STUDENT} --output grid.gif",
        "--output grid.gif: should be a .png for a grid, an .npz, or a folder",
    ),
    (f"sample.py --checkpoint {STUDENT} --output a_file/grid.png", "a_file: this folder is not writable"),
    (f"sample.py --checkpoint {STUDENT} --device cuda:7", "--device cuda:7: not on this machine"),
    ("sample.py --checkpoint=", "cannot be read: Is a directory"),
    (f"sample.py --compare {STUDENT}:²", "diffusion-4.pt:²: cannot be read: No such file"),
    (f"sample.py --compare {STUDENT}:0", "diffusion-4.pt: 0 sampling steps; should be from 1"),
    (f"sample.py --checkpoint {STUDENT} --sampling_steps 1000000", "1000000 sampling steps; should be from 1 to 65536"),
    (f"sample.py --compare {STUDENT}:4 nowhere.pt:4", "nowhere.pt: cannot be read"),
    (f"sample.py --compare {STUDENT}:4 smaller.pt:4", "--compare: images of different sizes, 8 and 16 pixels"),
    (f"sample.py --compare {STUDENT}:4 --sampling_steps 4", "--sampling_steps: not with --compare"),
    ("evaluate.py", "the following arguments are required: --config_path, --teacher"),
    (f"{EVALUATE} nowhere.pt", "nowhere.pt: cannot be read: No such file"),
    (f"{EVALUATE} truncated.pt", "truncated.pt: truncated or damaged, or not a checkpoint"),
    (f"{EVALUATE} smaller.pt", "not the model that tiny.yaml describes: data.image_size is 8, not 16"),
    (f"{EVALUATE} {TEACHER} --students nowhere", "--students nowhere: no students there"),
    (f"{EVALUATE} {TEACHER} --students output/tiny", "--students output/tiny: no students there"),
    (
        f"{EVALUATE} {TEACHER} --samplers ddim euler",
        "--samplers: invalid choice: 'euler' (choose from",
    ),
    (f"{EVALUATE} {TEACHER} --sampling_steps 8 0", "argument --sampling_steps: should be a positive integer"),
    (f"{EVALUATE} {TEACHER} --features vgg", "argument --features: invalid choice: 'vgg'"),
    (f"{EVALUATE} {TEACHER} --num_samples 1", "--num_samples: should be at least 2"),
    (f"{EVALUATE} {TEACHER} --num_samples 60001", "--num_samples 60001: more than the 60000 training images"),
    (f"{EVALUATE} {TEACHER} --batch_size 0", "argument --batch_size: should be a positive integer"),
    (f"{EVALUATE} {TEACHER} --output_dir a_file", "a_file: this folder is not writable"),
    (f"{EVALUATE} {TEACHER} --output_dir no_results", "results.json: damaged, or not of this"),
    (f"{EVALUATE.replace('tiny', 'untested')} folder.pt", "data.test_root: missing; needed here: a folder of images"),
    (f"{EVALUATE.replace('tiny', 'inside')} folder.pt", "inside.yaml: data.test_root: must not be inside data.root"),
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
    assert "output/steep: the loss was not finite in 10 updates in a row" in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path("output/steep").glob("*.pt"))


def test_a_bug_keeps_its_traceback(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sample, "grid", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("sample.py", "--checkpoint", STUDENT, "--num_samples", 1, "--output", "x.png")
