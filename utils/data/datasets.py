"""The training and test images that a configuration names."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from utils.config.schema import TORCHVISION, Config
from utils.config.schema import Data as DataSettings
from utils.data.folder import MOST_NAMES
from utils.data.folder_cache import load_folder
from utils.data.images import ImageData, ImageSet, content_hash, fit
from utils.system.distributed import all_gather, rank_zero_first
from utils.system.errors import InputError, counted, first_of
from utils.system.files import remove_if_empty

SETS = {"train", "test", "val", "valid", "validation"}  # names of folders that are sets, rather than classes


def load_data(config: Config, device: torch.device) -> ImageData:
    """The training images that a configuration names, in its size and channels, with classes if it has classes."""
    settings = config.data
    data = load_images(settings, accept=partial(require_num_classes, config=config))
    if len(set(all_gather(data.hash))) > 1:
        raise InputError("data.root: the processes have different images; all machines need the same files")
    options = {"random_flip": settings.random_flip, "saturation_margin": settings.saturation_margin}
    return ImageData(data, with_classes=config.network.num_classes > 0, seed=config.seed, device=device, **options)


def require_num_classes(class_names: Sequence[str], config: Config) -> None:
    """Raises InputError if the network is class-conditional with another number of classes than the data."""
    num_classes, found = config.network.num_classes, len(class_names)
    sets = {name.partition("/")[0] for name in class_names}
    if "train" in sets and len(sets) > 1 and sets <= SETS:
        raise InputError(
            f"data.root: {config.data.root}: {' and '.join(sorted(sets))} seem to be sets of images, not classes: "
            f"root should be {Path(config.data.root, 'train')} (of a zip: a zip of it), and test_root one of the others"
        )
    if num_classes and (found != num_classes or found == 1):
        name = config.data.root if config.data.name == "folder" else config.data.name
        right = f"{found}, or 0 for an unconditional network" if found > 1 else "0, an unconditional network"
        right += "; or move all images into subfolders" if found == 0 else ""
        hint = "" if found > 1 else ": no subfolders, or images beside them" if found == 0 else ": one subfolder"
        found = counted(found, "class", "es") + (hint or f" ({first_of(class_names, MOST_NAMES)})")
        if num_classes == len(class_names) + 1 and config.network.type == "unet2d":
            right += "; if the teacher's last class is the unconditional one, use convert.py --last_class_is_none"
        raise InputError(f"network.num_classes: {num_classes}, but {name} has {found}; it should be {right}")


@rank_zero_first
def load_images(
    settings: DataSettings, *, test: bool = False, accept: Callable[[list[str]], object] | None = None
) -> ImageSet:
    """The training or test images of a data set, in its size and channels, and their classes.

    `accept` is called with the class names before a folder is prepared; it may raise. Raises InputError if they are
    missing and cannot be downloaded, or a folder has no test images.
    """
    root = Path(os.path.expanduser(settings.root))
    if settings.name != "folder":
        images, labels, class_names = _read_torchvision(settings.name, root, test)
        if accept:
            accept(class_names)
        images = fit(images, settings.image_size, settings.num_channels)
        return ImageSet(images, labels, class_names, content_hash(images, labels))
    if test:
        require_test_root(settings)
        root = Path(os.path.expanduser(settings.test_root))
    return load_folder(root, "data.test_root" if test else "data.root", settings, accept)


def require_test_root(settings: DataSettings) -> None:
    """Raises InputError if a folder has no test images."""
    if settings.name == "folder" and settings.test_root is None:
        raise InputError("data.test_root: missing; needed here: a folder of images like those of data.root")


def require_same_classes(test: Sequence[str], training: Sequence[str]) -> None:
    """Raises InputError if the test and training images of two folders do not have the same classes."""
    for names, others, where in ((training, test, "data.test_root"), (test, training, "data.root")):
        if missing := sorted(set(names) - set(others)):
            raise InputError(f"{where}: missing subfolders: {first_of(missing, MOST_NAMES)}; both should have the same")


def _read_torchvision(name: str, root: Path, test: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Images, labels and class names, in torchvision's own size and channels; downloaded if they are missing."""
    dataset_class, there = TORCHVISION[name], root.exists()
    try:
        try:
            dataset = dataset_class(root, train=not test, download=True)
        except (RuntimeError, AssertionError, ValueError, IndexError):
            # A kill while unpacking leaves an incomplete file, which torchvision does not notice.
            for packed in Path(root, name, "raw").glob("*-ubyte.gz"):
                packed.with_suffix("").unlink(missing_ok=True)
            dataset = dataset_class(root, train=not test, download=True)
    except (OSError, RuntimeError) as error:
        for folder in (root / name / "raw", root / name, *([] if there else [root])):  # created by torchvision
            remove_if_empty(folder)
        raise InputError(
            f"data.root: {root.absolute()}: {name} is missing and cannot be downloaded: "
            f"{' '.join(str(error).split()):.200}; a relative data.root starts in the current folder"
        ) from error
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    class_names = [name.partition(" - ")[0] for name in dataset.classes]  # MNIST has "0 - zero", ...
    return images, torch.as_tensor(dataset.targets), class_names
