"""What every command does before and around the slow imports: help, checks, short errors."""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transcoders import console, signals
from delta_transcoders.files import command_line

if TYPE_CHECKING:
    import yaml

USER_ERRORS = (ValueError, OSError)

FOREIGN_ERRORS = {
    "MisconfigurationException": "{}",
    "SafetensorError": "a safetensors file cannot be read or written ({})",
    "UnpicklingError": "the checkpoint cannot be read: not a file that training wrote",
}

CONFIGS = Path(__file__).resolve().parent / "configs"  # in a checkout a link to its `configs/`

_CHECKOUT = Path(__file__).resolve().parent.parent

OPTIONS = (
    ("--study", "DIR", "folder of the study; stages read and write inside it"),
    ("--stage", "NAME", "the stage's name in the logs (default: that of the first --config)"),
    ("--base.KEY", "VALUE", "what a study's base.yaml says, as in --base.model DIR"),
    ("--seed_everything", "N", "seed of data, weights and order"),
    ("--ckpt_path", "FILE", "resume training from a Lightning checkpoint"),
    ("--trainer.KEY", "VALUE", "any option of Lightning's Trainer, as in --trainer.devices 2"),
    ("--model.KEY", "VALUE", "any of the stage's module (--model.help CLASS explains them)"),
    ("--data.KEY", "VALUE", "any of its data (--data.help CLASS explains them)"),
)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known.

    >>> nearest("stagse", ["study", "stages"])
    "did you mean 'stages'?"
    >>> nearest("x", ["study", "stages"])
    'known are study, stages'
    """
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def script_command(name: str) -> list[str]:
    """How a user runs `train`, `evaluate` or `study`: a script of the checkout, or the installed program."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return ["python", os.path.relpath(_CHECKOUT / f"{name}.py")]
    return ["delta-transcoders", name]


def packaged_configs(name: str) -> str:
    """A list of the package's own configurations whose comments say `NAME.py --config FILE`."""
    files = {
        p: f"configs/{p.relative_to(CONFIGS).as_posix()}" for p in sorted(CONFIGS.glob("*/*.yaml"))
    }
    return "\n".join(
        f"  {file}"
        for p, file in files.items()
        if f"{name}.py --config {file}" in p.read_text(encoding="utf-8")
    )


def find_config(path: str) -> str:
    """A file that exists, or else the package's own of this name.

    >>> find_config("mine.yaml"), Path(find_config("configs/tiny/lora.yaml")).is_file()
    ('mine.yaml', True)
    """
    packaged = CONFIGS.parent / path
    is_packaged = Path(path).parts[:1] == ("configs",) and packaged.is_file()
    return str(packaged) if is_packaged and not Path(path).exists() else path


def _with_found_configs(args: Sequence[str]) -> list[str]:
    found: list[str] = []
    for arg in args:
        option, equals, value = arg.partition("=")
        if found and found[-1] in ("--config", "-c"):
            found.append(find_config(arg))
        elif option == "--config" and equals:
            found.append(f"--config={find_config(value)}")
        else:
            found.append(arg)
    return found


def config_files(args: Sequence[str]) -> list[str]:
    """The files that a command line names by `--config`, in their order.

    >>> config_files(["--config", "a.yaml", "--study=x", "--config=b.yaml"])
    ['a.yaml', 'b.yaml']
    """
    return _config_option().parse_known_args(args)[0].config


def defaults_beside(config: str) -> Path:
    """What the stages of a configuration's folder share, where there is such a file."""
    return Path(config).with_name("defaults.yaml")


def _config_option(**kwargs) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=bool(kwargs), **kwargs)
    parser.add_argument(
        *("--config", "-c"),
        metavar="FILE",
        action="append",
        default=[],
        help="a stage's YAML, over the defaults.yaml beside it; give it again to merge a second file over "
        "the first",
    )
    return parser


