"""Run by test_fuzz.py: damages packed files and looks whether anything but a FastloadError or the truth comes out.

fuzz_program.py make FOLDER                    writes the sound files
fuzz_program.py run FOLDER SEED FIRST STOP STEP     tries the cases FIRST, FIRST + STEP, …; a line before each
fuzz_program.py keep FOLDER SEED NUMBER OUT    writes one damaged file, to look at
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import numpy as np
from jpegs import write_jpegs
from packs import noise_images, write_encoded, write_format_1, write_ragged, write_raw
from samples import encode

from fastload import Augment, FastloadError, RandomCrop, TwoPhaseLoader
from fastload.command.inspect import as_json, as_text, inspect_file
from fastload.command.verify import verify_file
from fastload.kernels import turbojpeg
from fastload.packed.file import PackedFile, SelectionTable
from fastload.packed.reader import SampleReader

COUNT = 14
LOADED = 40  # each so many-th file of raw images is given to a loader too, which takes longer
DECODED = {"fused": 1, "dali": 8}  # and of JPEG files that can be cut, by each engine
MEMORY = 400 << 10  # kB that all cases together may take


def make(folder: Path) -> None:
    images, labels = noise_images(COUNT, 6, 6), np.arange(COUNT) % 3
    files = [bytes(image.tobytes()[: 20 + row]) for row, image in enumerate(images)]
    names, classes = [f"{row % 3}/{row}.png" for row in range(COUNT)], ["a", "bé", "c"]
    attributes = {
        "strategy": "top-activations",
        "settings": '{"size": 14}',
        "seed": np.uint64(3),
        "full_fingerprint": "0" * 32,
        "embeddings": "1" * 32,
    }
    table = SelectionTable(np.zeros(COUNT), np.arange(COUNT), np.linspace(9, 1, COUNT), attributes)
    shapes = np.full((COUNT, 2), 4, np.int32)
    write_raw(folder / "raw.h5", images, labels, names=names, classes=classes)
    write_raw(folder / "subset.h5", images, labels, names=names, classes=classes, selection=table)
    write_raw(folder / "unlabelled.h5", images, None, names=names)
    write_encoded(folder / "encoded.h5", files, labels, names=names, shapes=shapes, classes=classes)
    sides = [(1 + row % 4, 3 + row % 5) for row in range(COUNT)]
    pictures = [image[:height, :width] for image, (height, width) in zip(noise_images(COUNT, 8, 8), sides, strict=True)]
    write_ragged(folder / "ragged.h5", pictures, labels, names=names, classes=classes)
    colours = [encode(image, "JPEG", quality=80) for image in noise_images(COUNT, 40, 72)]
    write_jpegs(folder / "cut.h5", colours, turned=[1 + row % 8 for row in range(COUNT)])
    write_format_1(folder / "raw-1.h5", images, labels)
    joined = np.frombuffer(b"".join(files), np.uint8)
    write_format_1(folder / "encoded-1.h5", joined, labels, offsets=np.cumsum([0, *map(len, files)]))


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a file's bytes with one kind of damage, or now and then two."""
    data = bytearray(content)
    written = [place for place, byte in enumerate(content) if byte]
    for _ in range(draw.choice((1, 1, 1, 2))):
        kind = draw.randrange(8)
        place, size = draw.choice(written), draw.choice((1, 2, 4, 8, 16, 64, 512))
        place = min(place, len(data) - 1)
        if kind == 0:  # bits, where there is something
            for _ in range(draw.randint(1, 4)):
                place = min(draw.choice(written), len(data) - 1)
                data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:  # bits, anywhere
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] ^= draw.randint(1, 255)
        elif kind == 2:
            del data[draw.randrange(len(data)) :]
            data = data or bytearray(b"\0")
        elif kind == 3:
            data[place : place + size] = bytes(len(data[place : place + size]))
        elif kind == 4:
            data[place : place + size] = bytes([255]) * len(data[place : place + size])
        elif kind == 5:  # two blocks change places
            other = min(draw.choice(written), len(data) - 1)
            size = min(size, len(data) - max(place, other), abs(place - other))
            one, two = data[place : place + size], data[other : other + size]
            data[place : place + size], data[other : other + size] = two, one
        elif kind == 6:
            data[place : place + size] = draw.randbytes(len(data[place : place + size]))
        else:  # the superblock and the root's header, where all begins
            data[draw.randrange(min(512, len(data)))] ^= draw.randint(1, 255)
    return bytes(data)


