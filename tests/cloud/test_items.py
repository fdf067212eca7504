"""What a run says of the pictures that it was measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from samespace.cloud.recipe import Recipe
from samespace.cloud.training.data import load_training_data
from samespace.cloud.training.items import QUALITIES, described, sharpness


def test_a_blurred_picture_is_less_sharp_than_itself(emoji_ci: Any) -> None:
    picture = emoji_ci.load(0).convert("RGB").resize((64, 64))
    radii = (0, 1, 2, 4)
    pictures = np.stack([np.asarray(picture.filter(ImageFilter.GaussianBlur(radius))) for radius in radii])
    values = sharpness(pictures)
    assert list(values) == sorted(values, reverse=True)
    assert len(set(values)) == len(radii)
    assert sharpness(np.asarray(Image.new("RGB", (8, 8), "teal"))[None])[0] < 1e-9


def test_every_picture_of_both_sides_is_described(recipe_content: Callable[..., dict[str, Any]]) -> None:
    recipe = Recipe.model_validate(recipe_content())
    data = load_training_data(recipe)
    found = described(data, recipe.models["cloud"].preprocess)
    items, split = data.images.items, data.split
    assert found["test"]["gallery"]["key"] == [items[index].key for index in split.test_gallery]
    assert found["test"]["query"]["class"] == [items[index].label for index in split.test_query]
    counts = Counter(found["test"]["query"]["quality"])
    assert set(counts) == set(QUALITIES)
    assert max(counts.values()) - min(counts.values()) <= 1
