import itertools

import pytest
import torch
from conftest import ROOT

from models.blocks import Dropout, ResidualBlock, layer_norm, modulate, sinusoids
from models.noise_schedule import CosineSchedule
from models.unet import UNet, UNetSettings
from utils.checkpoints.checkpoint import build_model
from utils.config.reading import load_config

SMALL = {
    "image_size": 16,
    "num_channels": 1,
    "features": 8,
    "multipliers": [1, 2],
    "num_residual_blocks": 1,
    "attention_resolutions": [8],
}


def unet(**settings) -> UNet:
    shape = {name: settings.pop(name) for name in ("image_size", "num_channels")}
    return UNetSettings(**{"dropout": 0.0} | settings).build(**shape)


def awake(network: UNet) -> UNet:
    """A network in which the layers that begin at zero do not: everything reaches the output."""
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def test_begins_as_zero():
    network = unet(**SMALL)
    assert not network(torch.randn(2, 1, 16, 16), torch.zeros(2)).any()


@pytest.mark.parametrize("num_channels", [1, 2, 3])
@pytest.mark.parametrize(("patch_size", "image_size"), [(1, 16), (2, 16), (2, 20), (4, 24)])
def test_shapes(num_channels, patch_size, image_size):
    settings = SMALL | {"num_channels": num_channels, "patch_size": patch_size, "image_size": image_size}
    z = torch.randn(2, num_channels, image_size, image_size)
    assert awake(unet(**settings))(z, torch.zeros(2)).shape == z.shape


def drop(probability: float, places: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """What is left of ones [B, 4, 16, 16] at these places of a batch."""
    torch.manual_seed(seed)
    return Dropout(probability).train()(torch.ones(len(places), 4, 16, 16), places.int())


def test_dropout_drops_its_share_and_keeps_the_mean():
    for probability in (0.1, 0.5, 0.9):
        left = drop(probability, torch.arange(256))
        assert (left == 0).float().mean().item() == pytest.approx(probability, abs=5e-3)
        torch.testing.assert_close(left[left > 0], torch.tensor(1 / (1 - probability)).expand_as(left[left > 0]))
    assert torch.equal(drop(0.0, torch.arange(3)), torch.ones(3, 4, 16, 16))
    assert torch.equal(Dropout(0.5).eval()(torch.ones(3, 4, 4, 4), torch.arange(3).int()), torch.ones(3, 4, 4, 4))


def test_dropout_is_independent_between_elements_and_between_images():
    """Of two elements in one image, and of one element in two images, both are dropped as often as by chance."""
    gone = torch.cat([(drop(0.3, torch.arange(8), seed) == 0).flatten(2) for seed in range(200)]).double()
    one = gone.reshape(200, 8, -1)
    assert (one[:, :, :-1] * one[:, :, 1:]).mean().item() == pytest.approx(0.09, abs=1e-3)
    for apart in (1, 2, 4):
        both = (one[:, :-apart] * one[:, apart:]).mean().item()
        assert both == pytest.approx(0.09, abs=1e-3)
    assert not torch.equal(drop(0.3, torch.arange(8), 0), drop(0.3, torch.arange(8), 1))


def test_dropout_depends_on_the_place_alone():
    whole = drop(0.3, torch.arange(8))
    assert torch.equal(torch.cat([drop(0.3, torch.arange(8)[piece]) for piece in (slice(3), slice(3, 8))]), whole)


def test_full_size_is_about_the_papers():
    """About the 38 M parameters and 12 GFLOP an image of the U-Net of Ho et al. 2020 for CIFAR-10."""
    from torch.utils.flop_counter import FlopCounterMode

    network = UNetSettings().build(image_size=32, num_channels=1)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network(torch.zeros(1, 1, 32, 32), torch.zeros(1))
    assert 36e6 < sum(p.numel() for p in network.parameters()) < 40e6
    assert 11e9 < flops.get_total_flops() < 13e9


def test_the_network_sees_the_time():
    """The embedding of times 1/64 apart differs clearly, over the whole range; with a bare angle it hardly does."""
    schedule = CosineSchedule()
    logsnr = schedule.logsnr(torch.linspace(0, 1, 65, dtype=torch.float64)).float()

    def least_change(time_scale):
        network = unet(**SMALL, time_scale=time_scale)
        position = torch.atan(torch.exp(-logsnr / 2)) / (torch.pi / 2) * network.time_scale
        return sinusoids(position, network.features).diff(dim=0).norm(dim=1).min()

    assert least_change(1000.0) > 0.5
    assert least_change(1.0) < 0.05


def test_the_time_reaches_the_output():
    network = awake(unet(**SMALL))
    z = torch.randn(1, 1, 16, 16)
    outputs = [network(z, torch.tensor([logsnr])) for logsnr in (-20.0, -1.0, 0.0, 1.0, 20.0)]
    for one, other in itertools.pairwise(outputs):
        assert (one - other).abs().max() > 0.01


def test_z_has_a_way_past_all_layers():
    """A network that begins as zero gives z times a number, once the noise level has learned one."""
    network = unet(**SMALL | {"num_channels": 2})
    torch.nn.init.normal_(network.skip.weight)
    network.skip.bias.data = torch.tensor([1.5, -0.5])
    z, logsnr = torch.randn(3, 2, 16, 16), torch.tensor([-20.0, 0.0, 5.0])
    factor = network(z, logsnr) / z
    expected = network.embed(logsnr, None) @ network.skip.weight.T + network.skip.bias
    torch.testing.assert_close(factor, expected[:, :, None, None].expand_as(z), rtol=1e-4, atol=1e-4)
    assert (factor[0] - factor[1]).abs().min() > 1e-3


def test_samples_do_not_see_each_other():
    network = awake(unet(**SMALL))
    z, logsnr = torch.randn(5, 1, 16, 16), torch.linspace(-3, 3, 5)
    torch.testing.assert_close(network(z, logsnr)[2:3], network(z[2:3], logsnr[2:3]), atol=1e-5, rtol=1e-4)


def test_every_parameter_learns():
    network = awake(unet(**SMALL, num_classes=3))
    network(torch.randn(3, 1, 16, 16), torch.randn(3), torch.tensor([0, 1, 2])).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_attention_is_where_it_is_asked_for():
    def attentions(resolutions):
        network = unet(**SMALL | {"attention_resolutions": resolutions})
        return sum(name.endswith("to_qkv.weight") for name, _ in network.named_parameters())

    assert attentions([]) == 1  # in the middle, always
    assert attentions([8]) == 1 + 1 + 2
    assert attentions([8, 16]) == 1 + 2 + 4


def test_classes():
    network = awake(unet(**SMALL, num_classes=3))
    z = torch.randn(1, 1, 16, 16).expand(3, -1, -1, -1)
    outputs = network(z, torch.zeros(3), torch.tensor([0, 1, 2]))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="3 classes"):
        network(z, torch.zeros(3))
    with pytest.raises(ValueError, match="0 classes"):
        unet(**SMALL)(z, torch.zeros(3), torch.tensor([0, 1, 2]))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"data.image_size: 15 is not divisible by 2"):
        UNetSettings(multipliers=[1, 2]).check(15)
    with pytest.raises(ValueError, match="15 x 16 is not divisible by 2"):
        unet(**SMALL)(torch.zeros(1, 1, 15, 16), torch.zeros(1))
    assert unet(**SMALL)(torch.zeros(1, 1, 32, 16), torch.zeros(1)).shape == (1, 1, 32, 16)


