"""The child process of :mod:`samespace.cloud.search.workers`; it ends when its standard input does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from samespace.cloud.search.evaluate import Evaluator, Pictures, load_supernet
from samespace.cloud.search.workers import answer
from samespace.edge.search import Architecture, SearchSpace
from samespace.sdk.preprocess import Preprocess

__all__ = ["main"]


def main(job: str) -> None:
    """Answer requests, ``{"operation", "architecture"}`` a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    torch.set_num_threads(1)
    about = json.loads(job)
    evaluator = Evaluator(
        load_supernet(Path(about["weights"]), SearchSpace.model_validate_json(json.dumps(about["space"]))),
        Pictures.load(Path(about["pictures"])),
        Preprocess.model_validate_json(json.dumps(about["preprocess"])),
        torch.device("cpu"),
    )
    for line in sys.stdin:
        request = json.loads(line)
        architecture = Architecture.model_validate_json(json.dumps(request["architecture"]))
        print(json.dumps(answer(evaluator, request["operation"], architecture)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
