"""An upgrade that re-embeds nothing, on real images: the same gallery, searched by yesterday's model and by today's.

python story.py before      train a model, serve a gallery of its embeddings, and search it
python story.py upgrade     train a better model into its space, judge it, register it in the gallery, promote it, search again
python story.py picture     index.html: the same queries before and after, the matrix, the flips

All write to ``--output`` (build/upgrade). Run again, a step goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
SHOWN = 5


def main() -> None:
    """One of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("before", "upgrade", "picture"))
    parser.add_argument("--output", type=Path, default=Path("build/upgrade"))
    parser.add_argument("--size", default="full", help="a size of the recipes: full (about 4 minutes on 2 cores) or ci")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    os.environ["SAMESPACE_SIZE"] = arguments.size
    # Keys and trust stay in this folder: the user's own configuration is never touched.
    os.environ["SAMESPACE_CONFIG_DIR"] = str((output / "config").resolve())
    {"before": before, "upgrade": upgrade, "picture": picture}[arguments.step](output)


def before(output: Path) -> None:
    """Yesterday."""
    samespace("train", HERE / "old.toml", "-o", output / "old")
    if not (output / "config" / "keys" / "default.pem").exists():
        samespace("keys", "new", "default")
    export(output, "old")
    write_photos(output)
    with gallery(output) as url:
        samespace("gallery", "add", output / "photos" / "gallery", "--gallery", url, "--bundle", bundle(output, "old"))
        search(output, url, "old", "before.json")


def upgrade(output: Path) -> None:
    """Today."""
    if not (output / "before.json").exists():
        sys.exit("there is nothing to upgrade yet; run: python story.py before")
    samespace("train", HERE / "new.toml", "--upgrade-from", output / "old", "-o", output / "new")
    report = ("--html", output / "report.html", "--json", output / "upgrade.json")
    samespace("report", output / "new", *report, allowed=(0, 1, 3))
    export(output, "new")
    with gallery(output) as url:
        files = ("--bundle", bundle(output, "new"), "--report", output / "upgrade.json")
        samespace("gallery", "upgrade", *files, "--gallery", url)
        if samespace("gallery", "promote", "--gallery", url, allowed=(0, 1, 2)):
            # Models of a few training steps do not pass; what is forced is on record.
            samespace("gallery", "promote", "--gallery", url, "--force", "a story must go on")
        search(output, url, "new", "after.json")
        samespace("gallery", "upgrade", "--gallery", url)


def picture(output: Path) -> None:
    """What it looks like."""
    if not (output / "after.json").exists():
        sys.exit("there is nothing to show yet; run: python story.py upgrade")
    from page import write_page

    write_page(output)
    print(f"look at {output / 'index.html'}; the whole report is {output / 'report.html'}")


def samespace(*arguments: object, allowed: tuple[int, ...] = (0,)) -> int:
    """Run one command of the command line, shown as a user would type it."""
    words = [str(argument) for argument in arguments]
    print(f"$ samespace {' '.join(words)}", flush=True)
    code = subprocess.run([Path(sys.executable).with_name("samespace"), *words], check=False).returncode
    if code not in allowed:
        sys.exit(f"samespace {words[0]} ended with exit code {code}; mend what it says above and run this step again")
    return code


def bundle(output: Path, run: str) -> Path:
    """The cloud model of a run, as it is shipped."""
    return output / "bundles" / f"{run}.samespace"


def export(output: Path, run: str) -> None:
    """Export a run's cloud model, once."""
    if not bundle(output, run).exists():
        samespace("export", output / run, "--model", "cloud", "--formats", "onnx", "-o", bundle(output, run))


def write_photos(output: Path) -> None:
    """Pictures of classes that no model is trained on: ``gallery/CLASS/PICTURE.png``, ``query/CLASS/PICTURE.png``."""
    from samespace.cloud.recipe import load_recipe
    from samespace.cloud.training.data import load_training_data

    data = load_training_data(load_recipe(HERE / "old.toml"))
    for side, indices in (("gallery", data.split.test_gallery), ("query", data.split.test_query)):
        for index in indices:
            item = data.images.items[index]
            path = output / "photos" / side / item.label / f"{item.key.replace('/', '-')}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data.images.encoded(index))


def search(output: Path, url: str, run: str, name: str) -> None:
    """Let a device with that run's model search with every query; which pictures it finds, nearest first."""
    from samespace.sdk.gallery import GalleryClient

    queries = sorted((output / "photos" / "query").rglob("*.png"))
    with GalleryClient.open(url, bundle(output, run)) as client:
        found = client.search_batch(client.embedder.embed([path.read_bytes() for path in queries]), SHOWN)
    hits = {
        str(path.relative_to(output / "photos" / "query")): [str(hit.metadata["path"]) for hit in row]
        for path, row in zip(queries, found, strict=True)
    }
    (output / name).write_text(json.dumps(hits))
    right = sum(Path(row[0]).parent.name == Path(query).parent.name for query, row in hits.items())
    print(f"{run} model: the first of {SHOWN} is right for {right} of {len(hits)} queries, in the same gallery")


@contextmanager
def gallery(output: Path) -> Iterator[str]:
    """Serve the gallery on a free port of this machine until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["gallery", "serve", "--bundle", str(bundle(output, "old")), "--data", str(output / "gallery"), "--port", str(port)]
    print(f"$ samespace {' '.join(words)} &", flush=True)
    service = subprocess.Popen([Path(sys.executable).with_name("samespace"), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        if not any("ready" in line for line in service.stdout):
            sys.exit(f"the gallery service ended with exit code {service.wait()} before it was ready")
        yield f"http://127.0.0.1:{port}"
    finally:
        service.terminate()
        service.wait(60)


if __name__ == "__main__":
    main()
