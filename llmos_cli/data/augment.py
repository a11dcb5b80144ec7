"""Augmentation of training images on the whole batch: small shifts and rotations, by kornia (extra `images`)."""

from __future__ import annotations

import torch
from torch import Tensor

from llmos_cli.data.extras import require

DEGREES, SHIFT, SCALE = 10.0, 0.1, (0.9, 1.1)
"""Of rotation; of the side; of the size. What a scan or a photograph varies by without changing its class."""


def augmented(images_BCHW: Tensor, *, seed: int) -> Tensor:
    """The batch with one random affine map for each image; the same seed gives the same bits."""
    require("kornia", "images", "augmented images")
    from kornia.geometry.transform import affine, get_affine_matrix2d

    random = torch.Generator().manual_seed(seed)
    images, _, height, width = images_BCHW.shape
    uniform_B5 = torch.rand(images, 5, generator=random) * 2 - 1
    centre_B2 = torch.tensor([(width - 1) / 2, (height - 1) / 2]).expand(images, 2)
    low, high = SCALE
    matrix_B33 = get_affine_matrix2d(
        translations=uniform_B5[:, :2] * SHIFT * torch.tensor([width, height]),
        center=centre_B2,
        scale=((uniform_B5[:, 2:3] + 1) / 2 * (high - low) + low).expand(images, 2),
        angle=uniform_B5[:, 3] * DEGREES,
    )
    return affine(images_BCHW, matrix_B33[:, :2, :].to(images_BCHW), padding_mode="border")
