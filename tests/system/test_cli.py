"""What cannot be seen without a GPU, another C library or a lost machine is played by a fake."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from utils.checkpoints.compute import Compute, choose_device
from utils.config.schema import Config
from utils.system import cli, distributed
from utils.system.errors import InputError


@pytest.mark.parametrize(
    ("message", "exit_code", "said"),
    [
        (
            "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]",
            1,
            "has ended, or no longer answer",
        ),
        ("Timed out waiting 60000ms for recv operation to complete, gloo", 1, "has ended, or no longer answers"),
        ("[enforce fail at gloo/transport/tcp/device.cc:84] rv != -1. Unable to find interface for: eth7", 2, "eth7"),
    ],
)
def test_the_cause_of_an_error_between_processes_is_shown(message, exit_code, said):
    code, line = cli.explain_runtime_error(RuntimeError(message))
    assert code == exit_code and said in line and message[-20:] in line


def test_a_gpu_that_two_processes_share_is_no_lost_process():
    code, line = cli.explain_runtime_error(dist.DistBackendError("Duplicate GPU detected : rank 1 and rank 0"))
    assert code == 2 and "cannot be connected: Duplicate GPU detected" in line
    assert cli.explain_runtime_error(RuntimeError("shapes do not match")) is None


@pytest.mark.parametrize("accepts", [True, False])
def test_a_library_that_refuses_a_threshold_is_left_alone(monkeypatch, accepts):
    asked = []
    library = SimpleNamespace(mallopt=lambda name, value: asked.append(name) or accepts)
    monkeypatch.setattr(cli.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(cli.sys, "platform", "linux")
    cli.keep_freed_memory()
    assert asked == ([-3, -1] if accepts else [-3])


@pytest.fixture
def gpus(monkeypatch) -> list:
    """A machine with two GPUs; what is done to them."""
    done = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(("current", str(device))))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda n, device: done.append(("used", str(device))) or zeros(n))
    return done


def test_the_gpu_that_is_asked_for_is_the_current_one(gpus):
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert gpus == [("used", "cuda:1"), ("current", "cuda:1")]


def test_of_several_processes_each_touches_its_own_gpu_alone(gpus, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "local_rank", lambda: 1)
    assert choose_device("cuda") == torch.device("cuda:1")
    assert gpus == [("used", "cuda:1"), ("current", "cuda:1")]
    monkeypatch.setattr(distributed, "local_rank", lambda: 2)
    with pytest.raises(InputError, match="more processes on this machine than it has GPUs, 2"):
        choose_device("cuda")


def test_several_processes_have_no_use_for_the_one_gpu_of_a_mac(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(InputError, match="--device mps: not for several processes"):
        choose_device("mps")


def test_fp32_is_float32(monkeypatch):
    """And not TF32, which PyTorch takes for convolutions on a GPU if it is not told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    config = Config.model_validate(
        {"precision": "fp32", "compile": False, "data": {"name": "MNIST", "image_size": 32, "num_channels": 1}}
    )
    try:
        torch.set_float32_matmul_precision("medium")
        Compute.choose(config, torch.device("cuda"), passes=1, training=True)
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_restart_says_does_not_make_it_happen_twice(monkeypatch):
    monkeypatch.setattr(cli, "_restarted", False)
    monkeypatch.setattr(cli.sys, "argv", ["train.py", "--restart"])
    assert cli.how_to_continue() == "the same command"  # nothing has been deleted yet
    cli.restart_is_done()
    assert cli.how_to_continue() == "the same command without --restart"
