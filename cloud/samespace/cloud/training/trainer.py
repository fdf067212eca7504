"""The training loop: one for both modes, resumable at any step, the same on one process and on many."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samespace.cloud.data.augment import augment_batch
from samespace.cloud.inputs import Views
from samespace.cloud.losses import Gallery, Need, Partner
from samespace.cloud.recipe import Recipe
from samespace.cloud.training.checkpoint import Progress, pack, restore_optimisers, restore_weights, unpack
from samespace.cloud.training.data import TrainingData
from samespace.cloud.training.device import World
from samespace.cloud.training.interrupt import interruptible
from samespace.cloud.training.log import TrainingLog
from samespace.cloud.training.optimiser import build_optimiser, one_cycle, set_step
from samespace.cloud.training.order import BatchOrder
from samespace.cloud.training.partners import Founder, partner_of, supply_gallery, take_over
from samespace.cloud.training.quantised import calibrate_tiers, in_float
from samespace.cloud.training.run import RunDirectory
from samespace.cloud.training.seeds import generator, seeded
from samespace.cloud.training.sharing import Family, family_of, separate, share
from samespace.cloud.training.stages import Stage, stages_of
from samespace.cloud.training.teachers import mean_logits, read_teachers
from samespace.cloud.training.tier import Outcome, Tier, build_tier
from samespace.sdk.cli.progress import progress
from samespace.sdk.errors import ConfigError

__all__ = ["Trainer"]

#: For tiers that have no partner.
_ALONE = Partner({})


class Trainer:
    """Trains the tiers of a recipe to the end of its last stage.

    Step n of a stage depends on the seed, n and the weights alone: batch, augmentation and dropout are drawn anew from
    (seed, stage, n). So a run that was killed and resumed ends, bit for bit, where an uninterrupted one ends (on one CPU
    thread; more threads or an accelerator may add in another order).

    Args:
        recipe: what to train.
        data: the pictures, as :func:`samespace.cloud.training.data.load_training_data` gives them.
        world: the processes that train together.
        directory: where the first process keeps checkpoint and log.
        founder: the finished run that the cloud model comes from, if it is not trained here.

    Raises:
        ConfigError: models that cannot be built, or a founder that learnt other classes.
    """

    def __init__(
        self, recipe: Recipe, data: TrainingData, world: World, directory: RunDirectory, founder: Founder | None = None
    ) -> None:
        self.recipe, self.data, self.world, self.directory = recipe, data, world, directory
        tiers = {name: build_tier(recipe, name, len(data.classes)) for name in recipe.models}
        if founder is not None:
            take_over(tiers[recipe.cloud], founder, recipe, data)
        share(recipe, tiers)
        self.tiers = {name: self._placed(tier) for name, tier in tiers.items()}
        calibrate_tiers(recipe, self.tiers, data)
        self.stages = stages_of(recipe)
        self.progress = Progress(recipe_sha256=recipe.digest, data_sha256=data.sha256)
        self.teachers = read_teachers(recipe.teachers, data.classes, world.device)
        self._costs = data.costs(recipe.flips.costs)
        self._rows = world.share(recipe.batch)
        self._began = 0.0

    def run(self) -> None:
        """Train what is left to train; at once done where nothing is.

        Raises:
            ConfigError: a checkpoint of another recipe or other pictures, or a loss that is no longer finite.
            KeyboardInterrupt, SystemExit: SIGINT or SIGTERM; a checkpoint was written first.
        """
        saved = self.world.broadcast_bytes(self.directory.load() if self.world.first else None)
        tensors: Mapping[str, Tensor] = {}
        if saved is not None:
            self.progress = self.directory.check(saved, self.recipe, self.data.sha256)
            tensors = unpack(saved, str(self.directory.checkpoint))[1]
            restore_weights(tensors, self.tiers)
        self._began = time.monotonic() - self.progress.seconds
        log = TrainingLog(self.directory.log, self.progress.log_bytes) if self.world.first else None
        try:
            while self.progress.stage < len(self.stages):
                self._run_stage(tensors, log)
                tensors = {}
        finally:
            if log:
                log.close()
        separate(self.tiers)
        in_float(self.tiers)

    def _run_stage(self, tensors: Mapping[str, Tensor], log: TrainingLog | None) -> None:
        """The current stage, from where it stands to its end; ``tensors`` is the checkpoint to go on from, if any."""
        recipe, stage = self.recipe, self.stages[self.progress.stage]
        trained = {name: self.tiers[name].train() for name in stage.trained}
        gallery = None
        if stage.partner and stage.partner not in trained:
            # In evaluation mode its running statistics stand still, too.
            partner = self.tiers[stage.partner].eval().requires_grad_(False)
            if any(Need.GALLERY in tier.needs for tier in trained.values()):
                gallery = supply_gallery(partner, recipe, self.data)
        family = family_of(recipe, stage, self.tiers, self.world)
        start = self.progress.step
        # A tier whose weights are all another's has nothing to optimise.
        learning: dict[str, nn.Module] = {
            name: tier for name, tier in trained.items() if any(value.requires_grad for value in tier.parameters())
        }
        optimisers = {
            name: build_optimiser(tier, recipe.learning_rate(name), recipe.optimiser.weight_decay)
            for name, tier in learning.items()
        }
        if family:
            learning |= family.modules
            for name, module in family.modules.items():
                optimisers[name] = build_optimiser(module, recipe.optimiser.learning_rate, 0.0)
            if start:
                restore_weights(tensors, family.modules)
        restore_optimisers(tensors, learning, optimisers)
        callables = trained if family else {name: self.world.wrapped(tier) for name, tier in trained.items()}
        order = BatchOrder(len(self.data.labels), recipe.batch, recipe.seed, stage.name)
        bar_of = progress(f"Training ({stage.name})", recipe.steps - start) if self.world.first else nullcontext()
        with interruptible() as interrupt, bar_of as bar:
            for step in range(start, recipe.steps):
                outcomes = self._step(stage, step, order.indices(step), callables, optimisers, gallery, family)
                done, last = step + 1, step + 1 == recipe.steps
                stop = self.world.any(interrupt.received is not None)
                logs, saves = last or done % recipe.log_every == 0, last or stop or done % recipe.checkpoint_every == 0
                if logs or saves:
                    losses = self._finite_losses(stage, done, outcomes)
                    if logs and log:
                        log.write(self._record(stage, done, losses))
                if saves:
                    self._save(done, trained, optimisers, log, family)
                if bar:
                    bar.advance(1, " ".join(f"{name} {outcomes[name].total.item():.2f}" for name in trained) if logs else "")
                if stop:
                    interrupt.raise_for(f"stopped at step {done} of stage {stage.name!r}, checkpoint written")

    def _step(
        self,
        stage: Stage,
        step: int,
        indices: Tensor,
        callables: Mapping[str, nn.Module],
        optimisers: Mapping[str, Optimizer],
        gallery: Gallery | None,
        family: Family | None,
    ) -> dict[str, Outcome]:
        """One optimiser step of every tier that learns in this stage."""
        recipe, data, rows = self.recipe, self.data, self._rows
        pictures, labels = data.batch(indices, self.world.device)
        # All processes augment the whole batch and then take their share, so that it does not matter how many there are.
        chance = generator(self.world.device, recipe.seed, "augment", stage.name, step)
        views = Views(augment_batch(pictures, chance, recipe.augment)[rows])
        share = indices[rows].to(self.world.device)
        partner, outcomes = _ALONE, {}
        for optimiser in optimisers.values():
            set_step(optimiser, step, recipe.steps, recipe.optimiser.warmup)
            optimiser.zero_grad(set_to_none=True)
        together = family.begin(step) if family else None
        if stage.partner and stage.partner not in callables:
            frozen = self.tiers[stage.partner]
            with torch.no_grad():
                observed = frozen.observe(views.of(recipe.models[stage.partner].preprocess))
            partner = partner_of(frozen, observed, gallery)
        taught: dict[Need, Tensor] = {}
        if any(Need.TEACHERS in self.tiers[name].needs for name in callables):
            taught = {Need.TEACHERS: mean_logits(self.teachers, views)}
        costs = None if self._costs is None else self._costs[indices[rows]].to(self.world.device)
        for name, tier in callables.items():
            # Each tier has its own randomness, so that what becomes of it does not depend on which others are there.
            with seeded(recipe.seed, "step", stage.name, step, self.world.rank, name):
                supplied = Partner({**partner.supplied, **taught})
                outcome: Outcome = tier(views.of(recipe.models[name].preprocess), labels[rows], supplied, share, costs)
            if name == stage.partner:
                partner = partner_of(self.tiers[name], outcome.observed)
            # The terms of different tiers share no activations, at most parameters: going back at once frees them.
            if family and together:
                together.backward(family.objective(name, outcome.total))
            else:
                outcome.total.backward()
            outcomes[name] = outcome._replace(total=outcome.total.detach())
        if together:
            together.finish()
        for optimiser in optimisers.values():
            optimiser.step()
        return outcomes

    def _finite_losses(self, stage: Stage, done: int, outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, float]]:
        """Each tier's terms and total, averaged over processes.

        Raises:
            ConfigError: one is NaN or infinite; nothing of this state is saved.
        """
        losses = {}
        for name, outcome in outcomes.items():
            values = self.world.mean(torch.cat([outcome.terms, outcome.total[None]])).tolist()
            if not all(math.isfinite(value) for value in values):
                raise ConfigError(
                    f"training diverged: a loss of models.{name} is {values[-1]} at step {done} of stage {stage.name!r}; "
                    f"lower its learning_rate (now {self.recipe.learning_rate(name)})"
                )
            losses[name] = dict(zip((*self.tiers[name].weights, "total"), values, strict=True))
        return losses

    def _record(self, stage: Stage, done: int, losses: dict[str, dict[str, float]]) -> dict[str, object]:
        share, _ = one_cycle(done - 1, self.recipe.steps, 1.0, self.recipe.optimiser.warmup)
        rate = share * self.recipe.optimiser.learning_rate
        seconds = round(time.monotonic() - self._began, 3)
        return {"stage": stage.name, "step": done, "learning_rate": rate, "seconds": seconds, "losses": losses}

    def _save(
        self,
        done: int,
        trained: Mapping[str, Tier],
        optimisers: Mapping[str, Optimizer],
        log: TrainingLog | None,
        family: Family | None,
    ) -> None:
        """Note the progress, and write it down where this is the first process."""
        finished = done == self.recipe.steps
        if finished:
            # Running statistics are each process's own until here.
            self.world.broadcast([buffer for tier in trained.values() for buffer in tier.buffers()])
        self.progress = self.progress.model_copy(
            update={
                "stage": self.progress.stage + finished,
                "step": 0 if finished else done,
                "log_bytes": log.position() if log else 0,
                "seconds": time.monotonic() - self._began,
            }
        )
        if self.world.first:
            beside = family.modules if family and not finished else {}
            self.directory.save(pack(self.progress, {**self.tiers, **beside}, {} if finished else optimisers))
        self.world.wait()

    def _placed(self, tier: Tier) -> Tier:
        placed = self.world.synchronised(tier).to(self.world.device)
        return placed.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in the stubs
