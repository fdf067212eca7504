"""``samespace finetune``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samespace.sdk.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from samespace.cloud.data.images import ImageSet

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adapt a released model to your own images, predictably: linear quadratic fine-tuning.",
)

_Run = Annotated[Path, typer.Argument(help="Finished run of the model.")]
_Model = Annotated[str, typer.Argument(help="Its name in the run.")]
_Data = Annotated[Path, typer.Option(help="Your images: a folder with a sub-folder a class, or a manifest.")]
_Key = Annotated[Path | None, typer.Option(help="Key that signs (samespace keys new); the default one without.")]


@app.command(
    epilog="Example: samespace finetune fit runs/mugs phone --data my-mugs -o mine.safetensors. "
    "Exit codes: 0 written, 1 error, 2 wrong usage."
)
def fit(
    run: _Run,
    model: _Model,
    data: _Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Adaptation to write; its report and page go beside it.")],
    towards: Annotated[
        str, typer.Option(help="prototypes: the mean of the cloud's embeddings of each class; cloud: of the same picture.")
    ] = "prototypes",
    train: Annotated[list[str] | None, typer.Option(help="Layers that may change; repeatable. Default: head.")] = None,
    penalty: Annotated[float, typer.Option(help="Weight decay on the change.")] = 1.0,
    hold: Annotated[float, typer.Option(help="How much anchors are to stay.")] = 10.0,
    anchors: Annotated[int, typer.Option(min=0, help="Pictures of the run's training whose embeddings are to stay.")] = 256,
    rank: Annotated[int | None, typer.Option(min=1, help="Round the change of each matrix, for a smaller file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or a CUDA device.")] = "cpu",
    key: _Key = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Write it without a signature.")] = False,
) -> None:
    """Fit an adaptation, and print what it does: to your images, to the anchors, and to all other searches of the gallery."""
    from importlib.metadata import version

    import numpy as np
    from rich.console import Console

    from samespace.cloud.data import cached_tensors
    from samespace.cloud.evaluation import embed
    from samespace.cloud.finetune.adaptation import write_adaptation
    from samespace.cloud.finetune.fit import fit as fitted_to
    from samespace.cloud.finetune.page import page
    from samespace.cloud.finetune.report import reported
    from samespace.cloud.training.device import choose_device
    from samespace.export.run import read_run
    from samespace.sdk.files import atomic_write
    from samespace.sdk.signing import SigningKey

    if towards not in ("prototypes", "cloud"):
        raise typer.BadParameter("one of prototypes, cloud", param_hint="--towards")
    if output.suffix != ".safetensors":
        raise ConfigError(f"{output}: name a file that ends in .safetensors")
    if unsigned and key is not None:
        raise ConfigError("--unsigned and --key exclude each other; leave one of them out")
    if choose_device(device).type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: has no float64, which the solution needs; take cpu")
    signer = None if unsigned else SigningKey.load(key)
    finished = read_run(run)
    (chosen,) = finished.choose((model,))
    if finished.calibration is None and anchors:
        raise ConfigError(f"{run}: holds no training pictures to hold as anchors; train again, or pass --anchors 0")
    images = _opened(data)
    rows = range(len(images.items))
    pictures = np.asarray(cached_tensors(images, rows, chosen.record.preprocess))
    cloud = finished.cloud
    teacher = embed(cloud.build(), np.asarray(cached_tensors(images, rows, cloud.record.preprocess)), cloud.record.preprocess)
    if teacher.shape[1] != chosen.record.dim:
        raise ConfigError(f"{model!r} has {chosen.record.dim} dimensions, the cloud model {teacher.shape[1]}; they must be one")
    targets = teacher if towards == "cloud" else _prototypes(teacher, [item.label for item in images.items])
    held = pictures[:0]
    if anchors and finished.calibration is not None:
        held = finished.calibration.prepared(chosen.record.preprocess)[:anchors]
    with Console(stderr=True).status("fitting") as status:
        found = fitted_to(
            chosen,
            pictures,
            targets,
            held,
            trained=train or ["head"],
            penalty=penalty,
            hold=hold,
            rank=rank,
            device=device,
            advance=lambda step, residual: status.update(f"conjugate gradients: step {step}, residual {residual:.2g}"),
        )
    report = reported(finished, chosen, found, targets, towards, "samespace " + shlex.join(["finetune", *sys.argv[2:]]))
    write_adaptation(output, found.adaptation, signer)
    html = page(report, found, pictures, [item.key for item in images.items], targets, version("samespace"))
    atomic_write(output.with_suffix(".html"), html)
    atomic_write(output.with_suffix(".json"), report.model_dump_json(indent=2) + "\n")
    for line in report.lines():
        typer.echo(line)
    typer.echo(f"{output}: {found.adaptation.adaptation_id}, {output.stat().st_size} bytes; see {output.with_suffix('.html')}")


@app.command(epilog="Example: samespace finetune apply runs/mugs phone mine.safetensors hers.safetensors -o runs/ours")
def apply(
    run: _Run,
    model: _Model,
    adaptations: Annotated[list[Path], typer.Argument(help="Adaptations, in any order; leave one out to remove it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new run; must not exist.")],
    linearised: Annotated[
        bool, typer.Option("--linearised", help="As a graph of values and tangents; its drift is the bounded one.")
    ] = False,
    allow_unsigned: Annotated[bool, typer.Option("--allow-unsigned", help="Take adaptations that are not signed.")] = False,
) -> None:
    """Make a run of the released model with a set of adaptations; 'samespace export' takes it as any other."""
    from samespace.cloud.derived import write_derived
    from samespace.cloud.finetune.adaptation import read_adaptation
    from samespace.cloud.finetune.release import released
    from samespace.export.run import read_run
    from samespace.sdk.signing import TrustStore

    finished = read_run(run)
    (chosen,) = finished.choose((model,))
    trust = TrustStore.default()
    found = [read_adaptation(path, trust, allow_unsigned=allow_unsigned) for path in adaptations]
    made = released(chosen, found, linearised=linearised)
    write_derived(output, finished, made)
    typer.echo(f"{output}: {made.name}, {made.record.model_id}, of {len(found)} adaptations")
    typer.echo(f"next: samespace export {output} --model {made.name} -o {made.name}.samespace")


@app.command(epilog="Example: samespace finetune leaky runs/mugs phone --data my-mugs -o runs/leaky")
def leaky(
    run: _Run,
    model: _Model,
    data: _Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new run; must not exist.")],
    slope: Annotated[float, typer.Option(help="Of the activations below 0.")] = 0.2,
    steps: Annotated[int, typer.Option(min=0, help="Of learning the old embeddings; 0: only new batch statistics.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the order of pictures.")] = 0,
) -> None:
    """Give a model leaky ReLU, as LQF wants it, and bring it back to its own embeddings; labels are not used."""
    import numpy as np
    from rich.console import Console

    from samespace.cloud.data import cached_tensors
    from samespace.cloud.derived import write_derived
    from samespace.cloud.finetune.leaky import converted
    from samespace.export.run import read_run
    from samespace.sdk.metrics import bootstrap_mean

    finished = read_run(run)
    (chosen,) = finished.choose((model,))
    images = _opened(data)
    pictures = np.asarray(cached_tensors(images, range(len(images.items)), chosen.record.preprocess))
    with Console(stderr=True).status("recalibrating") as status:
        found = converted(
            chosen,
            pictures,
            slope=slope,
            steps=steps,
            seed=seed,
            advance=lambda step, loss: status.update(f"step {step} of {steps}, squared distance {loss:.3g}"),
        )
    write_derived(output, finished, found.model)
    before, after = (bootstrap_mean(values).text(1, 4) for values in (found.recalibrated, found.cosines))
    typer.echo(f"cosine to the released embeddings, on pictures not learnt from: {before} recalibrated, {after} learnt")
    typer.echo(f"{output}: {found.model.name}, {found.model.record.model_id}")


def _opened(data: Path) -> ImageSet:
    from samespace.cloud.data.config import FolderConfig, ManifestConfig
    from samespace.cloud.data.kinds import open_dataset

    if not data.exists():
        raise DataError(f"{data}: no such folder or manifest")
    return open_dataset(FolderConfig(root=data) if data.is_dir() else ManifestConfig(path=data))


def _prototypes(rows: npt.NDArray[np.float32], labels: list[str]) -> npt.NDArray[np.float32]:
    import numpy as np

    means = {label: rows[[place for place, one in enumerate(labels) if one == label]].mean(0) for label in set(labels)}
    wanted = np.stack([means[label] for label in labels])
    return (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).astype(np.float32)
