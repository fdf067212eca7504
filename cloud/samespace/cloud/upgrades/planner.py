"""Which gallery model, adapters and backfill serve a fleet of old and new devices best, with nobody worse off.

Each device version sends a share of the queries. For each gallery model that could be served, and each share of the gallery
that could be embedded by it within the budget, every device takes its best measured way in (as it is, or through an adapter).
The plan maximises the expected M over all queries, among those in which no device version finds less than today.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samespace.sdk.errors import ConfigError

__all__ = ["Fleet", "Plan", "Step", "Way", "plan", "read_fleet"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Way(_Part):
    """A measured way of a device version into a gallery.

    Attributes:
        query: device version, i.e. its model.
        gallery: model that the gallery is being embedded by.
        adapter: what its queries go through; None for nothing.
        order: in which the backfill embeds items; None where that makes no difference (nothing or all is embedded).
        curve: (share of the gallery embedded by ``gallery``, M), shares rising; between two points it is interpolated. A single
            value at share 0 is a gallery that stays as it is; one at share 1 needs all of it.
    """

    query: str
    gallery: str
    adapter: str | None = None
    order: str | None = None
    curve: tuple[tuple[float, float], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Way:
        shares = [share for share, _ in self.curve]
        if any(not 0 <= share <= 1 for share in shares) or any(b <= a for a, b in pairwise(shares)):
            raise ValueError("the shares of a curve must rise, from 0 at least to 1 at most")
        return self

    def at(self, share: float) -> float | None:
        """M when this share is embedded; None where it was not measured."""
        shares, values = zip(*self.curve, strict=True)
        if not shares[0] - 1e-12 <= share <= shares[-1] + 1e-12:
            return None
        return float(np.interp(share, shares, values))


class Fleet(_Part):
    """What there is.

    Attributes:
        traffic: device version -> share of the queries, or any number proportional to it.
        gallery: model that the gallery is embedded by today.
        items: in the gallery.
        budget: items that may be embedded anew.
        ways: measured.
        tolerance: how far a device version may fall and still not be worse off (0-1); for measurement noise.
    """

    traffic: dict[str, float] = Field(min_length=1)
    gallery: str
    items: int = Field(ge=1)
    budget: int = Field(ge=0)
    ways: tuple[Way, ...]
    tolerance: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _everybody_searches_today(self) -> Fleet:
        if any(share < 0 for share in self.traffic.values()) or sum(self.traffic.values()) <= 0:
            raise ValueError("traffic: shares must be at least 0, and one of them above it")
        for device in self.traffic:
            if not any(one.query == device and one.gallery == self.gallery and one.at(0.0) is not None for one in self.ways):
                raise ValueError(f"ways: none says what {device!r} finds in today's gallery, of {self.gallery!r}")
        return self


class Step(_Part):
    """What one device version does, and what it finds."""

    device: str
    traffic: float
    adapter: str | None
    before: float
    after: float


class Plan(_Part):
    """What to do.

    Attributes:
        gallery: model to serve; today's means that the gallery stays as it is.
        order: of the backfill; None where nothing or all is embedded.
        share: of the gallery to embed anew.
        items: the same as a number of items.
        steps: by device version.
        before, after: expected M over the fleet.
        refused: gallery model -> device version that it would leave worse off, whatever is done within the budget.
    """

    gallery: str
    order: str | None
    share: float
    items: int
    steps: tuple[Step, ...]
    before: float
    after: float
    refused: dict[str, str]


def plan(fleet: Fleet) -> Plan:
    """The best plan; of equal ones that which embeds least, then today's gallery model.

    Exact: M of a device is the highest of piecewise linear curves, so the expected M is highest at a point of a curve, at the
    budget, or where a device is just no worse off.
    """
    total = sum(fleet.traffic.values())
    traffic = {device: share / total for device, share in fleet.traffic.items()}
    before = {device: _best(_ways(fleet, device, fleet.gallery, None), 0.0)[0] for device in traffic}
    floors = {device: value - fleet.tolerance for device, value in before.items()}
    best: tuple[float, float, bool, str, str | None] | None = None
    refused: dict[str, str] = {}
    for gallery in dict.fromkeys([fleet.gallery, *(way.gallery for way in fleet.ways)]):
        fits = False
        for order in _orders(fleet, gallery):
            for share in _shares(fleet, gallery, order, floors):
                found = {device: _best(_ways(fleet, device, gallery, order), share)[0] for device in traffic}
                worse = [device for device, value in found.items() if not value >= floors[device] - 1e-9]
                if worse:
                    refused.setdefault(gallery, worse[0])
                    continue
                fits = True
                expected = sum(traffic[device] * value for device, value in found.items())
                key = (round(expected, 12), -share, gallery == fleet.gallery, gallery, order)
                if best is None or key[:3] > best[:3]:
                    best = key
        if fits:
            refused.pop(gallery, None)
    # Today's gallery as it is leaves nobody worse off.
    assert best is not None
    expected, share, _, gallery, order = best[0], -best[1], best[2], best[3], best[4]
    steps = []
    for device in traffic:
        value, adapter = _best(_ways(fleet, device, gallery, order), share)
        steps.append(Step(device=device, traffic=traffic[device], adapter=adapter, before=before[device], after=value))
    return Plan(
        gallery=gallery,
        order=order if 0 < share < 1 else None,
        share=share,
        items=round(share * fleet.items),
        steps=tuple(steps),
        before=sum(traffic[device] * value for device, value in before.items()),
        after=expected,
        refused=refused,
    )


def read_fleet(content: Mapping[str, object], name: str) -> Fleet:
    """A fleet from plain values.

    Raises:
        ConfigError: unknown keys, values out of range, or a device version of which nobody measured what it finds today.
    """
    try:
        return Fleet.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{name}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


def _ways(fleet: Fleet, device: str, gallery: str, order: str | None) -> list[Way]:
    return [way for way in fleet.ways if way.query == device and way.gallery == gallery and way.order in (None, order)]


def _best(ways: Iterable[Way], share: float) -> tuple[float, str | None]:
    """The highest M at this share and its adapter; of equal ones that without; NaN where nothing was measured."""
    found = [(value, way.adapter is None, way.adapter) for way in ways if (value := way.at(share)) is not None]
    if not found:
        return float("nan"), None
    value, _, adapter = max(found, key=lambda one: one[:2])
    return value, adapter


def _orders(fleet: Fleet, gallery: str) -> list[str | None]:
    return list(dict.fromkeys([None, *(way.order for way in fleet.ways if way.gallery == gallery)]))


def _shares(fleet: Fleet, gallery: str, order: str | None, floors: Mapping[str, float]) -> Sequence[float]:
    """Where the expected M can be highest: within the budget, ends of pieces and where a curve crosses a device's floor."""
    most = min(1.0, fleet.budget / fleet.items)
    shares = {0.0, most}
    for device, floor in floors.items():
        for way in _ways(fleet, device, gallery, order):
            shares |= {share for share, _ in way.curve}
            for (a, low), (b, high) in pairwise(way.curve):
                if (low - floor) * (high - floor) < 0:
                    shares.add(a + (b - a) * (floor - low) / (high - low))
    return sorted(share for share in shares if share <= most + 1e-12)
