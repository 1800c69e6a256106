"""A study file: its stages, studies within it, and the folders they write.

```yaml
study: runs/mine             # folder
seed: 0
base: base.yaml              # optional: a YAML that every stage gets as a second --config; its `base` is
                             # what `${base.model}` and so on stand for (see `PublicBase`)
task: ../tasks/json.yaml     # optional: one more of these, which says what the model is taught
include: study.yaml          # one file or several, whose stages are this file's too
stages:
  finetune:
    run: train               # train, evaluate or a module of ours, as in delta_transcoders.report.html
    config: lora.yaml        # beside the study file
    options: {model.lr: 0.01}
    seed_offset: 0           # added to the seed
    takes: {seconds: 40, megabytes: 3, memory_gb: 2}  # a guess for the plan, until it has run
  report:
    run: delta_transcoders.report.html
    arguments: ["${study}"]
    reads: [finetune]        # of modules alone: stages or paths …
    writes: ["${study}/report/index.html"]  # … and paths
shows: [delta_transcoders.report.answer ${study}]   # printed when all is done
seeds: [4, 5]                # what holds ${seed} is there once for each
studies:
  planted/none:              # in ${study}/planted/none where it has no `study`
    config: study.yaml       # one file or several
    links: [base_model]      # stages whose folders are the outer study's
    task: rules.yaml         # optional: in place of the outer study's
    stages: {finetune: {options: {model.lr: 0}}, exp2b: null}
registered: docs/mine        # optional, of a file with `seeds`: the folder in which its claims and plan were
                             # registered (see `registration`)
```

What a file says goes over what it includes; a stage that is null is left out.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from delta_transcoders.command import defaults_beside, find_config, nearest, read_yaml
from delta_transcoders.study.public_base import no_use, used_keys

KEYS = (
    *("study", "seed", "seeds", "base", "task", "include", "stages", "shows", "studies"),
    "registered",
)
STAGE_KEYS = (
    *("run", "config", "options", "seed_offset"),
    *("arguments", "reads", "writes", "takes"),
)
INNER_KEYS = ("config", "study", "seed", "task", "links", "stages")
OWN_KEYS = frozenset(("base_model", "finetuned_model", "examples", "judge"))
"""Keys of a file that names models of the user's own (docs/YOUR_MODEL.md)."""
SCRIPTS = ("train", "evaluate")
SIZES = ("seconds", "megabytes", "memory_gb")
"""What a stage takes: time, disk, and memory at its peak."""
MORE_CONFIGS = ("base", "task")
"""Keys of configurations that lie over those of all stages."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _is_list(value: Any, of: Callable[[Any], bool] = _is_text, at_least: int = 0) -> bool:
    return isinstance(value, list) and len(value) >= at_least and all(map(of, value))


def _is_options(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_text, value)))


def _is_takes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key in SIZES and type(part) in (int, float) for key, part in value.items()
    )


TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "study": (_is_text, "a folder"),
    "seed": (_is_seed, "a whole number from 0"),
    "seeds": (lambda value: _is_list(value, _is_seed, 1), "whole numbers from 0, as in [4, 5]"),
    "seed_offset": (_is_seed, "a whole number from 0"),
    "base": (_is_text, "a YAML file"),
    "task": (lambda value: value is None or _is_text(value), "a YAML file"),
    "include": (lambda value: _is_text(value) or _is_list(value), "a study file, or several"),
    "config": (lambda value: _is_text(value) or _is_list(value, at_least=1), "a YAML file"),
    "run": (_is_text, "train, evaluate or a module as in delta_transcoders.report.html"),
    "options": (_is_options, "options as in {model.lr: 0.01}"),
    "arguments": (_is_list, "a list of texts"),
    "reads": (_is_list, "a list of stages and paths"),
    "writes": (lambda value: _is_list(value, at_least=1), "a list of paths"),
    "takes": (_is_takes, "guesses as in {seconds: 40, megabytes: 3}"),
    "links": (_is_list, "a list of stages"),
    "shows": (_is_list, "a list of modules with their arguments"),
    "registered": (_is_text, "a folder, as in docs/mine"),
}
"""By key, whether a value may stand there, and what may. `stages` and `studies` are looked into instead."""


@dataclass(frozen=True)
class Stage:
    """One command. Paths are those of the working directory.

    Attributes:
        name: within its own study.
        label: among all stages of a file, as in `planted/none/finetune`.
        study: folder.
        run: `train`, `evaluate` or a module.
        config: of `train` and `evaluate`, as are `more_configs`, laid over it, and `options`.
        arguments: of a module, as are `reads` (stages of its study or paths) and `writes`.
        takes: `SIZES`, guessed.
    """

    name: str
    label: str
    study: str
    seed: int
    run: str
    config: str
    more_configs: Sequence[str]
    options: Mapping[str, Any]
    arguments: Sequence[str]
    reads: Sequence[str]
    writes: Sequence[str]
    takes: Mapping[str, float]


@dataclass
class Study:
    """What a study file comes to.

    Attributes:
        folder: of the study itself.
        stages: by label, those of studies within it too.
        files: by folder of a study, the file that the folder belongs to.
        links: targets by links, both folders.
        shows: modules with their arguments.
        texts: configurations that the study writes itself, by path.
        notes: lines to be shown first.
        registered: the folder of its claims and plan; empty where nothing is registered.
        keeps: folders for the small tables of the studies within it, by their folders; of registered
            studies.
    """

    folder: str
    stages: dict[str, Stage] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    shows: list[list[str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    registered: str = ""
    keeps: dict[str, str] = field(default_factory=dict)


def read_configs(stage: Stage, texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The configurations of a stage that there are, each to be laid over the ones before it.

    Args:
        texts: of configurations that are not written yet, by path.
    """
    configs = []
    for file in (str(defaults_beside(stage.config)), stage.config, *stage.more_configs):
        if file in texts:
            configs.append(yaml.safe_load(texts[file]))
        elif Path(find_config(file)).is_file():
            configs.append(read_yaml(find_config(file)))
    return configs


