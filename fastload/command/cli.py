"""The `fastload` command: each function only parses its arguments, calls the library and prints.

Nothing heavy is imported at the top: `fastload --help` answers in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fastload.command import failure
from fastload.command.options import OptionNames
from fastload.command.pack_commands import convert, pack
from fastload.command.shared_options import Images, Labels, Quiet, ShortSide
from fastload.common import terminal
from fastload.common.version import __version__
from fastload.errors import Interrupted, UsageError

app = typer.Typer(
    name="fastload",
    help="Start training fast: a resident subset chosen from embeddings, then the full set, streamed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastload {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Start training fast: a resident subset chosen from embeddings, then the full set, streamed."""


app.command()(pack)
app.command()(convert)


@app.command("build-subset")
def build_subset(
    full: Annotated[
        Path,
        typer.Argument(
            help="The packed full set; a pattern in quotes ('shards/*.h5') for several files.", metavar="FULL.h5"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The subset to write.", metavar="OUT.h5")],
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="stratified by default: each cluster of embeddings gives its share, drawn at random; random, in "
            "seconds: compare with it; top-activations, the paper's; combinations, kmeans, pca, penalized; or scores "
            "(see --scores-from).",
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="How many: 4320, a share (8.64% by default), or 10GB.")] = None,
    per_dimension: Annotated[
        int | None, typer.Option(metavar="K", help="In place of --size: the union of each dimension's K strongest.")
    ] = None,
    balance_classes: Annotated[
        bool, typer.Option("--balance-classes", help="Each class gives its share; with --per-dimension, K of each.")
    ] = False,
    equal_classes: Annotated[
        bool, typer.Option("--equal-classes", help="All classes give the same number, as far as they have it.")
    ] = False,
    include: Annotated[
        str | None, typer.Option(metavar="LIST", help="Chosen first: ids or names with commas, or a file, one a line.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(metavar="LIST", help="Never chosen; in the same forms.")] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Choose exact copies of a sample too.")
    ] = False,
    scores_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What --strategy scores chooses by: .npz (ids, score), .npy or .csv."),
    ] = None,
    hardest: Annotated[
        str | None,
        typer.Option(metavar="lowest|highest", help="Of --scores-from: the hard samples'; lowest by default."),
    ] = None,
    leave_out: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of the hardest samples, for --scores-from; 0.1 by default.")
    ] = None,
    embedding_size: Annotated[int | None, typer.Option(help="Elements of the embedding; 216 by default.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Of training the autoencoder; 5 by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="In training; 128 by default.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="In training, of SGD with momentum 0.9; 0.1 by default.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="paper", help="40,000 steps of 1,024.")] = None,
    embeddings: Annotated[
        str | None, typer.Option(metavar="FILE[:dataset]", help="Your own, .npy or .h5, one for each sample.")
    ] = None,
    embedding_ids: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:dataset]", help="Whose they are; by default ids beside them, else row i is row i's."
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="module:callable", help="Your own torch model in place of the autoencoder.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(metavar="S", help="What --encoder sees: the centre square at S×S pixels.")
    ] = None,
    encoder_normalize: Annotated[
        str | None, typer.Option(metavar="imagenet|MEANS/STDS", help="What --encoder expects, of pixel values 0…1.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(metavar="S", help="Write images with shorter side S, the centre square.")
    ] = None,
    short_side: ShortSide = None,
    seed: Annotated[int, typer.Option(help="Decides weights, order and selection.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    engine: Annotated[str, typer.Option(metavar="auto|fused|dali", help="What makes the batches.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="On the CPU; one for each CPU by default.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Store embeddings and weights in OUT.h5.work/ for other sizes.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever OUT.h5.work/ holds.")] = False,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Write the strategy's own scores of all samples too.")
    ] = None,
    images: Images = None,
    labels: Labels = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of tables.")] = False,
    quiet: Quiet = False,
) -> None:
    """Choose a small subset, by the samples' embeddings or at random, and write it as a packed file."""
    given = {name: value for name, value in locals().items() if name not in ("json", "quiet") and value is not None}
    from fastload.command.subset_terminal import TerminalListener, print_report
    from fastload.subset.build import build_subset as run

    with TerminalListener(quiet=quiet) as listener, _telling_of_interrupts():
        report = run(**given, listener=listener)
    from fastload.common.launcher import launched

    if launched()[0] == 0:
        print_report(report, json=json, quiet=quiet)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A packed file or subset.", metavar="FILE.h5")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    images: Images = None,
    labels: Labels = None,
) -> None:
    """Show what a packed file holds."""
    from fastload.command.inspect import as_json, as_text, inspect_file

    facts = inspect_file(file, images=images, labels=labels)
    if json:
        typer.echo(as_json(facts))
    else:
        terminal.tell(as_text(facts))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A packed file or subset.", metavar="FILE.h5")],
    full: Annotated[
        Path | None,
        typer.Option(
            metavar="FULL.h5",
            help="Compare a subset with this full set (or a pattern in quotes); the one in its folder by default.",
        ),
    ] = None,
    images: Images = None,
    labels: Labels = None,
    quiet: Quiet = False,
) -> None:
    """Check digests, fingerprint, ids, labels and selection; list what is damaged and exit with 1."""
    from fastload.command.verify import verify_file

    report = verify_file(file, full=full, images=images, labels=labels, progress=not quiet)
    text = str(report)
    if text and not (quiet and report.ok):
        terminal.tell(text)
    report.raise_if_damaged()


