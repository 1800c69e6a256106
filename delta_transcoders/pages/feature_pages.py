"""A study's features as pages: `python -m delta_transcoders.pages.feature_pages STUDY [--no-contexts]`.

Reads `STUDY/features` and writes `STUDY/report/features.html`, which needs no network. Small studies are in
that file whole; of larger ones the features lie in scripts beside it, in `STUDY/report/features/`, which the
page loads as they are looked at.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transcoders.command import run
from delta_transcoders.features.feature import Feature
from delta_transcoders.files import replace_folder, write_text
from delta_transcoders.pages.encoding import block, json_text
from delta_transcoders.pages.index import Index
from delta_transcoders.pages.templates import page_environment

if TYPE_CHECKING:
    from delta_transcoders.features.files import FeatureSet

PER_BLOCK = 32
"""Features of one script."""
MOST_INSIDE = 160
"""Features that are put into the page itself, where they share texts: 128 on six subsets take 3.5 MB."""


def write_pages(
    features: Iterable[Feature],
    report: Path,
    study: str,
    about: Sequence[str] = (),
    n_layers: int | None = None,
    with_contexts: bool = True,
) -> Path:
    """Write `features.html` and, of many features, `features/N.js`; few features are held at a time.

    Args:
        features: by layer and number.
        report: the folder to write into.
        study: the study's folder, as titles and commands name it.
        about: sentences on what is shown and where it is from.
        n_layers: of the model; those of the features if None.
        with_contexts: show texts of the study's data. Without them its tokens are still named.

    Returns:
        The page.
    """
    index, scripts = Index(), report / "features"

    def script(number: int, some: Sequence[Feature]) -> str:
        for feature in some:
            index.add(feature)
        return f"register({number}, {json_text(block(some, study, with_contexts))});\n"

    features = iter(features)
    first, inside = list(itertools.islice(features, MOST_INSIDE + 1)), None
    if len(first) <= MOST_INSIDE:
        inside = script(0, first)
        shutil.rmtree(scripts, ignore_errors=True)  # of an earlier page
    else:
        with replace_folder(scripts) as folder:
            for number, some in enumerate(_batches(itertools.chain(first, features))):
                write_text(folder / f"{number}.js", script(number, some))
    data = index.value() | {
        "study": study,
        "perBlock": PER_BLOCK if inside is None else MOST_INSIDE,
        "nLayers": n_layers,
        "hasContexts": with_contexts,
    }
    page = page_environment().get_template("features.html.j2")
    path = report / "features.html"
    write_text(
        path,
        page.render(study=study, about=about, data=json_text(data), inside=inside),
    )
    return path


def _batches(features: Iterable[Feature]) -> Iterator[list[Feature]]:
    features = iter(features)
    while batch := list(itertools.islice(features, PER_BLOCK)):
        yield batch


def about_lines(features: FeatureSet) -> list[str]:
    """What is shown, from which run."""
    info: dict[str, Any] = features.info
    layers = f"{len(features.layers)} layer{'s' * (len(features.layers) > 1)}"
    seed, model = info.get("seed"), info.get("model_fingerprint")
    origin = [f"seed {seed}"] if seed is not None else []
    origin += [f"model {model[:12]}"] if model else []
    of_run = f" ({', '.join(origin)})" if origin else ""
    read = ", ".join(
        f"{s['name']} ({s['n_examples']:,} texts, {s['n_tokens']:,} tokens)"
        for s in info["subsets"]
    )
    lines = [
        f"{len(features):,} features in {layers} of the delta {info.get('delta')}{of_run}.",
        f"Activations are those of the finetuned model's own run, read on {read}.",
    ]
    if features.rankings:
        folders = " and ".join(map(str, features.rankings))
        lines.append(f"What removing features does was measured in {folders}.")
    n, n_places = (info.get("together", {}).get(k, 0) for k in ("n_looked_at", "n_places"))
    if n < n_places:
        lines.append(
            f"Which features fire together was counted on {n:,} of {n_places:,} tokens, drawn at random."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study, for example runs/tiny")
    parser.add_argument(
        "--no-contexts",
        action="store_true",
        help="leave out the texts on which features fire, which may be private; single tokens stay",
    )
    args = parser.parse_args()
    from delta_transcoders.features.files import read_features  # torch takes seconds to import

    features = read_features(args.study / "features")
    path = write_pages(
        features,
        args.study / "report",
        str(args.study),
        about_lines(features),
        features.info.get("n_layers"),
        with_contexts=not args.no_contexts,
    )
    print(f"features: {path}")


if __name__ == "__main__":
    run(main)
