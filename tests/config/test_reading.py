from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from utils.config.reading import differences, load_config
from utils.config.schema import NETWORKS, Config, Training
from utils.system.errors import InputError

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MINIMAL = "data: {name: MNIST, image_size: 32, num_channels: 1}\n"


def load(tmp_path: Path, text: str, **overrides) -> Config:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def test_every_key_is_in_the_annotated_configuration_and_explained():
    path = ROOT / "configs/ddpm_32x32_v_continuous.yaml"
    content = yaml.safe_load(path.read_text())
    lines = path.read_text().splitlines()
    for section, settings in Config.model_fields.items():
        if section in ("seed", "precision", "compile"):
            continue
        model = NETWORKS["unet"] if section == "network" else settings.annotation
        assert set(content[section]) == set(model.model_fields), section
    for number, line in enumerate(lines):
        if ":" in line.partition("#")[0] and line.startswith(" "):
            assert "#" in line or lines[number - 1].strip().startswith("#"), line


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "ddpm_32x32_v_continuous"])
def test_other_configurations_contain_what_differs_and_name_the_annotated_one(path):
    defaults = load_config(ROOT / "configs/ddpm_32x32_v_continuous.yaml").model_dump()
    required, content = {"name", "image_size", "num_channels"}, yaml.safe_load(path.read_text())
    load_config(path)
    # `random_flip: false` stands in a template, to be considered
    same = {(s, key) for s, keys in content.items() for key, value in keys.items() if defaults[s][key] == value}
    assert {key for _, key in same} <= required | {"random_flip"}
    assert "ddpm_32x32_v_continuous.yaml explains every key" in path.read_text()


def test_the_full_size_configuration_shows_the_defaults(tmp_path):
    assert load_config(ROOT / "configs/ddpm_32x32_v_continuous.yaml") == load(tmp_path, MINIMAL)


def test_flags_override_and_flags_left_out_do_not(tmp_path):
    config = load(tmp_path, MINIMAL + "training: {batch_size: 7}", **{"training.num_training_steps": 3, "seed": 5})
    assert (config.training.batch_size, config.training.num_training_steps, config.seed) == (7, 3, 5)


def test_a_flag_replaces_the_steps_of_every_student(tmp_path):
    rates = "learning_rate: {default: 1e-5, 8: 3e-4}"
    text = MINIMAL + f"distillation: {{num_training_steps_per_iteration: {{default: 10, 8: 99}}, {rates}}}"
    assert [load(tmp_path, text).distillation.of_student(n) for n in (512, 8)] == [(10, 1e-5), (99, 3e-4)]
    config = load(tmp_path, text, **{"distillation.num_training_steps_per_iteration": 4})
    assert [config.distillation.of_student(n)[0] for n in (512, 8)] == [4, 4]


def test_yaml_as_people_write_it(tmp_path):
    config = load(
        tmp_path,
        MINIMAL
        + """
training: &both {batch_size: &size 9, learning_rate: 1e-4, gradient_clipping: 1}
distillation: {<<: *both, batch_size: *size, learning_rate: 5E-05}
network:
""",
    )
    assert config.training.learning_rate == 1e-4
    assert config.distillation.batch_size == 9 and config.distillation.of_student(8)[1] == 5e-5
    assert config.network.features == 128


