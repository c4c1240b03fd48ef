"""Signatures find nearly equal inputs and leave merely similar ones apart."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dataprune_ray.quality.likeness import NEAR, content_hashes, outlines, signatures

RNG = np.random.default_rng(0)


def cosines(values, others, modality):
    outline, other = outlines(values, modality), outlines(others, modality)
    centre = other.astype(np.float64).mean(axis=0)
    return signatures(outline, centre) @ signatures(other, centre).T


def test_equal_rows_and_no_others_have_equal_hashes():
    values = RNG.integers(0, 255, (50, 3, 4, 4)).astype(np.uint8)
    hashes = content_hashes(values, "image")
    assert len(set(hashes.tolist())) == 50
    assert (content_hashes(values[::-1], "image") == hashes[::-1]).all()
    values[7, 2, 3, 3] ^= 1
    assert (content_hashes(values, "image") == hashes).sum() == 49


def test_padding_of_a_text_does_not_count():
    short = np.array([[5, 9, 2]])
    padded = np.array([[5, 9, 2, 0, 0]])
    assert content_hashes(short, "text") == content_hashes(padded, "text")
    assert content_hashes(short, "text") != content_hashes(np.array([[0, 5, 9, 2]]), "text")
    assert (outlines(short, "text") == outlines(padded, "text")).all()


def test_digits_without_duplicates_have_no_near_ones():
    images = load_digits().images[:, None].astype(np.float32)
    found = cosines(images[:900], images[900:], "image")
    assert (found.max(axis=1) >= NEAR).mean() < 0.005


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 100, 90)])
def test_recompressed_images_are_near_and_others_are_not(shape):
    smooth = RNG.normal(size=(40, shape[0], 4, 4)).astype(np.float32) * 60 + 128
    whole = smooth.repeat(-(-shape[1] // 4), axis=2).repeat(-(-shape[2] // 4), axis=3)
    images = np.clip(whole[:, :, : shape[1], : shape[2]], 0, 255)
    noisy = np.clip(images + RNG.normal(size=images.shape) * 3, 0, 255).astype(np.uint8)
    found = cosines(noisy, images.astype(np.uint8), "image")
    assert (np.diag(found) >= NEAR).all()
    assert (found[~np.eye(40, dtype=bool)] < NEAR).all()


def test_texts_of_nearly_the_same_words_are_near():
    texts = RNG.integers(1, 1 << 16, (30, 120))
    changed = texts.copy()
    changed[:, 0] = RNG.integers(1, 1 << 16, 30)
    found = cosines(changed, texts, "text")
    assert (np.diag(found) >= NEAR).all()
    assert (found[~np.eye(30, dtype=bool)] < 0.5).all()
