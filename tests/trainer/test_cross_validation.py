"""Test trainings on all drawings, the folds that judge them, and the temperature of exported scores."""

import csv
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from eager_tensorflow import without_graphs
from sketchbatch_client.evaluation.stats import rejection
from sketchbatch_client.evaluation.stats.calibration import calibrate
from sketchbatch_client.evaluation.training_digests import digest_each
from sketchbatch_trainer.dataset import DatasetRequest, read_dataset, write_bitmaps, write_source
from sketchbatch_trainer.errors import DrawingsRefused, RunIncomplete, RunRefused
from sketchbatch_trainer.export.held_out import onnx_scores
from sketchbatch_trainer.export.temperature import LEAST_ROWS, fit, softmax
from sketchbatch_trainer.hold_out import TEST, TRAIN, VALIDATION, HoldOut
from sketchbatch_trainer.run import Run, Variant, exported_properties
from sketchbatch_trainer.synthetic import LABELS, SOURCE, draw
from sketchbatch_trainer.train.recipes import ARTICLE, COMPACT, FINETUNE, fit_rows, recipe_differences, with_network
from typer.testing import CliRunner

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow itself takes 10 s to import on two cores
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]

TINY = replace(
    COMPACT,
    network=replace(COMPACT.network, stem_filters=4, stage_filters=(8,), head_units=16),
    max_epochs=2,
)
FOLDS = ("1/2", "2/2")


@pytest.fixture(scope="module")
def data(tmp_path_factory, module_noise):
    """Write a folder with synthetic sketches of three classes, and noise as a fourth class."""
    folder = tmp_path_factory.mktemp("drawings")
    for rows, label in ((60, "bear"), (120, "cat"), (90, "dog")):
        write_bitmaps(folder / f"{label}.npy", draw(label, rows, seed=0))
    write_bitmaps(folder / "rain.npy", np.minimum(module_noise(50), 100))
    write_source(folder, SOURCE)
    return folder


@pytest.fixture(scope="module")
def module_noise():
    """Return a function that returns random bitmaps, uint8 (rows, 28, 28)."""
    random = np.random.default_rng(7)
    return lambda rows: random.integers(0, 256, (rows, 28, 28), np.uint8)


class Silent:
    """Receive the progress of a training and print nothing."""

    def on_start(self, *_):
        """Ignore the call."""

    on_step = on_epoch = on_start


def train(data, folder, hold_out, recipe=TINY, epochs=None) -> Run:
    """Train the small network with one division of the drawings; return the run.

    With `epochs`, the batches are fitted to the number of drawings, as the command `train` does.
    """
    from sketchbatch_trainer.train.training import TrainingRequest
    from sketchbatch_trainer.train.training import train as train_model

    request = DatasetRequest(folder=data, labels=LABELS, hold_out=HoldOut.parse(hold_out), needs_validation=False)
    run, dataset = Run(folder), read_dataset(request)
    if epochs is not None:
        recipe = replace(fit_rows(recipe, len(dataset.train)), max_epochs=epochs)
    with without_graphs():
        train_model(TrainingRequest(dataset=dataset, recipe=recipe, seed=0), run, Silent())
    return run


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Run]:
    """Train on all drawings and on each of two folds."""
    folder = tmp_path_factory.mktemp("runs")
    made = {name: train(data, folder / name.replace("/", "-"), name) for name in ("none", *FOLDS)}
    for name in FOLDS:  # the digest stands for the flag of a drawing, so that a test recognises it
        with made[name].recognized.open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["label", "row", "is_recognized"])
            for label in LABELS:
                digests = digest_each(np.load(made[name].test / f"{label}.npy").reshape(-1, 28, 28))
                lines.writerows((label, row, digest % 2) for row, digest in enumerate(digests.tolist()) if digest % 3)
    return made


@pytest.fixture(scope="module")
def judged(runs, data) -> Run:
    """Return the run on all drawings after its cross-validation, exported."""
    from sketchbatch_trainer.export.exporting import export
    from sketchbatch_trainer.export.out_of_fold import cross_validate

    run = runs["none"]
    write_source(run.test, SOURCE)  # as a discarded cross-validation leaves it
    with pytest.raises(RunIncomplete, match=r"all drawings trained, .* --hold-out 1/5 to 5/5, then run: .*"):
        export(run)
    cross_validate([runs[name] for name in reversed(FOLDS)], run, data)
    export(run)
    return run


