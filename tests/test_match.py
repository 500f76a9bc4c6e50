"""match.py, run as a user runs it, on real digits, in small."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, call, finish, run_in_processes
from test_scripts import assert_same, contents, run_with_cuts
from torchvision.datasets import MNIST

import sample
from models.guidance import guided
from models.samplers import ancestral
from utils.checkpoints.checkpoint import Metadata, load_checkpoint, save_checkpoint
from utils.checkpoints.sampling import draw_samples
from utils.config.schema import SamplerSettings


@pytest.fixture(scope="module")
def lesson(tmp_path_factory) -> Path:
    """A teacher of two classes, its conversion to guidance, and its students of 4 and 2 steps."""
    folder = tmp_path_factory.mktemp("lesson")
    digits = MNIST(ROOT / "data", download=True)
    for i in range(20):
        path = folder / f"digits/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits[i][0].save(path)
    text = (TINY % (folder / "digits")).replace("name: MNIST", "name: folder")
    text = text.replace("dropout: 0.1", "dropout: 0.1, num_classes: 2")
    (folder / "plain.yaml").write_text(text)
    guided = text.replace("distillation:\n  {", "distillation:\n  {guidance: [1, 3], num_conversion_steps: 4, ")
    (folder / "guided.yaml").write_text(guided)
    (folder / "in_two.yaml").write_text(guided.replace("matching: {", "matching: {accumulation_steps: 2, "))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("train.py", "--config_path", "plain.yaml", "--output_dir", "teacher") == 0
        flags = ["--teacher_model_checkpoint", "teacher/diffusion-6.pt", "--initial_sampling_steps", 4]
        for name in ("plain", "guided"):
            steps = ["--distillation_iterations", 2, "--output_dir", name]
            assert call("distill.py", "--config_path", f"{name}.yaml", *flags, *steps) == 0
    return folder


PLAIN = ["match.py", "--config_path", "plain.yaml", "--teacher_model_checkpoint", "teacher/diffusion-6.pt"]
GUIDED = ["match.py", "--config_path", "guided.yaml", "--student_checkpoint", "guided/2_2/diffusion-4.pt"]
GUIDED += ["--teacher_model_checkpoint", "guided/0_conversion/diffusion-4.pt"]
STUDENT = ["--student_checkpoint", "plain/2_2/diffusion-4.pt"]


def test_cut_off_at_any_file_it_ends_as_if_undisturbed(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    assert run_with_cuts(monkeypatch, capsys, *PLAIN, *STUDENT) > 2
    assert call(*PLAIN, *STUDENT, "--output_dir", "whole") == 0
    assert call(*PLAIN, *STUDENT, "--output_dir", "whole", "--save_and_sample_every_n", 3) == 0  # changes no weights
    for name in ("diffusion-2.pt", "diffusion-4.pt", "training_state.pt"):
        assert_same(contents(Path("output/matched/plain/2", name)), contents(Path("whole", name)))


def test_its_checkpoint_says_how_it_is_sampled_and_its_log_what_does_not_match(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    assert call(*GUIDED, "--output_dir", "matched") == 0
    matched = load_checkpoint("matched/diffusion-4.pt")
    assert (matched.kind, matched.sampling.steps, matched.sampling.sampler) == ("matched", 2, "ancestral")
    assert matched.guidance == [1, 3]
    lines = [json.loads(line) for line in Path("matched/metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "auxiliary/loss", "x_auxiliary - x_teacher"):
        values = [line[name] for line in lines if "loss" in line]
        assert len(values) == 4 and all(value != 0 for value in values), name
    assert call("sample.py", "--checkpoint", "matched/diffusion-4.pt", "--num_samples", 3) == 0
    model, options = matched.model(torch.device("cpu")), {"seed": 0, "device": torch.device("cpu")}
    drawn = draw_samples(model, matched.config, 3, sampling=matched.sampling, **options)
    generators = [torch.Generator().manual_seed(2812310125 + i) for i in range(3)]  # seed_of("sample", 0)

    def noise() -> torch.Tensor:
        return torch.stack([torch.randn((1, 16, 16), generator=generator) for generator in generators])

    with torch.no_grad():
        scaled = guided(model, torch.ones(3, dtype=torch.float64))
        expected = ancestral(scaled, noise(), 2, label=torch.tensor([0, 1, 0]), noise=noise)
    torch.testing.assert_close(drawn, expected.clamp(-1, 1))
    assert call("distill.py", *PLAIN[1:3], "--teacher_model_checkpoint", "matched/diffusion-4.pt") == 2
    assert "was matched for the ancestral sampler" in capsys.readouterr().err


def test_two_processes_and_micro_batches_are_one_process(lesson, monkeypatch):
    monkeypatch.chdir(lesson)
    assert call(*GUIDED, "--output_dir", "one") == 0
    in_two = [*GUIDED[:2], "in_two.yaml", *GUIDED[3:]]
    code, _, errors = finish(run_in_processes(2, *in_two, "--output_dir", "two", cwd=lesson))
    assert code == 0, errors
    one, two = (contents(Path(folder, "training_state.pt"))["trainers"] for folder in ("one", "two"))
    for name in ("model", "auxiliary"):
        for key, weight in one[name]["network"].items():
            torch.testing.assert_close(two[name]["network"][key], weight, atol=1e-5, rtol=0)


def test_it_begins_with_the_teacher_or_a_student_and_learns(lesson, monkeypatch):
    monkeypatch.chdir(lesson)
    slow = [*PLAIN[:2], "slow.yaml", *PLAIN[3:]]
    text = Path("plain.yaml").read_text()
    Path("slow.yaml").write_text(
        text.replace("matching: {", "matching: {ema_decay: 0, ").replace(
            "learning_rate: 1e-3, save_and_sample_every_n: 2, log_every_n: 1}\nsampling",
            "learning_rate: 1e-12, save_and_sample_every_n: 2, log_every_n: 1}\nsampling",
        )
    )
    for flags, begin in ((["--sampling_steps", 4], "teacher/diffusion-6.pt"), (STUDENT, STUDENT[1])):
        assert call(*slow, *flags, "--output_dir", f"slow_{len(begin)}") == 0
        assert call(*PLAIN, *flags, "--output_dir", f"quick_{len(begin)}") == 0
        first = load_checkpoint(begin).weights
        changes = []
        for folder in ("slow", "quick"):
            after = load_checkpoint(f"{folder}_{len(begin)}/diffusion-4.pt")
            assert after.sampling.steps == (4 if "teacher" in begin else 2)
            changes.append(max((after.weights[name] - weight).abs().max() for name, weight in first.items()))
        assert changes[0] < 1e-8 < 1e-5 < changes[1]


def test_another_teacher_or_other_updates_are_another_run(lesson, monkeypatch, capsys):
    monkeypatch.chdir(lesson)
    run = [*PLAIN[:3], "--student_checkpoint", STUDENT[1], "--output_dir", "run", "--teacher_model_checkpoint"]
    assert call(*run, "teacher/diffusion-6.pt") == 0
    assert call(*run, "teacher/diffusion-4.pt") == 2
    assert "it matches teacher/diffusion-6.pt, not teacher/diffusion-4.pt" in capsys.readouterr().err
    text = Path("plain.yaml").read_text()
    Path("once.yaml").write_text(text.replace("matching: {", "matching: {auxiliary_updates: {default: 3, 2: 1}, "))
    assert call(*run[:2], "once.yaml", *run[3:], "teacher/diffusion-6.pt") == 2
    assert "matching.auxiliary_updates is 3, not 1" in capsys.readouterr().err


def test_progressive_students_are_compared_by_ddim_and_others_by_their_own_sampler(lesson, monkeypatch):
    monkeypatch.chdir(lesson)
    teacher = load_checkpoint("teacher/diffusion-6.pt")
    own = SamplerSettings(steps=8, sampler="ancestral")
    for kind in ("student", "matched"):
        metadata = Metadata(config=teacher.config, step=1, sampling=own, kind=kind, prediction="v")
        save_checkpoint(Path(f"{kind}_of_8.pt"), metadata, teacher.weights)
    compared = [teacher.path, "student_of_8.pt", "matched_of_8.pt"]
    monkeypatch.setattr("sys.argv", ["sample.py", "--compare", *map(str, compared)])
    panels = sample.choose_panels(sample.parse_arguments())
    assert [sampling.sampler for _, sampling in panels] == ["ddim", "ddim", "ancestral"]
    monkeypatch.setattr("sys.argv", ["sample.py", "--checkpoint", "student_of_8.pt"])
    assert sample.choose_panels(sample.parse_arguments())[0][1].sampler == "ancestral"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (PLAIN, "--sampling_steps: missing; needed where the student starts as its teacher"),
        ([*PLAIN[:4], "plain/2_2/diffusion-4.pt", *STUDENT], "a student, which cannot be the teacher to match"),
        ([*GUIDED[:6], "teacher/diffusion-6.pt"], "as teacher, give the student's conversion (0_conversion/)"),
        ([*PLAIN, "--student_checkpoint", "none.pt"], "none.pt: cannot be read"),
        ([*PLAIN, *STUDENT, "--batch_size", 0], "--batch_size"),
        ([*PLAIN, *STUDENT, "--sampling_steps", 501], "501 sampling steps: should be at most 500"),
        ([*PLAIN, *STUDENT, "--output_dir", "teacher", "--restart"], "would delete teacher/diffusion-6.pt"),
    ],
)
def test_bad_input_gets_one_line_and_nothing_is_written(lesson, monkeypatch, capsys, command, message):
    monkeypatch.chdir(lesson)
    before = sorted(Path().rglob("*"))
    assert call(*command) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors and sorted(Path().rglob("*")) == before
