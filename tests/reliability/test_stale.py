"""Every pair of a changed input and a command that may depend on it: refused, done anew, or rightly as before."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iaunet.__main__ import main
from iaunet.errors import PredictionError
from iaunet.inference.best import BestFolder, BestModel
from iaunet.inference.postprocessing import LabelCleaning, Postprocessing
from iaunet.inference.runs import Run
from iaunet.inference.tuning import Tuning
from iaunet.storage import digest
from iaunet.workspace import DatasetFolder

RUN = "unet-best-grouped"
CASES, HELD_OUT = 12, 3


@dataclass(frozen=True)
class Scene:
    """A folder with all that iaunet makes of a dataset: raw data, a test set, a workspace, a model's file, masks."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "toy"

    @property
    def folder(self) -> DatasetFolder:
        return DatasetFolder(self.root / "workspace" / "toy")

    @property
    def run(self) -> Run:
        return Run(self.folder.runs / RUN)

    def do(self, command: str, *arguments: object) -> int:
        """Run a command of iaunet on the workspace."""
        where = [] if command == "evaluate" else ["--workspace", self.root / "workspace"]
        return main([command, *map(str, [*arguments, *where])])

    def copy(self, target: Path) -> "Scene":
        """The same elsewhere; what tells where raw data lie is told anew."""
        copied = Scene(shutil.copytree(self.root, target))
        for path in (copied.folder.dataset_json, copied.folder.held_out_json):
            path.write_text(path.read_text().replace(str(self.root), str(target)))
        return copied

    def content(self, patterns: tuple[str, ...]) -> dict[str, bytes]:
        """What files hold, wherever the scene lies."""
        files = sorted(path for pattern in patterns for path in self.root.glob(pattern) if path.is_file())
        place = str(self.root).encode()
        return {path.relative_to(self.root).as_posix(): path.read_bytes().replace(place, b"") for path in files}


# Commands and what they make ------------------------------------------------------------------------------------------


def resume(scene: Scene) -> int:
    """Go on with a run whose fold 0 is finished, while fold 1 lies as it was when its last epoch ended."""
    for file in (scene.run.fold("1").weights, scene.run.fold("1").summary_json):
        file.unlink()
    return scene.do("train", "toy", "cv")


def plan(scene: Scene, *options: str) -> int:
    return scene.do("plan_and_preprocess", "toy", "--workers", "1", *options)


def predict(scene: Scene) -> int:
    return scene.do("predict", "-i", scene.raw / "images", "-o", scene.root / "masks", "-d", "toy")


def predict_test(scene: Scene) -> int:
    return scene.do("predict", "--test", "-o", scene.root / "masks_test", "-d", "toy")


def predict_model(scene: Scene) -> int:
    model = scene.root / "model.zip"
    return scene.do("predict", "-i", scene.raw / "images", "-o", scene.root / "masks_model", "--model", model)


def evaluate(scene: Scene) -> int:
    folders = ["--pred", scene.root / "masks", "--truth", scene.raw / "masks"]
    return scene.do("evaluate", *folders, "--output", scene.root / "scores", "--workers", "1")


FOLDS = (
    "workspace/toy/runs/*/crossval.json",
    *(f"workspace/toy/runs/*/fold_*/{name}" for name in ("weights.safetensors", "summary.json", "validation/**/*")),
)

COMMANDS: dict[str, tuple[Callable[[Scene], int], tuple[str, ...]]] = {
    "plan": (
        plan,
        tuple(
            f"workspace/toy/{name}"
            for name in ("fingerprint.json", "plan.json", "splits.json", "test.json", "preprocessed/**/*")
        ),
    ),
    "train": (resume, FOLDS),
    "val_only": (lambda scene: scene.do("train", "toy", "cv", "--val_only"), FOLDS),
    "find_best": (lambda scene: scene.do("find_best", "toy"), ("workspace/toy/best/*.*",)),
    "predict": (predict, ("masks/**/*.png", "masks/predictions.*")),
    "predict --test": (predict_test, ("masks_test/**/*.png", "masks_test/*.csv", "masks_test/*.json")),
    "predict --model": (predict_model, ("masks_model/**/*.png", "masks_model/predictions.*")),
    "evaluate": (evaluate, ("scores/*.*",)),
    "export_model": (lambda scene: scene.do("export_model", "toy", "-o", scene.root / "export.zip"), ("export.zip",)),
    "compare": (lambda scene: scene.do("compare", "toy", "--no_timing"), ("workspace/toy/comparison/*.*",)),
    "report": (lambda scene: scene.do("report", "toy"), ("workspace/toy/report/*.*",)),
}


