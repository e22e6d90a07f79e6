"""`python -m fastload.bench`: our own throughput beside the rivals' and what the machine allows.

    python -m fastload.bench [resident|stream|recipe|select|all] [--quick] [--json [FILE]] [--plot FILE.png]
                             [--peers all|none|NAME,…] [--device cpu|cuda] [--data FILE.h5] [--debug]
    python -m fastload.bench recipe --encoded [--data FILE.h5 [--originals FOLDER]] …
    python -m fastload.bench rolling [--only PART,…] …
    python -m fastload.bench peers [install [NAME…]]
    python -m fastload.bench paper --full FULL.h5 --test TEST.h5 [--scale S] [--only NAME,…] …
    python -m fastload.bench evidence --full TRAIN.h5 --test TEST.h5 [--scale NAME] [--only PART,…] …
    python -m fastload.bench advise --full FULL.h5 --step-ms T [--split S] …
    python -m fastload.bench differences [--data PHOTOGRAPHS]

Each figure is the median of interleaved rounds after one that does not count, with half the distance of the quartiles;
beside it the limit: a copy of the output's size for feeds, reading the matrix once for the selection; and how many
times as fast ours is, the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from fastload.bench import advise, differences, parts, plot, recipe, rivals, rolling, select_grid, streams
from fastload.bench.evidence import command as evidence
from fastload.bench.measure import Deadline, describe, machine, print_table, versions
from fastload.bench.paper import command
from fastload.bench.peers import install
from fastload.bench.reporting import some_of
from fastload.bench.rivals import Outcome
from fastload.command import failure
from fastload.common import terminal
from fastload.common.arguments import positive
from fastload.common.device import resolve_device
from fastload.common.replacing import replace_file
from fastload.errors import UsageError

WHAT = ("resident", "stream", "recipe", "select")
RESULTS = Path(__file__).parent / "results"


def bench(
    what: str,
    setting: parts.Setting,
    peers: str = "all",
    grid: select_grid.Grid | None = None,
    *,
    encoded: bool = False,
    originals: Path | None = None,
) -> Outcome:
    """Run one of WHAT, or "all"; without DALI its parts are left out, and so are rivals that are not installed.

    Arguments:
        what: of WHAT, or "all".
        setting: where and how long.
        peers: rivals as the command names them.
        grid: of the selection.
        encoded: race the recipe of JPEG files, as it is of a file that holds encoded images.
        originals: the folder that this file was packed from.
    """
    engines = ("fused", "dali") if parts.has_dali() else ("fused",)
    given = setting.file is not None and streams.is_encoded(setting.file)
    if encoded and setting.file is not None and not given:
        raise UsageError(f"--encoded: {setting.file} holds no encoded images; pack it with --encoded")
    if originals is not None and not given:
        raise UsageError(
            f"--originals {originals}: is the folder that --data, a file of encoded images, was packed from"
        )
    outcome = Outcome(notes=[] if "dali" in engines else ["dali: not installed"])
    if what in ("resident", "all") and not given:
        chosen = [peer for peer in install.chosen(peers) if "resident" in peer.cases]
        outcome += rivals.resident(setting, engines, chosen)
    if what in ("stream", "all"):
        outcome += streams.stream(setting, engines, install.chosen(peers), grid.scratch if grid else None)
    if what in ("recipe", "all"):
        chosen = [peer for peer in install.chosen(peers) if "recipe" in peer.cases]
        on_cpu = setting.device.type == "cpu"
        outcome += recipe.recipe(
            setting,
            engines,
            chosen,
            without_vectors=peers != "none" and on_cpu,
            encoded=encoded or given,
            originals=originals,
        )
    if what in ("select", "all"):
        outcome += select_grid.select(setting, grid or select_grid.Grid(), rivals=peers != "none")
    if not outcome.results and given:
        raise UsageError(
            f"{setting.file}: holds encoded images; only stream (with DALI installed) and recipe take them"
        )
    short = [one.name for one in outcome.results if len(one.rounds) < setting.rounds]
    if short:
        outcome.notes.append(f"fewer than {setting.rounds} rounds for want of time (--minutes): {', '.join(short)}")
    return outcome


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words or failure.wants_debug()
    arguments = [word for word in words if word != "--debug"]
    terminal.prepare_streams()
    try:
        if arguments[:1] == ["peers"]:
            return install.main(arguments[1:])
        if arguments[:1] == ["paper"]:
            return command.main(arguments[1:])
        if arguments[:1] == ["evidence"]:
            return evidence.main(arguments[1:])
        if arguments[:1] == ["advise"]:
            return advise.main(arguments[1:])
        if arguments[:1] == ["differences"]:
            return differences.main(arguments[1:])
        return _measure(_options(arguments))
    except (Exception, KeyboardInterrupt) as error:
        return failure.report(error, debug=debug)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fastload.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "what",
        nargs="?",
        default="all",
        choices=[*WHAT, "rolling", "all"],
        help="or peers, paper, evidence, advise, differences (each with --help)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, measures nothing")
    parser.add_argument(
        "--json",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="write the results there too; without a name, below bench/results",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the results, with matplotlib")
    parser.add_argument(
        "--peers", default="all", metavar="NAMES", help="rivals: all (that are installed), none, NAME,…"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--data", type=Path, metavar="FILE.h5", help="a packed file, in place of generated images")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no new round after this time")
    files = parser.add_argument_group("recipe")
    files.add_argument("--encoded", action="store_true", help="of JPEG files, as it is of --data that holds them")
    files.add_argument(
        "--originals",
        type=Path,
        metavar="FOLDER",
        help="what --data was packed from: rivals take its files (the packed ones otherwise)",
    )
    renewed = parser.add_argument_group("rolling")
    renewed.add_argument("--only", metavar="PARTS", help=f"some of {','.join(rolling.PARTS)}; all by default")
    only = parser.add_argument_group("select", "restrict the grid: lists with commas")
    only.add_argument("--sizes", help="ROWSxDIMS or ROWSxDIMS:disk")
    only.add_argument("--orders", help="random, ascending, descending")
    only.add_argument("--k", help="how many of each column")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where the files to read from disk are written")
    return parser.parse_args(arguments)


def _grid(options: argparse.Namespace) -> select_grid.Grid:
    chosen: dict[str, Any] = {"scratch": options.scratch}
    if options.quick:
        chosen |= {"sizes": select_grid.QUICK_SIZES, "orders": ("random",), "ks": (5,)}
    if options.sizes:
        chosen["sizes"] = tuple(select_grid.Size.parse(text) for text in options.sizes.split(","))
    if options.orders:
        chosen["orders"] = tuple(options.orders.split(","))
    if options.k:
        if not all(text.isdecimal() for text in options.k.split(",")):
            raise UsageError(f"--k {options.k}: numbers with commas between them were expected, such as 20,200")
        chosen["ks"] = tuple(int(text) for text in options.k.split(","))
    return select_grid.Grid(**chosen)


def _measure(options: argparse.Namespace) -> int:
    if (options.encoded or options.originals is not None) and options.what not in ("recipe", "all"):
        raise UsageError(f"{options.what}: --encoded and --originals are of recipe")
    if options.only is not None and options.what != "rolling":
        raise UsageError(f"{options.what}: --only is of rolling")
    device = resolve_device(options.device)
    grid = _grid(options)
    install.chosen(options.peers)
    if options.plot is not None:
        plot.require_matplotlib()
    setting = parts.Setting(device, options.quick, Deadline(60 * positive("--minutes", options.minutes)), options.data)
    found = machine(device) | {"load_before": round(os.getloadavg()[0], 2)}
    print(f"{describe(found)}, load {found['load_before']:.1f} before", flush=True)
    if options.what == "rolling":
        outcome = _rolling(options, setting)
    else:
        outcome = bench(
            options.what, setting, options.peers, grid, encoded=options.encoded, originals=options.originals
        )
    title = "fastload.bench" + (" --quick: no measurement" if options.quick else "")
    print_table(outcome.results, title)
    for note in outcome.notes:
        print(f"- {note}")
    if options.json is not None:
        path = options.json if options.json != Path() else _default_path(options, found)
        report = {"machine": found, "versions": versions(), "quick": options.quick, "notes": outcome.notes}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = report | {"results": [one.as_dict() for one in outcome.results]}
        replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written to {path}")
    if options.plot is not None and outcome.results:
        plot.plot(outcome.results, options.plot, f"{title}, {describe(found)}")
    return 0


def _rolling(options: argparse.Namespace, setting: parts.Setting) -> Outcome:
    chosen = some_of("--only", options.only or None, rolling.PARTS)
    engines = ("fused", "dali") if parts.has_dali() else ("fused",)
    peers = [peer for peer in install.chosen(options.peers) if "rolling" in peer.cases]
    return rolling.rolling(setting, engines, peers, chosen)


def _default_path(options: argparse.Namespace, found: dict[str, Any]) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", found.get("gpu", found["cpu"]).lower()).strip("-")
    return RESULTS / f"{options.what}-{name}-{found['cores']}-cores{'-quick' if options.quick else ''}.json"


if __name__ == "__main__":
    sys.exit(main())
