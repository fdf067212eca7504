"""Pixels on their way to the models: cached tensors, augmentation, resize."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from samespace.cloud.data import ArrayImages, Augment, ImageSet, Item, augment_batch, cached_tensors, resize_batch
from samespace.cloud.data.resize import resize_exactly
from samespace.sdk.errors import DataError
from samespace.sdk.preprocess import Preprocess

NOTHING = Augment.model_validate({name: 0 for name in Augment.model_fields if name != "border"})


def noise(count: int, size: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def image_set(pixels: npt.NDArray[np.uint8]) -> ArrayImages:
    return ArrayImages("noise", [Item(str(n), "x") for n in range(len(pixels))], pixels)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Cached tensors


def test_cached_tensors_are_what_preprocess_makes(tmp_path: Path) -> None:
    images, preprocess = image_set(noise(7, 20)), Preprocess(size=9)
    indices = [6, 0, 3]
    tensors = cached_tensors(images, indices, preprocess, tmp_path, workers=3, show_progress=False)
    np.testing.assert_array_equal(tensors, preprocess.batch(images.load(i) for i in indices))
    assert isinstance(tensors, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tensors[0] = 0


class Countdown:
    """An image set that fails to load the picture at ``broken``, and counts what was loaded."""

    def __init__(self, images: ImageSet, broken: int = -1) -> None:
        self.name, self.items, self.fingerprint, self.attribution = images.name, images.items, images.fingerprint, ""
        self._images, self._broken, self.loaded = images, broken, 0

    def load(self, index: int) -> Image.Image:
        self.loaded += 1
        if index == self._broken:
            raise DataError(f"{index} is broken")
        return self._images.load(index)

    def encoded(self, index: int) -> bytes:
        return self._images.encoded(index)


def test_nothing_is_decoded_twice(tmp_path: Path) -> None:
    images = Countdown(image_set(noise(5, 12)))
    first = cached_tensors(images, range(5), Preprocess(size=8), tmp_path, show_progress=False)
    again = cached_tensors(images, range(5), Preprocess(size=8, mean=(0, 0, 0)), tmp_path, show_progress=False)
    np.testing.assert_array_equal(first, again)
    assert images.loaded == 5, "mean and std do not touch the pixels"


@pytest.mark.parametrize("change", ["pictures", "indices", "size", "fit", "background"])
def test_whatever_changes_the_pixels_is_decoded_anew(change: str, tmp_path: Path) -> None:
    pixels = np.repeat(noise(5, 12), 2, axis=2)
    cached_tensors(image_set(pixels), range(4), Preprocess(size=8), tmp_path, show_progress=False)
    images = image_set(pixels[::-1].copy() if change == "pictures" else pixels)
    indices = [3, 2, 1, 0] if change == "indices" else range(4)
    changes = {"size": {"size": 10}, "fit": {"fit": "crop"}, "background": {"background": (0, 0, 0)}}
    preprocess = Preprocess.model_validate({"size": 8, **changes.get(change, {})})
    tensors = cached_tensors(images, indices, preprocess, tmp_path, show_progress=False)
    np.testing.assert_array_equal(tensors, preprocess.batch(images.load(i) for i in indices))


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    images = image_set(noise(5, 12))
    expected = np.array(cached_tensors(images, range(5), Preprocess(size=8), tmp_path, show_progress=False))
    (path,) = (tmp_path / "tensors").iterdir()
    for content in (b"", path.read_bytes()[:-10], b"garbage" * 100):
        path.unlink()
        path.write_bytes(content)
        np.testing.assert_array_equal(
            cached_tensors(images, range(5), Preprocess(size=8), tmp_path, show_progress=False), expected
        )


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    images = Countdown(image_set(noise(50, 12)), broken=3)
    with pytest.raises(DataError, match="3 is broken"):
        cached_tensors(images, range(50), Preprocess(size=8), tmp_path, workers=2, show_progress=False)
    assert os.listdir(tmp_path / "tensors") == []


def test_a_picture_that_preprocess_refuses_is_named(tmp_path: Path) -> None:
    images = image_set(noise(2, 12))

    class Wrong(Countdown):
        def load(self, index: int) -> Image.Image:
            return np.zeros((2, 2), np.float32)  # type: ignore[return-value]

    with pytest.raises(DataError, match="noise: 1: an array must be uint8"):
        cached_tensors(Wrong(images), [1], Preprocess(size=8), tmp_path, show_progress=False)


def test_no_pictures_are_an_empty_array(tmp_path: Path) -> None:
    assert cached_tensors(image_set(noise(2, 12)), [], Preprocess(size=8), tmp_path).shape == (0, 8, 8, 3)


# Augmentation


def test_the_same_seed_gives_the_same_pictures_and_another_does_not() -> None:
    batch = torch.from_numpy(noise(6, 16))
    one, same, other = (augment_batch(batch, chance(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == torch.uint8
    assert one.shape == batch.shape
    assert torch.equal(batch, torch.from_numpy(noise(6, 16))), "the batch itself is left as it was"


def test_with_everything_switched_off_nothing_changes() -> None:
    batch = torch.from_numpy(noise(6, 16))
    assert torch.equal(augment_batch(batch, chance(), NOTHING), batch)


@pytest.mark.parametrize("name", [name for name in Augment.model_fields if name != "border"])
def test_each_setting_changes_something_and_leaves_the_draws_of_the_others_alone(name: str) -> None:
    batch = torch.from_numpy(noise(6, 16))
    value = {"rotate": 20.0}.get(name, 0.4)
    alone = augment_batch(batch, chance(), NOTHING.model_copy(update={name: value}))
    assert not torch.equal(alone, batch)
    if name != "flip":
        generator = chance()
        augment_batch(batch, generator, NOTHING.model_copy(update={name: value, "noise": 0.0}))
        reference = chance()
        augment_batch(batch, reference, NOTHING)
        assert torch.equal(generator.get_state(), reference.get_state())


def test_flip_mirrors_and_shift_moves() -> None:
    batch = torch.from_numpy(noise(4, 16))
    mirrored = augment_batch(batch, chance(), NOTHING.model_copy(update={"flip": 1.0}))
    assert (mirrored.int() - batch.flip(2).int()).abs().max() <= 1
    shifted = augment_batch(
        torch.zeros(200, 16, 16, 3, dtype=torch.uint8), chance(), NOTHING.model_copy(update={"shift": 0.25})
    )
    white_columns = (shifted[..., 0] == 255).all(1).sum(1)
    assert white_columns.max() <= 4
    assert white_columns.float().mean() == pytest.approx(1.6, abs=0.5)


@pytest.mark.parametrize(("border", "levels"), [("white", {0, 255}), ("edge", {0}), ("reflect", {0})])
def test_the_border_is_what_was_asked_for(border: str, levels: set[int]) -> None:
    black = torch.zeros(20, 16, 16, 3, dtype=torch.uint8)
    augment = Augment.model_validate({**NOTHING.model_dump(), "shift": 0.5, "border": border})
    moved = augment_batch(black, chance(), augment)
    assert levels == {int(v) for v in (moved.min(), moved.max())}


def test_grey_takes_the_colour_of_its_share_of_the_pictures() -> None:
    batch = torch.from_numpy(noise(400, 4))
    result = augment_batch(batch, chance(), NOTHING.model_copy(update={"grey": 0.3})).int()
    grey = (result.amax(-1) == result.amin(-1)).flatten(1).all(1)
    assert grey.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert torch.equal(result[~grey], batch[~grey].int())
    expected = Image.fromarray(batch[grey][0].numpy()).convert("L")
    assert np.abs(result[grey][0, ..., 0].numpy() - np.asarray(expected, int)).max() <= 1


def test_a_batch_on_another_device_takes_its_chance_from_the_cpu() -> None:
    # "meta" holds no pixels, but would refuse a generator or a draw of the wrong device.
    batch = torch.empty(4, 16, 16, 3, dtype=torch.uint8, device="meta")
    assert augment_batch(batch, chance()).device.type == "meta"


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"rotate": -1}, {"grey": 1.5}, {"scale": 1.0}, {"border": "blue"}, {"rotation": 3}):
        with pytest.raises(ValidationError):
            Augment.model_validate(wrong)


# Resize


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 1000))
def test_the_exact_resize_is_preprocess_bit_for_bit_and_the_fast_one_nearly(source: int, size: int, seed: int) -> None:
    pixels = noise(2, source, seed)
    expected = np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in pixels])
    np.testing.assert_array_equal(resize_exactly(torch.from_numpy(pixels), size).numpy(), expected)
    fast = resize_batch(torch.from_numpy(pixels), size)
    assert fast.dtype == torch.uint8
    assert np.abs(fast.numpy().astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("source", "size"), [(64, 32), (96, 32), (64, 48), (128, 64), (128, 50), (224, 96)])
def test_almost_every_value_is_equal_at_the_sizes_in_use(source: int, size: int) -> None:
    pixels = noise(16, source)
    expected = Preprocess(size=size).batch(pixels).astype(int)
    difference = np.abs(resize_batch(torch.from_numpy(pixels), size).numpy() - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_pictures_that_are_not_square_are_resized_in_each_direction_on_its_own() -> None:
    pixels = noise(1, 40)[:, :, :25].copy()
    expected = np.asarray(Image.fromarray(pixels[0]).resize((25, 25), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_exactly(torch.from_numpy(pixels), 25).numpy()[0], expected)


def test_the_same_size_is_the_same_tensor() -> None:
    batch = torch.from_numpy(noise(2, 8))
    assert resize_batch(batch, 8) is batch