def told(file: PackedFile) -> dict[str, object]:
    """Return all that a file says: what its fingerprint covers, and the rest."""
    table = file.selection
    chosen = None if table is None else (table.dimension, table.rank, table.score, dict(table.attributes))
    rest = (
        file.shape,
        file.ids,
        file.offsets,
        file.shapes,
        file.classes,
        chosen,
        file.source,
        file.created_with,
        None if file.names is None else list(file.names),
        [file.name_of(row) for row in range(len(file))],
        None if file.jpeg is None else [list(one) for one in file.jpeg.datasets()],
    )
    images = [file.read(row) for row in range(len(file))]
    return {"storage": file.storage, "images": images, "labels": file.labels, "rest": rest}


def same(one: object, two: object) -> bool:
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        if not (isinstance(one, np.ndarray) and isinstance(two, np.ndarray) and one.dtype == two.dtype):
            return False
        return one.shape == two.shape and one.tobytes() == two.tobytes()
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one == two


def wrong(path: Path, sound: dict[str, object], load: bool) -> str:
    """Return what a damaged file got past the reader and `verify`; nothing where each told, or nothing is lost."""
    try:
        with PackedFile(path) as file:
            found, covered = told(file), ("images", "labels", "rest") if file.checksum else ("images", "labels")
            reader = SampleReader(file)
            images = np.empty(file.nbytes, np.uint8)
            reader.read_all(images)
            if images.tobytes() != b"".join(found["images"]):  # type: ignore[arg-type]
                return "two ways of reading differ"
            reader.close()
    except FastloadError as error:
        return "" if str(path) in str(error) and "\n" not in str(error) else f"an error that says too little: {error}"
    facts = inspect_file(path)
    as_json(facts)
    as_text(facts)
    sound_to_verify = verify_file(path, progress=False).ok
    if load:
        use(path)
    lost = [name for name in covered if not same(found[name], sound[name])]
    return f"{', '.join(lost)} changed, and verify says nothing" if lost and sound_to_verify else ""


def use(path: Path) -> None:
    try:
        with TwoPhaseLoader(path, batch_size=4, steps=4, swap=0, augment=Augment.paper(4), device="cpu") as loader:
            list(loader)
    except FastloadError:
        pass


def decode(path: Path, number: int) -> None:
    """Have crops cut and decoded: what is damaged within a file's pixels may be seen by its digest alone."""
    augment = Augment(12, crop=RandomCrop(), flip=0.5)
    for engine, each in DECODED.items():
        if number % each or (engine == "fused" and not turbojpeg.load()):
            continue
        try:
            with TwoPhaseLoader(
                path, batch_size=COUNT, steps=2, swap=0, augment=augment, device="cpu", engine=engine
            ) as loader:
                list(loader)
        except FastloadError as error:
            assert str(path) in str(error), error


def case(folder: Path, seed: int, number: int) -> tuple[Path, bytes]:
    draw = random.Random(f"{seed} {number}")
    bases = sorted(folder.glob("*.h5"))
    base = bases[number % len(bases)]
    return base, damaged(base.read_bytes(), draw)


def run(folder: Path, seed: int, first: int, stop: int, step: int) -> None:
    sound = {}
    for base in sorted(folder.glob("*.h5")):
        with PackedFile(base) as file:
            sound[base] = told(file)
    use(folder / "raw.h5")  # compiles the kernels
    decode(folder / "cut.h5", 0)
    path = folder / f"damaged-{first}"
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, stop, step):
        print(number, flush=True)
        base, content = case(folder, seed, number)
        draw = random.Random(number)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            found = wrong(path, sound[base], load=sound[base]["storage"] == "raw" and draw.randrange(LOADED) == 0)
            if base.name == "cut.h5":
                decode(path, number // len(sound))
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found:
            print("wrong", number, base.name, found.replace("\n", " "), flush=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    if grown > MEMORY:
        print("wrong", stop, "memory", f"grew by {grown:,} kB", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    elif sys.argv[1] == "run":
        run(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        Path(sys.argv[5]).write_bytes(case(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))[1])
