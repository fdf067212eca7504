"""Damaged packages in a child process with limits: the parent survives all of them, and reports our error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.isolation import IsolatedRuntime, Limits

MUTANTS = 500
#: Runs in the child: opens and runs the mutants from one number on, and says of each how it ended before the next begins.
CHILD = """
import json, resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from mutate import mutant
from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.manifest import Artifact
from samespace.sdk.runtimes import LoadedArtifact, RuntimeOptions, open_runtime

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
spec = Artifact.model_validate_json(sys.argv[2])
with np.load(sys.argv[1] + "/files.npz") as stored:
    files = {name: stored[name].tobytes() for name in stored.files}
images = np.full((1, 8, 8, 3), 100, np.uint8)
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    try:
        with open_runtime(LoadedArtifact(spec, mutant(files, number), 8, 4), None, RuntimeOptions(threads=1)) as runtime:
            runtime.run(images)
        end = "ran"
    except RuntimeFailure as error:
        end = "refused" if str(error).startswith(("artifacts/model", "coreml_reference: ")) else f"unnamed: {error}"
    except BaseException as error:
        end = f"{type(error).__name__}: {error}"
    print(json.dumps([number, end]), flush=True)
"""
MUTATE = '''
"""One damaged copy of a package, by its number: bytes changed, cut off, doubled, or zeroed, in one of its files."""
import numpy as np

def mutant(files, number):
    rng = np.random.default_rng(number)
    names = sorted(files)
    # The program is where the structure is; the manifest and the weights have their share.
    name = names[rng.choice(len(names), p=[0.8 if n.endswith(".mlmodel") else 0.2 / (len(names) - 1) for n in names])]
    data = bytearray(files[name])
    start = int(rng.integers(len(data)))
    end = start + int(rng.integers(1, 64))
    kind = number % 5
    if kind < 2:
        for place in rng.integers(len(data), size=1 + 7 * kind):
            data[place] ^= int(rng.integers(1, 256))
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:start] = data[start:end]
    else:
        data[start:end] = bytes(len(data[start:end]))
    return {**files, name: bytes(data)}
'''


@pytest.fixture(scope="module")
def folder(image_package: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the child reads: the package and the two scripts."""
    path = tmp_path_factory.mktemp("mutants")
    np.savez(path / "files.npz", **{name: np.frombuffer(data, np.uint8) for name, data in image_package.items()})
    (path / "mutate.py").write_text(MUTATE)
    (path / "child.py").write_text(CHILD)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on memory there")
def test_mutants_are_refused_or_run_and_never_break_the_process(
    mil: Any, image_package: dict[str, bytes], folder: Path
) -> None:
    spec = mil.artifact(image_package).spec.model_dump_json()
    answer = subprocess.run(
        [sys.executable, str(folder / "child.py"), str(folder), spec, "0", str(MUTANTS)], capture_output=True, text=True
    )
    ends = dict(json.loads(line) for line in answer.stdout.splitlines())
    assert answer.returncode == 0, f"mutant {len(ends)} ended the child: {answer.stderr[-400:]}"
    assert len(ends) == MUTANTS
    assert {number: end for number, end in ends.items() if end not in ("ran", "refused")} == {}
    # Neither is all refused, nor does damage go unnoticed.
    assert MUTANTS / 4 < list(ends.values()).count("refused") < MUTANTS


def test_a_mutant_in_isolation_is_our_error(mil: Any, image_package: dict[str, bytes], folder: Path) -> None:
    """The same in :class:`IsolatedRuntime`, whose child has a life for one artifact only."""
    scope: dict[str, Any] = {}
    exec(MUTATE, scope)
    broken = [mil.artifact(scope["mutant"](image_package, number)) for number in (2, 7)]
    for one in (*broken, mil.artifact({})):
        with pytest.raises(RuntimeFailure, match=r"artifacts/model\.mlpackage"):
            IsolatedRuntime(one, "coreml_reference", limits=Limits(cpu_seconds=60))
