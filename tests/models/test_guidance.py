import pytest
import torch

from models.diffusion import UNCONDITIONAL, Diffusion, conversion_loss, drop_label
from models.guidance import Guided, guided, random_scales, relative_to_scale
from models.noise_schedule import CosineSchedule
from models.samplers import ddim
from models.unet import UNet, UNetSettings

Z, T = torch.randn(3, 1, 4, 4), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
LABEL = torch.tensor([0, 1, 2])


def model(calls: list | None = None) -> Diffusion:
    """Whose v is 1 + its class times z, and 10 z where there is none."""

    def network(z, logsnr, label):
        if calls is not None:
            calls.append(label.tolist())
        return torch.where(label == UNCONDITIONAL, 10, 1 + label)[:, None, None, None] * z

    return Diffusion(network, CosineSchedule(), "v")


def scales(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_guided_v_by_hand():
    """10 + s (1 + class - 10), for each image its own s; none of it for s = 0, the model as it is for s = 1."""
    calls = []
    v = Guided(model(calls), scales(0, 1, 4)).v(Z, T, LABEL)
    torch.testing.assert_close(v, torch.tensor([10.0, 2.0, -18.0])[:, None, None, None] * Z)
    assert calls == [[UNCONDITIONAL] * 3, [0, 1, 2]]
    torch.testing.assert_close(Guided(model(), scales(1, 1, 1)).v(Z, T, LABEL), model().v(Z, T, LABEL))
    as_it_is = model()
    assert guided(as_it_is, None) is as_it_is and guided(as_it_is, scales(2)).model is as_it_is


def test_a_guided_x_or_eps_is_guided_v():
    """The three predictions differ by what is the same with and without the class."""
    for prediction in ("x", "eps"):
        one = Diffusion(model().network, CosineSchedule(), prediction)
        v_none, v_class = one.v(Z, T, torch.full((3,), UNCONDITIONAL)), one.v(Z, T, LABEL)
        expected = v_none + 3 * (v_class - v_none)
        torch.testing.assert_close(Guided(one, scales(3, 3, 3)).v(Z, T, LABEL), expected)


def unet(**changes) -> UNet:
    settings = {"features": 8, "multipliers": [1, 2], "num_residual_blocks": 1, "attention_resolutions": []}
    shape = {"image_size": 8, "num_channels": 1, "takes_guidance": changes.pop("takes_guidance", False)}
    network = UNetSettings(**settings | {"num_classes": 3, "dropout": 0.0} | changes).build(**shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def test_no_class_is_the_network_without_classes_bit_for_bit():
    network, without = unet(), unet(num_classes=0)
    without.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("embed_label")})
    z, logsnr = torch.randn(3, 1, 8, 8), torch.zeros(3)
    found = network(z, logsnr, torch.tensor([UNCONDITIONAL, 2, UNCONDITIONAL]))
    expected = without(z, logsnr)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[2], expected[2])
    assert not torch.allclose(found[1], expected[1])


def test_a_network_that_takes_the_scale_begins_as_one_that_does_not_and_needs_one_evaluation():
    network, student = unet(), unet(takes_guidance=True)
    student.load_state_dict(network.state_dict(), strict=False)
    last = student.embed_guidance[-1]
    torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)
    z, s = torch.randn(3, 1, 8, 8), scales(1, 2, 4)
    teacher, calls = Diffusion(network, CosineSchedule(), "v"), []

    def counted(*inputs):
        calls.append(inputs[3].tolist())
        return student(*inputs)

    model = Diffusion(counted, CosineSchedule(), "v", takes_guidance=True)
    assert torch.equal(Guided(model, s).v(z, T, LABEL), teacher.v(z, T, LABEL)) and calls == [[1, 2, 4]]
    torch.nn.init.normal_(last.weight)
    assert not torch.allclose(Guided(model, s).v(z, T, LABEL), teacher.v(z, T, LABEL))
    calls.clear()
    ddim(Guided(model, s), z, 5, label=LABEL, clip=False)
    assert len(calls) == 5
    with pytest.raises(ValueError, match="needs a guidance scale"):
        student(z, torch.zeros(3), LABEL)
    with pytest.raises(ValueError, match="takes no guidance scale"):
        network(z, torch.zeros(3), LABEL, torch.ones(3))


def test_what_the_conversion_teaches_by_hand():
    """At z = cos x + sin eps the student says 2 z and should say (10 + 3 (1 + class - 10)) z; weighted by cos^2."""
    student = Diffusion(lambda z, logsnr, label: 2 * z, CosineSchedule(), "v")
    x, eps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    loss = conversion_loss(student, Guided(model(), scales(3, 3, 3)), x, eps, T, "snr", LABEL)
    cos, sin = (f(CosineSchedule().angle(T)).float()[:, None, None, None] for f in (torch.cos, torch.sin))
    error = (torch.tensor([-17.0, -14.0, -11.0])[:, None, None, None] - 2) * (cos * x + sin * eps)
    torch.testing.assert_close(loss, (cos.square() * error.square()).mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-6)


def test_classes_are_left_out_and_scales_drawn():
    dropped = torch.tensor([False, True, False])
    assert drop_label(LABEL, dropped).tolist() == [0, UNCONDITIONAL, 2] and drop_label(None, dropped) is None
    drawn = random_scales([1.0, 4.0], 1000)
    assert drawn.dtype == torch.float64 and drawn.min() == 1 and 3.95 < drawn.max() <= 4
    others = drawn[drawn > 1]
    assert len(others) == pytest.approx(750, abs=50) and others.mean().item() == pytest.approx(2.5, abs=0.1)
    assert random_scales(None, 9) is None


def test_losses_relative_to_their_scales():
    loss = torch.tensor([3.0, 3.0, 3.0, 3.0])
    assert relative_to_scale(loss, scales(0, 1, 2, 4)).tolist() == [3, 3, 3 / 4, 3 / 16]
    assert relative_to_scale(loss, None) is loss


def test_a_teacher_that_is_sampled_with_clipping_teaches_with_it():
    """It sees x = 3 everywhere; a student whose x is the limit has no error, and one that agrees with it has."""
    x, eps = torch.zeros(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    clipped, own = (
        Diffusion(lambda z, logsnr, label, value=value: torch.full_like(z, value), CosineSchedule(), "x")
        for value in (1.5, 3.0)
    )
    for student, clip, has_error in ((clipped, 1.5, False), (own, 1.5, True), (own, False, False)):
        loss = conversion_loss(student, own, x, eps, T, "constant", clip=clip)
        assert bool((loss > 1e-3).all()) is has_error
