"""The command: one line and the right exit code for whatever goes wrong, and output a person can read."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from places import ROOT
from samples import class_files, encode, noise, put, tar

from fastload import __version__
from fastload.command.cli import main
from fastload.errors import DataError
from fastload.packed import writer as packed_writer
from fastload.packed.file import PackedFile, PackedWriter, SelectionTable


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], code: int, words: str, *arguments: object) -> None:
    """The command prints exactly one line, on stderr, and exits with this code."""
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err, err


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    with PackedWriter(
        tmp_path / "full.h5",
        shape=(30, 4, 5, 3),
        labels=np.arange(30) % 3,
        classes=["ant", "[red]bee", "cow"],
        source={"kind": "test"},
    ) as out:
        for row in range(30):
            out.write(row, noise(4, 5))
    return tmp_path / "full.h5"


# -- what it prints -------------------------------------------------------------------------------


def test_help_and_version_load_nothing_heavy() -> None:
    script = (
        "import sys; from fastload.command.cli import main; main(['--help']); "
        "print(*({'torch', 'numba', 'h5py', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "pack" in done.stdout and done.stdout.splitlines()[-1] == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"fastload {__version__}\n", "")


def test_pack_prints_a_summary_and_nothing_with_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", class_files())
    code, out, err = run(capsys, "pack", source, tmp_path / "o.h5", "--order", "shuffled", "--workers", 2)
    assert (code, err) == (0, "")
    assert "12 images from class folders" in out and "3, 4 each: c0, c1, c2" in out and "ignored  3 other files" in out
    assert run(capsys, "pack", source, tmp_path / "o.h5", "--quiet") == (0, "", "")


def test_inspect_shows_every_fact_as_table_and_json(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", packed)
    assert code == 0
    for text in (
        "raw, 4×5×3",
        "[red]bee",
        "10 each",
        "int64 [30]",
        "row numbers",
        PackedFile(packed).fingerprint,
        f"fastload {__version__}",
    ):
        assert text in out, text
    code, out, _ = run(capsys, "inspect", packed, "--json")
    facts = json.loads(out)
    assert (code, facts["images"], facts["shape"], facts["kind"]) == (0, 30, [4, 5, 3], "packed file")
    assert facts["classes"] == {"ant": 10, "[red]bee": 10, "cow": 10} and facts["source"] == {"kind": "test"}


def test_inspect_folds_many_classes_and_tells_of_a_subset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = SelectionTable(
        np.array([0] * 10 + [3] * 19 + [-1]),
        np.arange(30),
        np.linspace(1, 2, 30),
        {"strategy": "top-activations", "settings": '{"size": 30}'},
    )
    with PackedWriter(
        tmp_path / "s.h5",
        sizes=np.full(30, 7),
        labels=np.arange(30),
        classes=[f"c{i}" for i in range(30)],
        source={},
        selection=table,
        ids=np.arange(30)[::-1] * 2,
    ) as writer:
        for row in range(30):
            writer.write(row, b"7 bytes")
    out = run(capsys, "inspect", tmp_path / "s.h5")[1]
    for text in (
        "subset",
        "… and 10 more",
        "encoded",
        "7 to 7 bytes",
        "shuffled, 0 to 58",
        "strategy: top-activations",
        "2 gave 10 to 19 samples each",
        "; 1 sample from none",
    ):
        assert text in out, text
    facts = json.loads(run(capsys, "inspect", tmp_path / "s.h5", "--json")[1])
    assert facts["selection"]["settings"]["settings"] == {"size": 30} and facts["kind"] == "subset"
    assert facts["selection"]["dimensions"]["samples_median"] == 14.5


def test_inspect_of_a_users_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file["x"], file["y"] = np.zeros((5, 3, 8, 9), np.uint8), np.arange(5)
    assert "raw, 8×9×3" in run(capsys, "inspect", tmp_path / "u.h5", "--images", "x", "--labels", "y")[1]
    fails(capsys, 1, "not a packed file (its datasets: x, y)", "inspect", tmp_path / "u.h5")
    fails(capsys, 1, "'y' has dtype int64, not uint8", "inspect", tmp_path / "u.h5", "--images", "y", "--labels", "x")


def damage(path: Path, name: str, byte: int) -> None:
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + byte] ^= 1
    path.write_bytes(content)


def test_verify_passes_a_whole_file_and_lists_each_damaged_sample(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "verify", packed)
    assert (code, err) == (0, "") and "all 30 samples and all that it says of them" in out
    for row in (7, 22):
        damage(packed, "images", row * 60 + 59)
    code, out, err = run(capsys, "verify", packed)
    assert code == 1 and out == "row 7  id 7  class [red]bee\nrow 22  id 22  class [red]bee\n"
    assert err == f"error: {packed}: 2 of 30 samples damaged; pack it again\n"


@pytest.mark.parametrize(
    "dataset, byte, words",
    [
        ("labels", 8, "the labels (or the fingerprint)"),
        ("digests", 8, "1 digest damaged, though"),
        ("ids", 8, "1 id in more than one row"),
    ],
)
def test_verify_tells_damaged_labels_digests_and_ids_apart(
    packed: Path, capsys: pytest.CaptureFixture[str], dataset: str, byte: int, words: str
) -> None:
    damage(packed, dataset, byte)
    code, _, err = run(capsys, "verify", packed)
    assert code == 1 and words in err and err.count("\n") == 1


# -- what goes wrong ------------------------------------------------------------------------------


def test_usage_errors_exit_with_2(tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(
        tmp_path / "s",
        {
            f"{split}/{name}": data
            for split in ("train", "test")
            for name, data in class_files(2, 3).items()
            if name[0:2] != "c2"
        },
    )
    fails(capsys, 2, "SOURCE", "pack")
    fails(capsys, 2, "nosuch", "nosuch")
    fails(capsys, 2, "--nosuch", "pack", source, tmp_path / "o.h5", "--nosuch")
    fails(capsys, 2, "'--order'", "pack", source, tmp_path / "o.h5", "--order", "best")
    fails(capsys, 2, "'--resize'", "pack", source, tmp_path / "o.h5", "--resize", "big")
    fails(capsys, 2, "name one with --split", "pack", source, tmp_path / "o.h5")
    fails(capsys, 2, "is a folder", "pack", source, tmp_path)
    fails(capsys, 2, "pack it without --encoded", "pack", packed, tmp_path / "o.h5", "--encoded")


def test_bad_input_exits_with_1_in_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "o.h5"
    out.parent.mkdir()
    good = encode(noise())
    whole = tar(tmp_path / "w.tar", {"c/0.png": good, "c/1.png": good})
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:700])
    (tmp_path / "text").write_text("no archive at all\n" * 40)
    for words, source in (
        ("no such file", tmp_path / "none"),
        ("damaged or truncated tar", cut),
        ("no source that fastload knows", tmp_path / "text"),
        ("holds 1 image of one class, 'c'", put(tmp_path / "a", {"c/0.png": good})),
        ("'c/1.png' is not an image", put(tmp_path / "b", {"c/0.png": good, "c/1.png": b"broken", "d/": b""})),
        ("'c/new line.png' is not", put(tmp_path / "n", {"c/new\nline.png": b"broken", "d/": b""})),
        ("not one of its 1 images can be decoded", put(tmp_path / "e", {"c/0.png": b"broken", "d/": b""})),
    ):
        extra = ["--skip-broken"] if "not one" in words else []
        fails(capsys, 1, words, "pack", source, out, *extra)
        assert os.listdir(out.parent) == []


@pytest.mark.parametrize("command", ["inspect", "verify", "pack"])
def test_what_is_not_a_sound_packed_file_is_one_line_for_every_command(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    content = packed.read_bytes()
    for number, size in enumerate([0, 7, 60, 5000, len(content) // 2, len(content) - 1]):
        path = tmp_path / f"{number}.h5"
        path.write_bytes(content[:size])
        arguments = [command, path, tmp_path / "o.h5"] if command == "pack" else [command, path]
        fails(capsys, 1, str(path), *arguments)
    with h5py.File(packed, "r+") as file:
        del file["labels"]
        file["labels"] = np.arange(29)
    fails(
        capsys,
        1,
        "'labels' has 29 rows but 'images' has 30",
        *([command, packed, tmp_path / "o.h5"][: 3 if command == "pack" else 2]),
    )


def test_full_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = put(tmp_path / "s", class_files())
    for call in ("pwrite", "posix_fallocate"):
        with monkeypatch.context() as patch:
            patch.setattr(packed_writer.os, call, full)
            fails(capsys, 1, "No space left on device", "pack", source, tmp_path / "o.h5")
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize(
    "error, code, line",
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError(), 1, "error: out of memory; close other programs, or use smaller batches or fewer workers\n"),
        (
            OSError(28, "No space left on device", "/d"),
            1,
            "error: /d: No space left on device; free some space there\n",
        ),
        (BrokenPipeError(), 0, ""),
        (RuntimeError("a\nb"), 1, "error: RuntimeError: a b (this is a bug in fastload; --debug shows where)\n"),
    ],
)
def test_every_other_failure_is_one_line_too(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fastload.command.inspect.inspect_file", fail)
    if isinstance(error, BrokenPipeError):  # it takes stdout's descriptor away, so in a process of its own
        command = f"{sys.executable} -m fastload.command.cli --help | true"
        done = subprocess.run(
            command, shell=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
        )
        assert done.stderr == b""
        return
    assert main(["inspect", str(tmp_path)]) == code
    assert capfd.readouterr().err == line


@pytest.mark.parametrize("place", [0, 1, 2, None])
def test_debug_shows_the_traceback_wherever_it_stands_and_by_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: int | None
) -> None:
    words = ["inspect", str(tmp_path / "none.h5")]
    if place is None:
        monkeypatch.setenv("FASTLOAD_DEBUG", "1")
    else:
        words.insert(place, "--debug")
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "") and err.startswith("Traceback (most recent call last):\n")
    assert "inspect.py" in err and err.splitlines()[-1].startswith(f"error: {words[-1] if place != 2 else words[1]}")


@pytest.mark.parametrize("value", ["", "0"])
def test_no_traceback_where_the_environment_says_no(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FASTLOAD_DEBUG", value)
    fails(capsys, 1, "no such file", "inspect", tmp_path / "none.h5")


@pytest.mark.parametrize(
    "words, help",
    [
        ((), ""),
        (("pack",), "see `fastload pack --help`"),
        (("pack", "a", "b.h5", "c"), "see `fastload pack --help`"),
        (("build-subset", "--nosuch"), "see `fastload build-subset --help`"),
        (("pac",), "see `fastload --help`"),
        (("--nosuch",), "see `fastload --help`"),
    ],
)
def test_a_wrong_command_line_points_to_the_help_that_tells(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], help: str
) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2
    if words:
        assert (out, err.count("\n")) == ("", 1) and err.endswith(f"{help}\n")
    else:
        assert "Usage: fastload" in out + err


# -- what a terminal must not obey ----------------------------------------------------------------

HOSTILE = "\x1b]0;title\x07\x1b[31mred\u202e\x9b2J\nerror: forged"


def test_names_from_data_reach_no_terminal_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the summary of pack, its list of what was skipped, inspect, verify and the report of build-subset."""
    good = encode(noise())
    files = {f"{HOSTILE}/{row}.png": good for row in range(3)} | {"b/0.png": good, "b/1.png": good}
    source, full = put(tmp_path / "s", files | {f"b/{HOSTILE}.png": b"no image"}), tmp_path / "full.h5"
    told = [run(capsys, "pack", source, full, "--skip-broken"), run(capsys, "pack", source, full)]
    told += [run(capsys, "inspect", full), run(capsys, "inspect", full, "--json"), run(capsys, "verify", full)]
    subset = tmp_path / "subset.h5"
    told.append(run(capsys, "build-subset", full, subset, "--strategy", "random", "--size", 2))
    told.append(run(capsys, "build-subset", full, subset, "--strategy", "random", "--size", 2, "--json"))
    damage(full, "images", 1)
    told.append(run(capsys, "verify", full))
    told.append(run(capsys, "inspect", tmp_path / HOSTILE / "none.h5"))
    assert [code for code, _, _ in told] == [0, 1, 0, 0, 0, 0, 0, 1, 1]
    for _, out, err in told:
        assert not set("\x1b\x07\x9b\u202e") & set(out + err), out + err
        assert "\nerror: forged" not in out + err


