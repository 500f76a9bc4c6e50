"""A small classifier of the data set, trained once; FID and KID are computed from its features."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from utils.checkpoints.tensor_files import read_torch_file, require_like
from utils.data.images import ImageSet, content_hash, to_unit_range
from utils.system.distributed import on_rank_zero
from utils.system.errors import InputError
from utils.system.files import CACHE, exists, prepare_folder, write_atomically
from utils.system.seeds import seed_of

FORMAT_VERSION = 1
NUM_FEATURES = 128
FEWEST_STEPS = 300  # for small data sets
EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 256, 1e-2  # at least 99% of MNIST's test images, within two minutes on two cores


class Classifier(nn.Module):
    """Four convolutions; the features are the last one's activations, averaged over the image.

    As in Inception, the usual network for FID, a linear layer predicts the class from them.
    """

    def __init__(self, num_channels: int, num_classes: int):
        super().__init__()
        channels, layers = [num_channels, 32, 64, 128, NUM_FEATURES], []
        for k, stride in enumerate((2, 1, 2, 1)):
            convolution = nn.Conv2d(channels[k], channels[k + 1], 3, stride=stride, padding=1, bias=False)
            layers.append(nn.Sequential(convolution, nn.BatchNorm2d(channels[k + 1]), nn.ReLU()))
        self.body, self.head = nn.Sequential(*layers), nn.Linear(NUM_FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] to features [B, 128]."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] to the logits of their classes [B, num_classes]."""
        return self.head(self.features(x))


def train_classifier(classifier: Classifier, images: Tensor, labels: Tensor) -> None:
    """Trains on uint8 images [N, C, H, W] and their classes [N], in place; the same every time on the same machine."""
    generator = torch.Generator().manual_seed(seed_of("classifier order"))
    epochs = max(EPOCHS, math.ceil(FEWEST_STEPS * BATCH_SIZE / len(images)))
    batches = [
        indices
        for _ in range(epochs)
        for indices in torch.randperm(len(images), generator=generator).to(images.device).split(BATCH_SIZE)
    ]
    optimizer = torch.optim.Adam(classifier.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
    classifier.train()
    for indices in tqdm(batches, desc="training the classifier", unit="step", leave=False):
        loss = F.cross_entropy(classifier(to_unit_range(images[indices])), labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    classifier.eval()


@torch.inference_mode()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """The accuracy on uint8 images [N, C, H, W] of classes [N], in [0, 1]."""
    found = [classifier(to_unit_range(batch)).argmax(dim=1) for batch in images.split(BATCH_SIZE)]
    return float((torch.cat(found) == labels).cpu().double().mean())  # Apple's GPUs have no float64


def load_classifier(name: str, training: ImageSet, test: ImageSet, device: torch.device) -> tuple[Classifier, str]:
    """The classifier of a data set, from the cache or trained now, and a name that identifies its weights.

    It is trained on the training images, always from the same seed, so all evaluations of a data set on a machine share
    it. Another number of threads, or another machine, may round to other weights and other features; hence the name.
    Raises InputError if there are fewer than two classes, or the cached file is damaged.
    """
    if len(training.class_names) < 2:
        raise InputError(f"--features classifier: {name} has no classes (subfolders) to distinguish; use inception")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("classifier"))
        classifier = Classifier(training.images.shape[1], len(training.class_names))
    classifier.to(device, memory_format=torch.channels_last).eval()
    path = CACHE / f"classifier-{name}-{training.hash}.pt"
    if not exists(path):
        _train_and_save(classifier, training, test, path)
    content = read_torch_file(path, FORMAT_VERSION, {"weights", "test_accuracy"}, "a classifier")
    try:
        require_like(content["weights"], classifier.state_dict())
        classifier.load_state_dict(content["weights"])
    except ValueError as error:
        raise InputError(f"{path}: of another architecture or damaged; delete it, and it is trained again") from error
    return classifier, f"classifier-{name}-{content_hash(*content['weights'].values())}"


@on_rank_zero
def _train_and_save(classifier: Classifier, training: ImageSet, test: ImageSet, path: Path) -> None:
    prepare_folder(path.parent)
    device = next(classifier.parameters()).device
    train_classifier(classifier, training.images.to(device), training.labels.to(device))
    share = accuracy(classifier, test.images.to(device), test.labels.to(device))
    weights = {name: weight.cpu() for name, weight in classifier.state_dict().items()}
    content = {"format_version": FORMAT_VERSION, "weights": weights, "test_accuracy": share}
    write_atomically(path, lambda file: torch.save(content, file))
    print(f"wrote {path}, a classifier with an accuracy of {100 * share:.2f}% on the test images")
