"""Imports point downwards only, and the library is plain PyTorch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the ground up: a module may import from its own room and from those before it.
ROOMS = (
    ("foreign_text", "signals", "files", "hub", "processes", "git"),
    ("console",),
    ("command", "tensor_files", "fingerprints"),
    ("families",),
    ("tasks",),
    ("language_models",),
    ("generation", "weights", "weight_patches", "tiny_gemma", "smollm2"),
    ("texts",),
    ("metrics",),
    ("dictionaries",),
    ("activations",),
    ("interventions",),
    ("end_to_end",),
    ("features",),
    ("report",),
    ("pages",),
    ("export", "import_dictionaries"),
    ("publish",),
    ("own_study",),
    ("study",),
    ("inspector",),
)
TOP = ("delta_transcoders", "datamodules", "lightning_modules", "callbacks")
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files(root: Path, package: str) -> list[Path]:
    return sorted((root / package).rglob("*.py"))


def floor_of() -> dict[str, int]:
    return {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def test_every_room_has_its_floor(pytestconfig):
    found = {
        path.stem if path.suffix == ".py" else path.name
        for path in (pytestconfig.rootpath / "delta_transcoders").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert found - {"__init__"} == floor_of().keys()


def test_imports_point_downwards(pytestconfig):
    floors, upwards = floor_of(), []
    for path in files(pytestconfig.rootpath, "delta_transcoders"):
        room = (
            path.relative_to(pytestconfig.rootpath / "delta_transcoders").with_suffix("").parts[0]
        )
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "delta_transcoders" or len(parts) < 2 or parts[1] == room:
                continue
            if floors.get(parts[1], 0) >= floors.get(room, -1) and parts[1] in floors:
                upwards.append(f"{path.name} imports {name}")
    assert not upwards


@pytest.mark.parametrize("package", TOP)
def test_no_package_imports_one_above_it(pytestconfig, package):
    above = {
        "delta_transcoders": ("datamodules", "lightning_modules", "callbacks", *LIGHTNING),
        "datamodules": ("lightning_modules", "callbacks"),
    }.get(package, ())
    above = (*above, "train", "evaluate", "tests")
    found = [
        f"{path.name} imports {name}"
        for path in files(pytestconfig.rootpath, package)
        for name in imported(path)
        if name.split(".")[0] in above
    ]
    assert not found


def test_the_words_of_tool_calls_are_in_their_own_rooms(pytestconfig):
    words = ("calculator", "tool_call", "math_correct", "exact_copy", "tool_ood", "valid_tool")
    found = []
    for package in TOP:
        for path in files(pytestconfig.rootpath, package):
            if {"calculator", "three_tools"} & set(path.parts):
                continue
            lines = path.read_text(encoding="utf-8").lower().splitlines()
            found += [
                f"{path.name}:{n}: {line.strip()}"
                for n, line in enumerate(lines, start=1)
                if any(word in line for word in words)
            ]
    assert not found