@app.command()
def demo(
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="Your own training images, as for pack.")] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Your test images; else --data has a split test or val."),
    ] = None,
    size: Annotated[str, typer.Option(help="Of the subsets: 4320, or a share.")] = "8.64%",
    steps: Annotated[int | None, typer.Option(help="Of each training; 60, or 300 with --data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in each; 64, or 256 with --data.")] = None,
    epochs: Annotated[float, typer.Option(help="Of training the autoencoder.")] = 5,
    swap: Annotated[str, typer.Option(help="When: a share of the steps such as 0.5, or a step such as 30.")] = "0.5",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Decides weights, order, augmentation and selection.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep all files in this new folder.")] = None,
) -> None:
    """Do the whole job on handwritten digits, or on your own images: pack, choose, and train three times."""
    from fastload.command.demo import parse_swap, run_demo

    run_demo(
        data=data,
        test=test,
        out=out,
        size=size,
        steps=steps,
        batch_size=batch_size,
        epochs=epochs,
        swap=parse_swap(swap),
        seed=seed,
        device=device,
    )


@contextlib.contextmanager
def _telling_of_interrupts() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        if str(error):
            raise Interrupted(str(error)) from error  # typer would replace a KeyboardInterrupt and lose its words
        raise


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for data, 2 for usage, 130 when interrupted."""
    # Before torch is loaded: where other work shares the processors, threads that spin while they wait cost two thirds
    # of a training's images/s (1,150 and 390, measured on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = sys.argv[1:] if arguments is None else list(arguments)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own or failure.wants_debug()  # before or after the command's name
    words = [word for word in own if word != "--debug"] + words[len(own) :]
    terminal.prepare_streams()
    command = typer.main.get_command(app)
    in_options = OptionNames.of(command, words)
    try:
        code = command(args=words, prog_name="fastload", standalone_mode=False, obj=in_options)
        terminal.flush()
        if code == Interrupted.exit_code:  # typer's own answer to Ctrl-C, in some versions
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has left: not an error. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except typer.Abort:
        return failure.report(KeyboardInterrupt(), debug=debug)
    except (Exception, KeyboardInterrupt) as error:
        return failure.report(_of_the_command_line(error), debug=debug, in_options=in_options)


def _of_the_command_line(error: BaseException) -> BaseException:
    """Return typer's own errors (an unknown option, a missing argument) as a UsageError that names the right help."""
    if not hasattr(error, "format_message"):
        return error
    text = error.format_message().replace("Value error, ", "").rstrip(".")
    place = getattr(getattr(error, "ctx", None), "command_path", "fastload")
    told = UsageError(f"{text}; see `{place} --help`")
    told.told = not text  # without any argument typer has printed the help already, and says nothing more
    return told.with_traceback(error.__traceback__)


if __name__ == "__main__":
    sys.exit(main())
