"""A study whose claims and plan are committed before its seeds are run.

Its file names a folder, `registered: docs/smollm2`, which holds what was registered (`seeds.REGISTERED`): the
claims, their pass conditions, and the plan. The plan is what the study file and all configurations that it
names come to: for every stage each option with its value, as of one seed, and the hashes of data files that
lie in `configs/`. `python -m delta_transcoders.study.register STUDY.yaml` writes it.

A registered study is run on the seeds that follow from the registering commit. It is refused where anything
is computed in another way than registered, whether a file or the command line says so. On which device it
runs (`NOT_COMPARED`) and in which folder is free, and so is running fewer stages or seeds. Defaults in the
code are no part of the plan: the commit that a stage ran at is in `study.json`. With `--unregistered` all of
this is left out, as for a development seed, and nothing is kept in the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delta_transcoders.command import find_config
from delta_transcoders.files import read_json
from delta_transcoders.study.plan import changes
from delta_transcoders.study.seeds import (
    N_SEEDS,
    PLAN,
    NotRegistered,
    last_commit,
    registering_commit,
    seeds_of,
)
from delta_transcoders.study.stage_config import StageConfig
from delta_transcoders.study.study_file import SCRIPTS, read_study

SEED = 0
"""What the plan says of this seed, it says of every one."""
NOT_COMPARED = ("trainer.accelerator", "trainer.devices")
_SHOWN = 3  # differences in a message

Options = Mapping[str, Mapping[str, Any]]


def plan_of(file: str, *, task: str | None = None, options: Options | None = None) -> dict:
    """What a study computes: `stages`, by label the options of each, and `files`, hashes of their data.

    Args:
        task, options: of the command line, see `read_study`.
    """
    study = read_study(file, seeds=[SEED], task=task, options=options)
    stages, files = {}, {}
    for label, stage in study.stages.items():
        if stage.study == study.folder and stage.run in SCRIPTS:
            raise ValueError(
                f"{file}: the stage {label} would get the first of the seeds: put it into a study of its "
                "own, as in `studies: {base: {config: FILE, seed: 0}}`"
            )
        config = StageConfig(stage, study.texts)
        compared = {k: v for k, v in config.values.items() if k not in NOT_COMPARED}
        stages[label] = {"run": stage.run} | compared
        for text in config.reads:
            if text.startswith("configs/") and Path(find_config(text)).is_file():
                content = Path(find_config(text)).read_bytes()
                files[text] = hashlib.sha256(content).hexdigest()
    return json.loads(json.dumps({"stages": stages, "files": files}))


def digest(plan: Mapping[str, Any]) -> str:
    """SHA-256 of what a plan computes."""
    compared = {key: plan[key] for key in ("stages", "files")}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()


def registered_seeds(
    file: str,
    folder: str,
    seeds: Sequence[int] | None,
    *,
    task: str | None = None,
    options: Options | None = None,
) -> list[int]:
    """The seeds that a registered study is to be run on: those given, or all that follow from the commit.

    Args:
        folder: of what is registered.
        seeds, task, options: of the command line.

    Raises:
        ValueError: nothing is registered, another plan is, or a seed does not follow from the commit; says
            in what they differ.
        FileNotFoundError: there is no plan, or no folder for it: not in a checkout.
    """
    development = "or give --unregistered for development"
    anew = f"python -m delta_transcoders.study.register {file}"
    path = Path(folder) / PLAN
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{file} is registered in {folder}, which is not here: run it in a checkout of the project, "
            f"{development}"
        )
    plan = read_json(path, f"register it: {anew}, {development}")
    if plan.get("digest") != digest({"stages": {}, "files": {}} | plan):
        raise ValueError(f"{path} was changed by hand: register anew ({anew}), {development}")
    now = plan_of(file, task=task, options=options)
    if found := _differences(plan, now):
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(
            f"{file} is not what was registered in {path}: {'; '.join(found[:_SHOWN])}{more}. Register anew "
            f"({anew}), {development}"
        )
    try:
        commit = registering_commit(folder)
    except ValueError as error:
        raise ValueError(f"{file} is registered in {folder}: {error}; {development}") from None
    derived = seeds_of(commit, N_SEEDS)
    for seed in seeds or ():
        if seed not in derived:
            raise ValueError(
                f"--seeds {seed}: the registered seeds are {' '.join(map(str, derived))}; give of these, "
                f"{development}"
            )
    return list(seeds or derived)


def is_registered(folder: str) -> bool:
    """Whether what is registered in a folder is committed as it is, with a plan.

    Raises:
        ValueError: git cannot say, see `seeds.last_commit`.
    """
    try:
        registering_commit(folder)
    except NotRegistered:
        return False
    return True


def check_development(folder: str, seeds: Sequence[int]) -> None:
    """
    Raises:
        ValueError: one of the seeds is registered, also where the claims are being edited: what development
            sees of it can no more be a test. Or git cannot say, see `seeds.last_commit`.
    """
    if not (seeds and Path(folder).is_dir()):
        return
    try:
        commit = last_commit(folder)
    except ValueError as error:
        raise ValueError(
            f"--unregistered --seeds: whether they are registered in {folder} is not known: {error}"
        ) from None
    derived = seeds_of(commit, N_SEEDS) if commit else []
    for seed in seeds:
        if seed in derived:
            raise ValueError(
                f"--unregistered --seeds {seed}: it is one of the seeds registered in {folder}: give another"
            )


def _differences(registered: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A text for each stage, and each file, in which two plans differ."""
    found = []
    for label in {**registered["stages"], **now["stages"]}:
        old, new = registered["stages"].get(label), now["stages"].get(label)
        if old is None or new is None:
            found.append(f"{label} is {'not registered' if old is None else 'missing'}")
        elif changed := changes(old, new):
            found.append(f"{label}: {changed}")
    if changed := changes(registered["files"], now["files"]):
        found.append(changed)
    return found
