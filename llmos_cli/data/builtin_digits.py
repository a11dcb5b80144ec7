"""Handwritten digits, 8x8 grey pixels (scikit-learn's copy of the UCI optical recognition set): images, 10 classes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from llmos_cli.data.fingerprint import split_of
from llmos_cli.data.rows import Rows

FRACTIONS = {"test": 0.2, "validation": 0.1}


def load(cache: Path) -> dict[str, Rows]:
    """(image, label), 0 to 255, in splits by the SHA-256 of the pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    places = np.array([split_of(hashlib.sha256(image.tobytes()).digest(), FRACTIONS) for image in images])
    labels = digits.target.astype(str)
    return {
        name: Rows({"image": images[places == name], "label": labels[places == name].tolist()})
        for name in ("train", "validation", "test")
    }
