"""Build a subset: the paper's five steps, each kept in OUT.h5.work/ until the last is done.

Train the autoencoder, embed, analyse, filter, write. A step whose data and settings are those of an interrupted
run is reused; a changed setting redoes the first step that it affects and those after it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from fastload.common.arguments import flag
from fastload.embedding.follower import embed_shares
from fastload.embedding.joining import joined
from fastload.embedding.ranks import Follower, Leader
from fastload.subset.embed_step import embed_step
from fastload.subset.estimate_step import estimate_step
from fastload.subset.report import Overlap, SubsetReport, count_classes
from fastload.subset.run import Run, open_run
from fastload.subset.select_step import Chosen, select_step
from fastload.subset.settings import Settings
from fastload.subset.train_step import train_step
from fastload.subset.write_step import filter_step, scores_step, write_step

_Arguments = ParamSpec("_Arguments")


def _with_arguments_of(
    settings: Callable[_Arguments, Settings],
) -> Callable[[Callable[..., SubsetReport]], Callable[_Arguments, SubsetReport]]:
    """Give a function the signature of `Settings`, for people, type checkers and `inspect`."""

    def decorate(function: Callable[..., SubsetReport]) -> Callable[_Arguments, SubsetReport]:
        signature = inspect.signature(settings)

        @functools.wraps(function)
        def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> SubsetReport:
            try:
                given = signature.bind(*arguments, **named)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(*given.args, **given.kwargs)

        call.__signature__ = signature.replace(return_annotation="SubsetReport")  # type: ignore[attr-defined]
        return call

    return decorate


@_with_arguments_of(Settings)
def build_subset(*arguments: Any, **named: Any) -> SubsetReport:
    """Choose samples of a packed full set, by embeddings, by scores or at random, and write them as a packed file.

    By embeddings it takes the five steps of "Faster Training by Selecting Samples Using Embeddings": train the
    autoencoder (Fig. 2) on the augmented set, embed every sample, analyse (`top-activations` is Eq. 4: for each
    embedding dimension, the samples that activate it most), filter, write. State is kept in `out` + ".work" and the
    same call goes on after an interruption; with the same seed, on the same machine, it gives the same file.

    Arguments:
        full: the packed full set, a pattern ("shards/*.h5") or list of files that make up one, or the user's own HDF5
            file.
        out: the subset to write, raw or ragged; replaced only when complete.

        strategy: "stratified" by default; "random" for comparison; "top-activations", the paper's; "scores"; or one of
            the paper's suggestions, "combinations", "kmeans", "pca" and "penalized" (docs/strategies.md). "random" and
            "scores" look at no embeddings: `embeddings`, `encoder`, what is said of these or of the autoencoder,
            `keep` and `scores` are then refused.
        size: how many samples: a number, a share like "8.64%", or a float in (0, 1). The default is "8.64%".
        per_dimension: instead of `size`, this many for each dimension: the plain union, of at most
            per_dimension × dimensions samples.
        balance_classes: with `size`, each class gives its share of the set; with `per_dimension`, its strongest so many
            of each dimension. Needs one integer label a sample.
        equal_classes: in place of it, all classes give the same number; one that is too small gives all it has.
        include: ids or names that are chosen first, whatever their rank: a list, a text with commas between, or a file
            with one a line. Classes are balanced among the rest.
        exclude: ids or names that are never chosen, in the same forms.
        keep_duplicates: choose also samples whose stored bytes are those of another. By default the lowest id of them
            is chosen alone, unless there are too few others.
        scores_from: for the strategy "scores", a file of what to choose by, one score for each sample that may be
            chosen: FILE.npz with `score` and `ids` [n], FILE.npy [N] in the order of rows, or text, "id,score" a line.
        hardest: "lowest", the default, where low scores are of hard samples, as the area under the margin; "highest"
            where high ones are, as losses, EL2N and counts of forgetting.
        leave_out: the share of samples that are left out as the hardest, from 0 to below 1; 0.1 by default.

        embeddings: FILE.npy or FILE.h5:dataset, [N, D], one for each sample, in place of the first two steps.
        embedding_ids: FILE[:dataset] of the ids (or names) of the samples that the rows of `embeddings` are of. By
            default a dataset `ids` beside the embeddings in FILE.h5, else row i is of row i of `full`; "rows" says
            that it is (docs/embeddings.md).
        encoder: "module:callable", a torch module that takes standardized float32 [B, C, h, w] and returns
            [B, D], in place of the autoencoder.
        input_size: the side in pixels of the centre square that `encoder` sees; 24 of 32 by default.
        encoder_normalize: "imagenet", or (means, standard deviations) of pixel values 0…1, a value a channel, which are
            taken off in place of standardizing each image by itself.
        embedding_size: elements of the autoencoder's embedding, 216 by default.
        epochs: of training the autoencoder; 5 by default.
        batch_size: images in each step of it; 128 by default.
        learning_rate: of SGD with momentum 0.9; 0.1 by default.
        preset: "paper" for 40,000 steps of 1,024.

        resize: bring the chosen images' shorter side to this many pixels and cut the centre square; needed where
            an encoded set has images of several sizes. A ragged set's stay as they are without it.
        short_side: bring the chosen images' shorter side to this many pixels and keep the whole pictures, ragged.
        images: the images' dataset, where `full` is the user's own HDF5 file.
        labels: the labels' dataset there.

        seed: 64-bit; decides weights, order, augmentation and selection.
        device: "cpu", "cuda" or "cuda:N".
        engine: of the feeds, "auto", "fused" or "dali".
        threads: of torch and the kernels; all processors by default.
        keep: store the embeddings and leave the work folder, so that another call, of another size say, reuses its
            weights and embeddings. Without it the embeddings of `top-activations` pass by once and need no space.
        fresh: begin anew whatever the work folder holds.
        scores: FILE.npz to write: `ids` (int64), `score` (float32) and `dimension` (int32), each [N], of all samples in
            the order of rows, chosen or not (docs/strategies.md). Not for "random", "stratified", "scores" and
            strategies of one's own; top-activations needs `keep` or `embeddings` for it.
        alone: do it in this process, though a launcher started several or torch.distributed has several. Otherwise
            all ranks call this with the same arguments, share the encoder's pass, and rank 0 does and tells the rest
            (docs/ranks.md); the file is the one that a single process writes.
        listener: hears of progress.

    Returns a SubsetReport. Raises UsageError for settings that cannot be served (a size beyond the set, no CUDA,
    too little memory, another process on the same output, a full set as the output), DataError for data that cannot
    (NaN in embeddings, a broken image, a full disk), RankFailure where another rank failed. KeyboardInterrupt leaves
    the state for the next call.
    """
    with joined(alone=flag("alone", named.get("alone", False))) as ranks:
        # Not before the ranks are together: wrong arguments are told by rank 0 for all of them.
        settings = functools.partial(Settings, *arguments, **named)
        if isinstance(ranks, Follower):
            return SubsetReport.from_state(embed_shares(ranks, settings))
        report = _build(settings(), ranks)
        ranks.tell({"report": report.state()})
    return report


def _build(settings: Settings, ranks: Leader) -> SubsetReport:
    with open_run(settings, ranks) as run:
        estimate_step(run)
        encoder, losses = train_step(run)
        embedded = embed_step(run, encoder)
        chosen = select_step(run, embedded)
        rows = filter_step(run, chosen)
        scores_step(run, embedded.vectors)
        write_step(run, chosen, rows, embedded.hashed)
        return _report(run, losses, embedded.hashed, chosen, rows)


def _report(run: Run, losses: list[float], hashed: str, chosen: Chosen, rows: np.ndarray) -> SubsetReport:
    file, facts, columns = run.full, chosen.facts, chosen.columns
    given = columns["dimension"][columns["dimension"] >= 0]
    dimensions = int(facts["dimensions"])
    return SubsetReport(
        full=file.path,
        out=run.out,
        strategy=run.choice.strategy,
        settings=run.choice.state(),
        seed=run.choice.seed,
        full_fingerprint=file.fingerprint,
        embeddings_hash=hashed,
        chosen=len(rows),
        total=len(file),
        steps=run.reports,
        losses=losses,
        classes=count_classes(file, rows),
        per_dimension=np.bincount(given, minlength=dimensions)[:dimensions],
        dead=list(facts["dead"]),
        filled=int(facts["filled"]),
        overlap=Overlap(**facts["overlap"]) if facts["overlap"] else None,
        ids=columns["ids"].tolist(),
        names=None if file.names is None else [file.names[row] for row in rows.tolist()],
        embedding_order="" if run.own_embeddings is None else run.own_embeddings.rule,
        score_order="" if run.choice.own_scores is None else run.choice.own_scores.told(),
        left_out={
            "included": len(run.candidates.included),
            "excluded": len(run.candidates.excluded),
            "exact duplicates left out": run.candidates.duplicates,
        },
    )
