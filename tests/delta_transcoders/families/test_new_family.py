"""docs/NEW_FAMILY.md followed to the letter, in a copy of the checkout."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_the_page_on_new_families(pytestconfig, tmp_path):
    root, copy = pytestconfig.rootpath, tmp_path / "checkout"
    for name in (
        "delta_transcoders",
        "tests",
        "lightning_modules",
        "datamodules",
        "callbacks",
        "configs",
        "benchmarks",
        "interop",
    ):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "evaluate.py", "pyproject.toml"):
        shutil.copyfile(root / name, copy / name)
    commands = []
    page = (root / "docs/NEW_FAMILY.md").read_text("utf-8")
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
        if file := re.match(r"# file: (\S+)\n", block):
            (copy / file[1]).write_text(block[file.end() :], "utf-8")
        elif file := re.match(r"# in: (\S+)\n", block):
            text = (copy / file[1]).read_text("utf-8")
            for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", block, re.MULTILINE):
                old, new = (re.sub(r"(?m)^[-+]", "", lines) for lines in (old, new))
                assert text.count(old) == 1, old
                text = text.replace(old, new)
            (copy / file[1]).write_text(text, "utf-8")
        elif language == "bash":
            commands += block.splitlines()
    (command,) = commands
    _, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *arguments, "-p", "no:cacheprovider"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20