def test_long_texts_are_cut_and_keep_their_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["x" * 60_000, "y" * 60_000]
    with PackedWriter(
        tmp_path / "full.h5", shape=(2, 4, 5, 3), labels=np.arange(2), classes=classes, source={"kind": "z" * 60_000}
    ) as out:
        for row in range(2):
            out.write(row, noise(4, 5))
    damage(tmp_path / "full.h5", "images", 1)
    for words in (("inspect", tmp_path / "full.h5"), ("verify", tmp_path / "full.h5")):
        code, out, err = run(capsys, *words)
        assert (code, err.count("\n")) in ((0, 0), (1, 1))
        assert max(map(len, (out + err).splitlines())) <= 300
    code, _, err = run(capsys, "inspect", "/" + "n" * 4000)
    assert code == 1 and len(err) <= 301 and err.startswith("error: /nnn") and "…" in err


# -- streams that cannot show everything, or are closed -------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_error_can_be_printed_whatever_its_characters_and_the_stream_s_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Names of files need not be UTF-8, and a terminal need not know ×."""
    for wrapper in (io.TextIOWrapper, StrictWrapper):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stderr", wrapper(raw, encoding=encoding, errors="strict"))
        assert main(["inspect", str(tmp_path / "\udce9 4×5 猫.h5")]) == 1
        sys.stderr.flush()
        line = raw.getvalue().decode(encoding)
        assert line.startswith("error: ") and line.count("\n") == 1 and r"\xe9" in line


