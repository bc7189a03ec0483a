"""Restrict a trained run to some of its classes: drop the outputs of the other classes.

A network that learned bears, cats and dogs together with similar animals tells the three apart better than one that
learned only the three. The other animals are no longer needed when the network serves.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from sketchbatch_client.atomic import replacing
from sketchbatch_client.drawings.folders import source_of
from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_client.label_names import nfc, with_suggestions

from ..dataset import write_bitmaps, write_source
from ..errors import RunRefused
from ..run import Run, RunState
from ..train.networks import build, copy_weights
from ..train.recipes import network_from
from ..train.training import load_model, model_name, provenance, save_model
from .out_of_fold import OutOfFold, read_out_of_fold, write_out_of_fold


def restrict(source: Run, run: Run, labels: Sequence[str], *, name: str = "", restart: bool = False) -> bool:
    """Write the network of `source` with the outputs of `labels` alone to `run`, in the form of a trained run.

    The weights of the other layers, the scores relative to each other, the history and the digests of the training
    drawings stay. Held-out drawings and the cross-validation keep the drawings of `labels`. If `run` has this network,
    only these drawings are copied, because `source` may have been cross-validated since; `restart` discards it.

    Returns:
        Whether the network was written.

    Raises:
        OutputRefused: The folder of `run` has files of another origin.
        RunIncomplete: `source` has no model.
        RunRefused: `labels` are fewer than two, or not labels of `source`, or all of them; or `run` is `source`, or
            holds another training and `restart` is false, or another process writes to it.
    """
    run.check_folder()
    config, model = source.read_config(), load_model(source)
    columns = _columns(source, run, labels, config["labels"])
    chosen = [config["labels"][column] for column in columns]
    config["restricted_from"] = provenance(source, model) | {"labels": config["labels"]}
    config["labels"], config["name"] = chosen, model_name(name, chosen, config["source"])
    with run.locked():
        is_finished = run.state_for(config, restart=restart) is RunState.FINISHED
        if not is_finished:
            run.begin(config)
            for own, copy in (
                (source.history, run.history),
                (source.calibration, run.calibration),
                (source.training_digests, run.training_digests),
            ):
                if own.exists():
                    copy.write_bytes(own.read_bytes())
        config["rows"]["test"] = _copy_drawings(source.test, run.test, chosen) if config["rows"]["test"] else 0
        config["rows"]["validation"] = _copy_drawings(source.validation, run.validation, chosen)
        if found := read_out_of_fold(source):
            _copy_drawings(source.test, run.test, chosen)
            write_out_of_fold(run, _restricted(found, columns))
        _copy_flags(source.recognized, run.recognized, chosen)
        if not is_finished:
            run.write_config(config)
            save_model(run, _with_columns(model, config["recipe"]["network"], columns))
    return not is_finished


def _columns(source: Run, run: Run, labels: Sequence[str], known: list[str]) -> list[int]:
    """Return the index of each label among the known ones, after checking the request."""
    if run.folder.resolve() == source.folder.resolve():
        raise RunRefused(f"{run.folder}: a run cannot be restricted in place; name another folder with --run")
    names = list(dict.fromkeys(map(nfc, labels)))
    if missing := [label for label in names if label not in known]:
        raise RunRefused(f"{source.folder}: has no class {with_suggestions(missing, known)}; it has {', '.join(known)}")
    if not 2 <= len(names) < len(known):
        raise RunRefused(f"{source.folder}: expected some of its {len(known)} classes, two or more, got {len(names)}")
    return [known.index(label) for label in names]


def _copy_drawings(folder: Path, target: Path, labels: Sequence[str]) -> int:
    """Copy the drawings of `labels`, if the folder has any, and return their number."""
    if not any(folder.glob("*.npy")):
        return 0
    bitmaps = {label: read_bitmaps(folder / f"{label}.npy")[:] for label in labels}
    for label, own in bitmaps.items():
        write_bitmaps(target / f"{label}.npy", own)
    write_source(target, source_of(folder))
    return sum(map(len, bitmaps.values()))


def _copy_flags(path: Path, target: Path, labels: Sequence[str]) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    with replacing(target) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *(line for line in lines if line[0] in labels)])


def _restricted(found: OutOfFold, columns: Sequence[int]) -> OutOfFold:
    """Return the logits of the classes `columns`, for their own drawings and for those of unknown classes."""
    rows = np.concatenate([np.flatnonzero(found.class_index == column) for column in columns])
    return OutOfFold(
        logits=found.logits[rows][:, columns],
        class_index=np.repeat(
            np.arange(len(columns), dtype=np.int32), [(found.class_index == column).sum() for column in columns]
        ),
        fold=found.fold[rows],
        unknown=found.unknown[:, columns],
        unknown_fold=found.unknown_fold,
    )


def _with_columns(model: keras.Model, network: dict[str, object], columns: Sequence[int]) -> keras.Model:
    restricted = build(network_from(network), len(columns), like=model)
    copy_weights(model, restricted, columns)
    return restricted
