"""Against diffusers itself: its networks, schedules and sampler, and folders that it wrote or is to read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call, save_model
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from pipelines import draw, save_pipeline, stock
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from models.diffusion import UNCONDITIONAL
from models.guidance import Guided
from models.noise_schedule import betas_at
from models.samplers import ancestral, ddim
from utils.checkpoints.checkpoint import load_checkpoint
from utils.config.schema import Betas, DiffusionSettings

CPU = torch.device("cpu")
SCHEDULES = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    "zero SNR": {"rescale_betas_zero_snr": True},
    "given": {"trained_betas": [0.001 * (k + 1) for k in range(40)], "num_train_timesteps": 40},
}


def convert(folder: Path, *flags: str) -> Path:
    """The checkpoint that convert.py makes of a folder."""
    path = folder.with_name("teacher") / "diffusion-0.pt"
    assert call("convert.py", "--from_diffusers", folder, "--output", path, *flags) == 0
    return path


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_its_timesteps_a_discrete_schedule_is_that_of_diffusers(name):
    settings = SCHEDULES[name]
    theirs = DDPMScheduler(**settings).alphas_cumprod.double()
    ours = Betas(**settings).schedule()
    t = torch.arange(1, len(theirs) + 1, dtype=torch.float64) / len(theirs)
    torch.testing.assert_close(ours.angle(t).cos() ** 2, theirs, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(ours.time(ours.logsnr(t)), t)
    torch.testing.assert_close(betas_at(ours, len(theirs)), torch.tensor(ours.betas, dtype=torch.float64))


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [("epsilon", "linear"), ("epsilon", "squaredcos"), ("sample", "given"), ("v_prediction", "zero SNR")],
)
def test_a_converted_teacher_draws_what_the_stock_pipeline_draws(tmp_path, monkeypatch, prediction, schedule):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline", prediction_type=prediction, **SCHEDULES[schedule])
    model = load_checkpoint(convert(tmp_path / "pipeline")).model(CPU)
    z, timesteps = torch.randn(1, 1, 16, 16), model.timesteps
    for steps in (timesteps if prediction == "epsilon" else timesteps // 2, timesteps // 10, 4):
        with torch.no_grad():
            ours = ddim(model, z, steps, clip=False)
        theirs = draw(*stock(tmp_path / "pipeline"), z, steps)
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("limit", [1.0, 0.5, None])
def test_a_converted_teacher_is_clipped_as_its_pipeline_and_its_students_are_not(tmp_path, monkeypatch, limit):
    monkeypatch.chdir(tmp_path)
    clipping = {"clip_sample": limit is not None, "clip_sample_range": limit or 1.0}
    save_pipeline(tmp_path / "pipeline", **SCHEDULES["given"], **clipping)
    path = convert(tmp_path / "pipeline")
    teacher = load_checkpoint(path)
    assert (teacher.sampling.clip or None, teacher.sampling.steps) == (limit, 40)
    assert f"clip: {limit or 'false'}" in path.with_name("teacher.yaml").read_text()
    z, (network, _) = torch.randn(1, 1, 16, 16), stock(tmp_path / "pipeline")
    given = DDIMPipeline.from_pretrained(tmp_path / "pipeline").scheduler.config
    scheduler = DDIMScheduler.from_config(given, timestep_spacing="trailing")
    with torch.no_grad():
        ours = ddim(teacher.model(CPU), z, 10, clip=teacher.sampling.clip)
    theirs = draw(network, scheduler, z, 10, use_clipped_model_output=True)
    torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=1e-3)
    assert not load_checkpoint(distill(path)).sampling.clip
    assert not load_checkpoint("output/distilled/tiny/0_conversion/diffusion-3.pt").sampling.clip
    assert call("convert.py", "--checkpoint", path, "--to_diffusers", "again") == 0
    card = Path("again/README.md").read_text()
    assert ("use_clipped_model_output=True" in card) is bool(limit)  # otherwise a DDIMPipeline keeps eps as it was
    scheduler = json.loads(Path("again/scheduler/scheduler_config.json").read_text())
    assert scheduler["clip_sample"] is bool(limit) and scheduler["clip_sample_range"] == (limit or 1)


def test_x_can_be_clipped_or_not_for_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline")
    flags = ["--checkpoint", convert(tmp_path / "pipeline"), "--sampling_steps", 4, "--num_samples", 2]
    for name, flag in (("own", []), ("yes", ["--clip"]), ("no", ["--no-clip"])):
        assert call("sample.py", *flags, *flag, "--output", f"{name}.png") == 0
    assert Path("own.png").read_bytes() == Path("yes.png").read_bytes() != Path("no.png").read_bytes()


def in_one_folder(folder: Path) -> None:
    for part in ("unet", "scheduler"):
        for path in (folder / part).iterdir():
            path.rename(folder / path.name)
        (folder / part).rmdir()


def in_two_files(folder: Path) -> None:
    network = UNet2DModel.from_pretrained(folder / "unet")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / "unet", max_shard_size="50KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1


def as_variant(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".fp16.safetensors"))


def with_old_keys(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text()) | {"tensor_format": "pt", "timestep_values": None, "predict_epsilon": True}
    config.pop("prediction_type")
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("change", [in_one_folder, in_two_files, as_variant, with_old_keys])
def test_pipelines_in_other_layouts_are_the_same_teacher(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline")
    usual = load_checkpoint(convert(tmp_path / "pipeline"))
    shutil.rmtree("teacher")
    change(tmp_path / "pipeline")
    other = load_checkpoint(convert(tmp_path / "pipeline"))
    assert other.config == usual.config and other.weights.keys() == usual.weights.keys()
    assert all(torch.equal(other.weights[name], usual.weights[name]) for name in usual.weights)


@pytest.mark.parametrize(("timesteps", "first"), [(1000, 32), (20, 16), (50, 8), (25, 4)])
def test_the_proposed_students_end_where_diffusers_can_follow(tmp_path, monkeypatch, timesteps, first):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline", num_train_timesteps=timesteps)
    text = convert(tmp_path / "pipeline").with_name("teacher.yaml").read_text()
    assert f"--initial_sampling_steps {first} --distillation_iterations 3" in text and timesteps % (first // 4) == 0


def test_weights_by_their_names_in_earlier_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline")
    path = tmp_path / "pipeline/unet/diffusion_pytorch_model.safetensors"
    now = load_checkpoint(convert(tmp_path / "pipeline")).weights
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    before = {}
    for name, weight in load_file(path).items():
        for new, old in names.items():
            name = name.replace(new, old)
        before[name] = weight
    assert any(".proj_attn." in name for name in before)
    save_file(before, path)
    shutil.rmtree("teacher")
    converted = load_checkpoint(convert(tmp_path / "pipeline")).weights
    assert converted.keys() == now.keys() and all(torch.equal(converted[name], now[name]) for name in now)


def test_of_too_many_betas_the_first_are_taken_as_diffusers_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    betas = [0.001 * (k + 1) for k in range(40)]
    save_pipeline(tmp_path / "pipeline", prediction_type="v_prediction", trained_betas=betas, num_train_timesteps=20)
    assert load_checkpoint(convert(tmp_path / "pipeline")).config.diffusion.betas.trained_betas == betas[:20]


@pytest.mark.parametrize("betas", [[0.0, 0.0, 0.1, 0.2], [0.1, 1.0, 0.1, 0.2], [0.0, 0.0, 0.0, 0.0]])
def test_timesteps_that_add_no_noise_are_refused(betas):
    settings = {"prediction": "v", "schedule": "discrete", "betas": {"trained_betas": betas, "num_train_timesteps": 4}}
    with pytest.raises(ValidationError, match="each timestep should add noise"):
        DiffusionSettings.model_validate(settings)


def test_a_schedule_that_float32_loses_is_not_exported(tmp_path, monkeypatch, capsys):
    """Of 8 steps of a linear logsnr, the last begins with so little noise that diffusers would divide 0 by 0."""
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline", prediction_type="v_prediction")
    teacher = load_checkpoint(convert(tmp_path / "pipeline"))
    diffusion = DiffusionSettings(schedule="linear")
    for steps, code in ((8, 2), (2, 0)):
        config = teacher.config.model_copy(update={"diffusion": diffusion})
        save_model(Path(f"{steps}.pt"), teacher.weights, config=config, step=1, sampling_steps=steps)
        assert call("convert.py", "--checkpoint", f"{steps}.pt", "--to_diffusers", f"student-v{steps}.0") == code
    assert "diffusers rounds its noise schedule too much" in capsys.readouterr().err
    assert not Path("student-v8.0").exists() and Path("student-v2.0/README.md").exists()


def test_classes_and_a_class_that_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = save_pipeline(tmp_path / "pipeline", unet={"num_class_embeds": 4}, prediction_type="v_prediction")
    checkpoint = load_checkpoint(convert(tmp_path / "pipeline", "--last_class_is_none"))
    assert checkpoint.class_names == ["0", "1", "2"] and checkpoint.kind == "teacher"
    checkpoint.require_guidance(3.0)
    model, z = checkpoint.model(CPU), torch.randn(3, 1, 16, 16)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    label, none = torch.tensor([0, 1, 2]), torch.full((3,), 3)
    with torch.no_grad():
        v, v_none = (network(z, 499, which).sample for which in (label, none))
        torch.testing.assert_close(model.v(z, t, label), v, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.v(z, t, torch.full((3,), UNCONDITIONAL)), v_none, rtol=0, atol=1e-5)
        guided = Guided(model, torch.full((3,), 2.0, dtype=torch.float64)).v(z, t, label)
    torch.testing.assert_close(guided, 2 * v - v_none, rtol=0, atol=1e-5)


TINY_DISTILLATION = """
data: {name: MNIST, root: %s, image_size: 16, num_channels: 1}
precision: fp32
network: %s
diffusion: %s
training: {class_dropout: %s}
distillation:
  {prediction: v, guidance: %s, num_conversion_steps: 3, num_training_steps_per_iteration: 2, batch_size: 8,
  learning_rate: 1e-3, conversion_learning_rate: 1e-3}
