import pytest
import torch
from test_sampling import lesson

from models.unet import UNet
from utils.checkpoints import compute
from utils.checkpoints.compute import Compute, forward_flop
from utils.config.schema import Config

CPU = torch.device("cpu")


def config(**settings) -> Config:
    network = {"features": 8, "multipliers": [1, 2], "num_residual_blocks": 1, "attention_resolutions": [4]}
    return Config.model_validate(
        {"data": {"name": "MNIST", "image_size": 8, "num_channels": 1}, "network": network} | settings
    )


@pytest.fixture
def clock(monkeypatch):
    """By which each product in float32 takes so many seconds, and each in bfloat16 1 s, where there are any."""

    def set_to(native: bool, seconds: float) -> None:
        steps = [0, seconds, seconds, seconds + 1] if native else [0, seconds]
        ticks = iter(steps * 7)
        monkeypatch.setattr(compute.time, "perf_counter", lambda: next(ticks))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": native})
        compute.gains_by_bfloat16.cache_clear()

    yield set_to
    compute.gains_by_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("native", "gain", "precision"), [(True, 4.0, "bf16"), (True, 1.4, "fp32"), (False, 4.0, "fp32")]
)
def test_auto_computes_in_bfloat16_where_that_is_native_and_fast(clock, native, gain, precision):
    clock(native, gain)
    assert Compute.choose(config(), CPU, passes=1, training=True).precision == precision
    for asked in ("fp32", "bf16"):
        assert Compute.choose(config(precision=asked), CPU, passes=1, training=True).precision == asked


def test_auto_compiles_a_long_sampling_and_not_a_short_one_nor_a_training_on_a_cpu():
    flop, enough = forward_flop(config()), compute.WORTH_COMPILING_PER_CPU_THREAD * torch.get_num_threads()
    long, short = 1.01 * enough / flop, 0.99 * enough / flop
    assert Compute.choose(config(), CPU, passes=long, training=False).compile is True
    assert Compute.choose(config(), CPU, passes=short, training=False).compile is False
    assert Compute.choose(config(), CPU, passes=long, training=True).compile is False
    for asked in (True, False):
        assert Compute.choose(config(compile=asked), CPU, passes=1, training=True).compile is asked


def test_a_run_goes_on_as_it_began():
    previous = {"precision": "fp32", "compile": False}
    chosen = Compute.choose(config(precision="bf16", compile=True), CPU, passes=1, training=True, previous=previous)
    assert chosen.as_dict() == previous and str(chosen) == "cpu in fp32"


def test_operations_are_those_counted_by_hand():
    """Two for each weight of a layer and each place where it is used, and two products of the attention."""
    config_ = config()
    network = config_.network.build(image_size=8, num_channels=1).eval()
    counted = 0

    def count(layer, inputs, output):
        nonlocal counted
        places = output.numel() // output.shape[1]  # of a batch of one
        counted += 2 * layer.weight.numel() * places

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    attention = 4 * 2 * (2 * 16 * 16 * 16)  # at 4x4 with 16 channels: one down, one in the middle, two up
    assert forward_flop(config_) == counted + attention


def with_precision(precision: str) -> UNet:
    model, _ = lesson()
    return Compute(CPU, precision, compile=False).for_training(model).network


def test_bfloat16_is_near_float32_and_comes_back_as_float32():
    z, logsnr, label = torch.randn(8, 3, 8, 8), torch.linspace(-8, 8, 8), torch.arange(8) % 3
    exact, near = (with_precision(precision)(z, logsnr, label) for precision in ("fp32", "bf16"))
    assert near.dtype == exact.dtype == torch.float32
    error = (near - exact).square().mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.02  # it was computed in another precision


def test_weights_and_gradients_stay_float32_in_bfloat16():
    network = with_precision("bf16").train()
    network(torch.randn(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long)).square().mean().backward()
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32


def test_a_network_for_inference_casts_its_weights_once_and_says_the_same():
    z, logsnr, label = torch.randn(4, 3, 8, 8), torch.zeros(4), torch.arange(4) % 3
    expected = with_precision("bf16")(z, logsnr, label)
    model = Compute(CPU, "bf16", compile=False).for_inference(lesson()[0], batch_size=4)
    assert torch.equal(model.network(z, logsnr, label), expected)
    assert model.network.conv_in.weight.dtype == torch.bfloat16
    assert model.network.skip.weight.dtype == model.network.conv_out.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert not model.network.training


def test_compiled_for_one_batch_size_and_the_same_pictures(monkeypatch):
    compiled_for = []

    def backend(graph, inputs):  # instead of the compiler, whose work takes long: it runs what it is given
        compiled_for.append(max(len(value) for value in inputs if isinstance(value, torch.Tensor) and value.ndim == 4))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: compile_(network, backend=backend, dynamic=dynamic))
    monkeypatch.setattr(compute, "compiler_works", lambda device: True)
    model = Compute(CPU, "fp32", compile=True).for_inference(lesson()[0], batch_size=4)
    plain = lesson()[0].network
    for size in (4, 2, 4):
        z, logsnr, label = torch.randn(size, 3, 8, 8), torch.zeros(size), torch.zeros(size, dtype=torch.long)
        torch.testing.assert_close(model.network(z, logsnr, label), plain(z, logsnr, label), atol=1e-5, rtol=1e-4)
    assert len(compiled_for) == 1


def test_without_a_compiler_a_line_and_no_compilation(monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("no C++ compiler found\nmore about it")

    monkeypatch.setattr(torch, "compile", broken)
    compute.compiler_works.cache_clear()
    model = lesson()[0]
    assert Compute(CPU, "fp32", compile=True).for_inference(model, batch_size=4) is model
    Compute(CPU, "fp32", compile=True).for_training(model)
    assert str(Compute(CPU, "fp32", compile=True)) == "cpu in fp32"
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not compiled" in line and "no C++ compiler found" in line
    compute.compiler_works.cache_clear()
