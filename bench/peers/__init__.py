"""The benchmark's rivals: each a folder here with its adapter, run in an environment of its own.

    <name>/requirements.txt   what `python -m fastload.bench peers install` puts into its environment
    <name>/debian.txt         optional: Debian packages it needs, each with the command that shows whether it is there
    <name>/adapter.py         its loader, set up as its own documentation recommends for speed

    shared/              modules that several adapters import, torch alone; `worker.py` puts them on their path

An adapter imports nothing of fastload, which its environment lacks. It offers

    open_batches(case)   an endless iterator over batches, epoch after epoch; `case` is what `fastload.bench.rivals`,
                         `fastload.bench.streams` and `fastload.bench.recipe` send: name, images (.npy, uint8
                         [N, H, W, C]), labels (.npy), crop, batch, dtype, device, threads, folder (for files of its
                         own). In the case `jpeg`, images is uint8 [bytes], the files end to end, with offsets (.npy,
                         int64 [N + 1]) and resize, the shorter side before the crop
    CASES                optional, a literal: in which benches it runs, of "resident", "stream", "encoded" and "recipe";
                         in "resident" alone where it does not say
    AHEAD                how many batches it makes ahead of who takes them
    LEAVES_OUT           by case, in words: what it does not do of the work that the others do, or ""
"""
