"""From a search to trained winners."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samespace.cloud.data.parallel import default_workers
from samespace.cloud.recipe import Recipe
from samespace.cloud.search.config import Search
from samespace.cloud.search.costs import CostTable
from samespace.cloud.search.evaluate import Evaluator, Pictures, collect_pictures, load_supernet
from samespace.cloud.search.evolution import ATTEMPTS, draw
from samespace.cloud.search.finalists import Finalist, Whole, choose_finalists
from samespace.cloud.search.folder import SearchFolder
from samespace.cloud.search.hunt import Hunt
from samespace.cloud.search.limits import Limits
from samespace.cloud.search.memo import Memo
from samespace.cloud.search.pareto import check_plotting, write_pareto
from samespace.cloud.search.recipes import check_run, retrain_recipe, supernet_recipe
from samespace.cloud.search.report import write_report
from samespace.cloud.search.supernet import train_supernet
from samespace.cloud.search.workers import Children, Here, Workers
from samespace.cloud.training import TrainedRun, train
from samespace.cloud.training.data import training_data
from samespace.cloud.training.device import choose_device
from samespace.cloud.training.partners import Founder, read_founder
from samespace.cloud.training.seeds import derive
from samespace.cloud.training.tier import check_models
from samespace.edge.search import Architecture
from samespace.sdk.errors import ConfigError, MissingExtraError
from samespace.sdk.files import atomic_write
from samespace.sdk.identity import canonical_json, digest

__all__ = ["search"]


def search(settings: Search, folder: Path | str, *, resume: bool = True) -> dict[str, Any]:
    """Train a supernet, search in it, measure the winners, and train them from scratch.

    Interrupted, however hard, the same call goes on where it was, and finds what it would have found. Until the winners are
    chosen no picture of a test class is looked at.

    Args:
        settings: see :func:`samespace.cloud.search.config.load_search`.
        folder: of the search; made when it is not there.
        resume: False starts over and discards what an earlier search left in the folder.

    Returns:
        What stands in ``report.json``.

    Raises:
        ConfigError: something that cannot work, as far as possible before any work: a run that is not complete or has no
            validation classes, a budget that nothing meets, losses that do not fit, an optional package that is not installed.
        DataError: pictures that cannot be used.
        KeyboardInterrupt: Ctrl-C; SystemExit: SIGTERM.
    """
    _check_packages()
    where = SearchFolder(folder)
    base, images, split = check_run(settings)
    with where.opened(settings, resume=resume):
        recipe = supernet_recipe(settings, base, where.supernet / "recipe.toml")
        table = CostTable(where.costs, settings.space)
        limits = Limits(settings.budget, settings.space, table)
        pool = _pool(settings, limits)
        table.save()
        for checked in (recipe, retrain_recipe(settings, base, {"r1": pool[0]}, 0, where.retrain_recipe)):
            check_models(checked)
        founder = read_founder(recipe)
        assert founder is not None
        data = training_data(recipe, images, split)
        weights = train_supernet(recipe, data, founder, where.supernet)
        pictures = collect_pictures(settings, recipe, data, founder)
        belongs_to = _belongs_to(settings, data.sha256, images.fingerprint, weights, founder)
        memo = Memo(where.candidates, belongs_to)
        try:
            evaluator = _evaluator(settings, recipe, weights, pictures)
            with _workers(settings, where, weights, evaluator) as (workers, count):
                hunt = Hunt(settings, memo, table, limits, workers)
                candidates = hunt.run(pool)
            whole = Whole(where.finalists, settings, evaluator.preprocess, evaluator.network, table.machine)
            finalists = choose_finalists(settings, candidates, whole, limits)
            good = [one for one in candidates if one.error is None]
            partner = float(pictures.cloud_hits.mean())
            front = write_pareto(where.path, good, {one.name: one.candidate.key for one in finalists}, partner)
            runs = _retrain(settings, base, finalists, where)
            return write_report(
                settings, where, memo, candidates, table, whole, finalists, front, pictures, founder, runs, count
            )
        finally:
            memo.close()


def _check_packages() -> None:
    """Raise :class:`MissingExtraError` for what is needed only hours later."""
    check_plotting()
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("export", "measuring exported candidates")


def _pool(settings: Search, limits: Limits) -> list[Architecture]:
    """Random architectures within the budget, always the same."""
    rng = random.Random(derive(settings.evolution.seed, "pool"))
    count = max(settings.proxy.pool, settings.evolution.population)
    pool = draw(settings.space, count, limits.fits, rng, set())
    if len(pool) < 2:
        raise ConfigError(
            f"{len(pool)} of {count * ATTEMPTS} architectures drawn from the space meet {limits.explain()}; raise the limit, "
            "or give the space smaller choices"
        )
    return pool


def _belongs_to(settings: Search, data_sha256: str, fingerprint: str, weights: Path, founder: Founder) -> str:
    """Digest of all that a candidate's values depend on."""
    resolved = settings.resolved()
    return digest(
        canonical_json(
            [
                resolved["space"],
                resolved["evaluation"],
                settings.proxy.pictures,
                settings.supernet.seed,
                data_sha256,
                fingerprint,
                digest(weights.read_bytes()),
                founder.model.record.model_id,
            ]
        )
    )


def _evaluator(settings: Search, recipe: Recipe, weights: Path, pictures: Pictures) -> Evaluator:
    supernet = load_supernet(weights, settings.space)
    return Evaluator(supernet, pictures, recipe.models["supernet"].preprocess, choose_device(settings.device))


@contextmanager
def _workers(settings: Search, where: SearchFolder, weights: Path, evaluator: Evaluator) -> Iterator[tuple[Workers, int]]:
    """Who evaluates, and how many."""
    count = settings.workers or default_workers()
    if count == 1 or evaluator.device.type != "cpu":
        yield Here(evaluator), 1
        return
    evaluator.pictures.save(where.pictures)
    about = {
        "space": settings.space.model_dump(mode="json"),
        "preprocess": evaluator.preprocess.model_dump(mode="json"),
    }
    with Children.of_supernet(count, weights, where.pictures, about) as children:
        yield children, count


def _retrain(settings: Search, base: Recipe, finalists: Sequence[Finalist], where: SearchFolder) -> dict[int, TrainedRun]:
    """Write the recipe of the winners, and train it with each seed."""
    winners = {one.name: one.candidate.architecture for one in finalists}
    seeds = settings.finalists.seeds
    first = retrain_recipe(settings, base, winners, seeds[0] if seeds else 0, where.retrain_recipe)
    atomic_write(where.retrain_recipe, first.to_toml())
    runs = {}
    for seed in seeds:
        found = train(first.model_copy(update={"seed": seed}), where.retrain / f"seed-{seed}")
        assert found is not None  # a single process
        runs[seed] = found
    return runs