def metrics_of(run: Run) -> dict:
    """Return the metrics in the model file of a run."""
    properties = {each.key: each.value for each in onnx.load(run.onnx).metadata_props}
    return json.loads(properties["sketchbatch.metrics"])


@pytest.mark.parametrize("text", ["", "0/5", "6/5", "1/1", "1/11", "1", "a/5", "-1/5", "1/5/5", "Test", "1.5/5"])
def test_other_divisions_are_refused(text):
    """The message names the divisions that exist."""
    with pytest.raises(ValueError, match=r"must be test, none, or one of 2 to 10 folds, such as 2/5; got"):
        HoldOut.parse(text)


@pytest.mark.parametrize(
    ("recipe", "hold_out", "message"),
    [
        ("compact", "6/5", "must be test, none, or one of 2 to 10 folds, such as 2/5; got '6/5'"),
        ("article", "none", "recipe article stops early, which needs drawings for validation; choose another recipe"),
    ],
)
def test_the_command_explains_a_division_that_it_cannot_use(data, tmp_path, recipe, hold_out, message):
    """The command ends before it reads drawings, and creates no run."""
    from sketchbatch_trainer.cli import app

    words = ["train", "--data", str(data), "--run", str(tmp_path / "run"), "--recipe", recipe, "--hold-out", hold_out]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["test", "none", "2/5", "10/10"])
def test_a_division_has_one_text(text):
    """The config of a run states the division in the form that the command accepts."""
    assert str(HoldOut.parse(text)) == text


@pytest.mark.parametrize("folds", range(2, 11))
def test_each_drawing_is_held_out_by_one_fold(folds, noise):
    """The folds are disjoint, complete and of about the same size, and have drawings for validation only if needed."""
    digests = digest_each(noise(2000))
    splits = np.array([HoldOut(fold + 1, folds).assign(digests, needs_validation=False) for fold in range(folds)])
    assert ((splits == TEST).sum(axis=0) == 1).all()
    assert set(np.unique(splits)) == {TRAIN, TEST}
    assert ((splits == TEST).sum(axis=1) > 2000 / folds * 0.7).all()


def test_a_fold_of_a_recipe_with_early_stopping_has_drawings_for_validation(noise):
    """A tenth of the drawings outside the fold selects the epoch, so the fold itself selects nothing."""
    digests = digest_each(noise(2000))
    with_validation, without = (
        HoldOut(2, 5).assign(digests, needs_validation=needs_validation) for needs_validation in (True, False)
    )
    assert ((with_validation == TEST) == (without == TEST)).all()
    share = (with_validation == VALIDATION).sum() / (without == TRAIN).sum()
    assert 0.07 < share < 0.13


