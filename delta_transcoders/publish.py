"""A study's adapter, merged model or deltas as a folder to share, and its way to the Hugging Face hub.

    python -m delta_transcoders.publish --run runs/tiny --what deltas --out shared/deltas
    python -m delta_transcoders.publish --run runs/tiny --what deltas --out shared/deltas \\
        --push-to-hub USER/NAME --private

The folder holds the files and a model card; without `--push-to-hub` nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import get_args

from delta_transcoders.command import run as run_command
from delta_transcoders.files import replace_folder, write_text
from delta_transcoders.report.model_card import (
    What,
    base_model_id,
    local_name,
    model_card,
    read_json,
)

CARD = "README.md"
MARK = "<!-- written by delta_transcoders.publish -->"
FILES = {
    "adapter": ("finetune/adapter", ("adapter_config.json", "adapter_model.safetensors")),
    "merged": ("finetune/merged", ("config.json", "tokenizer.json", "*.safetensors")),
    "deltas": ("delta", ("layer_*/config.json", "layer_*/delta.safetensors")),
}
STAGE = {
    "adapter": ("train.py", "lora"),
    "merged": ("train.py", "lora"),
    "deltas": ("train.py", "delta"),
}


def check_stages(run: Path, what: What) -> None:
    """Refuse a study that lacks what is to be published.

    Raises:
        FileNotFoundError: names what is missing and the command that writes it.
    """
    if not run.is_dir():
        raise FileNotFoundError(
            f"no study folder {str(run)!r}; give the folder that `make demo` writes"
        )
    for needed in ("adapter", what):  # the adapter says what was finetuned, and how
        folder, patterns = FILES[needed]
        for pattern in patterns:
            if not any((run / folder).glob(pattern)):
                script, config = STAGE[needed]
                raise FileNotFoundError(
                    f"{run / folder} has no {pattern}: run `python {script} --config "
                    f"configs/STUDY/{config}.yaml --study {run}` first (STUDY: tiny or gemma2_2b)"
                )


def write_folder(
    run: str | Path, what: What, out: str | Path, base_model: str | None = None
) -> None:
    """Write the files and the card that a hub repository is to hold.

    Names of local folders are shortened to their last part: they say nothing elsewhere.

    Args:
        out: takes the place of an earlier folder of this function's, never of another.
        base_model: hub id of the model that was finetuned, where the study used a local copy.

    Raises:
        FileNotFoundError: a stage is missing, see `check_stages`.
        FileExistsError: `out` holds something else.
        ValueError: deltas that do not belong together, or a base model that is no hub id.
    """
    run, out = Path(run), Path(out)
    check_stages(run, what)
    if base_model is not None and base_model_id(run, base_model) is None:
        raise ValueError(f"--base-model {base_model!r} is not a hub id (owner/name)")
    card = out / CARD
    if (
        out.exists()
        and any(out.iterdir())
        and not (card.is_file() and MARK in card.read_text("utf-8"))
    ):
        raise FileExistsError(f"{out} holds something else; give another folder or empty it")
    text = model_card(run, what, base_model)
    with replace_folder(out) as folder:
        {"adapter": _write_adapter, "merged": _write_merged, "deltas": _write_deltas}[what](
            run, folder, base_model_id(run, base_model)
        )
        write_text(folder / CARD, f"{text}\n{MARK}\n")


def _write_adapter(run: Path, folder: Path, base: str | None) -> None:
    source = run / "finetune/adapter"
    config = read_json(source / "adapter_config.json")
    config["base_model_name_or_path"] = base or local_name(config["base_model_name_or_path"])
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    shutil.copy(source / "adapter_model.safetensors", folder)


def _write_merged(run: Path, folder: Path, base: str | None) -> None:
    for pattern in ("*.json", "*.safetensors", "*.jinja", "tokenizer.model"):
        for path in (run / "finetune/merged").glob(pattern):
            shutil.copy(path, folder)


def _write_deltas(run: Path, folder: Path, base: str | None) -> None:
    from delta_transcoders.interventions.loading import load_deltas
    from delta_transcoders.transcoders.delta import save_delta

    for layer, (_, delta, config) in load_deltas(run / "delta").items():
        shared = dataclasses.replace(config, base_id=local_name(config.base_id))
        save_delta(folder / f"layer_{layer}", delta, shared)


def check_push(repo_id: str) -> None:
    """Refuse a push that cannot succeed, before anything is written or sent.

    Raises:
        ValueError: not `owner/name` as the hub allows it, or no token on this machine.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not re.fullmatch(r"[^/]+/[^/]+", repo_id):
        raise ValueError(f"--push-to-hub {repo_id!r}: a hub id is USER/NAME, with one slash")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--push-to-hub {repo_id!r}: {error}") from error
    if get_token() is None:
        raise ValueError(
            "no Hugging Face token here: run `hf auth login` with a token that may write, or set HF_TOKEN"
        )


def push_folder(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Upload a folder as one commit to a model repository, made where there is none; its address.

    Layers (`layer_*`) that the repository holds and the folder does not are deleted from it.

    Raises:
        ValueError: see `check_push`; or a private push into a repository that is public.
        ConnectionError: the hub refuses or cannot be reached; says what it said.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    check_push(repo_id)
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        # An existing repository keeps its visibility, whatever was asked for.
        if private and not api.repo_info(repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public; make it private in its settings, give another name, "
                "or leave out --private"
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Upload {Path(folder).name}",
            delete_patterns=["layer_*"],  # of an earlier upload: they must not stand among these
        )
    except (OSError, HTTPError) as error:
        said = str(error).strip().splitlines()
        raise ConnectionError(
            f"the hub did not take {folder} as {repo_id}: {said[-1] if said else type(error).__name__}; it "
            f"needs a network and a token that may write to {repo_id.split('/')[0]} (`hf auth whoami`)"
        ) from error
    return str(url)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="the study's folder, runs/tiny")
    parser.add_argument("--what", choices=get_args(What), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="also upload it there")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--base-model",
        metavar="ID",
        help="the base model's hub id, where the study used a local copy",
    )
    args = parser.parse_args()
    if args.private and not args.push_to_hub:
        raise ValueError("--private goes with --push-to-hub USER/NAME")
    if args.push_to_hub:
        check_push(args.push_to_hub)
    write_folder(args.run, args.what, args.out, args.base_model)
    print(f"written: {args.out} (its card: {args.out / CARD})")
    if args.push_to_hub:
        print(f"pushed: {push_folder(args.out, args.push_to_hub, args.private)}")


if __name__ == "__main__":
    run_command(main)