@pytest.mark.parametrize(("text", "number"), [("010", 10), ("+0064", 64), ("08", 8)])
def test_numbers_are_decimal(tmp_path, text, number):
    config = load(tmp_path, f"{MINIMAL}seed: {text}\ndistillation: {{learning_rate: {{default: 1e-3, 016: 2e-3}}}}")
    assert config.seed == number and config.distillation.of_student(16)[1] == 2e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: the file is empty"),
        ("# nothing", "x.yaml: the file is empty"),
        ("- a\n- b", "x.yaml: should be sections of `key: value`, not a list"),
        ("data: [", "x.yaml: not a YAML file"),
        ("data: \0", "x.yaml: not a YAML file"),
        ("data: !!python/object/apply:os.system [true]", "x.yaml: not a YAML file"),
        ("seed: 1", "x.yaml: data: missing"),
        ("data: {name: MNIST, num_channels: 1}", "x.yaml: data.image_size: missing"),
        (MINIMAL + "training: {batch_sise: 3}", "x.yaml: training.batch_sise: unknown key, did you mean batch_size?"),
        (MINIMAL + "trainning: {}", "x.yaml: trainning: unknown key, did you mean training?"),
        (
            "data: {name: MNIST, image_sise: 32, num_channels: 1}",
            "data.image_sise: unknown key, did you mean image_size?",
        ),
        (MINIMAL + "training: {qqq: 3}", "x.yaml: training.qqq: unknown key; the keys here are batch_size, "),
        (MINIMAL + "training: {batch_size: '64'}", "x.yaml: training.batch_size: should be a valid integer, not '64'"),
        (
            MINIMAL + "training: {batch_size: 1:30}",
            "x.yaml: training.batch_size: should be a valid integer, not '1:30'",
        ),
        (
            MINIMAL + "training: {batch_size: 0x40}",
            "x.yaml: training.batch_size: should be a valid integer, not '0x40'",
        ),
        (MINIMAL + "training: {learning_rate: 1:30.5}", "learning_rate: should be a valid number, not '1:30.5'"),
        (MINIMAL + "training: {batch_size: 6.5}", "x.yaml: training.batch_size: should be a valid integer, not 6.5"),
        (MINIMAL + "training: {batch_size: true}", "x.yaml: training.batch_size: should be a valid integer, not True"),
        (MINIMAL + "training: {batch_size: 0}", "x.yaml: training.batch_size: should be greater than 0, not 0"),
        (MINIMAL + "training: {batch_size: 1, batch_size: 2}", "x.yaml: not a YAML file: key 'batch_size' given twice"),
        (MINIMAL + "training: {learning_rate: .nan}", "x.yaml: training.learning_rate: should be a finite number"),
        (MINIMAL + "training: {ema_decay: 1.0}", "x.yaml: training.ema_decay: should be less than 1"),
        (MINIMAL + "training: 3", "x.yaml: training: should be a valid dictionary"),
        (MINIMAL + "diffusion: {prediction: w}", "x.yaml: diffusion.prediction: should be 'v', 'eps' or 'x', not 'w'"),
        (MINIMAL + "diffusion: {logsnr_min: 20}", "x.yaml: diffusion.logsnr_min: must be less than logsnr_max"),
        (MINIMAL.replace("32", "36"), "x.yaml: data.image_size: 36 is not divisible by 8"),
        (MINIMAL.replace("name: MNIST", "name: CIFAR"), "x.yaml: data.name: should be 'MNIST', 'FashionMNIST'"),
        (MINIMAL.replace("MNIST", "MNIST, background: blu"), "x.yaml: data.background: should be a colour, such as"),
        (MINIMAL + "network: {features: 3}", "x.yaml: network.features: should be a multiple of 2, not 3"),
        (
            MINIMAL + "network: {attention_resolutions: [5]}",
            "x.yaml: network.attention_resolutions: 5; the feature maps",
        ),
        (
            MINIMAL + "network: {attention_resolutions: [], num_heads: 3}",
            "x.yaml: network.num_heads: 3 does not divide",
        ),
        (MINIMAL + "network: {multipliers: []}", "x.yaml: network.multipliers: List should have at least 1 item"),
        (
            MINIMAL + "sampling: {sampling_steps: 100000}",
            "x.yaml: sampling.sampling_steps: should be less than",
        ),
        (MINIMAL + "sampling: {clip: 0}", "x.yaml: sampling.clip: should be true, false or a number up to 1000, not 0"),
        (MINIMAL + "sampling: {clip: 'no'}", "sampling.clip: should be true, false or a number up to 1000, not 'no'"),
        (MINIMAL + "sampling: {clip: 1e300}", "x.yaml: sampling.clip: should be true, false or a number up to 1000"),
        (MINIMAL + "sampling: {variance: huge}", "x.yaml: sampling.variance: should be 'small' or 'large'"),
        (
            MINIMAL + "distillation: {num_training_steps_per_iteration: {8: 5}}",
            "x.yaml: distillation.num_training_steps_per_iteration: needs a `default` for the other students",
        ),
        (
            MINIMAL + "distillation: {num_training_steps_per_iteration: {default: 1, x: 5}}",
            "x.yaml: distillation.num_training_steps_per_iteration.x: ",
        ),
        (MINIMAL + "network: {type: vit}", f"x.yaml: network.type: should be {' or '.join(NETWORKS)}, not 'vit'"),
        (MINIMAL + "network: [1]", "x.yaml: network: should be keys and their values, not [1]"),
        (MINIMAL + "network: {feature: 8}", "x.yaml: network.feature: unknown key, did you mean features?"),
        (MINIMAL + "network: {type: unet2d, features: 8}", "x.yaml: network.features: unknown key"),
        (
            MINIMAL + "network: {type: unet2d, layers_per_blok: 1}",
            "x.yaml: network.layers_per_blok: unknown key, did you mean layers_per_block?",
        ),
        (
            MINIMAL + "network: {type: unet2d, attention_head_dim: 500}",
            "x.yaml: network.attention_head_dim: 500 is more than 448 channels",
        ),
        (
            MINIMAL + "network: {type: unet2d, attn_norm_num_groups: 7, block_out_channels: [32, 64, 64, 64]}",
            "x.yaml: network.attn_norm_num_groups: 7 does not divide 64 channels",
        ),
        (
            MINIMAL + "network: {type: unet2d, norm_num_groups: 30}",
            "x.yaml: network.norm_num_groups: 30 does not divide 224 channels",
        ),
        (
            MINIMAL + "network: {type: unet2d, block_out_channels: [32]}",
            "x.yaml: network.down_block_types: should be 1, one for each of block_out_channels",
        ),
        (MINIMAL + "diffusion: {schedule: discrete}", "x.yaml: diffusion.betas: required by schedule: discrete"),
        (MINIMAL + "diffusion: {betas: {}}", "x.yaml: diffusion.betas: required by schedule: discrete"),
        (
            MINIMAL + "diffusion: {schedule: discrete, betas: {trained_betas: [0.1, 0.2]}}",
            "x.yaml: diffusion.betas.trained_betas: should be num_train_timesteps numbers",
        ),
        (
            MINIMAL + "diffusion: {schedule: discrete, prediction: eps, betas: {rescale_betas_zero_snr: true}}",
            "x.yaml: diffusion.prediction: eps does not determine x without signal (rescale_betas_zero_snr)",
        ),
        (
            MINIMAL + "network: {type: unet2d, num_train_timesteps: 50}\ndiffusion: {schedule: discrete, betas: {}}",
            "x.yaml: network.num_train_timesteps: 50, but diffusion.betas has 1000",
        ),
        *(
            (
                MINIMAL + f"distillation: {{guidance: {wrong}}}",
                f"x.yaml: distillation.guidance: should be two numbers, the smaller first, such as [1, 4], not {wrong}",
            )
            for wrong in ("2", "[4, 1]", "[1, 2, 3]")
        ),
        (
            MINIMAL + "distillation: {num_training_steps_per_iteration: 2.5}",
            "x.yaml: distillation.num_training_steps_per_iteration.default: should be a valid integer, not 2.5",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_flag_is_named_as_a_flag(tmp_path):
    with pytest.raises(InputError, match=r"^--batch_size: should be greater than 0, not -1$"):
        load(tmp_path, MINIMAL, **{"training.batch_size": -1})
    with pytest.raises(InputError, match=r"^--seed: should be greater than or equal to 0, not -1$"):
        load(tmp_path, MINIMAL, seed=-1)
    with pytest.raises(InputError, match=r"^--num_training_steps_per_iteration: should be greater than 0"):
        load(tmp_path, MINIMAL, **{"distillation.num_training_steps_per_iteration": 0})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_configuration_survives_being_saved(tmp_path):
    config = load(tmp_path, MINIMAL + "distillation: {num_training_steps_per_iteration: {default: 10, 8: 99}}")
    assert Config.model_validate(config.model_dump()) == config


def test_test_images_are_not_among_the_training_images(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for root, test_root in (("~/a", tmp_path / "a/test"), (tmp_path / "a", "~/a"), (tmp_path / "a/train", "~/a")):
        data = f"data: {{name: folder, root: '{root}', test_root: '{test_root}', image_size: 32, num_channels: 1}}"
        with pytest.raises(InputError, match=r"data.test_root: must not be inside data.root, nor around it"):
            load(tmp_path, data)
    load(tmp_path, data.replace("'~/a'", "'~/ab'"))


def test_differences_are_named():
    there, here = {"a": {"b": 1, "c": [1]}, "d": None}, {"a": {"b": 2, "c": [1]}, "e": 3}
    assert differences(there, here) == ["a.b is 1, not 2", "e is None, not 3"]


def test_learning_rates():
    settings = Training(num_training_steps=100, learning_rate=1.0, warmup_steps=9)
    assert [settings.learning_rate_at(step) for step in (0, 4, 9, 99)] == [0.1, 0.5, 1.0, 1.0]
    settings = Training(num_training_steps=100, learning_rate=2.0, learning_rate_decay="linear")
    assert [settings.learning_rate_at(step) for step in (0, 50, 100)] == [2.0, 1.0, 0.0]
    settings = Training(num_training_steps=100, learning_rate=2.0, learning_rate_decay="cosine")
    assert [settings.learning_rate_at(step) for step in (0, 50, 100)] == pytest.approx([2.0, 1.0, 0.0])
