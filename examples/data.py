"""Images and label maps for train.py: synthetic, scikit-image's coins, or a user's folder of images/ and masks/.

A mask is a uint8 label map. Pixels with the value :data:`IGNORE` count in no loss and no score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

IGNORE = 255
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")

Array = NDArray[Any]


class DataError(ValueError):
    """The data of the user are wrong. The message names the file."""


@dataclass
class Sample:
    """An image (H, W, channels), in the type of its file, and its label map (H, W)."""

    name: str
    image: Array
    mask: NDArray[np.uint8]
    mean: float = field(init=False)
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        self.mean = float(self.image.mean(dtype=np.float64))
        self.scale = 1 / max(float(self.image.std(dtype=np.float64)), 1e-6)

    def window(self, y: int, x: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A window as (channels, height, width), standardised. Pixels outside of the image are mirrored and ignored."""
        rows, columns = slice(y, y + height), slice(x, x + width)
        image = (self.image[rows, columns].astype(np.float32) - self.mean) * self.scale
        mask = self.mask[rows, columns]
        short = ((0, height - mask.shape[0]), (0, width - mask.shape[1]))
        if short != ((0, 0), (0, 0)):
            image = np.pad(image, (*short, (0, 0)), mode="reflect")
            mask = np.pad(mask, short, constant_values=IGNORE)
        return image.transpose(2, 0, 1), mask


