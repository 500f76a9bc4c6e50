"""Builds the model that a configuration describes."""

from contextlib import nullcontext

import torch

from models.diffusion import Diffusion, Prediction
from utils.config.schema import Config
from utils.system.errors import InputError


def build_model(
    config: Config,
    device: torch.device,
    dropout: float | None = None,
    *,
    prediction: Prediction | None = None,
    takes_guidance: bool = False,
) -> Diffusion:
    """A model with the architecture of a configuration and random weights; arguments override the configuration.

    Raises InputError if its network is from diffusers, which is not installed or refuses the settings.
    """
    data, diffusion, settings = config.data, config.diffusion, config.network
    if dropout is not None:
        settings = settings.model_copy(update={"dropout": dropout})
    shape = {"image_size": data.image_size, "num_channels": data.num_channels}
    # The weights are drawn on the CPU, so they are the same on every device; the meta device has none.
    with device if device.type == "meta" else nullcontext():
        try:
            network = settings.build(**shape, takes_guidance=takes_guidance)
        except ImportError as error:
            raise InputError("network.type: unet2d is a network of diffusers: pip install diffusers") from error
        except ValueError as error:
            raise InputError(f"network: {error}") from error
    # Convolutions compute in the memory format channels last.
    network = network.to(device, memory_format=torch.channels_last)
    prediction = prediction or diffusion.prediction
    return Diffusion(network, diffusion.noise_schedule(), prediction, takes_guidance, network.timesteps)
