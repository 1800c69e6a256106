"""How to load what a model card describes: code that runs once its names in capitals are filled in."""

from __future__ import annotations

from string import Template

from delta_transcoders.dictionaries.files import Format
from delta_transcoders.hub import is_hub_id, portable_name
from delta_transcoders.report.card_tables import Study

LAST_LINES = """inputs = tokenizer("What is 12 * 34?\\n", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]))"""

MODEL = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("$repository")
model = AutoModelForCausalLM.from_pretrained("$repository", attn_implementation="eager")
{LAST_LINES}"""

ADAPTER = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("$base_model")
base = AutoModelForCausalLM.from_pretrained("$base_model", attn_implementation="eager")
model = PeftModel.from_pretrained(base, "$repository")
{LAST_LINES}"""

DELTAS = """from delta_transcoders.activations.capture import boot_bridge
from delta_transcoders.interventions.attachment import attached
from delta_transcoders.interventions.loading import load_delta_set
from delta_transcoders.language_models import load_model, load_tokenizer

finetuned = "FINETUNED_MODEL"  # hub id or folder, the adapter merged
bridge = boot_bridge(load_model(finetuned, "$dtype"), load_tokenizer(finetuned))
deltas = load_delta_set("$repository", "$bases", bridge.original_model)
with attached(bridge, deltas, "full"):  # or "no_delta", "alpha_0.5", …
    print(bridge.generate("What is 12 * 34?\\n", max_new_tokens=40, do_sample=False))"""

BASE_TRANSCODERS = """from delta_transcoders.dictionaries.files.gemma_scope import load_base

base, base_id = load_base("$repository", 0, percentile=0.5)
print(base_id.path, base.n_features)  # y = base(x), a = base.encode(x)"""

GEMMA_SCOPE = """from delta_transcoders.dictionaries.files.exported import load_export

card, dictionaries = load_export("$repository")
for layer, dictionary in dictionaries.items():  # y = dictionary(x), a = dictionary.encode(x)
    print(layer, dictionary.n_features, card.layers[layer].delta_features)"""

SAELENS = """from huggingface_hub import snapshot_download
from sae_lens import SAE

folder = snapshot_download("$repository")
sae = SAE.load_from_disk(f"{folder}/layer_$layer")  # y = sae.decode(sae.encode(x))"""

CIRCUIT_TRACER = """from circuit_tracer import ReplacementModel, attribute
from huggingface_hub import snapshot_download

folder = snapshot_download("$repository")
model = ReplacementModel.from_pretrained(f"{folder}/model", folder, backend="nnsight")
graph = attribute("What is 12 * 34?\\n", model)"""

CODE: dict[Format, str] = {
    "adapter": ADAPTER,
    "merged": MODEL,
    "base_model": MODEL,
    "deltas": DELTAS,
    "base_transcoders": BASE_TRANSCODERS,
    "gemma_scope": GEMMA_SCOPE,
    "saelens": SAELENS,
    "circuit_tracer": CIRCUIT_TRACER,
}
NOTES = {
    "gemma_scope": "Other readers of Gemma Scope's `params.npz` take the files as they are.",
    "saelens": "Tried with SAELens 6.54. `delta_transcoders.dictionaries.files.exported.load_export` reads "
    "it too.",
    "circuit_tracer": "Tried with circuit-tracer 0.5 and nnsight 0.7, with transformers 4.57. "
    "`delta_transcoders.dictionaries.files.exported.load_export` reads the dictionaries too.",
}


def how_to_load(format: Format, study: Study, repository: str) -> str:
    """
    Args:
        repository: hub id or folder of what the card describes.
    """
    values = {
        "repository": repository,
        "base_model": study.base or "FOLDER_OF_THE_BASE_MODEL",
    }
    code = CODE[format]
    if format in ("deltas", "saelens"):
        first = study.deltas[0]
        values["layer"] = first["layer"]
        values["dtype"] = study.dtype or "FLOAT32_OR_BFLOAT16"
        source = portable_name(first["base_id"]).partition("/layer_")[0]
        values["bases"] = source if is_hub_id(source) else "FOLDER_OF_THE_BASE_DICTIONARIES"
        if first["target"] == "mlp_difference":
            values["bases"] = ""  # there are none
            code = code.replace("import load_delta_set", "import load_delta_set, load_mlps")
            base_mlps = 'lambda: load_mlps("$base_model", "$dtype")'
            code = code.replace("original_model)", f"original_model, {base_mlps})")
    note = f"\n\n{NOTES[format]}" if format in NOTES else ""
    return f"## How to load\n\n```python\n{Template(code).substitute(values)}\n```{note}"
