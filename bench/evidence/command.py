"""`python -m fastload.bench evidence`: train what is left to train, as far as the time goes, and tell what is known."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastload.bench import plot
from fastload.bench.evidence import plots, report
from fastload.bench.evidence.feed import Delivered, deliver_all
from fastload.bench.evidence.findings import Results, tables
from fastload.bench.evidence.parts import PARTS, STRATEGIES
from fastload.bench.evidence.runner import Found, Runner
from fastload.bench.evidence.scale import SCALES, SHARES, scale_named
from fastload.bench.evidence.sets import NAMES, Sources, fashion_folder, make_set
from fastload.bench.evidence.statistics import require_scipy
from fastload.bench.measure import Deadline, describe, machine
from fastload.bench.reporting import TIME_IS_UP, command_text, some_of, when_and_where, write_json
from fastload.common.arguments import integer, positive
from fastload.common.device import resolve_device
from fastload.common.processors import processors
from fastload.common.replacing import replace_file

FEED = "feed"
"""The part that is timed: leave the machine alone while it runs."""


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code: 0 when all is done, 4 when the time was up before."""
    options = _parser().parse_args(arguments)
    scale, device = scale_named(options.scale), resolve_device(options.device)
    names = some_of("--only", options.only, [*PARTS, FEED])
    several = processors() if device.type == "cpu" else 1
    workers = integer("--workers", several if options.workers is None else options.workers, 1)
    require_scipy()
    if options.plot is not None:
        plot.require_matplotlib()
    fashion = options.fashion or fashion_folder()
    sources = Sources(options.full, options.test, fashion, scale.limit)
    chosen = some_of("--sets", options.sets, NAMES)
    if options.sets is None and fashion is None:
        chosen.remove("fashion-mnist")
    _say(f"{describe(machine(device))}; scale {scale.name}, {workers} processes")
    if options.sets is None and fashion is None:
        _say("fashion-mnist: left out; install Debian's dataset-fashion-mnist, or give --fashion FOLDER")
    deadline = Deadline(60 * positive("--minutes", options.minutes))
    sets = {name: make_set(name, sources, options.folder / "sets") for name in chosen}
    runner = Runner(sets, scale, device, options.folder, workers, deadline, _say)
    found, delivered = list[Found](), list[Delivered]()
    try:
        for name in names:
            _say(f"{name} …")
            if name == FEED:
                delivered = deliver_all(runner.place(chosen[0]), deadline)
                runner.unfinished |= len(delivered) < len(SHARES) - 1
            else:
                found += runner.cells(PARTS[name](scale, chosen))
        _tell(runner, found, delivered, options, arguments)
    finally:
        runner.close()
    if runner.unfinished:
        _say("the time was up before all was trained; the same command goes on from here")
    return TIME_IS_UP if runner.unfinished else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastload.bench evidence", description=__doc__)
    parser.add_argument("--full", type=Path, required=True, metavar="TRAIN.h5", help="CIFAR-10, packed raw")
    parser.add_argument("--test", type=Path, required=True, metavar="TEST.h5", help="its test set, packed raw")
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", help="Fashion-MNIST's four IDX files")
    parser.add_argument("--scale", default="reduced", help=f"one of {', '.join(SCALES)}")
    parser.add_argument("--sets", metavar="SET,…", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--only", metavar="PART,…", help=f"some of {', '.join([*PARTS, FEED])}")
    parser.add_argument("--folder", type=Path, default=Path("evidence"), help="what is done already, and the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, help="processes that train; by default one a processor, one on a GPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; exit code 4")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the results there, with matplotlib")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)


def _tell(
    runner: Runner,
    found: list[Found],
    delivered: list[Delivered],
    options: argparse.Namespace,
    arguments: list[str],
) -> None:
    """Write results.md, results.json and the plots, and print the text."""
    results = Results(found, runner.seconds_of_selection(STRATEGIES), runner.scale)
    made = tables(results, runner.scale.pools)
    if delivered:
        made.append(report.feed_table(delivered))
    command, told, scale = command_text("evidence", arguments), describe(machine(runner.device)), runner.scale
    head = [
        f"`{command}`: scale {scale.name}, {scale.steps:,} steps of {scale.batch:,} images.",
        when_and_where(told),
    ]
    if runner.unfinished:
        head.append("Not finished: the time was up.")
    pictures = {}
    if options.plot is not None:
        written = plots.draw(results, options.plot, f"scale {scale.name}, {told}")
        pictures = {name: Path(options.plot.name) / path.name for name, path in written.items()}
    text = report.markdown(head, made, pictures)
    replace_file(options.folder / "results.md", text.encode())
    found_all = report.plain(results, delivered, made) | {"scale": vars(scale)}
    write_json(options.folder / "results.json", found_all, command, told)
    _say("\n" + text)
    _say(f"written to {options.folder / 'results.md'} and {options.folder / 'results.json'}")
