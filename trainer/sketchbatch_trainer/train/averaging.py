"""Averages the weights of runs that began alike and differ by their seed: one model, at no cost when it is served.

Networks that begin with the same trained weights end near one another, and their average has less of the chance that
is in each (model soups, arXiv 2203.05482). Networks that began with nothing have no useful average.
"""

import csv
import shutil
from collections.abc import Sequence

import numpy as np
from sketchbatch_client.atomic import replacing

from ..errors import RunRefused
from ..run import Run
from .training import clear, keep, load, remembered

_ALIKE = ("labels", "source", "data_digest", "recipe", "start_from", "teachers")


def average(members: Sequence[Run], run: Run, *, name: str = "") -> None:
    """Leaves the average of the members in `run`, as if it had been trained; its history is the mean of theirs.

    Raises:
        RunIncomplete: A member has no model.
        RunRefused: The members are fewer than two, or differ by more than their seed, or began with nothing.
    """
    _check(members, run)
    models = [load(member) for member in members]
    first, config = members[0], members[0].read_config()
    config["averaged"] = [remembered(*pair) for pair in zip(members, models, strict=True)]
    config["name"] = name or config["name"]
    clear(run)
    shutil.copytree(first.test, run.test, dirs_exist_ok=True)
    for own, copied in ((first.recognized, run.recognized), (first.calibration, run.calibration)):
        shutil.copyfile(own, copied)
    _write_mean_history(members, run)
    run.write_config(config)
    model = models[0]
    weights = [each.get_weights() for each in models]
    model.set_weights([np.mean(same, axis=0) for same in zip(*weights, strict=True)])
    keep(run, model)


def _check(members: Sequence[Run], run: Run) -> None:
    folders = {member.folder.resolve() for member in members}
    if len(folders) < max(2, len(members)) or run.folder.resolve() in folders:
        raise RunRefused(
            f"expected two or more different runs to average into yet another, got "
            f"{', '.join(str(member.folder) for member in members)} into {run.folder}"
        )
    first = members[0].read_config()
    if "start_from" not in first:
        raise RunRefused(f"{members[0].folder}: it began with nothing (no --start-from); such runs have no average")
    for member in members:
        config = member.read_config()
        differing = [key for key in _ALIKE if config.get(key) != first.get(key)]
        if differing:
            raise RunRefused(
                f"{member.folder}: expected runs that differ by their seed alone; "
                f"it differs from {members[0].folder} in {', '.join(differing)}"
            )


def _write_mean_history(members: Sequence[Run], run: Run) -> None:
    histories = []
    for member in members:
        with member.need(member.history, f"sketchbatch-train train --run {member.folder} ...").open(newline="") as file:
            names, *lines = csv.reader(file)
        histories.append(np.array(lines, np.float64))
    with replacing(run.history) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *np.mean(histories, axis=0).tolist()])
