"""Evolution over any space that can sample, mutate and cross; it knows nothing of networks.

Truncation selection as in single-path one-shot search (Guo et al., ECCV 2020, arXiv 1904.00420): the best of all so far are the
parents of the next generation, so the best is never lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from samespace.cloud.search.config import Evolution
from samespace.cloud.training.seeds import derive

__all__ = ["ATTEMPTS", "Breedable", "Individual", "draw", "evolve"]

#: Attempts at one child (or one random individual) before it is given up.
ATTEMPTS = 100


class Individual(Protocol):
    """What is bred; equal individuals have equal keys."""

    @property
    def key(self) -> str: ...


A = TypeVar("A", bound=Individual)


class Breedable(Protocol[A]):
    """What :class:`samespace.edge.search.SearchSpace` is."""

    def sample(self, rng: random.Random) -> A: ...

    def mutate(self, architecture: A, rng: random.Random, rate: float) -> A: ...

    def crossover(self, one: A, other: A, rng: random.Random) -> A: ...


def draw(space: Breedable[A], count: int, fits: Callable[[A], bool], rng: random.Random, seen: set[str]) -> list[A]:
    """Up to ``count`` different random individuals that fit and are not in ``seen``, which they join."""
    found: list[A] = []
    for _ in range(count * ATTEMPTS):
        if len(found) == count:
            break
        one = space.sample(rng)
        if one.key not in seen and fits(one):
            seen.add(one.key)
            found.append(one)
    return found


def evolve(
    space: Breedable[A],
    settings: Evolution,
    purpose: str,
    first: Sequence[A],
    fits: Callable[[A], bool],
    scores: Callable[[Sequence[A]], Sequence[float | None]],
) -> list[tuple[A, float]]:
    """Breed for some generations.

    What happens depends on the arguments and the scores alone: asked again with the same, it makes the same proposals, which
    is how an interrupted search goes on (its scores come from a memo).

    Args:
        space: what breeds.
        settings: population, generations, rates and seed.
        purpose: of the random numbers, e.g. the reward's name.
        first: the first generation.
        fits: the hard limits; one that does not fit is never scored.
        scores: of a generation; more is better, None where an individual failed.

    Returns:
        All individuals that did not fail with their scores, best first.
    """
    rng = random.Random(derive(settings.seed, "evolution", purpose))
    seen = {one.key for one in first}
    everyone: list[tuple[A, float]] = []
    generation = list(first)
    for number in range(settings.generations):
        if number:
            generation = _children(space, settings, everyone, fits, rng, seen)
        if not generation:
            break
        scored = zip(generation, scores(generation), strict=True)
        everyone += [(one, score) for one, score in scored if score is not None]
        everyone.sort(key=lambda pair: (-pair[1], pair[0].key))
    return everyone


def _children(
    space: Breedable[A],
    settings: Evolution,
    everyone: Sequence[tuple[A, float]],
    fits: Callable[[A], bool],
    rng: random.Random,
    seen: set[str],
) -> list[A]:
    parents = [one for one, _ in everyone[: settings.parents]]
    if not parents:  # all of the first generation failed
        return draw(space, settings.population, fits, rng, seen)
    children: list[A] = []
    for _ in range(settings.population * ATTEMPTS):
        if len(children) == settings.population:
            return children
        child = rng.choice(parents)
        if rng.random() < settings.crossover_share:
            child = space.crossover(child, rng.choice(parents), rng)
        child = space.mutate(child, rng, settings.mutation_rate)
        if child.key not in seen and fits(child):
            seen.add(child.key)
            children.append(child)
    # The neighbourhood of the parents is exhausted.
    return children + draw(space, settings.population - len(children), fits, rng, seen)
