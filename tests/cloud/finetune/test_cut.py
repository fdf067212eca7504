"""What no fine-tune changes is run once: the two parts are the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samespace.cloud.finetune.cut import cut
from samespace.cloud.finetune.linear import chosen
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError


@pytest.mark.parametrize("family", ["residual", "inverted_residual", "mixer", "mobile", "wide_residual"])
@pytest.mark.parametrize("trained", [["head"], ["body.1", "head"], ["body.1"], []])
def test_front_and_back_are_the_network(family: str, trained: list[str]) -> None:
    torch.manual_seed(0)
    network = build_model(family, {"dim": 8, "image_size": 32}).eval()
    images = torch.randn(2, 3, 32, 32)
    front, back = cut(network, trained)
    torch.testing.assert_close(back(front(images)), network(images))
    assert set(chosen(back, trained)) == set(chosen(network, trained))
    kept = {name for name, _ in front.named_parameters()}
    assert not kept & set(chosen(network, trained))
    if trained == ["head"]:
        assert any(name.startswith("body.1") for name in kept)


def test_a_skip_around_the_trained_layer_is_not_cut() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            early = self.first(x)
            return self.third(self.second(early)) + early

    network, x = Skip(), torch.randn(2, 3)
    front, back = cut(network, ["third"])
    torch.testing.assert_close(back(front(x)), network(x))
    assert {name.split(".")[0] for name, _ in front.named_parameters()} == {"first"}


def test_a_network_that_cannot_be_traced_is_all_back() -> None:
    class Branch(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else x

    network, x = Branch(3, 3), torch.ones(2, 3)
    front, back = cut(network)
    assert back is network
    torch.testing.assert_close(front(x), x)


def test_a_wrong_name_is_told_with_those_there_are() -> None:
    network = build_model("residual", {"dim": 8, "image_size": 32})
    with pytest.raises(ConfigError, match=r"'tail'.*stem, body, head"):
        cut(network, ["tail"])
