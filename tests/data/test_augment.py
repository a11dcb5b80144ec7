from __future__ import annotations

import torch

from llmos_cli.data.augment import augmented


def test_augmentation_repeats_with_its_seed_and_keeps_the_picture():
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    once, again, other = augmented(images, seed=1), augmented(images, seed=1), augmented(images, seed=2)
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.shape == images.shape and once.min() >= 0 and once.max() <= 1 + 1e-5
    blob = torch.zeros(1, 1, 8, 8)
    blob[..., 3:5, 3:5] = 1
    moved = augmented(blob.expand(64, 1, 8, 8), seed=3)
    assert (moved.flatten(1).sum(1) > 1.5).all() and not torch.equal(moved[0], blob[0])
