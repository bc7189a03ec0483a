"""Average the weights of several runs into one model, which costs as much as each of them.

The runs started from the same run with different seeds. Networks that start from the same weights end with similar
weights. The average of these networks varies less with the seed (model soups, arXiv 2203.05482). Networks with
random initial weights have no useful average.
"""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from sketchbatch_client.atomic import replacing

from ..errors import RunRefused
from ..run import Run, RunState
from .recipes import recipe_differences
from .training import load_model, provenance, save_model
from .training_loop import EpochMetrics

# Keys of the config, with the words for messages; the recipe is compared, too.
_EQUAL = {
    "labels": "the classes",
    "hold_out": "--hold-out",
    "source": "the source",
    "data_digest": "the drawings",
    "start_from": "--start-from",
    "teachers": "--teacher",
}


def average(members: Sequence[Run], run: Run, *, name: str = "", restart: bool = False) -> bool:
    """Write the average of `members` to `run` in the form of a trained run; the history is the mean of all histories.

    The mean history ends with the shortest one. If `run` has this average, nothing happens; `restart` discards it.

    Returns:
        Whether the average was computed.

    Raises:
        OutputRefused: The folder of `run` has files of another origin.
        RunIncomplete: A member has no model.
        RunRefused: There are fewer than two members, or members differ by more than the seed, or started from no run;
            or `run` holds another training and `restart` is false, or another process writes to it.
    """
    run.check_folder()
    _check(members, run)
    models = [load_model(member) for member in members]
    first, config = members[0], members[0].read_config()
    config["averaged"] = [provenance(*pair) for pair in zip(members, models, strict=True)]
    config["name"] = name or config["name"]
    with run.locked():
        if run.state_for(config, restart=restart) is RunState.FINISHED:
            return False
        run.begin(config)
        for source, target in ((first.test, run.test), (first.validation, run.validation)):
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
        shutil.copyfile(first.recognized, run.recognized)
        shutil.copyfile(first.calibration, run.calibration)
        if first.training_digests.exists():
            shutil.copyfile(first.training_digests, run.training_digests)
        _write_mean_history(members, run)
        weights = [model.get_weights() for model in models]
        models[0].set_weights([np.mean(arrays, axis=0) for arrays in zip(*weights, strict=True)])
        save_model(run, models[0])
    return True


def _check(members: Sequence[Run], run: Run) -> None:
    folders = {member.folder.resolve() for member in members}
    if len(folders) < max(2, len(members)) or run.folder.resolve() in folders:
        names = ", ".join(str(member.folder) for member in members)
        raise RunRefused(f"runs to average must be two or more different ones, got {names} for {run.folder}")
    first = members[0].read_config()
    if "start_from" not in first:
        raise RunRefused(f"{members[0].folder}: runs without --start-from have no useful average")
    for member in members:
        config = member.read_config()
        different = [words for key, words in _EQUAL.items() if config.get(key) != first.get(key)]
        if values := recipe_differences(config, first):
            different.append(f"the recipe: {', '.join(values)}")
        if different:
            raise RunRefused(
                f"{member.folder}: runs to average must differ by their seed alone; "
                f"{member.folder} and {members[0].folder} differ in {' and '.join(different)}"
            )


def _write_mean_history(members: Sequence[Run], run: Run) -> None:
    histories = [np.genfromtxt(member.need(member.history), delimiter=",", names=True, ndmin=1) for member in members]
    shared = set.intersection(*(set(own.dtype.names or ()) for own in histories))  # older versions wrote fewer columns
    names = [each.name for each in fields(EpochMetrics) if each.name in shared]
    epochs = min(map(len, histories))  # with early stopping, members end after different epochs
    means = [np.mean([own[name][:epochs] for own in histories], axis=0) for name in names]
    with replacing(run.history) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *np.transpose(means).tolist()])
