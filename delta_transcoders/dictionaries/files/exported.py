"""What an export holds, beside its files: `export.json`, and the reader that refuses what does not fit.

Of every layer it says which features are the base's, the delta's and padding, where they read and write,
which base the delta belongs to, and the hash of the dictionary; of all, the finetuned model they explain.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from delta_transcoders.dictionaries.bases import load_base
from delta_transcoders.dictionaries.files import ToolFormat
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HOOK_SITES
from delta_transcoders.files import check_version, read_json, write_json
from delta_transcoders.fingerprints import check_hash
from delta_transcoders.hub import local_folder

CARD_NAME = "export.json"
FORMAT_VERSION = 1

Range = tuple[int, int]
"""First feature, and the one after the last."""


@dataclass(frozen=True)
class LayerCard:
    """One layer's dictionary."""

    path: str
    """Its file or folder in the export."""
    hash: str
    """`Transcoder.fingerprint`: of its tensors as they are stored, under our names and in our orientation."""
    hook_in: str
    hook_out: str
    base_features: Range
    delta_features: Range
    padding_features: Range
    """These never fire and write nothing."""
    base_id: str | None
    """Folder or hub path of the base, which the delta was trained on or is exported with."""
    base_hash: str | None
    delta_hash: str | None
    """None where the layer has no delta."""
    average_l0: int
    """Active features per token, as far as it was measured."""


@dataclass(frozen=True)
class ExportCard:
    """One export: base(x) + alpha · delta(x), or alpha · delta(x) alone, of every layer in it."""

    format: ToolFormat
    alpha: float
    """Contained in the delta's decoder rows."""
    delta_only: bool
    model: str
    model_fingerprint: str
    """Of the finetuned model that the deltas were trained on."""
    hook_site: str
    d_model: int
    layers: dict[int, LayerCard]
    format_version: int = FORMAT_VERSION


def save_card(folder: Path, card: ExportCard) -> None:
    write_json(folder / CARD_NAME, asdict(card))


def load_card(folder: str | Path) -> ExportCard:
    """
    Raises:
        FileNotFoundError: the folder is not an export of ours.
        ValueError: a damaged card, or of another version.
    """
    path = Path(folder) / CARD_NAME
    raw = read_json(path, f"{folder} is not an export")
    remake = "export the study again with `python -m delta_transcoders.export`"
    check_version(path, raw.get("format_version"), FORMAT_VERSION, remake)
    try:
        layers = {int(layer): _layer_card(entry) for layer, entry in raw["layers"].items()}
        return ExportCard(**raw | {"layers": layers})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def load_export(
    folder: str | Path, fingerprint: str | None = None
) -> tuple[ExportCard, dict[int, Transcoder]]:
    """Read an export back: its card, and the dictionaries by layer.

    Args:
        folder: folder or hub id.
        fingerprint: of the model that the dictionaries are wanted for.

    Raises:
        FileNotFoundError, ConnectionError: no such folder, not an export, or a hub id that cannot be had.
        ValueError: exported for another model, or a dictionary is not the one that was exported; names
            the layer and both hashes. See the formats' `load_layer` too.
    """
    folder = local_folder(
        folder, patterns=[CARD_NAME, "config.yaml", "layer_*", "transcoder_all/*"]
    )
    card = load_card(folder)
    if fingerprint is not None:
        problem = f"{folder} was exported for another model"
        check_hash(problem, card.model_fingerprint, "this model", fingerprint)
    dictionaries = {}
    for layer in card.layers:
        dictionaries[layer] = _load_layer(folder, card, layer)
        verify(folder, card, layer, dictionaries[layer])
    return card, dictionaries


def verify(folder: Path, card: ExportCard, layer: int, dictionary: Transcoder) -> None:
    """Refuse a dictionary that is not the one the card describes.

    Raises:
        ValueError: names the layer and both hashes.
    """
    exported = card.layers[layer]
    problem = f"{folder}: {exported.path} is not what was exported"
    check_hash(problem, dictionary.fingerprint(), CARD_NAME, exported.hash)


def _load_layer(folder: Path, card: ExportCard, layer: int) -> Transcoder:
    dictionary, found = load_base(folder, layer, percentile=0.5, d_model=card.d_model)
    exported = card.layers[layer]
    wanted = (exported.hook_in, exported.hook_out)
    hooks = HOOK_SITES[found.hook_site].hook_points(layer) if found.hook_site else wanted
    if hooks != wanted:
        raise ValueError(
            f"{folder}: {exported.path} is for {' -> '.join(hooks)}, but {CARD_NAME} says "
            f"{' -> '.join(wanted)}"
        )
    return dictionary


def _layer_card(entry: dict) -> LayerCard:
    ranges = {name: tuple(entry[f"{name}_features"]) for name in ("base", "delta", "padding")}
    return LayerCard(**entry | {f"{name}_features": r for name, r in ranges.items()})
