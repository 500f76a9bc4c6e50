"""Muon against its closed form, the singular values, and PyTorch's own for a linear layer."""

import copy
import math

import pytest
import torch
from one_weight import make_trainer
from torch import nn

from models.unet import UNetSettings
from models.unet2d import UNet2DSettings
from utils.training.optimizers import COEFFICIENTS, Muon, orthogonalized

SMALL = {"features": 8, "multipliers": [1, 2], "num_residual_blocks": 1, "attention_resolutions": [], "num_classes": 3}
UNET2D = {"type": "unet2d", "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
UNET2D |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}


def iterated(s: float) -> float:
    """Jordan's polynomial of a singular value, five times over."""
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_equal_singular_values_become_what_the_polynomial_says(size):
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q.float()
    (result,) = orthogonalized([size * rotation])
    torch.testing.assert_close(result, iterated(16**-0.25) * rotation, rtol=1e-3, atol=1e-4)


def test_wide_and_tall_keep_their_singular_vectors_and_have_values_about_1():
    wide = torch.randn(12, 60, dtype=torch.float64) * torch.logspace(0, -2, 12, dtype=torch.float64)[:, None]
    u, s, v = torch.linalg.svd(wide, full_matrices=False)
    many = orthogonalized([wide.float(), torch.randn(12, 20), wide.mT.float()])
    seen = u.mT @ many[0].double() @ v.mT  # diagonal, if the vectors are the same
    assert (seen - seen.diag().diag()).abs().max() < 1e-3
    assert seen.diag().min() > 0.6 and seen.diag().max() < 1.3
    expected = torch.tensor([iterated(float(value / s.pow(4).sum() ** 0.25)) for value in s])
    torch.testing.assert_close(seen.diag().float(), expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(many[2], many[0].mT)


@pytest.mark.parametrize("size", [1e-8, 1e-10, 1e-11, 1e-12, 1e-14, 1e-18])
@pytest.mark.parametrize("spike", [1.0, 1e3])
def test_a_tiny_gradient_is_followed_and_never_nan(size, spike):
    """As of an attention layer whose output layer has just left zero; squares of its squares underflow."""
    matrix = torch.randn(64, 192)
    matrix[0, 0] = spike
    (direction,) = orthogonalized([size * matrix])
    assert direction.isfinite().all() and 0 < torch.linalg.matrix_norm(direction, 2) < 1.3
    assert (direction * matrix).sum() > 0


def test_no_gradient_moves_nothing():
    assert not orthogonalized([torch.zeros(4, 9)])[0].any()


def test_a_linear_layer_goes_where_pytorchs_own_muon_goes():
    """But for its bfloat16, and its way to bring the singular values below 1: within the directions of its noise."""
    ours, theirs = (nn.Linear(24, 16, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    begin = ours.weight.detach().clone()
    mine = Muon([ours.weight], weight_decay=0.1)
    mine.param_groups[0]["lr"] = 0.01
    other = torch.optim.Muon([theirs.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        gradient = torch.randn(16, 24)
        for layer, optimizer in ((ours, mine), (theirs, other)):
            layer.weight.grad = gradient.clone()
            optimizer.step()
    way, its_way = ((layer.weight.detach() - begin).flatten() for layer in (ours, theirs))
    assert torch.cosine_similarity(way, its_way, dim=0) > 0.98
    assert way.norm() == pytest.approx(its_way.norm().item(), rel=0.1)


def test_a_step_that_is_not_finite_changes_nothing():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    optimizer, gradient = Muon([weight], weight_decay=0.1), torch.randn(4, 2, 3, 3)
    weight.grad, optimizer.found_inf = gradient.clone(), torch.zeros(())
    optimizer.step()
    before, moment = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad, optimizer.found_inf = gradient * math.nan, torch.ones(())
    optimizer.step()
    assert torch.equal(weight, before) and torch.equal(optimizer.state[weight]["momentum_buffer"], moment)
    weight.grad, optimizer.found_inf = gradient.clone(), torch.zeros(())
    optimizer.step()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("settings", [UNetSettings(**SMALL), UNet2DSettings(**UNET2D)])
def test_it_is_for_matrices_inside_the_network_and_adam_for_the_rest(settings):
    network = settings.build(image_size=8, num_channels=1)
    matrices = set(network.muon_parameters())
    names = {name.removeprefix("unet.") for name, parameter in network.named_parameters() if parameter in matrices}
    shapes = {name.removeprefix("unet."): parameter.ndim for name, parameter in network.named_parameters()}
    convolutions = {name for name, dimensions in shapes.items() if dimensions == 4}
    assert convolutions - names == {"conv_in.weight", "conv_out.weight"}
    attention = names - convolutions
    assert all(".to_" in name and name.endswith(".weight") for name in attention)
    assert len(attention) == (0 if settings.type == "unet" else 4 * 4)  # down, in the middle, and twice up


def test_what_continues_takes_the_same_steps():
    """State and all: two steps, saved, loaded into another trainer, and two more."""

    def trainer_of(network: nn.Module):
        trainer = make_trainer(network, optimizer="muon", batch_size=4)
        assert [type(optimizer) for optimizer in trainer.optimizers] == [torch.optim.AdamW, Muon]
        return trainer

    def take_steps(trainer, seeds):
        for seed in seeds:
            x = torch.randn(4, 6, 1, 1, generator=torch.Generator().manual_seed(seed))
            for _ in trainer.micro_batches():
                trainer.backward(trainer.network(x).square().mean(dim=(1, 2, 3)))
            trainer.update()

    class Convolutions(nn.Sequential):
        def muon_parameters(self):
            return [self[0].weight, self[2].weight]

    first = Convolutions(nn.Conv2d(6, 8, 1), nn.SiLU(), nn.Conv2d(8, 3, 1))
    second = copy.deepcopy(first)
    whole, half = trainer_of(first), trainer_of(second)
    take_steps(whole, range(4))
    take_steps(half, range(2))
    continued = trainer_of(copy.deepcopy(first))
    continued.load_state_dict(copy.deepcopy(half.state_dict()), 2)
    take_steps(continued, (2, 3))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, continued.network.state_dict()[name]), name
    with pytest.raises(ValueError, match="step is missing"):
        make_trainer(copy.deepcopy(first)).load_state_dict(half.state_dict(), 2)