@dataclass
class Data:
    """Training and held-out samples. ``classes`` has the names of the labels, background first."""

    train: list[Sample]
    held_out: list[Sample]
    classes: list[str]

    @property
    def binary(self) -> bool:
        return len(self.classes) == 2

    @property
    def channels(self) -> int:
        return int(self.train[0].image.shape[2])

    def batch(self, plan: list[int], size: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Random crops of the training samples in `plan`, with random turns, mirroring and brightness."""
        images, masks = [], []
        for index in plan:
            height, width = self.train[index].mask.shape
            y, x = (int(rng.integers(max(side - size, 0) + 1)) for side in (height, width))
            image, mask = self.train[index].window(y, x, size, size)
            # Brightness varies between photographs, and even within the photograph of the coins.
            image = image * np.float32(rng.uniform(0.7, 1.4)) + np.float32(rng.uniform(-0.5, 0.5))
            rows, columns = (slice(None, None, int(step)) for step in rng.choice((-1, 1), 2))
            image, mask = image[:, rows, columns], mask[rows, columns]
            if rng.random() < 0.5:
                image, mask = image.transpose(0, 2, 1), mask.T
            images.append(image)
            masks.append(mask)
        return np.stack(images), np.stack(masks)

    def epoch(self, size: int, at_least: int, rng: np.random.Generator) -> list[int]:
        """Indices of training samples in random order. Each occurs once for each crop of `size` needed to cover it."""
        times = [max(1, round(sample.mask.size / size**2)) for sample in self.train]
        indices = np.repeat(np.arange(len(self.train)), times)
        indices = np.tile(indices, -(-at_least // len(indices)))
        return [int(index) for index in rng.permutation(indices)]


# --- synthetic ------------------------------------------------------------------------------------------------------

_FINE = 4  # shapes are drawn this many times larger, so that thin vessels get soft edges


def synthetic(count: int, size: int, fraction: float, seed: int, multiclass: bool) -> Data:
    """Noisy images of thin vessels among small blobs. Binary: vessels are the foreground; blobs only look similar."""
    rng = np.random.default_rng(seed)
    samples = [_vessels_and_blobs(f"synthetic {i}", size, rng, multiclass) for i in range(count)]
    kept = min(max(1, round(count * fraction)), count - 1)
    return Data(samples[kept:], samples[:kept], ["background", "vessel", "blob"][: 3 if multiclass else 2])


def _vessels_and_blobs(name: str, size: int, rng: np.random.Generator, multiclass: bool) -> Sample:
    vessels, blobs = _draw_vessels(size, rng), _draw_blobs(size, rng)
    contrast = rng.uniform(0.22, 0.38, 2)
    image = 0.55 + 0.12 * _smooth_noise(size, 4, rng) + 0.04 * _smooth_noise(size, size // 3, rng)
    image -= np.maximum(contrast[0] * vessels, contrast[1] * blobs)  # darker than their surroundings, as in a retina
    image += rng.normal(0, 0.07, image.shape)
    mask = (vessels > 0.5).astype(np.uint8)
    if multiclass:
        mask[(blobs > 0.5) & (mask == 0)] = 2
    return Sample(name, (np.clip(image, 0, 1) * 255).astype(np.uint8)[..., None], mask)


def _draw_vessels(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    canvas = Image.new("L", (size * _FINE, size * _FINE))
    draw = ImageDraw.Draw(canvas)
    branches: list[tuple[float, float, float, float]] = []  # x, y, heading, width, in pixels
    budget = 6
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0, 2 * np.pi)  # a vessel starts at the rim of the image and goes towards its middle
        x, y = size / 2 + 0.7 * size * np.cos(angle), size / 2 + 0.7 * size * np.sin(angle)
        branches.append((x, y, angle + np.pi + rng.normal(0, 0.3), rng.uniform(1.8, 3.4)))
    while branches:
        x, y, heading, width = branches.pop()
        points, turn = [(x, y)], 0.0
        for _ in range(size):
            turn = 0.7 * turn + rng.normal(0, 0.05)
            heading += turn
            x, y = x + 2 * np.cos(heading), y + 2 * np.sin(heading)
            points.append((x, y))
            if np.hypot(x - size / 2, y - size / 2) > 0.75 * size or rng.random() < 0.006:
                break
            if budget and width > 1.3 and rng.random() < 0.05:
                budget -= 1
                side = rng.choice((-1, 1))
                branches.append((x, y, heading + side * rng.uniform(0.4, 0.9), width * rng.uniform(0.6, 0.85)))
                width *= 0.93
        draw.line([(a * _FINE, b * _FINE) for a, b in points], fill=255, width=round(width * _FINE), joint="curve")
    return _shrink(canvas, size)


def _draw_blobs(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    canvas = Image.new("L", (size * _FINE, size * _FINE))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.poisson(6 * (size / 96) ** 2)) + 1):
        x, y = rng.uniform(0, size * _FINE, 2)
        a, b = rng.uniform(1.5, 4, 2) * _FINE
        draw.ellipse((x - a, y - b, x + a, y + b), fill=255)
    return _shrink(canvas, size)


def _shrink(canvas: Image.Image, size: int) -> NDArray[np.float32]:
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32) / np.float32(255)


def _smooth_noise(size: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)


# --- scikit-image's coins -------------------------------------------------------------------------------------------


def coins(fraction: float) -> Data:
    """A photograph of coins. The truth is a watershed of its edges. The right part is held out."""
    try:
        from scipy import ndimage
        from skimage import data, filters, segmentation
    except ImportError as error:
        raise DataError(f"--data coins needs scikit-image ({error}): pip install '.[examples]'") from error
    image = data.coins()
    markers = np.zeros(image.shape, np.int32)
    markers[image < 30] = 1
    markers[image > 150] = 2
    filled = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(image), markers) == 2)
    mask = filled.astype(np.uint8)
    wanted = min(max(round(image.shape[1] * (1 - fraction)), 24), image.shape[1] - 24)
    cut = wanted - 16 + int(mask[:, wanted - 16 : wanted + 16].sum(axis=0).argmin())  # a column that cuts few coins
    left = Sample("coins, left part", image[:, :cut, None], mask[:, :cut])
    right = Sample("coins, right part", image[:, cut:, None], mask[:, cut:])
    return Data([left], [right], ["background", "coin"])


# --- a user's folder ------------------------------------------------------------------------------------------------


def folder(root: Path, fraction: float, seed: int, classes: int | None, ignore: int | None) -> Data:
    """All pairs images/NAME.* and masks/NAME.*, in memory. Each side of the split has at least one pair."""
    pairs = _pairs(root)
    images = [_as_image(path, _read(path, labels=False)) for path, _ in pairs]
    masks = [_as_labels(path, _read(path, labels=True)) for _, path in pairs]
    channels = max(image.shape[2] for image in images)
    for (image_path, mask_path), image, mask in zip(pairs, images, masks, strict=True):
        if image.shape[:2] != mask.shape:
            raise DataError(f"{mask_path} is {_size(mask)}, but its image {image_path} is {_size(image)}")
        if image.shape[2] not in (1, channels):
            raise DataError(f"{image_path} has {image.shape[2]} channels, others have {channels}")
    labels, count = _common_labels(masks, [path for _, path in pairs], classes, ignore)
    samples = [
        Sample(path.stem, np.broadcast_to(image, (*mask.shape, channels)), mask)
        for (path, _), image, mask in zip(pairs, images, labels, strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(samples))
    kept = min(max(1, round(len(samples) * fraction)), len(samples) - 1)
    names = ["background", "foreground"] if count == 2 else ["background", *(f"class {c}" for c in range(1, count))]
    return Data([samples[i] for i in order[kept:]], [samples[i] for i in order[:kept]], names)


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    found: list[dict[str, Path]] = []
    for part in ("images", "masks"):
        if not (root / part).is_dir():
            raise DataError(f"{root} has no folder {part}/ (a data folder holds images/ and masks/)")
        files: dict[str, Path] = {}
        for path in sorted((root / part).iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                if path.stem in files:
                    raise DataError(f"{path} and {files[path.stem].name} have the same name: which one is meant?")
                files[path.stem] = path
        found.append(files)
    images, masks = found
    for stem in sorted(images.keys() ^ masks.keys()):
        path, missing = (images[stem], "masks") if stem in images else (masks[stem], "images")
        raise DataError(f"{path} has no partner {missing}/{stem}.* ({' '.join(SUFFIXES)})")
    if len(images) < 2:
        raise DataError(f"{root} holds {len(images)} pair(s) of image and mask; at least two are needed")
    return [(path, masks[stem]) for stem, path in images.items()]


def _read(path: Path, labels: bool) -> Array:
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if suffix in (".tif", ".tiff"):
            try:
                from skimage import io
            except ImportError as error:
                raise DataError(f"{path}: TIFF needs scikit-image ({error}): pip install '.[examples]'") from error
            return np.asarray(io.imread(path))
        with Image.open(path) as file:
            if file.mode in ("LA", "La"):
                return np.asarray(file.convert("L"))
            # The palette of a label map is only for display. Its indices are the labels.
            plain = file.mode in ("1", "L", "I", "F", "RGB", "P" if labels else "RGB") or file.mode.startswith("I;")
            return np.asarray(file if plain else file.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # each reader raises other exceptions for a broken file
        raise DataError(f"{path} cannot be read: {error}") from error


def _as_image(path: Path, image: Array) -> Array:
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] > 16 or image.size == 0:
        raise DataError(f"{path} has shape {image.shape}; an image is (height, width) or (height, width, channels)")
    if image.dtype.kind not in "buif":
        raise DataError(f"{path} holds values of type {image.dtype}; an image holds integers or floats")
    if not np.isfinite(image).all():
        raise DataError(f"{path} holds NaN or infinite values")
    return image


def _as_labels(path: Path, mask: Array) -> Array:
    if mask.ndim == 3 and 1 <= mask.shape[2] <= 4 and (mask == mask[..., :1]).all():
        mask = mask[..., 0]  # a grey mask that was saved in colour
    if mask.ndim != 2:
        raise DataError(f"{path} has shape {mask.shape}; a mask is a two-dimensional map of labels, not of colours")
    if mask.dtype.kind == "f":
        broken = mask[mask != np.rint(mask)]
        if broken.size:
            raise DataError(f"{path} holds {broken[0]:g}; labels are integers")
    elif mask.dtype.kind not in "bui":
        raise DataError(f"{path} holds values of type {mask.dtype}; labels are integers")
    if path.suffix.lower() in (".jpg", ".jpeg"):  # JPEG blurs labels; only 0 and 255 can be separated again
        if 0 < mask.max() < 128:
            raise DataError(f"{path}: JPEG does not keep labels exactly; only 0/255 masks may be JPEG, use PNG")
        return np.where(mask < 128, 0, 255)
    return mask.astype(np.int64)


def _common_labels(
    masks: list[Array], paths: list[Path], classes: int | None, ignore: int | None
) -> tuple[list[NDArray[np.uint8]], int]:
    """Masks as uint8, with IGNORE in place of the ignored value; and the number of classes."""
    seen = [set(np.unique(mask).tolist()) - {ignore} for mask in masks]
    values = set[int]().union(*seen)
    top = max(values, default=0)
    if not values - {0}:
        raise DataError("the masks hold no label but 0" + ("" if ignore is None else f" and the ignored {ignore}"))
    if top in (255, 65535) and values <= {0, top} and classes in (None, 2):  # white on black: the usual binary mask
        return [np.where(mask == ignore, IGNORE, mask == top).astype(np.uint8) for mask in masks], 2
    count = classes or top + 1
    for path, found in zip(paths, seen, strict=True):
        wrong = sorted(value for value in found if not 0 <= value < min(count, IGNORE))
        if wrong:
            raise DataError(
                f"{path} holds the label {wrong[0]}, but labels are 0 to {min(count, IGNORE) - 1} "
                f"(does it mark unlabelled pixels? --ignore-index {wrong[0]})"
            )
    return [np.where(mask == ignore, IGNORE, mask).astype(np.uint8) for mask in masks], count


def _size(array: Array) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