def test_a_class_without_drawings_in_a_fold_is_refused(tmp_path, noise):
    """Two drawings cannot be in ten folds."""
    write_bitmaps(tmp_path / "ant.npy", noise(2))
    write_bitmaps(tmp_path / "bee.npy", noise(200)[2:])
    for fold in range(1, 11):
        request = DatasetRequest(
            folder=tmp_path, labels=("ant", "bee"), hold_out=HoldOut(fold, 10), needs_validation=False
        )
        if not (digest_each(noise(2)) % 100 // 10 == fold - 1).any():
            with pytest.raises(
                DrawingsRefused, match=rf"every split of fold {fold}/10, got 2 drawings in all; use fewer"
            ):
                read_dataset(request)


def test_a_training_without_a_hold_out_has_all_drawings(runs):
    """The config states that all drawings trained, and the history has no metrics of other drawings."""
    config = runs["none"].read_config()
    assert config["hold_out"] == "none"
    assert config["rows"] == {"train": 270, "validation": 0, "test": 0}
    with runs["none"].history.open() as file:
        last = list(csv.DictReader(file))[-1]
    assert {last[name] for name in ("val_loss", "val_accuracy", "test_loss", "test_accuracy")} == {"nan"}
    assert float(last["loss"]) > 0


def test_a_drawing_is_scored_by_the_fold_that_held_it_out(runs, judged, data):
    """The test folder has every drawing once; the logits of a drawing are those of its fold."""
    from sketchbatch_trainer.export.out_of_fold import read_out_of_fold
    from sketchbatch_trainer.train.networks import with_logits
    from sketchbatch_trainer.train.training import load_model

    found = read_out_of_fold(judged)
    assert found.folds == 2
    assert np.bincount(found.class_index).tolist() == [60, 120, 90]
    networks = [with_logits(load_model(runs[name])) for name in FOLDS]
    start = 0
    for label in LABELS:
        bitmaps = np.load(judged.test / f"{label}.npy").reshape(-1, 28, 28)
        original = np.load(data / f"{label}.npy").reshape(-1, 28, 28)
        assert sorted(digest_each(bitmaps)) == sorted(digest_each(original))
        own = slice(start, start := start + len(bitmaps))
        expected = np.stack([network.predict(bitmaps, verbose=0) for network in networks])
        fold = (digest_each(bitmaps) % 100 >= 50).astype(int)
        assert (found.fold[own] == fold).all()
        assert np.allclose(found.logits[own], expected[fold, np.arange(len(bitmaps))], atol=1e-5)
    assert len(found.unknown) == 50
    rain = digest_each(np.load(data / "rain.npy").reshape(-1, 28, 28))
    assert np.bincount(found.unknown_fold).tolist() == np.bincount((rain % 100 >= 50).astype(int)).tolist()


def test_the_model_file_states_the_metrics_of_the_cross_validation(judged):
    """Each metric is that of the scores of the folds, not that of the network which trained on the drawings."""
    from sketchbatch_trainer.export.out_of_fold import read_out_of_fold

    found, metrics = read_out_of_fold(judged), metrics_of(judged)
    is_right = found.logits.argmax(axis=1) == found.class_index
    assert metrics["accuracy"] == pytest.approx(is_right.mean())
    assert metrics["balanced_accuracy"] == pytest.approx(
        np.mean([is_right[found.class_index == index].mean() for index in range(3)])
    )
    assert (metrics["rows"], metrics["folds"]) == (270, 2)
    assert metrics["temperature"] == pytest.approx(fit(found.logits, found.class_index))
    known = found.scores()[0]
    for fold in (0, 1):
        is_own = found.fold == fold
        other = fit(found.logits[~is_own], found.class_index[~is_own], least_rows=1)
        assert np.allclose(known[is_own], softmax(found.logits[is_own] / other), atol=1e-6)
    assert metrics["calibration_error"] == pytest.approx(calibrate(known, found.class_index).expected_error)


def test_the_model_file_has_thresholds_for_other_classes(judged):
    """The thresholds come from the scores of the folds for drawings of the labels and of the class rain."""
    from sketchbatch_trainer.export.out_of_fold import read_out_of_fold

    found = read_out_of_fold(judged)
    known, unknown = (scores.max(axis=1) for scores in found.scores())
    properties = {each.key: each.value for each in onnx.load(judged.onnx).metadata_props}
    stored = rejection.decode(properties[rejection.KEY])
    assert (stored.rows, stored.unknown_rows) == (270, 50)
    assert stored.auroc == pytest.approx(rejection.auroc(known, unknown))
    half = stored.at(0.5)
    assert (known >= half.score).mean() == pytest.approx(0.5, abs=0.02)
    assert half.unknown_rejected == pytest.approx((unknown < half.score).mean())
    is_right = found.logits.argmax(axis=1) == found.class_index
    assert half.accuracy == pytest.approx(is_right[known >= half.score].mean())


def test_the_exported_scores_are_those_of_the_keras_model_with_the_temperature(judged):
    """Dividing the last layer changes the scores and no label."""
    from sketchbatch_trainer.train.networks import with_logits
    from sketchbatch_trainer.train.training import load_model

    bitmaps = np.load(judged.test / "cat.npy").reshape(-1, 28, 28)
    logits = with_logits(load_model(judged)).predict(bitmaps, verbose=0)
    scores = onnx_scores(onnx.load(judged.onnx), bitmaps)
    temperature = metrics_of(judged)["temperature"]
    assert temperature != 1
    assert np.allclose(scores, softmax(logits / temperature), atol=1e-5)


def test_the_command_prints_the_metrics_and_the_next_command(runs, judged, data, tmp_path):
    """The printed figures are those that the export stores in the file."""
    from sketchbatch_trainer.cli import app

    run = shutil.copytree(runs["none"].folder, tmp_path / "my run")
    folds = [word for name in FOLDS for word in ("--of", str(runs[name].folder))]
    done = CliRunner().invoke(app, ["cross-validate", "--run", str(run), *folds, "--unknown", str(data)])
    stated = metrics_of(judged)
    area = rejection.decode(exported_properties(judged.onnx)[rejection.KEY]).auroc
    assert done.output.splitlines() == [
        f"270 drawings scored by 2 folds, and 50 of other classes -> {run}",
        f"accuracy {stated['accuracy']:.3f}, balanced accuracy {stated['balanced_accuracy']:.3f}, expected calibration "
        f"error {stated['calibration_error']:.3f}, AUROC against other classes {area:.3f}",
        f"export it: sketchbatch-train export --run '{run}'",
    ]


def test_a_variant_and_the_report_of_a_cross_validated_run_are_written(judged):
    """The report judges the scores of the folds; a variant is compared on all drawings."""
    from sketchbatch_trainer.export.out_of_fold import read_out_of_fold
    from sketchbatch_trainer.export.variants import export_variant
    from sketchbatch_trainer.report.quality import evaluate_run
    from sketchbatch_trainer.report.reporting import write_report

    compared = export_variant(judged, Variant.FLOAT16)
    assert "of 270 training drawings" in str(compared)
    stated = json.loads(exported_properties(judged.exported(Variant.FLOAT16))["sketchbatch.metrics"])
    assert stated["accuracy"] == metrics_of(judged)["accuracy"]  # of the folds, not of the drawings that trained
    assert (stated["folds"], stated["variant"], stated["agreement"]) == (2, "float16", compared.agreement)
    assert np.allclose(evaluate_run(judged).scores, read_out_of_fold(judged).scores()[0])
    write_report([judged], judged.report)
    page = judged.report.read_text(encoding="utf-8")
    assert "2-fold cross-validation" in page
    assert "Not measured: all drawings trained this model, and the folds have no float16 file." in page
    assert f"float32 for {100 * compared.agreement:.1f}&nbsp;% of the 270 drawings that it trained on" in page


def test_a_new_cross_validation_is_a_new_version(runs, judged, tmp_path):
    """The temperature and the thresholds follow from it; variants of the earlier file are not used any more."""
    from sketchbatch_trainer.export.exporting import export
    from sketchbatch_trainer.export.out_of_fold import cross_validate
    from sketchbatch_trainer.export.variants import export_variant

    run = Run(shutil.copytree(judged.folder, tmp_path / "again"))
    export_variant(run, Variant.INT8)
    before = run.onnx.read_bytes()
    export(run)
    assert run.onnx.read_bytes() == before
    assert run.has_export(Variant.INT8)
    cross_validate([runs[name] for name in FOLDS], run)  # without drawings of other classes
    export(run)
    properties = exported_properties(run.onnx)
    assert (properties["sketchbatch.version"], rejection.KEY in properties) == ("2", False)
    assert not run.has_export(Variant.INT8)
    with pytest.raises(
        RunIncomplete, match=r"model-int8\.onnx is of an earlier training or export; first run: .*export"
    ):
        run.need(run.exported(Variant.INT8), "export --variant int8")


def test_a_cross_validation_of_very_many_drawings_scores_some_of_each_class(runs, tmp_path, monkeypatch):
    """The export and the report read a limited number of held-out drawings, which must be those that were scored."""
    from sketchbatch_trainer.export import held_out
    from sketchbatch_trainer.export.exporting import export
    from sketchbatch_trainer.export.out_of_fold import cross_validate
    from sketchbatch_trainer.report.reporting import write_report

    monkeypatch.setattr(held_out, "MAX_ROWS", 180)  # 30 of each class and fold
    run = Run(shutil.copytree(runs["none"].folder, tmp_path / "many"))
    found = cross_validate([runs[name] for name in FOLDS], run)
    expected = [min(30, len(np.load(runs[name].test / f"{label}.npy"))) for label in LABELS for name in FOLDS]
    assert np.bincount(found.class_index).tolist() == [sum(expected[start : start + 2]) for start in (0, 2, 4)]
    assert len(held_out.read_held_out(run, list(LABELS)).bitmaps) == len(found.logits) == sum(expected) == 180
    export(run)
    write_report([run], run.report)
    with run.recognized.open() as file:
        rows = {(line["label"], int(line["row"])) for line in csv.DictReader(file)}
    assert all(row < len(np.load(run.test / f"{label}.npy")) for label, row in rows)


def test_a_run_is_restricted_to_some_of_its_classes(judged, tmp_path, data):
    """The outputs of the other classes are dropped; the cross-validation stays valid for the remaining drawings."""
    from sketchbatch_trainer.cli import app
    from sketchbatch_trainer.export.exporting import export
    from sketchbatch_trainer.export.out_of_fold import read_out_of_fold
    from sketchbatch_trainer.report.reporting import write_report
    from sketchbatch_trainer.train.networks import with_logits
    from sketchbatch_trainer.train.training import load_model

    run = Run(tmp_path / "two")
    words = ["restrict", "--of", str(judged.folder), "--run", str(run.folder), "--classes", "dog, bear"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    bitmaps = np.load(judged.test / "dog.npy").reshape(-1, 28, 28)
    before, after = (with_logits(load_model(each)).predict(bitmaps, verbose=0) for each in (judged, run))
    assert np.allclose(after, before[:, [2, 0]], atol=1e-6)
    found, whole = read_out_of_fold(run), read_out_of_fold(judged)
    assert np.bincount(found.class_index).tolist() == [90, 60]
    assert (found.logits[:90] == whole.logits[whole.class_index == 2][:, [2, 0]]).all()
    assert (found.unknown == whole.unknown[:, [2, 0]]).all()
    export(run)
    properties = exported_properties(run.onnx)
    assert (json.loads(properties["sketchbatch.labels"]), properties["sketchbatch.name"]) == (
        ["dog", "bear"],
        "synthetic-dog-bear",
    )
    assert metrics_of(run)["rows"] == 150
    assert rejection.decode(properties[rejection.KEY]).rows == 150
    flags = [each.recognized.read_text().splitlines()[1:] for each in (judged, run)]
    assert flags[1] == [line for line in flags[0] if not line.startswith("cat,")]
    write_report([run], run.report)
    assert "trained on 3 classes, of which dog and bear were kept" in run.report.read_text(encoding="utf-8")
    run.out_of_fold.unlink()  # as if the source had been cross-validated after the restriction
    assert "already finished" in CliRunner().invoke(app, words).output
    assert read_out_of_fold(run) is not None
    assert run.read_config()["rows"] == {"train": 270, "validation": 0, "test": 0}


def test_a_restricted_run_states_its_held_out_drawings(runs, tmp_path):
    """A fold holds out drawings of all classes, of which the restricted run keeps some."""
    from sketchbatch_trainer.export.restricting import restrict

    run = Run(tmp_path / "two")
    assert restrict(runs["1/2"], run, ["cat", "bear"], name="pets")
    rows = [len(np.load(run.test / f"{label}.npy")) for label in ("bear", "cat")]
    assert run.read_config()["rows"]["test"] == sum(rows)
    assert run.read_config()["name"] == "synthetic-pets"
    assert not restrict(runs["1/2"], run, ["cat", "bear"], name="pets")


def test_a_restriction_before_the_cross_validation_names_the_next_step(runs, tmp_path):
    """Folds of the first run cannot judge the restricted one, because they have other classes."""
    from sketchbatch_trainer.export.exporting import export
    from sketchbatch_trainer.export.restricting import restrict

    source = Run(shutil.copytree(runs["none"].folder, tmp_path / "source"))
    for path in (source.out_of_fold, *source.test.glob("*.npy")):
        path.unlink(missing_ok=True)
    run = Run(tmp_path / "two")
    assert restrict(source, run, ["cat", "bear"])
    with pytest.raises(
        RunIncomplete, match="first cross-validate the run from which it was restricted, then run the same"
    ):
        export(run)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("bear,dogs", r"has no class 'dogs' \(did you mean 'dog'\?\); it has bear, cat, dog"),
        ("bear", r"expected some of its 3 classes, two or more, got 1"),
        ("bear,cat,dog", r"expected some of its 3 classes, two or more, got 3"),
    ],
)
def test_a_restriction_to_other_classes_is_refused(runs, tmp_path, classes, message):
    """A restriction keeps at least two classes, not all, and only such that the run has."""
    from sketchbatch_trainer.export.restricting import restrict

    with pytest.raises(RunRefused, match=message):
        restrict(runs["1/2"], Run(tmp_path / "run"), classes.split(","))
    with pytest.raises(RunRefused, match=r"a run cannot be restricted in place; name another folder with --run"):
        restrict(runs["1/2"], runs["1/2"], ["bear", "cat"])
    assert not (tmp_path / "run").exists()


