"""The rules of the house: which folder may import which, no circles, and how long a file and a class may be."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

# A module imports only what stands before it. An entry is a folder or a single module of fastload/; a module with an
# entry of its own is not part of its folder's entry.
ORDER = (
    "kernels",
    "common.text",
    "errors",
    "common",
    "order",
    "augment",
    "classifier",
    "packed",
    "sources",
    "packing",
    "feeds",
    "embedding",
    "selection",
    "subset",
    "loop",
    "command",
    "__main__",
)
PUBLIC = "fastload"  # its names load all the modules that they need, so no module may take them from there
MAX_FILE_LINES = 400
MAX_CLASS_LINES = 250


def modules_of(root: Path) -> dict[str, Path]:
    """Return the files of fastload/ and kernels/ below `root` by the names that they are imported by."""
    modules = {}
    for folder, package in (("fastload", "fastload"), ("kernels", "fastload.kernels")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    return modules


def imports_of(module: str, modules: dict[str, Path]) -> Iterator[str]:
    """Yield what a module imports of fastload, also inside functions, but not what only type checkers see."""
    path = modules[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def named(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from named(other)
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *base.split(".")] if base else above)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in modules else base
        for child in ast.iter_child_nodes(node):
            yield from named(child)

    for name in named(ast.parse(path.read_text())):
        if name.split(".")[0] == "fastload":
            yield name


def place_of(module: str) -> str:
    """Return the entry of ORDER that a module belongs to."""
    name = module.removeprefix("fastload.")
    return name if name in ORDER else name.split(".")[0]


def imports_that_run_back(root: Path) -> list[str]:
    """List the imports of a later entry of ORDER, of bench/, or of the public names in fastload itself."""
    modules = modules_of(root)
    found = []
    for module in modules:
        for imported in imports_of(module, modules) if module != PUBLIC else ():
            here, there = place_of(module), place_of(imported)
            allowed = here == there or (there in ORDER and ORDER.index(there) < ORDER.index(here))
            if imported == PUBLIC or not allowed:
                found.append(f"{module} imports {imported}")
    return found


def import_circles(root: Path) -> list[str]:
    """List the modules that import themselves through others."""
    modules = modules_of(root)
    imports = {module: {name for name in imports_of(module, modules) if name in modules} for module in modules}
    imports[PUBLIC] = set()  # lazy: see fastload/__init__.py
    circles = []
    for module in modules:
        reached, ahead = set(), list(imports[module])
        while ahead:
            name = ahead.pop()
            if name not in reached:
                reached.add(name)
                ahead += imports[name]
        if module in reached:
            circles.append(module)
    return circles


def long_files(root: Path) -> list[str]:
    lines = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in modules_of(root).values()}
    return [f"{name}: {count} lines" for name, count in lines.items() if count > MAX_FILE_LINES]


def long_classes(root: Path) -> list[str]:
    found = []
    for path in modules_of(root).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                lines = (node.end_lineno or 0) - min(n.lineno for n in (node, *node.decorator_list)) + 1
                if lines > MAX_CLASS_LINES:
                    found.append(f"{node.name}: {lines} lines in {path.relative_to(root)}")
    return found


def test_every_folder_stands_in_the_order():
    folders = {place_of(module) for module in modules_of(ROOT)} - {PUBLIC}
    assert folders == set(ORDER)


def test_no_import_runs_back():
    assert imports_that_run_back(ROOT) == []


def test_no_module_imports_itself_through_others():
    assert import_circles(ROOT) == []


def test_files_are_at_most_400_lines():
    assert long_files(ROOT) == []


def test_classes_are_at_most_250_lines():
    assert long_classes(ROOT) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A made-up house that keeps the rules."""
    files = {
        "fastload/__init__.py": "from fastload.loop.loader import Loader",
        "fastload/errors.py": "from fastload.common.text import plural",
        "fastload/common/__init__.py": "",
        "fastload/common/text.py": "import json",
        "fastload/common/memory.py": "from fastload.errors import UsageError",
        "fastload/packed/__init__.py": "",
        "fastload/packed/file.py": "from fastload.common import memory\nimport fastload.errors",
        "fastload/loop/__init__.py": "",
        "fastload/loop/loader.py": "from fastload.kernels import philox\nfrom fastload.packed.file import read",
        "kernels/__init__.py": "",
        "kernels/philox.py": "import numba",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_house_that_keeps_the_rules_passes(tree):
    assert not (imports_that_run_back(tree) or import_circles(tree) or long_files(tree) or long_classes(tree))


@pytest.mark.parametrize(
    "name, text, imported",
    [
        ("packed/file.py", "from fastload.loop.loader import Loader", "loop.loader"),
        ("packed/file.py", "def read():\n    from fastload.loop import loader", "loop.loader"),
        ("packed/file.py", "import fastload.loop.loader", "loop.loader"),
        ("packed/file.py", "from ..loop.loader import Loader", "loop.loader"),
        ("packed/file.py", "from ..loop import loader", "loop.loader"),
        ("packed/file.py", "if TYPE_CHECKING:\n    import os\nelse:\n    import fastload.loop", "loop"),
        ("packed/file.py", "from fastload.bench import measure", "bench"),
        ("common/text.py", "from fastload.errors import UsageError", "errors"),
        ("errors.py", "from fastload.common.memory import free", "common.memory"),
    ],
)
def test_an_import_that_runs_back_is_found(tree, name, text, imported):
    (tree / "fastload" / name).write_text(text)
    module = f"fastload.{name.removesuffix('.py').replace('/', '.')}"
    assert imports_that_run_back(tree) == [f"{module} imports fastload.{imported}"]


@pytest.mark.parametrize("text", ["from fastload import read", "import fastload"])
def test_a_module_takes_no_public_names_from_fastload(tree, text):
    (tree / "fastload/loop/loader.py").write_text(text)
    assert imports_that_run_back(tree) == ["fastload.loop.loader imports fastload"]


@pytest.mark.parametrize("text", ["from fastload.errors import UsageError", "from ..errors import UsageError"])
def test_kernels_import_nothing_of_fastload(tree, text):
    (tree / "kernels/philox.py").write_text(text.replace("..", "fastload."))
    assert imports_that_run_back(tree) == ["fastload.kernels.philox imports fastload.errors"]


def test_imports_for_type_checkers_alone_may_run_back(tree):
    (tree / "fastload/packed/file.py").write_text("if TYPE_CHECKING:\n    from fastload.loop.loader import Loader")
    assert imports_that_run_back(tree) == []


def test_a_circle_within_a_folder_is_found(tree):
    (tree / "fastload/packed/file.py").write_text("from fastload.packed.reader import Reader")
    (tree / "fastload/packed/reader.py").write_text("def read():\n    from .file import size")
    assert imports_that_run_back(tree) == []
    assert import_circles(tree) == ["fastload.packed.file", "fastload.packed.reader"]


def test_a_long_file_and_a_long_class_are_found(tree):
    (tree / "fastload/packed/file.py").write_text("class File:\n" + "    x = 1\n" * 250 + "\n" * 150)
    assert long_files(tree) == ["fastload/packed/file.py: 401 lines"]
    assert long_classes(tree) == ["File: 251 lines in fastload/packed/file.py"]


def test_no_two_files_of_tests_share_a_name():
    """Of two, pytest imports the first, and reports the other as an error after all tests have run."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