def read_study(
    file: str,
    *,
    folder: str | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    task: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Study:
    """The stages of a study file, or of a file that names a finetuned model (docs/YOUR_MODEL.md).

    Args:
        folder, seed, seeds, task: in place of the file's.
        options: over the file's, by a stage's name or label, or `all` stages that have a configuration;
            `base.KEY` goes to those of them that say `${base.KEY}`.

    Raises:
        FileNotFoundError: no such file, or no such configuration of a stage.
        ValueError: not a study file; names file, line and what was meant.
    """
    if not Path(find_config(file)).is_file():
        raise FileNotFoundError(f"no study file {file!r}")
    raw = read_yaml(find_config(file))
    given = {"study": folder, "seed": seed, "seeds": seeds, "task": task}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if not TYPES[key][0](value):
            raise ValueError(f"--{key} is {value!r}, expected {TYPES[key][1]}")
    is_own = "stages" not in raw and bool(raw.keys() & OWN_KEYS)
    content = _own(raw, file, folder, seed) if is_own else _load(os.path.normpath(file))
    if task is not None and is_own:
        raise ValueError(f"{file} says itself how answers are judged: --task does not apply")
    if "registered" in content and "seeds" not in content:
        raise ValueError(
            f"{file} is registered and has one seed: give `seeds`, and a study for each"
        )
    if (seed if "seeds" in content else seeds) is not None:
        one, other = ("--seed", "--seeds") if "seeds" in content else ("--seeds", "--seed")
        raise ValueError(f"{file} takes {other}, not {one}")
    content |= given
    if "study" not in content:
        raise ValueError(f"{file} names no folder: give `study: runs/NAME` there, or --study")
    study = Study(os.path.expanduser(content["study"]))
    if "registered" in content:
        study.registered = os.path.normpath(content["registered"])
    study.texts, study.notes = content.get("files", {}), content.get("notes", [])
    _expand(study, content, file, study.folder, "")
    _give(study, options or {})
    return study


def _own(content: dict, file: str, folder: str | None, seed: int | None) -> dict[str, Any]:
    from delta_transcoders.own_study import expand  # imports what takes a while

    # A judge's class may stand beside the file, here and in the stages.
    beside = os.path.dirname(os.path.abspath(file))
    sys.path.append(beside)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), beside)))
    _check_types({key: content[key] for key in ("study", "seed") if key in content}, file)
    folder = content.get("study", f"runs/{Path(file).stem}") if folder is None else folder
    folder = os.path.expanduser(folder)
    _check_folder(folder)
    seed = content.get("seed", 0) if seed is None else seed
    own = expand(content, Path(file), Path(folder), seed)
    shows = ["delta_transcoders.report.answer ${study}"]
    return {"root": file, "studies": {}, "shows": shows} | own