def test_recognised_flags_follow_their_drawings(judged):
    """The flags of the folds are joined, with the rows that the drawings have in the run."""
    digests = {label: digest_each(np.load(judged.test / f"{label}.npy").reshape(-1, 28, 28)) for label in LABELS}
    with judged.recognized.open() as file:
        found = {(line["label"], int(line["row"])): int(line["is_recognized"]) for line in csv.DictReader(file)}
    assert found == {
        (label, row): digest % 2 for label in LABELS for row, digest in enumerate(digests[label].tolist()) if digest % 3
    }


def test_folds_that_do_not_belong_to_a_run_are_refused(runs, data, tmp_path):
    """A cross-validation needs each fold once, of the same recipe and drawings, and a run on all drawings."""
    from sketchbatch_trainer.export.out_of_fold import cross_validate

    everything, first, second = (runs[name] for name in ("none", *FOLDS))
    with pytest.raises(RunRefused, match=r"expected one run each with --hold-out 1/2, 2/2, got 1/2"):
        cross_validate([first], everything)
    with pytest.raises(RunRefused, match=r"expected one run each with --hold-out 1/2, 2/2, got 1/2"):
        cross_validate([first, first], everything)
    with pytest.raises(RunRefused, match=r"expected a training on all drawings; train it with --hold-out none"):
        cross_validate([first, second], first)
    other = train(data, tmp_path / "other", "2/2", replace(TINY, max_epochs=1))
    message = (
        r"other: differs from .*none in the recipe: max_epochs 1 and 2; train all runs with the same drawings and o"
    )
    with pytest.raises(RunRefused, match=message):
        cross_validate([first, other], everything)


