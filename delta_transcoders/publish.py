"""Everything that studies trained, as one hub repository: `python -m delta_transcoders.publish --help`.

    python -m delta_transcoders.publish runs/smollm2_base runs/seeds/smollm2/* --to USER/NAME \\
        --out runs/shared --dtype bfloat16
    … --push

Each part gets a folder with a model card: base dictionaries, and of each study its adapter and all deltas.
Without `--push` the folder is written, and what would be pushed is listed; nothing leaves the machine. No
prompt, text or context is in it but the example in the cards.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from delta_transcoders.command import run as run_command
from delta_transcoders.dictionaries.files import DType, Part
from delta_transcoders.export import CARD, MARK, check_replaceable, export
from delta_transcoders.files import replace_folder, run_of, write_text
from delta_transcoders.hub import check_push, check_repository, push_folder
from delta_transcoders.report.model_card import SharedFolder, shared_card
from delta_transcoders.report.shared_study import delta_configs, read_study

BASES = "base_transcoders"


@dataclass(frozen=True)
class SharedPart:
    """One folder of the repository: what it holds, and where that lies here."""

    name: str
    part: Part
    run: Path
    source: Path


def parts_of(runs: Sequence[Path], merged: bool) -> list[SharedPart]:
    """What there is to share; parts of one study are named by its folder where there are several.

    Raises:
        FileNotFoundError: no study folder, or nothing in it that a study trains.
        ValueError: two parts would have the same name.
    """
    found: list[SharedPart] = []
    for run in runs:
        of_run = list(_parts_of_one(run, merged))
        if not of_run:
            raise FileNotFoundError(
                f"{run} holds nothing to share (base_transcoders, finetune/adapter, or folders of deltas); "
                "give a study's folder"
            )
        found += of_run
    finetuned = {part.run for part in found if part.part != BASES}
    if len(finetuned) > 1:
        found = [
            part if part.part == BASES else replace(part, name=f"{part.run.name}_{part.name}")
            for part in found
        ]
    twice = [name for name, n in Counter(part.name for part in found).items() if n > 1]
    if twice:
        those = " and ".join(str(part.run) for part in found if part.name == twice[0])
        raise ValueError(f"{those} would both be shared as {twice[0]}: give one of them")
    return found


def _parts_of_one(run: Path, merged: bool) -> Iterator[SharedPart]:
    if (run / BASES).is_dir():
        yield SharedPart(BASES, BASES, run, run / BASES)
    for part in ("adapter", "merged")[: 1 + merged]:
        if (run / "finetune" / part).is_dir():
            yield SharedPart(part, part, run, run / "finetune" / part)
    folders = {path.parents[1] for path in run.glob("*/layer_*/delta.safetensors")}
    folders |= {path.parents[1] for path in run.glob("*/*/layer_*/delta.safetensors")}
    for folder in sorted(folders):
        parts = folder.relative_to(run).parts
        # A hidden one is being made or replaced, and one without `done.json` was not finished.
        if run_of(folder) and not any(part.startswith(".") for part in parts):
            yield SharedPart("_".join(parts), "deltas", run, folder)


def publish(
    runs: Sequence[str | Path],
    to: str,
    out: str | Path,
    *,
    dtype: DType = "float32",
    merged: bool = False,
    private: bool = False,
    push: bool = False,
) -> dict[str, list[tuple[str, int]]]:
    """Write the parts of some studies to `out`, and push them as one repository where that is asked for.

    Args:
        runs: studies' folders; base dictionaries may be in one, finetunes that share them in others.
        to: `USER/NAME` of the repository.
        out: folder to write; an earlier one is replaced.
        dtype: of dictionaries and deltas.
        merged: share the finetuned models too, whole.
        private: the repository must be private, and is made so.

    Returns:
        by folder of the repository (`.` for its own card), paths and sizes in bytes.

    Raises:
        FileExistsError: `out` holds something else.
        FileNotFoundError: nothing to share, or a file is missing.
        ConnectionError: the hub cannot be reached, or refuses.
        ValueError: `to` is no hub id, no token where one is needed, or parts that do not belong together.
    """
    out = Path(out)
    check_repository(to, "--to")
    if push:
        check_push(to)
    parts = parts_of([Path(run) for run in runs], merged)
    check_replaceable(out)
    bases = next((part for part in parts if part.part == BASES), None)
    shared_hashes = _hashes(bases.source) if bases else set()
    with replace_folder(out) as folder:
        for part in parts:
            options = {}
            if part.part in ("deltas", BASES):
                options["dtype"] = dtype
            if part.part == "deltas":
                options["deltas"] = part.source
                if bases and _are_on(shared_hashes, part.source):
                    options["base_repository"] = f"{to}/{bases.name}"
                    options["base_transcoders"] = bases.source
            repository = f"{to}/{part.name}"
            export(part.run, part.part, folder / part.name, repository=repository, **options)
        listed = {part.name: _files(folder / part.name) for part in parts}
        studies = {
            run: read_study(run, run / "delta", None) for run in {part.run for part in parts}
        }
        shared = [
            SharedFolder(
                part.name, part.part, studies[part.run], sum(size for _, size in listed[part.name])
            )
            for part in parts
        ]
        write_text(folder / CARD, f"{shared_card(to, shared, dtype)}\n{MARK}\n")
        listed["."] = [(CARD, (folder / CARD).stat().st_size)]
    if push:
        push_folder(out, to, private, [f"{part.name}/*" for part in parts])
    return listed


def _hashes(bases: Path) -> set[str]:
    from delta_transcoders.dictionaries.bases import held, load_base

    return {load_base(bases, entry.layer, files=entry.path)[1].hash for entry in held(bases)}


def _are_on(hashes: Collection[str], deltas: Path) -> bool:
    """Whether deltas stand on these dictionaries; others keep the name of what they stand on."""
    return all(config.get("base_hash") in hashes for config in delta_configs(deltas))


def _files(folder: Path) -> list[tuple[str, int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write everything that studies trained (base dictionaries, adapters, deltas), with model "
        "cards, as one folder; list it; and push it to the Hugging Face hub with --push."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a study")
    parser.add_argument("--to", required=True, metavar="USER/NAME", help="the repository")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=get_args(DType),
        help="that dictionaries and deltas are stored in (default float32)",
    )
    parser.add_argument(
        "--merged",
        action="store_true",
        help="the finetuned models too, whole (as large as the base)",
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--push", action="store_true", help="push it; without, what would be pushed is listed"
    )
    args = vars(parser.parse_args())
    if args["private"] and not args["push"]:
        raise ValueError("--private goes with --push")
    listed = publish(**args)
    for name, files in listed.items():
        print(f"{sum(size for _, size in files) / 1e6:9.1f} MB  {len(files):4} files  {name}")
    total = sum(size for files in listed.values() for _, size in files)
    done = "pushed to" if args["push"] else "not pushed (--push does that) to"
    print(f"{total / 1e6:9.1f} MB in all, in {args['out']}, {done} {args['to']}")


if __name__ == "__main__":
    run_command(main)