def _load(file: str, chain: Sequence[str] = ()) -> dict[str, Any]:
    """A file with what it includes; configurations as paths, `root` the file that includes nothing.

    Args:
        chain: the files that include it, the first one first.
    """
    if file in chain:
        raise ValueError(f"{file} includes itself: {' → '.join([*chain, file])}")
    if not Path(find_config(file)).is_file():
        raise FileNotFoundError(f"no study file {file!r}")
    content = read_yaml(find_config(file))
    _check(content, file)
    included = [_beside(file, name) for name in _list(content.pop("include", []))]
    stages, studies = (content.pop(key, None) or {} for key in ("stages", "studies"))
    for stage in stages.values():
        if stage and "config" in stage:
            stage["config"] = _beside(file, stage["config"])
    for inner in studies.values():
        inner["config"] = [_beside(file, name) for name in _list(inner["config"])]
    for told in (content, *studies.values()):
        for key in MORE_CONFIGS:
            if told.get(key):
                told[key] = _beside(file, told[key])
    whole = _together(included, [*chain, file])
    _lay_over(whole["stages"], stages, file, "stages")
    whole["studies"] |= studies
    whole["shows"] += content.pop("shows", [])
    return {"root": file} | whole | content


def _together(files: Sequence[str], chain: Sequence[str] = ()) -> dict[str, Any]:
    """Several files as one study, the first one's where they differ in more than stages."""
    whole: dict[str, Any] = {"stages": {}, "studies": {}, "shows": []}
    for inner in (_load(file, chain) for file in files):
        for key in ("stages", "studies"):
            inner[key] = whole[key] | inner[key]
        inner["shows"] = whole["shows"] + [s for s in inner["shows"] if s not in whole["shows"]]
        whole = inner | whole | {key: inner[key] for key in ("stages", "studies", "shows")}
    return whole


def _lay_over(stages: dict, over: Mapping, file: str, *where: str) -> None:
    """Change stages by what lies over them."""
    for name, stage in over.items():
        if name not in stages and not (stage and "run" in stage):
            hint = nearest(name, stages) if stages else "it lacks `run`"
            raise ValueError(f"{_place(file, *where, name)}: there is no stage {name!r}; {hint}")
        if stage is None:
            del stages[name]
            for other in stages.values():
                other["reads"] = [read for read in other.get("reads", ()) if read != name]
        else:
            old = stages.get(name, {})
            options = old.get("options", {}) | (stage.get("options") or {})
            stages[name] = old | stage | {"options": options}