class StrictWrapper(io.TextIOWrapper):
    """A stream of somebody else's, which cannot be told to be lenient."""

    reconfigure = None  # type: ignore[assignment]


@pytest.mark.parametrize("closed", [None, "closed"])
def test_a_closed_stderr_costs_the_line_and_not_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, closed: str | None
) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    assert main(["inspect", str(tmp_path / "none.h5")]) == 1
    assert capsys.readouterr().out == ""


def test_printing_an_error_of_a_name_that_is_no_text_raises_nothing() -> None:
    str(DataError("caf\udce9.h5: no such file")).encode("utf-8")


def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "s", class_files())
    (tmp_path / "large disk").mkdir()
    (tmp_path / "here").mkdir()
    link, target = tmp_path / "here" / "o.h5", tmp_path / "large disk" / "full.h5"
    link.symlink_to(target)
    for _ in range(2):  # dangling, then leading to an older file
        assert run(capsys, "pack", source, link, "--quiet") == (0, "", "")
        assert link.is_symlink() and not target.is_symlink() and len(PackedFile(target)) == 12
        assert os.listdir(link.parent) == ["o.h5"] and os.listdir(target.parent) == ["full.h5"]
    (tmp_path / "astray.h5").symlink_to(tmp_path / "none" / "full.h5")
    fails(capsys, 2, "there is no folder", "pack", source, tmp_path / "astray.h5")


def test_an_empty_source_is_not_the_folder_one_stands_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(put(tmp_path / "s", class_files()))
    fails(capsys, 2, "SOURCE '': an empty text", "pack", "", tmp_path / "o.h5")


@pytest.mark.parametrize("name, reason", [("x" * 300, "File name too long"), ("a\0b", "embedded null")])
def test_a_name_that_no_file_can_have_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: Path, name: str, reason: str
) -> None:
    source = put(tmp_path / "s", class_files())
    fails(capsys, 2, reason, "pack", source, tmp_path / name)
    fails(capsys, 2, reason, "build-subset", packed, tmp_path / name, "--strategy", "random", "--size", 3)
    if reason != "embedded null":  # which the command line cannot hold
        for command in ("inspect", "verify"):
            fails(capsys, 1, f"cannot be opened ({reason}", command, tmp_path / name)