@pytest.fixture
def few_drawings(tmp_path):
    """Write 40 synthetic sketches of each of three classes, for which the size of the batches depends on the fold."""
    for label in LABELS:
        write_bitmaps(tmp_path / "few" / f"{label}.npy", draw(label, 40, seed=0))
    return tmp_path / "few"


def test_a_cross_validation_of_few_drawings_accepts_other_batches(few_drawings, tmp_path):
    """The batches of few drawings follow from the number of training drawings, in which a fold and the run differ."""
    from sketchbatch_trainer.export.out_of_fold import cross_validate

    everything, *folds = (
        train(few_drawings, tmp_path / name.replace("/", "-"), name, TINY, epochs=1) for name in ("none", *FOLDS)
    )
    recipes = [run.read_config()["recipe"] for run in (everything, *folds)]
    assert len({recipe["batch_rows"] for recipe in recipes}) > 1
    assert {recipe["max_epochs"] for recipe in recipes} == {1}
    assert len(cross_validate(folds, everything).logits) == 120


def config_of(rows, recipe=COMPACT, epochs=None) -> dict:
    """Return the part of the config of a training with `rows` drawings that states its recipe, as the file has it."""
    fitted = fit_rows(recipe, rows)
    fitted = fitted if epochs is None else replace(fitted, max_epochs=epochs)
    return json.loads(json.dumps({"recipe": asdict(fitted), "rows": {"train": rows}}))


