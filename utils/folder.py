"""Pictures of one's own: all images below a folder, whose subfolders are their classes."""

import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from utils.errors import InputError

NEED_OTHER_PROGRAMS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # of what Pillow knows; or no pictures
MOST_NAMES = 20  # that are printed


@cache
def picture_formats() -> dict[str, str]:
    """The formats that can be read, by suffix in lower case: {".png": "PNG", ...}."""
    Image.init()
    known = Image.registered_extensions().items()
    return {suffix: name for suffix, name in known if name in Image.OPEN and name not in NEED_OTHER_PROGRAMS}


def find_pictures(root: Path, key: str) -> list[Path]:
    """All pictures below a folder, sorted; prints what lies there besides.

    Hidden files and folders are left out (`.ipynb_checkpoints`, `._1.png`), and linked folders are not followed.

    Raises:
        InputError: there is no such folder, or no picture in it; `key` names it in the configuration.
    """
    if not root.is_dir():
        raise InputError(f"{key}: {root.absolute()}: no such folder")
    formats = picture_formats()
    visible = [
        path
        for path in sorted(root.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    pictures = [path for path in visible if path.suffix.lower() in formats and path.is_file()]
    linked = sum(path.is_symlink() and path.is_dir() for path in visible)
    others = Counter(path.suffix.lower() or path.name for path in visible if path.is_file()) - Counter(
        path.suffix.lower() for path in pictures
    )
    skipped = [f"{count} {suffix}" for suffix, count in others.most_common(MOST_NAMES)]
    skipped += [f"{linked} linked folders"] if linked else []
    if not pictures:
        found = f"there are {', '.join(skipped)}" if skipped else "it is empty"
        raise InputError(f"{key}: {root.absolute()}: no pictures there, {found}; such as .png, .jpg, .webp or .tif")
    if skipped:
        print(f"{root}: skipped, no pictures: {', '.join(skipped)}")
    return pictures


def class_names(pictures: list[Path], root: Path) -> list[str]:
    """The names of the classes, the subfolders that hold pictures, sorted; none where there are none.

    Raises:
        InputError: there are pictures both in subfolders and beside them.
    """
    names = sorted({path.parent.relative_to(root) for path in pictures})
    if names == [Path()]:
        return []
    if Path() in names:
        loose = next(path for path in pictures if path.parent == root)
        raise InputError(f"{loose}: lies beside the subfolders, which are the classes; move it into one of them")
    return [name.as_posix() for name in names]


def read_picture(path: Path, num_channels: int) -> Tensor:
    """A picture as uint8 [C, H, W]: upright, its first frame, 16 bits scaled to 8, laid over white where transparent.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # Large, but below the size that Pillow refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=sorted(set(picture_formats().values()))) as file:
                image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
            image = Image.fromarray((transforms.pil_to_tensor(image)[0].int() // 257).clamp(0, 255).byte().numpy())
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return transforms.pil_to_tensor(image.convert("L" if num_channels == 1 else "RGB"))
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: too large: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image that can be read, whatever its name; remove or replace it") from error
    except OSError as error:
        reason = error.strerror or f"damaged: {error}"
        raise InputError(f"{path}: cannot be read: {reason}") from error
    except (ValueError, SyntaxError, RuntimeError) as error:
        raise InputError(f"{path}: not an image that can be read: {error}") from error


def fit(images: Tensor, image_size: int, num_channels: int) -> Tensor:
    """Images [N, C, H, W] in uint8, cut to their middle square, resized, and converted to grey or colour."""
    side = min(images.shape[-2:])
    images = transforms.center_crop(images, [side, side])
    if side != image_size:
        images = transforms.resize(images, [image_size, image_size], antialias=True)
    if num_channels == 3 and images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    elif num_channels == 1 and images.shape[1] == 3:
        images = transforms.rgb_to_grayscale(images)
    return images.contiguous()


def read_folder(
    root: Path, key: str, *, image_size: int, num_channels: int, classes_of: Path
) -> tuple[Tensor, Tensor, list[str]]:
    """All pictures below a folder as uint8 [N, C, H, W], their classes [N], 0 where there are none, and their names.

    Args:
        key: the name of the folder in the configuration, for messages.
        classes_of: the folder whose subfolders are the classes; for training images the same.

    Raises:
        InputError: there are no pictures, one cannot be read, or the folders do not have the same classes.
    """
    paths = find_pictures(root, key)
    names = class_names(paths, root)
    known = names if classes_of == root else class_names(find_pictures(classes_of, "data.root"), classes_of)
    numbers = {name: i for i, name in enumerate(known)}
    class_of = [path.parent.relative_to(root).as_posix() for path in paths]
    for path, name in zip(paths, class_of, strict=True):
        if known and name not in numbers:
            raise InputError(f"{path}: of a class that data.root has no folder for: {name}")
    if missing := [name for name in known if name not in names]:
        raise InputError(f"{key}: {root}: has no pictures of {', '.join(missing[:MOST_NAMES])}, a class of data.root")
    images = torch.empty(len(paths), num_channels, image_size, image_size, dtype=torch.uint8)
    for i, path in enumerate(tqdm(paths, desc=f"reading {root}", unit="picture", leave=False)):
        images[i] = fit(read_picture(path, num_channels)[None], image_size, num_channels)[0]
    labels = [numbers[name] if known else 0 for name in class_of]
    shown = [f"{i} {name}" for i, name in enumerate(known[:MOST_NAMES])] + ["..."] * (len(known) > MOST_NAMES)
    print(f"{root}: {len(paths)} pictures{f' in {len(known)} classes: ' + ', '.join(shown) if known else ''}")
    return images, torch.tensor(labels, dtype=torch.long), known