# Changes --------------------------------------------------------------------------------------------------------------


def edit_json(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def turn(path: Path) -> None:
    """Other pixels of the same size and values."""
    Image.fromarray(np.asarray(Image.open(path))[::-1].copy()).save(path)


def flip_byte(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def add_case(scene: Scene) -> None:
    for part in ("images", "masks"):
        with Image.open(scene.raw / part / "case_00.png") as image:
            image.transpose(Image.Transpose.ROTATE_90).save(scene.raw / part / "case_99.png")


def remove_case(scene: Scene) -> None:
    for part in ("images", "masks"):
        (scene.raw / part / "case_03.png").unlink()


def regroup(scene: Scene) -> None:
    write_groups(scene.root / "groups.csv", groups=4)


def swap_folds(content: dict) -> None:
    folds = content["splits"]["grouped"]["folds"]
    for part in ("train", "validation"):
        folds[0][part], folds[1][part] = folds[1][part], folds[0][part]


def choose_otherwise(scene: Scene) -> None:
    """As find_best would after other trainings."""
    best = BestFolder.of(scene.folder)
    model, tuning = best.read()
    post = Postprocessing(thresholds=(0.31,), cleaning=(LabelCleaning(smallest=5),))
    best.write(model, Tuning(postprocessing=post, calibration=tuning.calibration))


def other_weights(scene: Scene) -> None:
    shutil.copyfile(scene.run.fold("1").weights, scene.run.fold("0").weights)


def other_checkpoint(scene: Scene) -> None:
    file = scene.run.fold("1").checkpoint
    content = torch.load(file, weights_only=True)
    content["run"] = digest("another run")
    torch.save(content, file)


def other_model(scene: Scene) -> None:
    assert scene.do("export_model", "toy", "-f", "0", "-o", scene.root / "model.zip") == 0


def write_groups(path: Path, groups: int) -> None:
    lines = [f"case_{case:02d},patient {case % groups}\n" for case in range(100)]
    path.write_text("case,group\n" + "".join(lines))


def then_plan(change: Callable[[Scene], object]) -> Callable[[Scene], None]:
    def changed_and_planned(scene: Scene) -> None:
        change(scene)
        assert plan(scene, "--replan") == 0
        edit_json(scene.folder.plan_json, shrink)
        assert plan(scene) == 0

    return changed_and_planned


def new_image(scene: Scene) -> None:
    turn(scene.raw / "images" / "case_03.png")


def new_test_image(scene: Scene) -> None:
    turn(scene.root / "held_out" / "images" / "case_13.png")


CHANGES: dict[str, Callable[[Scene], object]] = {
    "a raw image": new_image,
    "a raw image, planned again": then_plan(new_image),
    "a raw mask": lambda scene: turn(scene.raw / "masks" / "case_03.png"),
    "an image added": add_case,
    "an image removed": remove_case,
    "groups": regroup,
    "groups, planned again": then_plan(regroup),
    "plan.json: training": lambda scene: edit_json(scene.folder.plan_json, lambda p: p["recipe"].update(lr=0.03)),
    "plan.json: input": lambda scene: edit_json(scene.folder.plan_json, lambda p: p.update(input_size=[48, 48])),
    "splits.json": lambda scene: edit_json(scene.folder.splits_json, swap_folds),
    "arrays of another planning": lambda scene: edit_json(
        scene.folder.preprocessed / "index.json",
        lambda index: index.update(made_from=digest("another"), prepared=digest("another")),
    ),
    "arrays cut short": lambda scene: os.truncate(scene.folder.preprocessed / "images.npy", 5000),
    "fingerprint.json": lambda scene: edit_json(
        scene.folder.fingerprint_json, lambda found: found["cases"][0].update(local_width=7.0)
    ),
    "run.json": lambda scene: edit_json(
        scene.run.run_json, lambda run: run["plan"]["inference"].update(mirroring=False)
    ),
    "weights": other_weights,
    "checkpoint": other_checkpoint,
    "postprocessing.json": lambda scene: edit_json(
        scene.folder.root / "best" / "postprocessing.json", lambda post: post.update(thresholds=[0.31])
    ),
    "another choice of find_best": choose_otherwise,
    "model file damaged": lambda scene: flip_byte(scene.root / "model.zip", -2000),
    "another model file": other_model,
    "the test set": new_test_image,
    "the test set, planned again": then_plan(new_test_image),
    "a mask that was predicted": lambda scene: turn(scene.root / "masks" / "case_03.png"),
    "masks of others": lambda scene: (scene.root / "masks" / "predictions.json").unlink(),
}


# What is expected -----------------------------------------------------------------------------------------------------

WORDS = {".": "as before", "new": "anew", "no": "refused"}

TABLE = """
                              plan train val_only find_best predict --test --model evaluate export compare report
a raw image                   no   .     .        .         new     .      new     .        .      .       new
a raw image, planned again    new  no    no       no        new     new    new     .        new    new     new
a raw mask                    no   .     .        .         .       .      .       new      .      .       .
an image added                no   .     .        .         new     .      new     new      .      .       .
an image removed              no   .     .        .         new     .      new     new      .      .       new
groups                        new  .     .        .         .       .      .       .        .      .       .
groups, planned again         new  no    no       no        .       .      .       .        new    new     new
plan.json: training           new  no    no       .         .       .      .       .        .      .       new
plan.json: input              new  no    no       no        .       .      .       .        .      .       new
splits.json                   new  no    no       no        .       .      .       .        .      new     new
arrays of another planning    .    no    no       no        .       .      .       .        .      new     new
arrays cut short              .    no    no       no        .       .      .       .        .      new     new
fingerprint.json              .    .     .        .         new     new    .       .        new    .       new
run.json                      .    no    no       no        no      no     .       .        no     no      new
weights                       .    no    new      no        no      no     .       .        no     no      new
checkpoint                    .    no    .        .         .       .      .       .        .      .       .
postprocessing.json           .    .     .        .         no      no     .       .        no     .       no
another choice of find_best   .    .     .        .         no      no     .       .        new    .       new
model file damaged            .    .     .        .         .       .      no      .        .      .       .
another model file            .    .     .        .         .       .      no      .        .      .       .
the test set                  new  .     .        .         .       no     .       .        .      .       .
the test set, planned again   new  .     .        .         .       new    .       .        .      .       new
a mask that was predicted     .    .     .        .         new     .      .       new      .      .       .
masks of others               .    .     .        .         no      .      .       .        .      .       .
"""
"""Raw data are read when they are planned and predicted, so that a copied workspace trains without them: what was
planned before is what training, choosing and exporting are about. What makes the same files again is as before."""

EXPECTED = {
    line[:30].rstrip(): dict(zip(COMMANDS, (WORDS[word] for word in line[30:].split()), strict=True))
    for line in TABLE.strip().splitlines()[1:]
}

ARRAYS = "run iaunet_plan_and_preprocess toy again"
SCORED = "is not the file that was scored: run iaunet_train with --val_only for this fold"
ANOTHER = "holds masks of another model: use --overwrite, or another folder"
FOLDS_CHANGED = "the folds of the split grouped have changed since .* was begun: bring them back"
EDITED = "was edited by hand for data that have changed since: use --replan for a new plan"
STATE = "was trained on another state of the data: run iaunet_train toy cv"

REFUSALS = {
    ("a raw image", ""): EDITED,
    ("a raw mask", ""): EDITED,
    ("an image added", ""): EDITED,
    ("an image removed", ""): EDITED,
    ("a raw image, planned again", ""): "the images or masks of toy have changed since .* --restart",
    ("a raw image, planned again", "find_best"): STATE,
    ("groups, planned again", ""): FOLDS_CHANGED,
    ("groups, planned again", "find_best"): STATE,
    ("plan.json: training", ""): r"begun with other settings \(plan.recipe.lr: 0.02 -> 0.03\): .* --restart",
    ("plan.json: input", ""): f"was made from other data or another plan: {ARRAYS}",
    ("splits.json", ""): FOLDS_CHANGED,
    ("splits.json", "find_best"): STATE,
    ("arrays of another planning", ""): f"was made from other data or another plan: {ARRAYS}",
    ("arrays cut short", ""): f"preprocessed cannot be read .*: {ARRAYS}",
    ("run.json", ""): "run.json has changed since fold 0 was scored: bring it back from a copy, or score every fold",
    ("run.json", "train"): r"with other settings \(plan.inference.mirroring: False -> True\): .* --restart",
    ("run.json", "val_only"): r"with other settings \(plan.inference.mirroring: False -> True\): .* --restart",
    ("run.json", "find_best"): "has other labels, thresholds or mirroring than the plan: run iaunet_train toy cv",
    ("weights", ""): SCORED,
    ("checkpoint", ""): "belongs to a run with other settings: use --restart, or --name for a new run",
    ("postprocessing.json", ""): "postprocessing.json, .* has changed since the choice was made: run iaunet_find_best",
    ("another choice of find_best", ""): ANOTHER,
    ("model file damaged", ""): "is no model's file or damaged .*: copy it or export it again",
    ("another model file", ""): ANOTHER,
    ("the test set", ""): f"the test case case_13 has changed since it was checked: {ARRAYS}",
    ("masks of others", ""): "is there and no prediction made it: use --overwrite, or another folder",
}
"""What the one line says, for a command or all."""

AS_EDITED = "plan.json was edited by hand and is kept"
OLDER = "was trained on an older state of the data"
TOLD = {
    ("a raw image", "predict"): "1 masks that are there are made anew",
    ("a raw image, planned again", "predict"): OLDER,
    ("a raw image, planned again", "predict --test"): OLDER,
    ("a raw image, planned again", "export_model"): OLDER,
    ("an image removed", "predict"): "1 masks of earlier calls are not in the table of this one",
    ("groups", "plan"): "the groups have changed: the folds of the split grouped are made anew",
    ("plan.json: training", "plan"): AS_EDITED,
    ("plan.json: input", "plan"): f"(?s){AS_EDITED}.*preprocessed 12 cases",
    ("arrays of another planning", "plan"): "preprocessed 12 cases",
    ("arrays of another planning", "compare"): f"no cases are shown .*: {ARRAYS}",
    ("arrays cut short", "plan"): "preprocessed 12 cases",
    ("arrays cut short", "compare"): f"no cases are shown .*: {ARRAYS}",
    ("fingerprint.json", "plan"): "cases changed since the planning before: measured otherwise",
    ("the test set, planned again", "predict --test"): "1 masks that are there are made anew",
    ("a mask that was predicted", "predict"): "1 masks that are there are made anew",
}
"""What is said besides."""


@dataclass(frozen=True)
class Outcome:
    """What came of a command: its exit code, what it said, and whether what it made differs from what it makes else."""

    code: int
    err: str
    out: str
    differs: bool


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_toy: Callable[..., Path]) -> Scene:
    """Everything made once; to be copied."""
    scene = Scene(tmp_path_factory.mktemp("stale") / "scene")
    write_toy(scene.raw, CASES + HELD_OUT)
    for part in ("images", "masks"):
        (scene.root / "held_out" / part).mkdir(parents=True)
        for number in range(CASES, CASES + HELD_OUT):
            shutil.move(scene.raw / part / f"case_{number:02d}.png", scene.root / "held_out" / part)
    write_groups(scene.root / "groups.csv", groups=6)
    given = ["--folds", 2, "--groups", scene.root / "groups.csv", "--test", scene.root / "held_out", "--workers", 1]
    assert scene.do("plan_and_preprocess", scene.raw, *given) == 0
    edit_json(scene.folder.plan_json, shrink)
    assert plan(scene) == 0
    assert scene.do("train", "toy", "cv") == 0
    assert scene.do("find_best", "toy") == 0
    assert scene.do("report", "toy", "--test") == 0
    assert scene.do("export_model", "toy", "-o", scene.root / "model.zip") == 0
    for make in (predict, predict_test, predict_model):
        assert make(scene) == 0
    return scene


def shrink(content: dict) -> None:
    content["input_size"] = [32, 32]
    content["network"] = {"name": "unet", "width": 2, "depth": 3}
    content["recipe"] |= {"epochs": 2, "batch_size": 4, "lr": 0.02}


@pytest.fixture(scope="module")
def unchanged(base: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What each command makes of the scene as it is."""
    made = {}
    for name, (command, patterns) in COMMANDS.items():
        scene = base.copy(tmp_path_factory.mktemp("unchanged") / "scene")
        assert command(scene) == 0, name
        made[name] = scene.content(patterns)
        assert made[name], name
    return made


@pytest.fixture
def changed(
    base: Scene, unchanged: dict[str, dict[str, bytes]], tmp_path: Path, capsys
) -> Callable[[str, str], Outcome]:
    """Change something in a copy of the scene, and run a command there."""

    def run(change: str, name: str) -> Outcome:
        scene = base.copy(tmp_path / name.replace(" ", "_"))
        CHANGES[change](scene)
        command, patterns = COMMANDS[name]
        capsys.readouterr()
        code = command(scene)
        said = capsys.readouterr()
        outcome = Outcome(code, said.err, said.out, scene.content(patterns) != unchanged[name])
        shutil.rmtree(scene.root)
        return outcome

    return run


def differs(expected: str, change: str, command: str, outcome: Outcome) -> str:
    """In what the outcome of a pair is not as expected, empty if it is."""
    refusal = re.search(REFUSALS.get((change, command)) or REFUSALS.get((change, ""), "(?!)"), outcome.err)
    if expected == "refused":
        is_refused = outcome.code == 2 and outcome.err.count("\n") == 1
        return "" if is_refused and refusal else f"{change} -> {command}: {outcome.code} {outcome.err}"
    if outcome.code == 2 or outcome.differs != (expected == "anew"):
        return f"{change} -> {command}: not {expected}, {outcome.code} {outcome.err}"
    told = TOLD.get((change, command), "")
    return "" if re.search(told, outcome.out) else f"{change} -> {command}: not told {told!r}"


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_what_depends_on_a_change_is_refused_or_made_anew_and_all_else_is_as_before(changed, change):
    expected = EXPECTED[change]

    wrong = [differs(word, change, command, changed(change, command)) for command, word in expected.items()]

    assert [*filter(None, wrong)] == []


def test_every_pair_of_a_change_and_a_command_is_in_the_table():
    assert EXPECTED.keys() == CHANGES.keys()
    for change, row in EXPECTED.items():
        assert [*row] == [*COMMANDS]
        assert {*row.values()} <= {"as before", "anew", "refused"}
        for command, word in row.items():
            assert ((change, command) in REFUSALS or (change, "") in REFUSALS) or word != "refused"
    assert {change for change, _ in (*REFUSALS, *TOLD)} <= CHANGES.keys()


# What costs little ----------------------------------------------------------------------------------------------------


def test_a_finished_fold_is_not_passed_over_once_its_weights_have_changed(trained, capsys):
    run = Run(trained / "toy" / "runs" / "unet-best-random")
    shutil.copyfile(run.fold("1").weights, run.fold("0").weights)
    run.fold("2").weights.unlink()  # else the scores over all folds would be told, which are refused as well

    assert main(["train", "toy", "0", "--workspace", str(trained)]) == 2

    assert re.search(f"fold_0/weights.safetensors {SCORED}", capsys.readouterr().err)


def test_weights_are_not_used_once_the_settings_of_their_run_have_changed(trained):
    run = Run(trained / "toy" / "runs" / "unet-best-random")
    before = run.fold("0").weights_digest()
    edit_json(run.run_json, lambda content: content.update(micro_batch=3))  # which decides nothing
    assert Run(run.root).fold("0").weights_digest() == before

    edit_json(run.run_json, lambda content: content["plan"]["inference"].update(thresholds=[0.31]))

    with pytest.raises(PredictionError, match=REFUSALS["run.json", ""]):
        Run(run.root).fold("0").weights_digest()


def test_a_choice_is_not_used_once_what_was_learnt_of_it_has_changed(tmp_path):
    folder = BestFolder(tmp_path)
    tuning = Tuning(postprocessing=Postprocessing(thresholds=(0.4,), cleaning=(LabelCleaning(smallest=3),)))
    model = BestModel(
        dataset="toy", split="random", members=(), candidates=(), why="the only one", postprocessing_why="it helps"
    )
    folder.write(model, tuning)
    assert folder.read()[1] == tuning

    edit_json(tmp_path / "postprocessing.json", lambda content: content.update(thresholds=[0.31]))

    with pytest.raises(PredictionError, match=REFUSALS["postprocessing.json", ""]):
        folder.read()
