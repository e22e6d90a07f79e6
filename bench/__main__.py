"""`python -m fastload.bench`: our own throughput beside what the machine allows.

    python -m fastload.bench [resident|stream|select|all] [--quick] [--json FILE] [--device cpu|cuda] [--data FILE.h5]

Each figure is the median of interleaved rounds after one that does not count, with half the distance of the quartiles;
beside it the limit: a copy of the output's size for feeds, reading the matrix once for the selection.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from fastload.bench import parts
from fastload.bench.measure import Deadline, Result, describe, machine, print_table, versions
from fastload.errors import FastloadError, UsageError
from fastload.feeds import resolve_device
from fastload.packed import PackedFile

WHAT = ("resident", "stream", "select")


def bench(what: str, setting: parts.Setting) -> list[Result]:
    """Run one of WHAT, or "all"; without DALI its parts are left out."""
    engines = ("fused", "dali") if parts.has_dali() else ("fused",)
    encoded = _is_encoded(setting.file)
    results: list[Result] = []
    if what in ("resident", "all") and not encoded:
        results += parts.resident(setting, engines)
    if what in ("stream", "all"):
        if not encoded:
            results += parts.stream_raw(setting, engines)
        if (encoded or setting.file is None) and "dali" in engines:
            results += parts.stream_encoded(setting)
    if what in ("select", "all"):
        results += parts.select(setting)
    if not results:
        raise UsageError(f"{setting.file}: holds encoded images, which only the stream feed takes, with DALI installed")
    return results


def _is_encoded(path: Path | None) -> bool:
    if path is None:
        return False
    with PackedFile(path) as file:
        return file.shape is None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastload.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=[*WHAT, "all"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, measures nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--data", type=Path, metavar="FILE.h5", help="a packed file, in place of generated images")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no new round after this time")
    options = parser.parse_args(arguments)
    try:
        device = resolve_device(options.device)
        setting = parts.Setting(device, options.quick, Deadline(60 * options.minutes), options.data)
        found = machine(device)
        print(describe(found))
        results = bench(options.what, setting)
    except FastloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_table(results, "fastload.bench" + (" --quick: no measurement" if options.quick else ""))
    if options.json is not None:
        report = {"machine": found, "versions": versions(), "quick": options.quick}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report | {"results": [one.as_dict() for one in results]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
