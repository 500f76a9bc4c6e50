"""The configuration of a teacher that was trained elsewhere, as a YAML to be completed."""

from pathlib import Path

import yaml

from utils.schema import Config

TEMPLATE = """# Of {source}, converted: what the model is, and how it is distilled.
#
#     python distill.py --config_path {path} \\
#       --teacher_model_checkpoint {checkpoint} --initial_sampling_steps 32 --distillation_iterations 3
#
# To be filled in: `data`. `network` and `diffusion` are the teacher's, and cannot be changed. The settings of
# `distillation` are to begin with; every key is explained in configs/ddpm_32x32_v_continuous.yaml.

data:
  name: folder                 # what it was trained on: a folder of images, MNIST, FashionMNIST or CIFAR10
  root: data/pictures          # where that lies
  random_flip: false           # whether it was shown mirrored
  image_size: {image_size}
  num_channels: {num_channels}

{model}
distillation:
  prediction: v                # what the students learn to say, whatever their teacher does: eps is no use in few steps
  num_conversion_steps: 1200   # of the optimizer, in which the first student learns that, by the teacher's own loss
  conversion_learning_rate: 1e-3
  num_training_steps_per_iteration: {{default: 100, 16: 200, 8: 600, 4: 600, 2: 600, 1: 1000}}
  learning_rate: {{default: 2e-4, 16: 4e-4, 8: 4e-4, 4: 4e-4, 2: 4e-4, 1: 4e-4}}
  batch_size: 32
  loss_weighting: v_mse
  adam_beta2: 0.95
  gradient_clipping: 1.0
  ema_decay: 0.0
  save_and_sample_every_n: 600

sampling:
  sampling_steps: 50
"""


def teacher_yaml(config: Config, *, source: Path, checkpoint: Path, path: Path) -> str:
    """The text of the configuration that goes with a converted teacher."""
    sections = {
        "network": config.network.model_dump(),
        "diffusion": config.diffusion.model_dump(exclude={"logsnr_min", "logsnr_max"}),
        "training": config.training.model_dump(include={"class_dropout", "loss_weighting"}),
    }
    model = "\n".join(
        yaml.safe_dump({name: content}, sort_keys=False, default_flow_style=None, width=100)
        for name, content in sections.items()
    )
    shape = config.data.model_dump(include={"image_size", "num_channels"})
    paths = {"source": source, "checkpoint": checkpoint, "path": path}
    paths = {name: " ".join(str(path).split()) for name, path in paths.items()}  # a comment ends with its line
    return TEMPLATE.format(**paths, model=model, **shape)