sampling: {sampling_steps: 2, num_samples: 2}
"""


def distill(checkpoint: Path, guidance: str = "null", steps: int = 8) -> Path:
    """Distills a converted teacher a little, on MNIST; the checkpoint of the student."""
    config = load_checkpoint(checkpoint).config
    parts = (json.dumps(part.model_dump()) for part in (config.network, config.diffusion))
    text = TINY_DISTILLATION % (ROOT / "data", *parts, config.training.class_dropout, guidance)
    path = checkpoint.parent / "tiny.yaml"
    path.write_text(text)
    flags = ["--initial_sampling_steps", steps, "--distillation_iterations", 1]
    assert call("distill.py", "--config_path", path, "--teacher_model_checkpoint", checkpoint, *flags) == 0
    return Path(f"output/distilled/tiny/1_{steps}/diffusion-2.pt")


def test_an_eps_teacher_is_converted_distilled_and_exported_for_diffusers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline")
    path = distill(convert(tmp_path / "pipeline"))
    Path(".exported.tmp").mkdir()  # the user's
    student = load_checkpoint(path)
    assert (student.prediction, student.config.diffusion.prediction, student.sampling.steps) == ("v", "eps", 8)
    converted = load_checkpoint("output/distilled/tiny/0_conversion/diffusion-3.pt")
    assert (converted.prediction, converted.kind) == ("v", "converted")
    assert call("convert.py", "--checkpoint", path, "--to_diffusers", "exported") == 0
    scheduler = json.loads(Path("exported/scheduler/scheduler_config.json").read_text())
    expected = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
    assert expected.items() <= scheduler.items()
    z = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        ours = ddim(student.model(CPU), z, 8, clip=False)
    torch.testing.assert_close(draw(*stock(Path("exported")), z, 8), ours, rtol=0, atol=1e-3)
    assert Path(".exported.tmp").is_dir()
    card = Path("exported/README.md").read_text()
    assert "Samples in 8 steps" in card and "num_inference_steps=8" in card


def test_a_matched_student_is_exported_for_the_ancestral_sampler(tmp_path, monkeypatch):
    """The stock `DDPMPipeline` takes the steps of `posterior` at variance 0, with its own random numbers."""
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline")
    teacher = load_checkpoint(convert(tmp_path / "pipeline"))
    save_model(Path("matched.pt"), teacher.weights, config=teacher.config, sampling_steps=8, kind="matched")
    assert call("convert.py", "--checkpoint", "matched.pt", "--to_diffusers", "exported") == 0
    pipeline = DDPMPipeline.from_pretrained("exported")
    assert pipeline.scheduler.config.variance_type == "fixed_small" and not pipeline.scheduler.config.clip_sample
    z, noises = torch.randn(2, 1, 16, 16), torch.randn(8, 2, 1, 16, 16)
    drawn = [iter(noises), iter(noises)]
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(drawn[0]))
    theirs = draw(pipeline.unet, pipeline.scheduler, z, 8)
    with torch.no_grad():
        ours = ancestral(load_checkpoint("matched.pt").model(CPU), z, 8, noise=lambda: next(drawn[1]))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3 * ours.abs().max().item())
    card = Path("exported/README.md").read_text()
    assert "DDPMPipeline" in card and "DDIMPipeline" not in card


def test_guidance_is_built_into_the_classes_of_an_exported_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "pipeline", unet={"num_class_embeds": 11})
    path = distill(convert(tmp_path / "pipeline", "--last_class_is_none"), guidance="[1, 4]")
    assert call("convert.py", "--checkpoint", path, "--to_diffusers", "exported", "--guidance", 3) == 0
    student = load_checkpoint(path).model(CPU)
    torch.nn.init.normal_(student.network.embed_guidance[-1].weight)  # or there would be little to see
    z, label = torch.randn(2, 1, 16, 16), torch.tensor([7, 2])
    guided = Guided(load_checkpoint(path).model(CPU), torch.full((2,), 3.0, dtype=torch.float64))
    with torch.no_grad():
        ours = ddim(guided, z, 8, label=label, clip=False)
    torch.testing.assert_close(draw(*stock(Path("exported")), z, 8, label), ours, rtol=0, atol=1e-3)
    assert "guidance scale of 3" in Path("exported/README.md").read_text()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make_wrong(folder: Path, what: str) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    match what:
        case "no index":
            (folder / "model_index.json").unlink()
        case "another pipeline":
            edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
        case "another network":
            edit(folder / "unet/config.json", _class_name="UNet2DConditionModel")
        case "an unknown key":
            edit(folder / "unet/config.json", blocks=3)
        case "block types":
            edit(folder / "unet/config.json", down_block_types=["DownBlock2D", "SkipDownBlock2D"])
        case "a timestep embedding":
            edit(folder / "unet/config.json", time_embedding_type="fourier")
        case "learned variance":
            edit(folder / "unet/config.json", out_channels=2)
        case "another scheduler":
            edit(folder / "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler")
        case "an unknown schedule":
            edit(folder / "scheduler/scheduler_config.json", beta_schedule="sigmoid")
        case "an unknown scheduler's key":
            edit(folder / "scheduler/scheduler_config.json", use_karras_sigmas=True)
        case "clip_sample":
            edit(folder / "scheduler/scheduler_config.json", clip_sample="no")
        case "thresholding" | "predict_epsilon":
            edit(folder / "scheduler/scheduler_config.json", **{what: what == "thresholding"})
        case "no folder":
            shutil.rmtree(folder)
        case "an unknown prediction":
            edit(folder / "scheduler/scheduler_config.json", prediction_type="flow")
        case "eps without signal":
            edit(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
        case "pickled":
            torch.save(load_file(weights), folder / "unet/diffusion_pytorch_model.bin")
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "a huge header":
            weights.write_bytes((2**40).to_bytes(8, "little") + weights.read_bytes()[8:])
        case "other weights":
            save_file({"conv_in.weight": torch.zeros(3)}, weights)


WRONG = {
    "no index": "model_index.json",
    "another pipeline": "_class_name: StableDiffusionPipeline",
    "another network": "_class_name: UNet2DConditionModel",
    "an unknown key": "blocks: unknown key",
    "block types": "down_block_types",
    "a timestep embedding": "time_embedding_type",
    "learned variance": "out_channels",
    "another scheduler": "_class_name: EulerDiscreteScheduler",
    "an unknown schedule": "beta_schedule",
    "an unknown scheduler's key": "use_karras_sigmas: unknown key",
    "clip_sample": "sampling.clip: should be true, false or a number",
    "thresholding": "thresholding: should be false",
    "predict_epsilon": "predict_epsilon: should be true",
    "no folder": "not the name of a model on the hub",
    "an unknown prediction": "prediction_type",
    "eps without signal": "rescale_betas_zero_snr",
    "pickled": "diffusion_pytorch_model.bin",
    "truncated": "truncated or damaged",
    "a huge header": "1099511627776 bytes",
    "other weights": "conv_in.weight",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "pipeline"
    save_pipeline(folder)
    return folder


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_taken_over_is_refused_in_one_line(tmp_path, monkeypatch, capsys, whole, what):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "pipeline")
    make_wrong(Path("pipeline"), what)
    assert call("convert.py", "--from_diffusers", "pipeline", "--output", "teacher/diffusion-0.pt") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and WRONG[what] in said and len(said) < 600, said
    assert not Path("teacher").exists()