def preflight(program: str, name: str, summary: str, args: Sequence[str]) -> list[str]:
    """Answer `--help` and refuse an unusable `--config`, in milliseconds.

    Args:
        program: how the user calls it, as in `python train.py`.
        name: train or evaluate.

    Returns:
        The arguments, with the place of every configuration that only the package has.

    Raises:
        SystemExit: after the help.
        FileNotFoundError: no such configuration file.
        ValueError: no configuration given, or not YAML.
    """
    parser = _config_option(
        prog=program,
        usage=f"{program} --config FILE [--KEY VALUE ...]",
        description=summary,
        epilog=f"configurations:\n{packaged_configs(name)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, metavar, text in OPTIONS:
        parser.add_argument(option, metavar=metavar, help=text)
    parser.add_argument(
        "--print_config", nargs="?", help="show the resolved configuration and stop"
    )
    args = _with_found_configs(args)
    files = parser.parse_known_args(args)[0].config
    if not files:
        if any(a.startswith(("--model.help", "--data.help")) for a in args):
            return args
        raise ValueError(f"give a configuration: {program} --config FILE (see --help)")
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"no configuration file {file!r} (see `{program} --help`)")
    defaults = defaults_beside(files[0])
    for file in [defaults, *files] if defaults.is_file() else files:
        read_yaml(file)
    return args


def _check_keys(root: yaml.Node | None, file: str | Path) -> None:
    """
    Raises:
        ValueError: a key is given twice, of which YAML keeps the last.
    """
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        parts = getattr(node, "value", "")
        if isinstance(parts, str) or id(node) in seen:  # aliases may lead round in a circle
            continue
        seen.add(id(node))
        lines: dict[tuple[str, str], int] = {}
        for part in parts:
            if not isinstance(part, tuple):  # of a list
                todo.append(part)
                continue
            todo += part
            key, line = part[0], part[0].start_mark.line + 1
            name = (key.tag, str(key.value))
            if name in lines:
                raise ValueError(
                    f"{file}, line {line}: {key.value!r} is given twice, first in line {lines[name]}"
                )
            lines[name] = line


