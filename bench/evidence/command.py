"""`python -m fastload.bench evidence`: train what is left to train, as far as the time goes, and tell what is known."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastload.bench.evidence.parts import PARTS
from fastload.bench.evidence.runner import OutOfTime, Runner
from fastload.bench.evidence.scale import SCALES, scale_named
from fastload.bench.evidence.sets import NAMES, Sources, fashion_folder, make_set
from fastload.bench.evidence.statistics import require_scipy
from fastload.bench.measure import Deadline
from fastload.common.arguments import positive
from fastload.common.device import resolve_device
from fastload.common.processors import processors

TIME_IS_UP = 4


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code: 0 when all is done, 4 when the time was up before."""
    options = _parser().parse_args(arguments)
    scale, device = scale_named(options.scale), resolve_device(options.device)
    names = options.only.split(",") if options.only else list(PARTS)
    workers = options.workers or (processors() if device.type == "cpu" else 1)
    require_scipy()
    fashion = options.fashion or fashion_folder()
    sources = Sources(options.full, options.test, fashion, scale.limit)
    chosen = [name for name in NAMES if name != "fashion-mnist" or fashion is not None]
    sets = {name: make_set(name, sources, options.folder / "sets") for name in chosen}
    deadline = Deadline(60 * positive("--minutes", options.minutes))
    runner = Runner(sets, scale, device, options.folder, workers, deadline, lambda text: print(text, flush=True))
    try:
        for name in names:
            print(f"{name} …", flush=True)
            for found in runner.cells(PARTS[name](scale, list(sets))):
                print(
                    found.cell,
                    found.rate,
                    {r: round(v, 4) for r, v in found.held_out.items()},
                    [round(100 * run.accuracy, 2) for run in found.runs],
                    [run.memorized for run in found.runs][:3],
                    flush=True,
                )
    except OutOfTime:
        return TIME_IS_UP
    finally:
        runner.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastload.bench evidence", description=__doc__)
    parser.add_argument("--full", type=Path, required=True, metavar="TRAIN.h5", help="CIFAR-10, packed raw")
    parser.add_argument("--test", type=Path, required=True, metavar="TEST.h5", help="its test set, packed raw")
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", help="Fashion-MNIST's four IDX files")
    parser.add_argument("--scale", default="reduced", help=f"one of {', '.join(SCALES)}")
    parser.add_argument("--only", metavar="PART,…", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--folder", type=Path, default=Path("evidence"), help="what is done already, and the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, help="processes that train; by default one a processor, one on a GPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; exit code 4")
    return parser