@pytest.mark.parametrize(("dtype", "offset"), [(torch.float32, 1), (torch.bfloat16, 1), (torch.bfloat16, 300)])
def test_the_norm_and_the_modulation_are_their_formulas_with_their_gradients(dtype, offset):
    """In float64, from the definition: at most what the rounding of the pixels makes of it."""
    h = 2 * torch.randn(3, 16, 8, 6) + torch.randn(3, 16, 1, 1) + offset * torch.randn(3, 1, 1, 1)
    h = h.to(dtype, memory_format=torch.channels_last)
    scale_shift, dy = 0.3 * torch.randn(3, 32), torch.randn(3, 16, 8, 6).to(dtype)
    inputs = [h.requires_grad_(), scale_shift.requires_grad_()]
    found = modulate(layer_norm(h), scale_shift)
    found.backward(dy)
    x, ss = exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y = (x - x.mean(1, True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    y = y * (1 + ss[:, :16, None, None]) + ss[:, 16:, None, None]
    y.backward(dy.double())
    close = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), y, rtol=close, atol=close)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    for mine, theirs in zip(inputs, exact, strict=True):
        assert (mine.grad - theirs.grad).norm() < close / 4 * theirs.grad.norm()


def test_the_network_for_cifar10_has_the_parameters_counted_by_hand():
    f, e = 256, 1024

    def convolution(i: int, o: int, size: int) -> int:
        return i * o * size**2 + o

    def block(i: int) -> int:  # two convolutions (one without bias), scale and shift, skip without bias
        skip = 0 if i == f else i * f
        return (convolution(i, f, 3) - f) + (e * 2 * f + 2 * f) + convolution(f, f, 3) + skip

    attention = convolution(f, 3 * f, 1) + convolution(f, f, 1)
    time = (f * e + e) + (e * e + e)
    down = 3 * block(f) + 2 * (block(f) + 3 * (block(f) + attention))  # at 32; a block that halves, at 16; at 8
    middle = block(f) + attention
    up = 2 * (4 * (block(2 * f) + attention) + block(f)) + 4 * block(2 * f)  # at 8, a block that doubles; at 16; at 32
    out = (e * 2 * f + 2 * f) + convolution(f, 3, 3) + (e * 3 + 3)
    config = load_config(ROOT / "configs/cifar10_32x32_v_continuous.yaml")
    network = build_model(config, torch.device("meta")).network
    by_hand = time + convolution(3, f, 3) + down + middle + up + out
    assert sum(parameter.numel() for parameter in network.parameters()) == by_hand
    assert network(torch.zeros(2, 3, 32, 32, device="meta"), torch.zeros(2, device="meta")).shape == (2, 3, 32, 32)


def test_blocks_halve_and_double_the_images_on_both_ways():
    block = ResidualBlock(4, 4, 0.0, "down")
    h = torch.randn(2, 4, 8, 8)
    found = block(h, torch.zeros(2, 8), torch.zeros(2))  # the second convolution begins at zero
    torch.testing.assert_close(found, h.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)))
    found = ResidualBlock(4, 4, 0.0, "up")(h, torch.zeros(2, 8), torch.zeros(2))
    assert torch.equal(found, h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    z = torch.randn(2, 1, 16, 16)
    assert awake(unet(**SMALL, resample_blocks=True))(z, torch.zeros(2)).shape == z.shape
