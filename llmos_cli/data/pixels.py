"""Pixels: how images of any size and colour become the one shape that a model takes.

Saved as `preprocessor_config.json` in the form transformers reads, beside the weights.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmos_cli.core.atomic import write_text
from llmos_cli.data import cache as store
from llmos_cli.data.columns import File
from llmos_cli.data.extras import require
from llmos_cli.errors import NotFound, UsageError

FILE = "preprocessor_config.json"
BILINEAR = 2


@dataclass(frozen=True)
class Pixels:
    """Square images of `size` pixels in one channel (grey) or three; `mean` and `std` of each channel, of values in 0 to 1."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def save_pretrained(self, directory: str | Path) -> None:
        described = {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": self.channels == 3,
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        write_text(Path(directory) / FILE, json.dumps(described, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Pixels:
        path = directory / FILE
        if not path.is_file():
            raise NotFound(f"there is no {FILE} in {directory}", hint="It says how the model's images are normalised.")
        stored = json.loads(path.read_text(encoding="utf-8"))
        size = stored["size"]
        return cls(
            size=int(size.get("height") or size.get("shortest_edge")),
            channels=len(stored["image_mean"]),
            mean=tuple(stored["image_mean"]),
            std=tuple(stored["image_std"]),
        )

    def shaped(self, image: Any) -> NDArray[np.uint8]:
        """Any image (`opened`) as [C, S, S] bytes."""
        array: NDArray[np.uint8] = opened(image)
        if array.shape != self._plain_shape():
            array = self._resized(array)
        return array[None] if self.channels == 1 else array.transpose(2, 0, 1)

    def _resized(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        require("PIL", "images", "images of another size or colour than the model's")
        from PIL import Image

        picture = Image.fromarray(array).convert("L" if self.channels == 1 else "RGB")
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BILINEAR), np.uint8)

    def _plain_shape(self) -> tuple[int, ...]:
        return (self.size, self.size) if self.channels == 1 else (self.size, self.size, 3)

    def normalised(self, pixels_BCHW: NDArray[np.uint8]) -> torch.Tensor:
        """Bytes as floats with the training split's mean and deviation taken out, [B, C, S, S]."""
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return (torch.from_numpy(np.array(pixels_BCHW)).float() / 255 - mean) / std


def opened(image: Any) -> NDArray[np.uint8]:
    """An image as [H, W] (grey) or [H, W, 3] values 0 to 255: an array of such values, or the bytes of a picture's file."""
    if not isinstance(image, bytes):
        try:
            array = np.asarray(image)
        except ValueError:  # rows of different lengths
            array = np.zeros(0)
        if (
            array.dtype.kind not in "iuf"
            or array.ndim not in (2, 3)
            or not array.size
            or array.min() < 0
            or array.max() > 255
        ):
            raise UsageError(
                "an image is not rows of pixels with values 0 to 255", hint="Grey is [H][W], colour [H][W][3]."
            )
        if array.ndim == 3 and array.shape[2] not in (1, 3):
            raise UsageError(f"an image has {array.shape[2]} channels", hint="Grey is [H][W], colour [H][W][3].")
        return (array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array).astype(np.uint8)
    require("PIL", "images", "picture files")
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(image))
        return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "I", "I;16", "F") else "RGB"), np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        name = image.path if isinstance(image, File) else "a file"
        hint = "Take it away, or save it again as PNG or JPEG."
        raise UsageError(f"{name} is not a picture that can be read", hint=hint) from error


def shaped(images: Sequence[Any], pixels: Pixels, *, key: Any, cache: Path) -> NDArray[np.uint8]:
    """All images as [N, C, S, S] bytes, decoded once for each `key` (which must name them) and mapped into memory."""

    place = store.entry(
        cache,
        "pixels",
        ["pixels/1", pixels.size, pixels.channels, key],
        lambda directory: store.write(directory, {"pixels": "u1"}, ({"pixels": pixels.shaped(i)} for i in images)),
    )
    return store.columns(place)["pixels"].reshape(-1, pixels.channels, pixels.size, pixels.size)


def statistics(images_NCHW: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values in 0 to 1, from exact counts of each byte."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images_NCHW.shape[1]):
        counts = np.sum([np.bincount(image[channel].ravel(), minlength=256) for image in images_NCHW], axis=0)
        mean = float((levels * counts).sum() / counts.sum())
        means.append(mean)
        stds.append(max(float(np.sqrt(((levels - mean) ** 2 * counts).sum() / counts.sum())), 1e-6))
    return tuple(means), tuple(stds)
