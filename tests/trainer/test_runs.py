"""Test which files a training may replace in the folder of a run."""

import json

import pytest
from onnx_models import write_model
from sketchbatch_trainer.errors import OutputRefused, RunIncomplete, RunRefused
from sketchbatch_trainer.run import Run, RunState, Variant, check_model_output

CONFIG = {"labels": ("ant", "bee"), "data_digest": "00", "seed": 0, "versions": {"keras": "3"}, "passed_over": {}}


@pytest.fixture
def run(tmp_path) -> Run:
    """Return a run that has only a config."""
    run = Run(tmp_path / "run")
    run.begin(CONFIG)
    return run


def test_a_run_without_a_checkpoint_is_new(tmp_path, run):
    """A training begins in a new folder, and in a run that ended before its first checkpoint."""
    assert Run(tmp_path / "other").state_for(CONFIG) is RunState.NEW
    assert run.state_for(CONFIG | {"seed": 1}) is RunState.NEW


def test_only_an_equal_training_resumes(run):
    """A checkpoint resumes an equal training with equal package versions; others are refused without `restart`."""
    run.checkpoint.write_bytes(b"")
    assert run.state_for(CONFIG | {"passed_over": {".txt": 1}}) is RunState.INTERRUPTED
    changes = (({"seed": 1, "labels": ["ant"]}, r"classes, seed \(0, now 1\)"), ({"versions": {}}, "package versions"))
    for change, names in changes:
        with pytest.raises(RunRefused, match=f"run: holds an interrupted training with other {names}; keep it and"):
            run.state_for(CONFIG | change)
        assert run.state_for(CONFIG | change, restart=True) is RunState.NEW


def test_a_finished_training_is_kept(run):
    """A model is kept for an equal request, whatever the package versions; another request needs `restart`."""
    run.keras.write_bytes(b"")
    assert run.state_for(CONFIG | {"versions": {}}) is RunState.FINISHED
    for change, names in (({"data_digest": "01"}, "drawings"), ({"start_from": {"name": "a"}}, "--start-from")):
        with pytest.raises(RunRefused, match=f"run: holds a finished training with other {names}; keep it and name"):
            run.state_for(CONFIG | change)
    assert run.state_for(CONFIG, restart=True) is RunState.NEW


def test_other_drawings_are_not_called_another_recipe(run):
    """The number of drawings decides the size of the batches; the message names only what the user has changed."""
    first, second = ({"recipe": {"name": "compact", "max_epochs": 5, "batch_rows": rows}} for rows in (33, 34))
    run.begin(CONFIG | first)
    run.keras.write_bytes(b"")
    with pytest.raises(RunRefused, match="holds a finished training with other drawings; keep it"):
        run.state_for(CONFIG | second | {"data_digest": "01"})
    with pytest.raises(RunRefused, match=r"other recipe, network or epochs \(batch_rows 33, now 34\); keep it"):
        run.state_for(CONFIG | second)


def test_an_exported_model_is_kept_without_its_keras_model(run):
    """A run of which only the exported model is left is trained again for an equal request alone."""
    write_model(run.onnx, metadata={"sketchbatch.config": run.config.read_text()})
    assert run.state_for(CONFIG) is RunState.NEW
    with pytest.raises(RunRefused, match="run: holds a finished training with other drawings; keep it and name"):
        run.state_for(CONFIG | {"data_digest": "01"})


def test_the_exported_model_is_never_absent(run):
    """A new training deletes the results of the old one but no exported model, which a service may load."""
    write_model(run.onnx, metadata={"sketchbatch.config": json.dumps(CONFIG)})
    run.keras.write_bytes(b"")
    run.report.write_bytes(b"")
    assert run.need(run.onnx) == run.onnx
    run.begin(CONFIG | {"seed": 1})
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "model.onnx"]
    assert not run.has_export(Variant.FLOAT32)
    with pytest.raises(RunIncomplete, match=r"model\.onnx is of an earlier training or export; first run: .* export"):
        run.need(run.onnx, "export")


@pytest.mark.parametrize("name", ["model.onnx", "history.csv", "test/ant.npy", "logs/events.1", "drawn/ant.npy"])
def test_a_folder_of_other_files_is_refused(tmp_path, name):
    """A folder without the config of a training is refused if it has a file that a training would replace."""
    run = Run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("by a person")
    with pytest.raises(
        OutputRefused, match=r"expected a new folder or that of a training, got one with .* and no conf"
    ):
        run.check_folder()
    run.config.write_text('{"labels": []}')
    with pytest.raises(OutputRefused, match=r"config\.json: is not the config of a training; name another folder"):
        run.check_folder()
    run.write_config(CONFIG)
    run.check_folder()


def test_a_run_is_a_folder(tmp_path):
    """A file in place of the folder is refused before the drawings are read."""
    (tmp_path / "file").write_text("by a person")
    with pytest.raises(OutputRefused, match="file: expected a folder, got a file; name a folder with --run"):
        Run(tmp_path / "file").check_folder()


def test_a_folder_may_have_files_that_no_training_writes(tmp_path):
    """Files with other names stay, also rendered drawings of a training that ended before it wrote its config."""
    for name in ("notes.txt", "drawings/ant.npy", "drawn/ant.npy", "drawn/SOURCE.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("by a person")
    Run(tmp_path).check_folder([tmp_path / "drawings"])


def test_a_run_is_not_its_own_input(run, tmp_path):
    """The run's folder and the folders of its drawings are no inputs of its training, not even through a link."""
    run.test.mkdir()
    (run.test / "ant.npy").write_bytes(b"")
    (tmp_path / "ant.npy").symlink_to(run.test / "ant.npy")
    for path in (run.folder, run.test, tmp_path / "ant.npy", run.rasterized / "ant.npy"):
        with pytest.raises(OutputRefused, match=r"run: the run must not contain its input .*; name another --run"):
            run.check_folder([path])


def test_an_export_replaces_only_models(tmp_path):
    """A file model.onnx that is no model, or has no labels of this project, is not replaced."""
    model = write_model(tmp_path / "model.onnx")
    check_model_output(model)
    model.write_text("by a person")
    with pytest.raises(OutputRefused, match="expected an exported model, got another file; remove it"):
        check_model_output(model)