@pytest.mark.parametrize("recipe", [COMPACT, FINETUNE])
def test_each_fold_of_few_drawings_may_have_its_own_number_of_epochs(recipe):
    """Without --epochs, the number of epochs follows from the number of training drawings, too."""
    configs = [config_of(rows, recipe) for rows in range(3, 3000)]
    assert len({each["recipe"]["max_epochs"] for each in configs}) >= 5
    for own in configs:
        assert recipe_differences(own, configs[-1], is_same_rows=False) == []


LIGHT = with_network(COMPACT, "light")


@pytest.mark.parametrize(
    ("own", "other", "differences"),
    [
        (config_of(96), config_of(120), []),  # 50 and 38 epochs
        (config_of(96, epochs=5), config_of(120, epochs=5), []),
        (config_of(96, epochs=5), config_of(120, epochs=12), ["max_epochs 5 and 12"]),
        (config_of(96, epochs=5), config_of(120), ["max_epochs 5 and 38"]),
        (config_of(96), config_of(120, epochs=40), ["max_epochs 50 and 40"]),
        (config_of(9000), config_of(12000, epochs=12), ["max_epochs 30 and 12"]),
        (config_of(9000, replace(COMPACT, learning_rate=1.0)), config_of(12000), ["learning_rate 1.0 and 0.004"]),
        (
            config_of(9000, LIGHT),
            config_of(12000),
            ["network.stem_filters 16 and 32", "network.stage_filters [48, 64] and [48, 80]"],
        ),
        (
            config_of(9000, replace(COMPACT, network=ARTICLE.network, augmentation=None)),
            config_of(12000),
            ["network", "augmentation"],
        ),
    ],
)
def test_recipes_of_folds_are_compared_without_what_the_number_of_drawings_decides(own, other, differences):
    """Two different --epochs are found, and each difference states both values."""
    assert recipe_differences(own, other, is_same_rows=False) == differences


