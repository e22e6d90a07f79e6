"""What pages and messages say: links lead somewhere, figures stand in the results, the library names no options."""

from __future__ import annotations

import ast
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from places import ROOT

from fastload.augment import Augment, PaperColor, PerImage, RandomCrop
from fastload.order import Order

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FAQ = " ".join((ROOT / "docs/faq.md").read_text().split())
RESULTS = (ROOT / "docs/results.md").read_text()
SHELL_COMMANDS = {
    "packed/metadata.py": ["OUT.h5 --images ", " --labels NAME`"],  # `fastload pack FILE OUT.h5 --images …`
    "sources/tars.py": ["`zstd --long=31`", "make it with -h --hard-dereference"],
}
"""Where the library's texts have an option in them, by file: of a command to type, this program's or another."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`((?:fastload|kernels|bench|tests|tools|docs|examples)/[\w./-]*\.py)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_figures_of_splits_stand_in_the_results() -> None:
    """As "top-activations | 25/75" and so on of Figure 4."""
    first = {}
    for line in RESULTS.split("### Figure 4")[1].split("###")[0].splitlines():
        row = [cell.strip() for cell in line.split("|")]
        if len(row) > 5:
            first[row[1], row[2]] = row[4]
    for key, text in {("top-activations", "25/75"): "55.1", ("top-activations", "100/0"): "50.8"}.items():
        assert first[key].startswith(text) and f"{text} %" in FAQ


def test_figures_of_strategies_stand_in_the_evidence() -> None:
    """How much better than random each chooses, set by set and over all, as README and the pages round it."""
    evidence = (ROOT / "docs/evidence.md").read_text().split("### Fixed pools")[1].split("###")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in evidence.splitlines() if line.startswith("| ")]
    better = {row[0]: [Decimal(cell.split()[0]) for cell in row[1:7]] for row in rows[3:]}
    least, most = (_rounded(-find(better["top-activations"][:5])) for find in (max, min))
    over_all = next(row[6] for row in rows if row[0] == "stratified")
    mean, half = (_rounded(Decimal(number)) for number in over_all.split(" (")[0].split(" ± "))
    for page in ("README.md", "docs/faq.md", "docs/strategies.md", "docs/when-it-helps.md"):
        text = " ".join((ROOT / page).read_text().split())
        assert f"{least} to {most} points" in text
        assert f"{mean} ± {half} points" in text
    assert all(better[name][-1] < 0 for name in ("combinations", "kmeans", "pca", "penalized"))


def _rounded(points: Decimal) -> Decimal:
    return points.quantize(Decimal("0.1"), ROUND_HALF_UP)


def test_the_page_s_words_about_augment_are_its_defaults() -> None:
    augment = Augment.paper(24)
    assert (augment.flip, augment.crop) == (0.5, RandomCrop(pad=0, resize=None))
    assert augment.color == PaperColor(63.0, (0.2, 1.8), clamp=True) and augment.normalize == PerImage("stddev")
    for words in ("probability 0.5", "−63…63", "0.2…1.8", "no padding, no resize", "clamped to 0…255"):
        assert words in FAQ
    order = Order(10, 0, 0)
    assert f"windows of {order.block_rows * order.window_blocks:,}" in FAQ


def test_texts_below_the_command_name_no_options() -> None:
    """They are read in Python too: they name arguments, `resize=256`, and the command says them as its options."""
    for path in sorted((ROOT / "fastload").rglob("*.py")):
        name = path.relative_to(ROOT / "fastload").as_posix()
        if name.startswith("command/") or name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                for allowed in SHELL_COMMANDS.get(name, ()):
                    text = text.replace(allowed, "")
                assert not re.search(r"(?<![\w-])--[a-z]", text), f"{name}:{node.lineno}: {text}"
