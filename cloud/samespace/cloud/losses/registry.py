"""Compatibility losses by name. A new loss is one file in this folder and one line in :data:`LOSSES`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from samespace.cloud.losses.asymmetric_margin import AsymmetricMargin
from samespace.cloud.losses.base import CompatibilityLoss, Shape
from samespace.cloud.losses.contrastive import Contrastive
from samespace.cloud.losses.cosine_softmax import CosineSoftmax
from samespace.cloud.losses.csd import ContextualSimilarity
from samespace.cloud.losses.focal_distillation import FocalDistillation
from samespace.cloud.losses.hoc import HigherOrderCompatibility
from samespace.cloud.losses.lce import CompatibleEmbedding
from samespace.cloud.losses.logit_difference import LogitDifference
from samespace.cloud.losses.margin_preserving import MarginPreserving
from samespace.cloud.losses.naive_reweighting import NaiveReweighting
from samespace.cloud.losses.partner_head import PartnerHead
from samespace.cloud.losses.ract import RegressionAlleviating
from samespace.cloud.losses.rank_difference import RankDifference
from samespace.cloud.losses.rank_order import RankOrder
from samespace.cloud.losses.regression import Regression
from samespace.cloud.losses.relational import Relational
from samespace.cloud.losses.simplex import Simplex
from samespace.cloud.losses.stage_features import StageFeatures
from samespace.cloud.losses.structure_similarity import StructureSimilarity
from samespace.sdk.errors import ConfigError

__all__ = ["LOSSES", "build_loss", "check_options", "loss_class", "option_names"]

#: Name in recipes -> class.
LOSSES: dict[str, type[CompatibilityLoss]] = {
    "contrastive": Contrastive,
    "cosine_softmax": CosineSoftmax,
    "csd": ContextualSimilarity,
    "partner_head": PartnerHead,
    "regression": Regression,
    "relational": Relational,
    "simplex": Simplex,
    "stage_features": StageFeatures,
    "asymmetric_margin": AsymmetricMargin,
    "rank_difference": RankDifference,
    "rank_order": RankOrder,
    "structure_similarity": StructureSimilarity,
    "focal_distillation": FocalDistillation,
    "hoc": HigherOrderCompatibility,
    "lce": CompatibleEmbedding,
    "logit_difference": LogitDifference,
    "margin_preserving": MarginPreserving,
    "naive_reweighting": NaiveReweighting,
    "ract": RegressionAlleviating,
}


def loss_class(name: str) -> type[CompatibilityLoss]:
    """The class of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}{_meant(name, list(LOSSES))}; known: {', '.join(LOSSES)}")
    return LOSSES[name]


def option_names(name: str) -> tuple[str, ...]:
    """The options that a recipe may set for a loss: the keyword arguments of its constructor."""
    parameters = inspect.signature(loss_class(name)).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, converted to the types that the loss's constructor is annotated with.

    Raises:
        ConfigError: unknown loss, unknown option, or a value of a wrong type.
    """
    known = option_names(name)
    hints = get_type_hints(loss_class(name).__init__, include_extras=True)
    checked = {}
    for option, value in options.items():
        if option not in known:
            takes = ", ".join(known) or "no options"
            raise ConfigError(f"loss {name}: unknown option {option!r}{_meant(option, known)}; it takes {takes}")
        try:
            adapter = TypeAdapter(hints[option], config=ConfigDict(strict=True, allow_inf_nan=False))
            checked[option] = adapter.validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"loss {name}: option {option} = {value!r}: {error.errors()[0]['msg']}") from None
    return checked


def build_loss(name: str, shape: Shape, options: Mapping[str, Any] | None = None) -> CompatibilityLoss:
    """A loss, its parameters freshly initialised by torch's global generator.

    Raises:
        ConfigError: as :func:`check_options`.
    """
    return loss_class(name)(shape, **check_options(name, options or {}))


def _meant(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
