"""Trains a teacher without this project: diffusers' own tutorial on unconditional training, on MNIST.

    pip install diffusers torchvision
    python docs/train_diffusers_teacher.py

A `UNet2DModel` of 1.1 M parameters that predicts eps on a `DDPMScheduler` of 1000 linear betas, trained by AdamW with
a warm-up and a cosine schedule, without EMA, and saved with `save_pretrained`.
"""

from itertools import count, islice

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

STEPS, FOLDER = 2400, "output/diffusers_pipeline"

torch.manual_seed(0)
to_tensor = transforms.Compose([transforms.Resize(32), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
images = datasets.MNIST("data", download=True, transform=to_tensor)
epoch = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
network = UNet2DModel(
    sample_size=32,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(32, 64, 64),
    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
)
scheduler = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
learning_rate = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=200, num_training_steps=STEPS)
batches = (x for _ in count() for x, _ in epoch)
for step, x in enumerate(islice(batches, STEPS), start=1):
    eps, timesteps = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
    loss = F.mse_loss(network(scheduler.add_noise(x, eps, timesteps), timesteps).sample, eps)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    learning_rate.step()
    optimizer.zero_grad()
    if step % 100 == 0:
        print(f"step {step}, loss {loss.item():.4f}", flush=True)
DDPMPipeline(network, scheduler).save_pretrained(FOLDER)
print(f"wrote {FOLDER}")
