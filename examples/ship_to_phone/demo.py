"""Journeys 1 and 2 on real images: co-train, export, check, serve, and search the cloud's gallery with the exported edge model.

    python examples/ship_to_phone/demo.py --output build/demo [--size ci|full]

Writes ``index.html`` (the page to look at), ``report.json`` (the evidence), and what the steps made: ``run``, ``bundles``,
``gallery``.
Run again, it resumes: what is trained or ingested stays.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run all steps, each as the command that a user would type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    parser.add_argument("--size", default="full", help="a size of the recipe: full (about 8 minutes on 2 cores) or ci")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    os.environ["SAMESPACE_SIZE"] = arguments.size
    # The demo's keys and trust stay in its own folder: the user's own configuration is never touched.
    os.environ["SAMESPACE_CONFIG_DIR"] = str((output / "config").resolve())
    started = time.monotonic()

    run, bundles, photos = output / "run", output / "bundles", output / "photos"
    with step("1/6 Train a cloud model, then two edge models in its space, and an independent control"):
        samespace("train", HERE / "recipe.toml", "-o", run)
    with step("2/6 Export them to ONNX, TFLite and Core ML: signed bundles, verified against the torch models"):
        if not (output / "config" / "keys" / "default.pem").exists():
            samespace("keys", "new", "default")
        if not is_exported(run, bundles):
            samespace("export", run, "-o", bundles)
    with step("3/6 Check the bundles as a user's CI would"):
        verdicts = {
            name: samespace("check", bundles / f"{name}.samespace", "--json", output / f"check-{name}.json", allowed=(0, 1, 3))
            for name in ("phone", "watch", "cloud")
        }

    # Imported here so that a wrong argument or a missing tool is named at once.
    from evidence import Figures, write_report
    from measure import Demo

    demo = Demo.open(run, bundles)
    demo.write_photos(photos)
    with gallery_service(bundles / "cloud.samespace", output / "gallery") as url:
        with step("4/6 Fill the served gallery with unseen classes, embedded by the cloud bundle"):
            samespace("gallery", "add", photos / "gallery", "--gallery", url, "--bundle", bundles / "cloud.samespace")
        with step("5/6 Search it with the exported phone model, beside the independent control"):
            samespace("gallery", "search", demo.some_query(photos), "--gallery", url, "--bundle", bundles / "phone.samespace")
            sheet = demo.search(url)
    with step("6/6 Measure every model and every exported artifact on the unseen classes"):
        table = demo.table()
        figures = Figures(
            table=table, sheet=sheet, verdicts=verdicts, size=arguments.size, minutes=(time.monotonic() - started) / 60
        )
        holds = write_report(output, demo, figures)
    print(f"\n{table.markdown()}")
    print(f"{'All claims hold' if holds else 'A claim does not hold: see report.json'}; {output / 'index.html'}")


def samespace(*arguments: object, allowed: tuple[int, ...] = (0,)) -> int:
    """Run one command of the command line, shown as a user would type it."""
    words = [str(argument) for argument in arguments]
    print(f"$ samespace {' '.join(words)}", flush=True)
    code = subprocess.run([Path(sys.executable).with_name("samespace"), *words]).returncode
    if code not in allowed:
        sys.exit(
            f"samespace {words[0]} ended with exit code {code}; mend what it says above and run the demo again: it resumes"
        )
    return code


def is_exported(run: Path, bundles: Path) -> bool:
    """Whether an earlier try got as far as exporting this very run."""
    made = list(bundles.glob("*.samespace/manifest.json"))
    return bool(made) and min(path.stat().st_mtime for path in made) > (run / "matrices.json").stat().st_mtime


@contextmanager
def gallery_service(bundle: Path, data: Path) -> Iterator[str]:
    """Run ``samespace gallery serve`` on a free port of this machine until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["gallery", "serve", "--bundle", str(bundle), "--data", str(data), "--port", str(port)]
    print(f"$ samespace {' '.join(words)} &", flush=True)
    service = subprocess.Popen([Path(sys.executable).with_name("samespace"), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        for line in service.stdout:
            if "ready" in line:
                break
        else:
            sys.exit(f"the gallery service ended with exit code {service.wait()} before it was ready")
        yield f"http://127.0.0.1:{port}"
    finally:
        service.terminate()
        service.wait(60)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print a step's title, and how long it took."""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    yield
    print(f"== {title.split(' ', 1)[0]} took {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
