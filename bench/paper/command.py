"""`python -m fastload.bench paper`: do the experiments, as far as the time goes, and tell what is known so far."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from fastload.bench import plot
from fastload.bench.measure import Deadline
from fastload.bench.paper import plots, report
from fastload.bench.paper.autoencoder_length import autoencoder_length
from fastload.bench.paper.budget import budget
from fastload.bench.paper.figure3 import figure3
from fastload.bench.paper.figure4 import figure4
from fastload.bench.paper.findings import Findings
from fastload.bench.paper.scale import DEFAULT
from fastload.bench.paper.smaller_claims import smaller_claims
from fastload.bench.paper.workplace import Options, Workplace
from fastload.bench.reporting import TIME_IS_UP, command_text, when_and_where, write_json
from fastload.common.arguments import integer, positive
from fastload.common.device import resolve_device
from fastload.common.replacing import replace_file
from fastload.errors import UsageError

EXPERIMENTS: dict[str, Callable[[Workplace], Findings]] = {
    "figure3": figure3,
    "figure4": figure4,
    "budget": budget,
    "autoencoder": autoencoder_length,
    "smaller": smaller_claims,
}


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code: 0 when all is done, 4 when the time was up before."""
    options = _parser().parse_args(arguments)
    names = _names(options.only)
    if options.plot is not None:
        plot.require_matplotlib()
    positive("--minutes", options.minutes)
    settings = Options(
        full=options.full,
        test=options.test,
        folder=options.folder,
        device=resolve_device(options.device),
        scale=options.scale,
        seeds=integer("--seeds", options.seeds, 1),
        seconds=60 * options.minutes,
        deadline=Deadline(60 * options.minutes),
    )
    with Workplace(settings, say=lambda text: print(text, flush=True)) as place:
        place.say(f"{place.machine}; scale {options.scale:g}: {place.scale.steps:,} steps of {place.scale.batch:,}")
        findings = []
        for name in names:
            place.say(f"{name} …")
            findings.append(EXPERIMENTS[name](place))
        _tell(place, findings, options, arguments)
        if place.unfinished:
            left = ", ".join(place.unfinished[:3]) + (" …" if len(place.unfinished) > 3 else "")
            place.say(f"the time was up with {len(place.unfinished)} left ({left}); the same command goes on from here")
            return TIME_IS_UP
        if names == list(EXPERIMENTS):
            place.state.forget_all()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastload.bench paper", description=__doc__)
    parser.add_argument("--full", type=Path, required=True, metavar="FULL.h5", help="the packed training set, raw")
    parser.add_argument("--test", type=Path, required=True, metavar="TEST.h5", help="the packed test set, raw")
    parser.add_argument(
        "--scale",
        type=float,
        default=DEFAULT,
        help=f"1 is the paper's; by default {DEFAULT:g}, whose 254 trainings with three seeds take about 100 minutes "
        "on two cores on which the classifier makes 770 images/s: figure3 6, figure4 42, budget 36, autoencoder 3, "
        "smaller 13",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each row, by default 3; from 2 on they tell noise"
    )
    parser.add_argument(
        "--only", metavar="NAME,…", help=f"some of {', '.join(EXPERIMENTS)}; shared trainings are done once"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("paper-experiments"),
        help="what is done already, and the results; the same command goes on there",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; exit code 4")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the results there, with matplotlib")
    return parser


def _names(only: str | None) -> list[str]:
    names = list(EXPERIMENTS) if only is None else only.split(",")
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise UsageError(f"--only: there is no experiment {unknown[0]!r}; known are {', '.join(EXPERIMENTS)}")
    return names


def _tell(place: Workplace, findings: list[Findings], options: argparse.Namespace, arguments: list[str]) -> None:
    """Write results.md, results.json and the plots, and print the text."""
    command, folder = command_text("paper", arguments), options.folder
    head = [
        f"`{command}`: scale {options.scale:g}, {place.scale.steps:,} steps of {place.scale.batch:,} images, seeds "
        f"{', '.join(map(str, place.seeds))}, {len(place.full):,} training and {len(place.test):,} test images.",
        when_and_where(place.machine),
    ]
    pictures = {}
    if options.plot is not None:
        options.plot.mkdir(parents=True, exist_ok=True)
        for one in findings:
            path = options.plot / f"paper-{one.name}.png"
            if "picture" in one.data:
                shutil.copyfile(folder / one.data["picture"], path)
            elif not plots.draw(one, path, f"scale {options.scale:g}, {place.machine}"):
                continue
            pictures[one.name] = Path(options.plot.name) / path.name
    if place.unfinished:
        head.append(f"Not finished: {', '.join(place.unfinished)}.")
    text = report.markdown(findings, head, pictures)
    replace_file(folder / "results.md", text.encode())
    found = {
        "scale": options.scale,
        "steps": place.scale.steps,
        "batch": place.scale.batch,
        "seeds": list(place.seeds),
        "unfinished": place.unfinished,
        "experiments": [dataclasses.asdict(one) for one in findings],
    }
    write_json(folder / "results.json", found, command, place.machine)
    place.say("\n" + text)
    place.say(f"written to {folder / 'results.md'} and {folder / 'results.json'}")