def test_recipes_of_runs_on_the_same_drawings_are_compared_in_full():
    """A run with other batches on the same drawings has another recipe."""
    own, other = config_of(96), config_of(120)
    assert recipe_differences(own, own) == []
    assert recipe_differences(own, other) == ["batch_rows 32 and 30", "max_epochs 50 and 38"]


@pytest.mark.parametrize("rows", [LEAST_ROWS - 1, LEAST_ROWS, 299])
def test_thresholds_fit_the_scores_of_the_exported_network(rows):
    """The other folds of a fold may have too few drawings for a temperature although all folds together have enough."""
    from sketchbatch_trainer.export.out_of_fold import OutOfFold

    random = np.random.default_rng(0)
    class_index = random.integers(0, 3, rows).astype(np.int32)
    logits = random.normal(0, 0.3, (rows, 3)).astype(np.float32)
    logits[np.arange(rows), class_index] += 1.5  # nearly always right, with low scores
    nothing = np.empty((0, 3), np.float32), np.empty(0, np.int32)
    found = OutOfFold(
        logits=logits,
        class_index=class_index,
        fold=(np.arange(rows) % 3).astype(np.int32),
        unknown=nothing[0],
        unknown_fold=nothing[1],
    )
    scores = found.scores()[0].max(axis=1).mean()
    exported = softmax(logits / found.temperature()).max(axis=1).mean()
    assert scores == pytest.approx(exported, abs=0.02)
    assert (found.temperature() == 1) == (rows < LEAST_ROWS)


def test_a_temperature_is_the_one_with_the_lowest_loss():
    """The fitted temperature is found again for scores with a known temperature; of few rows it stays 1."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(20_000, 4)) * 3
    class_index = (softmax(logits).cumsum(axis=1) > random.random((len(logits), 1))).argmax(axis=1)
    for temperature in (0.5, 1.0, 2.0):
        assert fit(logits * temperature, class_index) == pytest.approx(temperature, rel=0.03)
    assert fit(logits[: LEAST_ROWS - 1] * 2, class_index[: LEAST_ROWS - 1]) == 1
