"""Images and their classes: scikit-learn's digits, or a file of the user's own."""

import dataclasses
from pathlib import Path

import numpy as np

from growth.training.array_digests import host_digest
from growth.training.data.batches import Augment, Batch
from growth.training.data.config import DataConfig, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images with their classes.

    Attributes:
      images: float32 [number, height, width, channels].
      labels: int32 [number].
      digest: a digest of both as they were read, before anything was computed of them, so that it
        is the same on every machine.
    """

    images: np.ndarray
    labels: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """One image and its class."""
        return Batch(self.images[index], self.labels[index])


def load_images(config: DataConfig) -> tuple[Images, Images]:
    """The training side and the validation side of a set of images.

    Which image is on which side is drawn once for all seeds of a run. Values are shifted and
    divided so that they have mean 0 and variance 1 over the training side.

    Args:
      config: `images` is "digits" (1,797 images of 8×8 grey pixels, in ten classes), or the path of
        an .npz file with `images` [number, height, width] or [number, height, width, channels], and
        `labels` [number], whole numbers from 0.

    Raises:
      DataError: the set cannot be read, or a side would be empty.
    """
    images, labels = _digits() if config.images == "digits" else _read(config.images)
    order = np.random.default_rng(0).permutation(len(images))
    held_out = round(len(images) * config.validation_fraction)
    if not 0 < held_out < len(images):
        raise DataError(
            f"validation_fraction is {config.validation_fraction}, which leaves one side of "
            f"{len(images)} images empty"
        )
    train, validation = order[held_out:], order[:held_out]
    mean, deviation = images[train].mean(), images[train].std() or 1.0

    def side(chosen: np.ndarray) -> Images:
        digest = host_digest(images[chosen], labels[chosen])
        return Images((images[chosen] - mean) / deviation, labels[chosen], digest)

    return side(train), side(validation)


def shifts(most: int) -> Augment:
    """Shifts images at random by up to `most` pixels each way; edges are repeated."""

    def shift(example: Batch, random: np.random.Generator) -> Batch:
        height, width, _ = example.inputs.shape
        y, x = random.integers(0, 2 * most + 1, 2)
        padded = np.pad(example.inputs, ((most, most), (most, most), (0, 0)), mode="edge")
        return Batch(padded[y : y + height, x : x + width], example.targets)

    return shift


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "images is 'digits', which scikit-learn ships, and it is not installed: "
            "pip install 'flax-growth[images]'"
        ) from error
    digits = load_digits()
    return digits.images[..., None].astype(np.float32), digits.target.astype(np.int32)


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"images is {path!r}, but it must be 'digits' or an .npz file with images and labels: "
            f"{error}"
        ) from error
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"images is {path!r}, with images {images.shape} and labels {labels.shape} "
            f"{labels.dtype}, but images must be [number, height, width, channels] and labels "
            f"whole numbers [number]"
        )
    return images.astype(np.float32), labels.astype(np.int32)