def _expand(
    study: Study,
    content: dict,
    file: str,
    folder: str,
    prefix: str,
    around: Sequence[Sequence[str]] = (),
) -> None:
    """Add a file's stages, then those of the studies within it.

    Args:
        prefix: of its stages' labels.
        around: the files of the studies that it is within.
    """
    _check_folder(folder)
    for key in MORE_CONFIGS:
        if content.get(key) and not Path(find_config(content[key])).is_file():
            raise FileNotFoundError(f"no {key} file {content[key]!r}")
    seeds = content.get("seeds") or [content.get("seed", 0)]
    names = {"study": folder}
    if "seeds" not in content:
        names["seed"] = str(content.get("seed", 0))
    study.files[folder] = content["root"]
    for name, spec in content["stages"].items():
        if name in content.get("links", ()):
            continue
        label, filled = f"{prefix}{name}", {}
        for key in ("arguments", "reads", "writes"):
            filled[key] = [
                _fill(entry, names | {"seed": str(seed)})
                for entry in spec.get(key, ())
                for seed in (seeds if "${seed}" in entry else seeds[:1])
            ]
        config = spec.get("config", "")
        found = config in study.texts or Path(find_config(config)).is_file()
        if spec["run"] in SCRIPTS and not found:
            raise FileNotFoundError(
                f"{_place(file, 'stages', name, 'config')}: no configuration {config!r}"
            )
        study.stages[label] = Stage(
            name,
            label,
            folder,
            seed=seeds[0] + spec.get("seed_offset", 0),
            run=spec["run"],
            config=config,
            more_configs=[content[key] for key in MORE_CONFIGS if content.get(key)],
            options=_fill(spec.get("options", {}), names),
            takes=spec.get("takes", {}),
            **filled,
        )
    for name, spec in content["studies"].items():
        if spec["config"] in around:
            raise ValueError(
                f"{_place(file, 'studies', name)}: the study {name!r} is within itself, as its config "
                f"{', '.join(spec['config'])} names it again"
            )
        for seed in seeds if "${seed}" in name else [content.get("seed", 0)]:
            inner_name = _fill(name, {"seed": str(seed)})
            inner = _together(spec["config"])
            _lay_over(inner["stages"], spec.get("stages") or {}, file, "studies", name, "stages")
            task = spec.get("task", content.get("task"))
            inner |= {"seed": spec.get("seed", seed), "task": task}
            inner["links"] = spec.get("links", [])
            inside = _fill(spec.get("study", f"{folder}/{inner_name}"), names)
            inside = _fill(inside, {"seed": str(seed)})
            for link in inner["links"]:
                if link not in inner["stages"]:
                    hint = nearest(link, inner["stages"])
                    place = _place(file, "studies", name, "links")
                    raise ValueError(f"{place}: there is no stage {link!r}; {hint}")
                study.links[os.path.join(inside, link)] = os.path.join(folder, link)
            if study.registered and not around:
                study.keeps[inside] = f"{study.registered}/results/{inner_name}"
            within = [*around, spec["config"]]
            _expand(study, inner, spec["config"][0], inside, f"{prefix}{inner_name}/", within)
    study.shows += [[_fill(word, names) for word in show.split()] for show in content["shows"]]


def _give(study: Study, options: Mapping[str, Mapping[str, Any]]) -> None:
    for name, given in options.items():
        wanted = [
            stage
            for stage in study.stages.values()
            if name in (stage.label, stage.name) or (name == "all" and stage.run in SCRIPTS)
        ]
        if not wanted:
            known = dict.fromkeys(s.name for s in study.stages.values())
            raise ValueError(f"--{name}.…: there is no stage {name!r}; {nearest(name, known)}")
        of_base = {o: o.removeprefix("base.").rstrip("+") for o in given if o.startswith("base.")}
        unused = set(of_base)
        for stage in wanted:
            if stage.run not in SCRIPTS:
                raise ValueError(f"--{name}.…: {stage.run} has no options")
            used = used_keys(read_configs(stage, study.texts), stage.options, given)
            not_here = {option for option, key in of_base.items() if key not in used}
            unused &= not_here
            taken = {option: value for option, value in given.items() if option not in not_here}
            study.stages[stage.label] = replace(stage, options={**stage.options, **taken})
        for option in sorted(unused):
            raise ValueError(f"--{name}.{option}: there is {no_use(of_base[option])}")


