"""Progressive distillation on one page: `python docs/minimal.py` trains a model that draws digits in 4 steps.

A teacher learns to predict v. Then students halve its number of sampling steps: 64, 32, 16, 8, 4 (Salimans & Ho 2022,
https://arxiv.org/abs/2202.00512). An image x is noised to the angle phi by noise eps: z = cos(phi) x + sin(phi) eps.
The velocity is v = dz/dphi = cos(phi) eps - sin(phi) x. Images are [B, 1, 28, 28] in [-1, 1], times and angles float64.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import datasets
from torchvision.utils import save_image


def angle(t: Tensor) -> Tensor:
    """The cosine schedule: phi is linear in t, and logsnr = -2 log tan(phi) falls from 20 at t = 0 to -20 at t = 1."""
    return torch.pi / 2 * t + 4.539992976e-5 * (1 - 2 * t)  # atan(exp(-10)) = 4.54e-5


def angle_and_length(i: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The angle phi of t = i/n, where step i of n begins, and the length d of the step. The last step ends at 0."""
    phi, end = angle(i.double() / n), torch.where(i == 1, 0.0, angle((i.double() - 1) / n))
    return phi, phi - end


def per_image(value: Tensor) -> Tensor:
    """Float64 values [B] as float32 [B, 1, 1, 1]."""
    return value.float()[:, None, None, None]


def rotate(z: Tensor, v: Tensor, angle: Tensor) -> Tensor:
    """cos(angle) z - sin(angle) v."""
    return per_image(angle.cos()) * z - per_image(angle.sin()) * v


def ddim_step(network: nn.Module, z: Tensor, label: Tensor, i: Tensor, n: int) -> Tensor:
    """One DDIM step from t = i/n to (i - 1)/n: z' = cos(d) z - sin(d) v."""
    phi, d = angle_and_length(i, n)
    return rotate(z, network(z, phi, label), d)


@torch.no_grad()
def sample(network: nn.Module, z: Tensor, label: Tensor, n: int) -> Tensor:
    """Images from noise z, in n DDIM steps."""
    for i in range(n, 0, -1):
        z = ddim_step(network, z, label, torch.full((len(z),), i), n)
    return z


def training_loss(network: nn.Module, x: Tensor, label: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Algorithm 1: the squared error of v at times t in (0, 1]."""
    phi = angle(t)
    z, v = rotate(x, -eps, phi), rotate(eps, x, phi)
    return F.mse_loss(network(z, phi, label), v)


def distillation_loss(
    student: nn.Module, teacher: nn.Module, x: Tensor, label: Tensor, eps: Tensor, i: Tensor, n: int
) -> Tensor:
    """Algorithm 2: step i of the student's n, i in {1, ..., n}, must lead where two steps of its teacher lead."""
    phi, d = angle_and_length(i, n)
    z = rotate(x, -eps, phi)
    with torch.no_grad():
        z_half = ddim_step(teacher, z, label, 2 * i, 2 * n)
        z_end = ddim_step(teacher, z_half, label, 2 * i - 1, 2 * n)
    v = (per_image(d.cos()) * z - z_end) / per_image(d.sin())  # solves z_end = cos(d) z - sin(d) v
    return F.mse_loss(student(z, phi, label), v)


class Block(nn.Module):
    """Two convolutions and a skip connection; the embedding scales and shifts the activations in between."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale_shift = nn.Linear(128, 2 * channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:  # noqa: D102
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        r = self.conv_in(F.silu(F.group_norm(h, 8)))
        return h + self.conv_out(F.silu(F.group_norm(r, 8) * (1 + scale) + shift))


class Network(nn.Module):
    """v(z, phi, label). Patches of 2x2 pixels become channels: a quarter of the work."""

    def __init__(self, channels: int = 48):
        super().__init__()
        self.embed_phi = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128))
        self.embed_label, self.skip = nn.Embedding(10, 128), nn.Linear(128, 1)
        self.conv_in, self.conv_out = nn.Conv2d(4, channels, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels, dilation) for dilation in (1, 2, 3, 3, 2, 1))

    def forward(self, z: Tensor, phi: Tensor, label: Tensor) -> Tensor:  # noqa: D102
        waves = phi.float()[:, None] * torch.arange(1, 17)
        embedding = F.silu(self.embed_phi(torch.cat([waves.sin(), waves.cos()], dim=1)) + self.embed_label(label))
        h = self.conv_in(F.pixel_unshuffle(z, 2))
        for block in self.blocks:
            h = block(h, embedding)
        return F.pixel_shuffle(self.conv_out(h), 2) + self.skip(embedding)[:, :, None, None] * z  # v's share of z


def update(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    """One step of the optimizer."""
    optimizer.param_groups[0]["lr"] = learning_rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main(training_steps: int = 6000, student_steps: int = 600, size: int = 32) -> None:
    """Trains a teacher and its students, on batches of `size` images; then draws ten digits from the same noise."""
    torch.manual_seed(0)
    mnist = datasets.MNIST("data", download=True)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(mnist.data), (size,))
        return mnist.data[chosen, None] / 127.5 - 1, mnist.targets[chosen], torch.randn(size, 1, 28, 28)

    teacher = Network()
    optimizer = torch.optim.Adam(teacher.parameters(), betas=(0.9, 0.99))
    for step in range(training_steps):
        loss = training_loss(teacher, *batch(), t=1 - torch.rand(size, dtype=torch.float64))  # t > 0
        update(optimizer, loss, learning_rate=2e-3 * (1 - step / training_steps))
        if step % 200 == 0:
            print(f"teacher, step {step}: loss {loss.item():.4f}", flush=True)
    noise, digits = torch.randn(10, 1, 28, 28), torch.arange(10)
    rows = [sample(teacher, noise, digits, 64), sample(teacher, noise, digits, 4)]
    for n in (32, 16, 8, 4):
        student = copy.deepcopy(teacher)  # starts with its teacher's weights
        optimizer = torch.optim.Adam(student.parameters(), betas=(0.9, 0.99))
        for step in range(student_steps):
            loss = distillation_loss(student, teacher, *batch(), i=torch.randint(1, n + 1, (size,)), n=n)
            update(optimizer, loss, learning_rate=1e-3 * (1 - step / student_steps))
        print(f"student of {n} steps: loss {loss.item():.4f}", flush=True)
        teacher = student  # of the next student
    rows.append(sample(student, noise, digits, 4))
    Path("output").mkdir(exist_ok=True)
    save_image(torch.cat(rows), "output/minimal.png", nrow=10, normalize=True, value_range=(-1, 1))
    print("wrote output/minimal.png: the teacher in 64 steps and in 4, the student in 4")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