def read_yaml(file: str | Path) -> dict:
    """What a YAML file of `key: value` pairs holds.

    Raises:
        ValueError: not UTF-8, not YAML, anything but pairs, or a key given twice; names file and line.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(Path(file).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _check_keys(node, file)
        loaded = loader.construct_document(node) if node else None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line}: not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{where}: not YAML ({problem})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} must hold `key: value` pairs")
    return loaded


def set_option(config: dict, option: str, value: Any) -> None:
    """Do what `--option value` does, as in `model.lr`; an option that ends with + appends to a list.

    >>> config = {"model": {"class_path": "a.B", "init_args": {}}, "callbacks": [{"x": 1}]}
    >>> set_option(config, "model.lr", 0.1)
    >>> set_option(config, "callbacks.x", 2)
    >>> set_option(config, "callbacks+", "c.D")
    >>> config["model"]["init_args"], config["callbacks"]
    ({'lr': 0.1}, [{'x': 2}, 'c.D'])
    """
    *path, last = option.removesuffix("+").split(".")
    node = config
    for part in path:
        node = _arguments(node, option).setdefault(part, {})
    node = _arguments(node, option)
    if option.endswith("+"):
        held = node.get(last, [])
        node[last] = [*(held if isinstance(held, list) else [held]), value]
    elif isinstance(value, str) and isinstance(node.get(last), dict):  # another class
        node[last]["class_path"] = value
    else:
        node[last] = value


def _arguments(node: Any, option: str) -> dict:
    """Where an option of a value is set: in its arguments where it is a class, of a list in the last."""
    if isinstance(node, list) and node:
        node = node[-1]
    if not isinstance(node, dict):
        raise ValueError(
            f"--{option}: there is nothing in the configuration that has such an option"
        )
    return node.setdefault("init_args", {}) if "class_path" in node else node


def with_home(argument: str) -> str:
    """An argument with `~` spelt out, also in `--option=~/folder`, which shells leave as it is.

    >>> with_home("--study=~/runs") == f"--study={Path.home()}/runs", with_home("a~/b")
    (True, 'a~/b')
    """
    option, equals, value = (
        argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
    )
    home = os.path.expanduser("~")
    return f"{option}{equals}{home}{value[1:]}" if value[:2] in ("~", "~/") else argument


@functools.cache
def arguments_of(class_path: str) -> tuple[str, ...] | None:
    """What a class takes, read off its source, as an import takes seconds; None where that is not found.

    >>> arguments_of("callbacks.activation_writer.ActivationWriter"), arguments_of("x.Y")
    (('output', 'dtype', 'shard_rows', 'n_targets'), None)
    """
    found = _constructor(class_path)
    if found is None:
        return None
    arguments, more = found
    names = tuple(argument.arg for argument in (*arguments.args[1:], *arguments.kwonlyargs))
    if arguments.kwarg is None:
        return names
    inherited = arguments_of(more)
    return None if inherited is None else names + inherited


def defaults_of(class_path: str) -> dict[str, Any]:
    """Those of a class's arguments that have a plain value by default, read off its source likewise.

    >>> defaults_of("callbacks.activation_writer.ActivationWriter")
    {'dtype': 'float32', 'shard_rows': 16384, 'n_targets': 1}
    """
    found = _constructor(class_path)
    if found is None:
        return {}
    arguments, more = found
    given = dict(zip(arguments.args[::-1], arguments.defaults[::-1], strict=False))
    given |= zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    values = defaults_of(more) if arguments.kwarg else {}
    for argument in (*arguments.args, *arguments.kwonlyargs):
        with contextlib.suppress(ValueError):  # an expression
            if given.get(argument) is not None:
                values[argument.arg] = ast.literal_eval(given[argument])
    return values


@functools.cache
def _constructor(class_path: str) -> tuple[ast.arguments, str] | None:
    """The arguments of a class's `__init__`, its own or inherited, and the class above the one that has it.

    None where that is not found.
    """
    module, _, name = class_path.rpartition(".")
    package, *inside = module.split(".")
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    file = file.parent.joinpath(*inside).with_suffix(".py") if inside else file
    if not file.is_file():
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kind = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if kind is None:
        return None
    imported = {
        a.name: n.module for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    base = ast.unparse(kind.bases[0]) if kind.bases else ""
    above = f"{imported.get(base, module)}.{base}"
    for part in kind.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return part.args, above
    return _constructor(above) if base else None


def run(main: Callable[[], object], *, is_stage: bool = False) -> None:
    """Call `main` as a process of its own.

    Errors in what the user gave become one line and exit status 2. SIGTERM and SIGINT end it with 143 and
    130 and a line that says how to go on.

    Args:
        is_stage: what other libraries say goes to the stage's log file, see `console`.
    """
    sys.argv[1:] = map(with_home, sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(
            errors="backslashreplace"
        )  # a console that is not UTF-8 must not end a run
    signals.install()
    if is_stage:
        console.start()
    try:
        main()
    except signals.Stopped as stopped:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"stopped by {stopped}. {_how_to_go_on(stopped)}", file=sys.stderr)
        raise SystemExit(128 + stopped.signum) from None
    except Exception as error:
        # Other libraries' exceptions are known by name alone: importing them takes seconds.
        theirs = FOREIGN_ERRORS.get(type(error).__name__)
        if os.environ.get("DELTA_TRACEBACK") or not (theirs or isinstance(error, USER_ERRORS)):
            raise
        print(
            f"error: {theirs.format(error) if theirs else error}\n(DELTA_TRACEBACK=1 shows where)",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def _how_to_go_on(stopped: signals.Stopped) -> str:
    args, given = [], iter(sys.argv[1:])
    for arg in given:
        if arg == "--ckpt_path":
            next(given, None)
        elif not arg.startswith("--ckpt_path="):
            args.append(arg)
    if stopped.checkpoint is None:
        return f"It was not finished; run it again: {command_line()}"
    return f"Go on with: {command_line([*args, '--ckpt_path', stopped.checkpoint])}"