def _fill(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda found: names.get(found[1], found[0]), value)
    if isinstance(value, Mapping):
        return {key: _fill(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [_fill(part, names) for part in value]
    return value


def _check(content: dict, file: str) -> None:
    """
    Raises:
        ValueError: an unknown key, or one that is missing or of another type.
    """
    _known(content, KEYS, file)
    _check_types(content, file)
    for show in content.get("shows", ()):
        _check_module(show.split()[0], _place(file, "shows"))
    _check_stages(content, file)
    for name, inner in _pairs(content, "studies", file):
        _known(inner, INNER_KEYS, file, "studies", name)
        _check_types(inner, file, "studies", name)
        if "config" not in inner:
            raise ValueError(f"{_place(file, 'studies', name)}: {name!r} lacks `config`")
        _check_stages(inner, file, "studies", name)


def _check_stages(content: dict, file: str, *where: str) -> None:
    for name, stage in _pairs(content, "stages", file, *where):
        if stage is None:
            continue
        place = (*where, "stages", name)
        _known(stage, STAGE_KEYS, file, *place)
        _check_types(stage, file, *place)
        if isinstance(stage.get("config"), list):
            config = _place(file, *place, "config")
            raise ValueError(f"{config}: config is {stage['config']!r}, expected one YAML file")
        if "run" not in stage:  # it lies over another file's
            continue
        is_module = stage["run"].startswith("delta_transcoders.")
        if stage["run"] not in SCRIPTS and not is_module:
            raise ValueError(
                f"{_place(file, *place, 'run')}: run is {stage['run']!r}, expected train, evaluate or a "
                "module as in delta_transcoders.report.html"
            )
        if is_module:
            _check_module(stage["run"], _place(file, *place, "run"))
        needed = "writes" if is_module else "config"
        if needed not in stage:
            raise ValueError(f"{_place(file, *place)}: {name!r} lacks `{needed}`")


def _pairs(content: dict, key: str, file: str, *where: str) -> list[tuple[str, Any]]:
    pairs = content.get(key) or {}
    if not isinstance(pairs, dict):
        raise ValueError(f"{_place(file, *where, key)}: {key} must hold `name: …` pairs")
    for name, value in pairs.items():
        if not _is_text(name):
            place = _place(file, *where, key, name)
            raise ValueError(f"{place}: {name!r} is no name: put it in quotes")
        if not (isinstance(value, dict) or (value is None and key == "stages")):
            place = _place(file, *where, key, name)
            raise ValueError(f"{place}: {name!r} must hold `key: value` pairs")
    return list(pairs.items())


def _check_types(content: Mapping[str, Any], file: str, *where: str) -> None:
    for key, value in content.items():
        is_right, expected = TYPES.get(key, (lambda value: True, ""))
        if not is_right(value):
            place = _place(file, *where, key)
            raise ValueError(f"{place}: {key} is {value!r}, expected {expected}")


def _check_module(name: str, place: str) -> None:
    path = Path(__file__).parents[2].joinpath(*name.split("."))
    if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
        raise ValueError(f"{place}: there is no module {name!r}")


def _check_folder(folder: str) -> None:
    """
    Raises:
        ValueError: a study cannot be in this folder.
    """
    if not folder.strip():
        raise ValueError("the study's folder is empty: give one as in --study runs/mine")
    if "${" in folder or any(unicodedata.category(letter) == "Cc" for letter in folder):
        raise ValueError(f"the study's folder {folder!r} holds '${{' or a control character")
    if Path.cwd().is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f"the study's folder {folder!r} is the working directory, or holds it: give a folder of its own, "
            "as in --study runs/mine"
        )


def _known(keys: Iterable[Any], known: Sequence[str], file: str, *where: str) -> None:
    for key in keys:
        if key not in known:
            raise ValueError(
                f"{_place(file, *where, key)}: unknown key {key!r}; {nearest(key, known)}"
            )


def _place(file: str, *keys: str) -> str:
    """The file, and the line of the innermost of some nested keys that it holds."""
    node, line = yaml.compose(Path(find_config(file)).read_text(encoding="utf-8")), None
    for key in keys:
        found = [pair for pair in getattr(node, "value", ()) if pair[0].value == str(key)]
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return f"{file}, line {line}" if line else file


def _beside(file: str, name: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(file), os.path.expanduser(str(name))))


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [value]
