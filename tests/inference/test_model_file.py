import dataclasses
import json
import os
import shutil
import stat
import struct
import warnings
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from iaunet.dataset import MaskCoding
from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference.best import CROSSVAL, BestFolder, BestModel, Member, find_chosen
from iaunet.inference.calibration import Calibration, Reliability
from iaunet.inference.expected_dice import FEATURES, DiceModel, ExpectedDice
from iaunet.inference.model_export import export_model
from iaunet.inference.model_file import MOST_TEXT, open_model
from iaunet.inference.model_import import import_model
from iaunet.inference.postprocessing import LabelCleaning, Postprocessing
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import Run, RunRecord
from iaunet.inference.tuning import Tuning
from iaunet.inference.validation import write_summary
from iaunet.planners.familiar import find_familiar
from iaunet.planners.plan import NetworkPlan, build_planned_network, load_plan
from iaunet.records import to_json
from iaunet.storage import write_json
from iaunet.weights import save_weights
from iaunet.workspace import DatasetFolder, Workspace, locked
from model_zips import files_of, pack, seal

RUN = "unet-best-random"
PLAN = f"plan_{RUN}.json"
WEIGHTS = f"{RUN}/fold_0.safetensors"
CPU = torch.device("cpu")

RELIABILITY = Reliability(
    pixels=(4, 0), probability=(0.2, None), frequency=(0.25, None), ece=0.05, brier=0.2, log_loss=0.6
)
CALIBRATION = Calibration(
    temperatures={"unet-best-random": {"0": 1.5, "1": 0.8, "2": 1.0}}, before=RELIABILITY, after=RELIABILITY
)
MODEL = DiceModel(intercept=0.1, coefficients=(0.8,) + (0.0,) * (len(FEATURES) - 1))
EXPECTED_DICE = ExpectedDice(
    flag_below=0.4,
    rank_correlation=0.7,
    low=0.6,
    high=0.8,
    n_flagged=9,
    dice_flagged=0.3,
    dice_unflagged=0.9,
    models={"unet-best-random": dict.fromkeys("012", MODEL)},
)


@pytest.fixture(scope="module")
def source(trained_toy):
    return DatasetFolder(trained_toy / "toy")


@pytest.fixture(scope="module")
def model_zip(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "toy.zip"
    export_model(source, path)
    return path


@pytest.fixture(scope="module")
def images(source):
    folder = Path(source.load_dataset().source.root) / "images"
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))[:5]]


@pytest.fixture
def folder(trained):
    return DatasetFolder(trained / "toy")


@pytest.fixture
def elsewhere(tmp_path):
    return Workspace(tmp_path / "elsewhere")


@pytest.fixture
def make_folder(tmp_path, make_plan):
    """The folder of a dataset with runs of these plans, one fold each with random weights."""

    def make(**plans):
        folder = DatasetFolder(tmp_path / "made" / "made")
        for i, (name, plan) in enumerate(plans.items()):
            run = Run(folder.runs / name)
            run.write_record(
                RunRecord(plan=plan, split="random", split_digest="0", seed=0, micro_batch=4, device="cpu", threads=1)
            )
            torch.manual_seed(i)
            save_weights(run.fold("0").weights, build_planned_network(plan).state_dict())
            write_summary(run.fold("0"), {"split": "random", "inflated": "", "scores": None})
        return folder

    return make


@pytest.fixture
def choose(folder):
    """Choose runs and a postprocessing as iaunet_find_best does."""

    def choose(*names):
        postprocessing = Postprocessing(thresholds=(0.35,), cleaning=(LabelCleaning(smallest=40, fill_holes=True),))
        folds = {name: Run(folder.runs / name).scored_folds() for name in names}
        members = tuple(
            Member(run=name, weights_sha256=tuple(fold.weights_digest() for fold in folds[name])) for name in names
        )
        best = BestFolder.of(folder)
        shutil.copytree(folder.runs / RUN, best.root, ignore=lambda *_: ["fold_0", "fold_1", "fold_2", "run.json"])
        model = BestModel(
            dataset="toy",
            split="random",
            members=members,
            candidates=(),
            why="Dice 0.9, for once",
            postprocessing_why="kept: +0.01 in all folds",
        )
        tuning = Tuning(postprocessing=postprocessing, calibration=CALIBRATION, expected_dice=EXPECTED_DICE)
        best.write(model, tuning)
        scores = json.loads((best.root / CROSSVAL).read_text())
        write_json(best.root / CROSSVAL, scores | {"members": to_json(members)})
        return tuning

    return choose


def predictor_of(model):
    return Predictor(model.plan, model.networks, CPU, tuning=model.tuning, members=model.members)


def assert_same_masks(one, other, images):
    for image in images:
        np.testing.assert_array_equal(one.predict(image), other.predict(image))


def assert_same_probabilities(one, other):
    plan = one.plan
    inputs = np.random.default_rng(0).normal(0, 1, (3, plan.channels, *plan.input_size)).astype(np.float32)
    np.testing.assert_array_equal(one.predict_inputs(inputs), other.predict_inputs(inputs))


@pytest.fixture
def refused(elsewhere):
    """Assert that a file is refused by all in one line, with nothing written; returns the line."""

    def refused(path, match):
        with pytest.raises(PredictionError, match=match) as by_opening:
            open_model(path)
        with pytest.raises(PredictionError, match=match):
            import_model(path, elsewhere)
        assert not elsewhere.root.exists()
        assert str(by_opening.value).isprintable()
        assert len(str(by_opening.value)) < 600 + len(str(path))
        return str(by_opening.value)

    return refused


def test_a_model_predicts_from_its_file_as_its_runs_do_to_the_bit(source, model_zip, images):
    model = open_model(model_zip)
    runs = [Run(source.runs / RUN)]

    from_file, from_runs = predictor_of(model), Predictor.from_runs(runs, device="cpu")

    assert len(model.networks) == 3
    assert_same_masks(from_file, from_runs, images)
    assert_same_probabilities(from_file, from_runs)
    assert from_file.describe() == from_runs.describe()


def test_the_first_network_alone_is_that_of_the_first_fold(source, model_zip):
    model = open_model(model_zip).first_only()
    run = Run(source.runs / RUN)

    alone = Predictor.from_runs([run], ["0"], "cpu")

    assert_same_probabilities(predictor_of(model), alone)
    assert predictor_of(model).describe() == alone.describe()


def test_the_owners_notes_stand_in_the_card(source, tmp_path):
    export_model(source, tmp_path / "m.zip", notes="CC BY 4.0; ask the hospital.\n")

    assert "## Notes of the owner\n\nCC BY 4.0; ask the hospital.\n" in open_model(tmp_path / "m.zip").card
    with pytest.raises(PredictionError, match="notes of 100001 characters do not fit a model card: give 100000"):
        export_model(source, tmp_path / "long.zip", notes="x" * 100_001)


def test_exporting_twice_gives_equal_bytes(source, model_zip, tmp_path):
    export_model(source, tmp_path / "again.zip")

    assert (tmp_path / "again.zip").read_bytes() == model_zip.read_bytes()


def test_the_file_holds_what_is_said_and_no_name_of_a_case_and_no_path(source, model_zip):
    files = files_of(model_zip)
    assert [*files] == [
        "model.json",
        "README.md",
        "crossval.json",
        PLAN,
        *(f"{RUN}/fold_{fold}.safetensors" for fold in (0, 1, 2)),
    ]
    dataset = source.load_dataset()
    secrets = [case.name for case in dataset.cases] + [dataset.source.root, str(source.root), str(Path.home())]
    for data in files.values():
        for secret in secrets:
            assert secret.encode() not in data
            assert json.dumps(secret).strip('"').encode() not in data


def test_paths_that_the_run_was_given_stay_at_home(folder, tmp_path):
    run = Run(folder.runs / RUN)
    run.write_record(dataclasses.replace(run.record, overrides={"weights": "/home/somebody/start.safetensors"}))

    export_model(folder, tmp_path / "m.zip")

    assert not any(b"somebody" in data for data in files_of(tmp_path / "m.zip").values())


def test_the_manifest_tells_the_members_and_the_scores_of_just_these_folds(source, model_zip, tmp_path):
    run = Run(source.runs / RUN)
    crossval = json.loads(run.crossval_json.read_text())

    facts = open_model(model_zip).facts

    assert [(m.run, m.fold, m.weights_sha256) for m in facts.members] == [
        (RUN, fold, run.fold(fold).weights_digest()) for fold in ("0", "1", "2")
    ]
    [note] = facts.scores
    assert (note.of, note.run, note.n_cases, note.inflated) == ("run", RUN, 18, crossval["inflated"])
    assert note.dice["foreground"] == crossval["scores"]["labels"]["foreground"]["all_cases"]["dice"]["mean"]
    assert json.loads(files_of(model_zip)["crossval.json"])["scores"][0]["scores"] == crossval["scores"]

    some = export_model(source, tmp_path / "some.zip", folds=["2", "0"]).model
    assert [(note.of, note.fold, note.n_cases) for note in some.scores] == [("fold", "0", 6), ("fold", "2", 6)]


def test_a_chosen_model_keeps_its_postprocessing_its_reasons_and_its_scores(folder, choose, images, tmp_path):
    tuning = choose(RUN)
    export_model(folder, tmp_path / "m.zip")

    model = open_model(tmp_path / "m.zip")

    assert model.tuning == tuning
    assert model.facts.familiar == find_familiar(folder, model.plan)
    assert [note.of for note in model.facts.scores] == ["model", "run"]
    assert "foreground from 0.35 on, without components under 40 px, holes filled." in model.card
    assert "Because: kept: +0.01 in all folds" in model.card
    assert "divided by a temperature (0.80 to 1.50)" in model.card
    assert "Masks with less than 0.400 are flagged: of the\ncases held out 9, with Dice 0.300" in model.card
    assert "of another size than 64 x 64, of another\nnumber of channels than 3" in model.card
    assert "Chosen by iaunet_find_best: Dice 0.9, for once" in model.card
    from_runs = Predictor.from_runs([Run(folder.runs / RUN)], device="cpu", tuning=tuning)
    assert_same_masks(predictor_of(model), from_runs, images)

    some = export_model(folder, tmp_path / "some.zip", folds=["1"]).model
    assert some.tuning == tuning
    assert [note.of for note in some.scores] == ["fold"]
    assert [len(member.weights_sha256) for member in some.chosen.members] == [1]
    open_model(tmp_path / "some.zip")


def test_runs_that_are_named_are_exported_without_what_was_chosen_for_others(folder, choose, tmp_path):
    shutil.copytree(folder.runs / RUN, folder.runs / "other")
    choose(RUN)

    facts = export_model(folder, tmp_path / "m.zip", runs=["other"]).model

    assert [run.name for run in facts.runs] == ["other"]
    assert facts.tuning == Tuning()
    assert facts.chosen is None


def test_the_card_tells_the_facts_and_says_which_are_absent(model_zip, source, make_folder, make_plan, tmp_path):
    card = open_model(model_zip).card
    plan = Run(source.runs / RUN).record.plan

    for fact in (
        "# Model for toy",
        f"fingerprint `{plan.fingerprint}`",
        "- Cases: 18\n",
        "not known; no groups: optimistic if images share patients",
        "64 x 64\n",
        "3 channels (colour), uint8",
        f"Run {RUN}: folds 0, 1, 2 of the split random",
        "network unet, width 4, depth 3",
        "12 epochs, adam",
        "18 cases (no groups",
        "Nothing is known that inflates them.",
        "None but the thresholds of the plan: 0.5.",
        "Values of masks: 0 background, 255 foreground",
        "iaunet_predict --model MODEL.zip -i IMAGES -o MASKS\n",
        "None: licence and origin of the data are not recorded in this file.",
    ):
        assert fact in card
    n = sum(p.numel() for p in build_planned_network(plan).parameters())
    assert f"{n:,} parameters" in card

    export_model(make_folder(one=make_plan()), tmp_path / "m.zip")
    bare = open_model(tmp_path / "m.zip").card
    assert "Number of cases, groups and sizes: not known at export" in bare
    assert "None: no cases were held out of training, or their scores were not known at export." in bare
    assert "was trained with versions that are not known" in bare


def test_data_that_have_changed_since_training_are_not_described(folder, tmp_path):
    fingerprint = json.loads(folder.fingerprint_json.read_text())
    fingerprint["cases"].pop()
    folder.fingerprint_json.write_text(json.dumps(fingerprint))

    assert export_model(folder, tmp_path / "m.zip").model.data is None


def test_scores_are_not_those_of_an_ensemble_that_has_a_network_of_all_cases_as_well(folder, choose, tmp_path):
    choose(RUN)
    run = Run(folder.runs / RUN)
    shutil.copytree(run.fold("0").root, run.fold("all").root)
    write_summary(run.fold("all"), {"split": "random", "inflated": "", "scores": None})

    facts = export_model(folder, tmp_path / "m.zip", folds=["0", "1", "2", "all"]).model

    assert [member.fold for member in facts.members] == ["0", "1", "2", "all"]
    assert [(note.of, note.fold) for note in facts.scores] == [("fold", "0"), ("fold", "1"), ("fold", "2")]
    alone = export_model(folder, tmp_path / "all.zip", folds=["all"]).model
    assert alone.scores == ()
    assert f"- Run {RUN}: on all cases, none held out\n" in open_model(tmp_path / "all.zip").card


@pytest.mark.parametrize("regions", [False, True])
def test_several_labels_and_regions_survive(make_folder, make_plan, tmp_path, regions, elsewhere):
    coding = MaskCoding(kind="values", values=(1, 2, 7), written=(1, 2, 7))
    if regions:
        coding = dataclasses.replace(coding, regions=((1, 2, 7), (2, 7), (7,)), regions_class_order=(1, 2, 7))
    plan = make_plan(labels=("ä", "b", "c"), coding=coding)
    folder = make_folder(one=plan, two=plan)
    export_model(folder, tmp_path / "m.zip", runs=["one", "two"])

    model = open_model(tmp_path / "m.zip")

    image = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
    from_runs = Predictor.from_runs([Run(folder.runs / name) for name in ("one", "two")], device="cpu")
    assert len(model.networks) == 2
    assert_same_masks(predictor_of(model), from_runs, [image])
    assert {*np.unique(predictor_of(model).predict(image))} <= {0, 1, 2, 7}
    assert import_model(tmp_path / "m.zip", elsewhere).load_dataset().labels == ("ä", "b", "c")


def test_runs_that_one_predictor_cannot_average_are_refused(make_folder, make_plan, tmp_path):
    folder = make_folder(one=make_plan(), two=make_plan(input_size=(96, 96)))

    with pytest.raises(PredictionError, match="two and one differ in data, input, labels or thresholds: take one"):
        export_model(folder, tmp_path / "m.zip", runs=["one", "two"])
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ["none"]}, "no finished fold of a run 'none'"),
        ({"folds": ["9"]}, f"fold 9 of {RUN} is not finished: choose among 0, 1, 2"),
    ],
)
def test_what_is_not_there_cannot_be_exported(source, tmp_path, options, message):
    with pytest.raises(PredictionError, match=message):
        export_model(source, tmp_path / "m.zip", **options)
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.parametrize("name", ["m.tar", "m", "folder.zip"])
def test_the_file_must_be_a_zip_by_name(source, tmp_path, name):
    (tmp_path / "folder.zip").mkdir()

    with pytest.raises(PredictionError, match=r"cannot be a model's file: give one whose name ends in \.zip"):
        export_model(source, tmp_path / name)


def test_weights_that_were_not_scored_are_not_exported(folder, tmp_path):
    run = Run(folder.runs / RUN)
    shutil.copyfile(run.fold("0").weights, run.fold("1").weights)

    with pytest.raises(PredictionError, match="is not the file that was scored"):
        export_model(folder, tmp_path / "m.zip")


def test_a_run_whose_name_not_every_system_takes_is_not_exported(make_folder, make_plan, tmp_path):
    folder = make_folder(**{"x" * 151: make_plan()})

    with pytest.raises(PredictionError, match=r"made cannot be exported: name is 'x+': give up to 150 letters"):
        export_model(folder, tmp_path / "m.zip")


def test_damaged_scores_are_told(folder, tmp_path):
    write_json(Run(folder.runs / RUN).crossval_json, {"scores": 3, "weights_sha256": []})
    summary = Run(folder.runs / RUN).fold("1").summary_json
    write_json(summary, json.loads(summary.read_text()) | {"scores": {"labels": 3}})

    with pytest.raises(
        PredictionError, match=r"summary\.json holds no scores \(.*\): run iaunet_train with --val_only"
    ):
        export_model(folder, tmp_path / "m.zip")


def test_the_scores_of_a_choice_that_have_gone_are_told(folder, choose, tmp_path):
    choose(RUN)
    (BestFolder.of(folder).root / CROSSVAL).unlink()

    with pytest.raises(PredictionError, match=r"best.crossval\.json is missing: run iaunet_find_best again"):
        export_model(folder, tmp_path / "m.zip")


def test_a_full_disk_is_named_and_leaves_nothing(source, model_zip, tmp_path, elsewhere):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match=r"no space left for .*new\.zip: free some space"):
            export_model(source, tmp_path / "new.zip")
        with pytest.raises(WorkspaceError, match=r"no space left for .*: free some space"):
            import_model(model_zip, elsewhere)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert {path.name for path in elsewhere.root.rglob("*")} <= {".lock"}
    import_model(model_zip, elsewhere)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it does not end as a zip file does"),
        (b"hello", "it does not end as a zip file does"),
        (b"PK\5\6" + bytes(18), "has no model.json"),
        (b"PK\5\6" + bytes(8) + b"\xff\xff\xff\xff" + bytes(6), "its list of files has 4294967295 bytes"),
        (b"PK\5\6" + bytes(8) + b"\1\0\0\0" + bytes(6), "Bad offset|Truncated|not a zip"),
    ],
)
def test_what_is_no_zip_is_refused(tmp_path, refused, data, message):
    (tmp_path / "m.zip").write_bytes(data)

    refused(tmp_path / "m.zip", message)


def test_a_picture_a_folder_and_nothing_at_all_are_refused(tmp_path, refused):
    Image.new("L", (300, 300)).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "m.zip")

    refused(tmp_path / "m.zip", r"m\.zip is no model's file or damaged \(it does not end as a zip file does\): copy it")
    refused(tmp_path, "is no file: give a model's file, of iaunet_export_model")
    refused(tmp_path / "absent.zip", "is no file: give a model's file")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions work otherwise on this system")
def test_a_file_that_may_not_be_read_is_told(model_zip, tmp_path, monkeypatch):
    shutil.copyfile(model_zip, tmp_path / "m.zip")
    (tmp_path / "m.zip").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        with pytest.raises(PredictionError, match=r"m\.zip cannot be read \(Permission denied\): mend its permissions"):
            open_model(Path("m.zip"))
    finally:
        os.seteuid(user)


def test_another_zip_is_refused(tmp_path, refused):
    refused(pack(tmp_path / "m.zip", {"a.txt": b"a"}), "has no model.json: copy it or export it again")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999, 0.99999])
def test_a_truncated_file_is_refused(model_zip, tmp_path, refused, kept):
    data = model_zip.read_bytes()
    (tmp_path / "m.zip").write_bytes(data[: int(len(data) * kept)])

    refused(tmp_path / "m.zip", "is no model's file or damaged")


def test_a_flipped_bit_in_any_file_is_found(model_zip, tmp_path, refused):
    with zipfile.ZipFile(model_zip) as archive:
        infos = archive.infolist()
    for info in infos:
        data = bytearray(model_zip.read_bytes())
        data[info.header_offset + 30 + len(info.filename) + info.file_size // 2] ^= 1
        (tmp_path / "m.zip").write_bytes(data)
        refused(tmp_path / "m.zip", "Bad CRC-32 for file")


@given(position=st.floats(0, 0.999999), value=st.integers(1, 255), near_end=st.booleans())
def test_whatever_byte_is_damaged_nothing_but_one_line_comes_of_it(
    model_zip, tmp_path_factory, position, value, near_end
):
    data = bytearray(model_zip.read_bytes())
    place = len(data) - 1 - int(position * 900) if near_end else int(position * len(data))
    data[place] ^= value
    path = tmp_path_factory.mktemp("damaged") / "m.zip"
    path.write_bytes(data)

    try:
        model = open_model(path)
    except PredictionError as fault:
        assert str(fault).isprintable()
    else:  # a date, or another byte that means nothing
        assert model.facts == open_model(model_zip).facts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x", r"has a file '\.\./x' that would lie outside of a folder"),
        ("a/../../x", "outside of a folder"),
        ("/x", "outside of a folder"),
        ("a\\..\\x", "outside of a folder"),
        ("C:x", "outside of a folder"),
        ("x\x00.json", "outside of a folder"),
        ("x\n.json", "is missing, added or of another size"),
        ("x.json", "x.json' is missing, added or of another size than model.json says"),
        ("x/", "has a link or folder 'x/' among its files"),
        ("readme.MD", "has two files of one name"),
    ],
)
def test_an_added_file_is_refused(model_zip, tmp_path, refused, name, message):
    added = zipfile.ZipInfo("x")
    added.filename = added.orig_filename = name

    refused(pack(tmp_path / "m.zip", files_of(model_zip) | {added: b""}), message)


def test_a_file_that_is_there_twice_is_refused(model_zip, tmp_path, refused):
    with warnings.catch_warnings(action="ignore"):
        pack(tmp_path / "m.zip", files_of(model_zip) | {zipfile.ZipInfo("README.md"): b"other"})

    refused(tmp_path / "m.zip", "has two files of one name")


@pytest.mark.parametrize("name", ["README.md", PLAN, WEIGHTS, "model.json"])
def test_a_file_that_is_missing_or_renamed_is_refused(model_zip, tmp_path, refused, name):
    files = files_of(model_zip)
    data = files.pop(name)

    refused(pack(tmp_path / "m.zip", files), "is missing, added or of another size|has no model.json")
    refused(pack(tmp_path / "m.zip", files | {"other": data}), "is missing, added or of another size|has no model.json")


def test_a_link_is_refused(model_zip, tmp_path, refused):
    link = zipfile.ZipInfo("README.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    files = files_of(model_zip)
    del files["README.md"]

    refused(
        pack(tmp_path / "m.zip", files | {link: b"/etc/passwd"}), "has a link or folder 'README.md' among its files"
    )


def test_a_bomb_is_refused_unread(model_zip, tmp_path, refused):
    bomb = zipfile.ZipInfo("README.md")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    files = files_of(model_zip)
    del files["README.md"]

    message = r"was packed by another program \('README.md' is compressed or locked\)"
    refused(pack(tmp_path / "m.zip", files | {bomb: bytes(30_000_000)}), message)


@pytest.mark.parametrize("size", [100 << 30, 2_000_000])
def test_sizes_beyond_the_file_are_refused(model_zip, tmp_path, refused, size):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for name, data in files_of(model_zip).items():
            archive.writestr(name, data)
        info = archive.getinfo(WEIGHTS)
        info.file_size = info.compress_size = size

    refused(tmp_path / "m.zip", r"says that it holds \d+ bytes, more than there are or more than can be read")


def test_a_locked_file_is_refused(model_zip, tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for name, data in files_of(model_zip).items():
            archive.writestr(name, data)
        archive.getinfo(PLAN).flag_bits |= 1

    refused(tmp_path / "m.zip", "is compressed or locked")


@pytest.mark.parametrize(
    ("n", "message"),
    [(10_001, "has 10001 files, 10000 at most are read"), (45_000, "its list of files has 2115000 bytes")],
)
def test_too_many_files_are_refused(tmp_path, refused, n, message):
    central = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, *[0] * 7, 1, *[0] * 6)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n, n, n * 47, 0, 0)
    (tmp_path / "m.zip").write_bytes((central + b"x") * n + end)

    refused(tmp_path / "m.zip", message)


def test_the_length_of_the_list_in_a_large_zips_record_counts_as_well(tmp_path, refused):
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 20, 1 << 20, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 100, 0, 0)
    (tmp_path / "m.zip").write_bytes(record + locator + end)

    refused(tmp_path / "m.zip", f"its list of files has {1 << 40} bytes, {2 << 20} at most are read")


def edited(files, name, edit):
    content = json.loads(files[name])
    edit(content)
    return files | {name: json.dumps(content).encode()}


def rename_run(manifest, name):
    manifest["model"]["runs"][0]["name"] = name
    for file in [*manifest["files"]]:
        manifest["files"][file.replace(RUN, name)] = manifest["files"].pop(file)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(version=9), "was written by a newer iaunet, in version 9 of its format: install that"),
        (lambda m: m.pop("model"), "model.json: model is missing"),
        (lambda m: m["model"].update({"a\n\x1b[31m": 1}), r"model.json: model\.a\\n\\x1b\[31m is not known here"),
        (lambda m: m["model"].update(dataset="x" * 10_000, data=[]), "model.json: model.data"),
        (lambda m: m["model"].update(runs=[]), r"model.json: model\.runs is \[\]"),
        (lambda m: m["model"]["runs"].append(m["model"]["runs"][0]), "differ by more than capitals"),
        (lambda m: m["model"]["runs"][0].update(folds={}), "give numbers of folds, or all"),
        (lambda m: m["model"]["runs"][0].update(folds={"../9": "0"}), "give numbers of folds, or all"),
        (lambda m: m["model"]["runs"][0]["folds"].pop("1"), "no more and no fewer"),
        (lambda m: m["model"]["runs"][0]["folds"].update({"1": "0"}), "the weights that the model's folds name"),
        (lambda m: m["files"].pop("README.md"), "no more and no fewer"),
        (lambda m: m["files"][PLAN].update(size=5), "is missing, added or of another size than model.json says"),
        (lambda m: m["files"][PLAN].update(sha256="0"), f"{PLAN} is not the file that model.json names"),
        (lambda m: m["files"]["README.md"].update(sha256="0"), "README.md is not the file that model.json names"),
        (
            lambda m: m["files"]["crossval.json"].update(sha256="0"),
            "crossval.json is not the file that model.json names",
        ),
        (lambda m: rename_run(m, "../x"), "give up to 150 letters"),
        (lambda m: rename_run(m, "x."), "give up to 150 letters"),
        (lambda m: rename_run(m, "x\\y"), "give up to 150 letters"),
        (lambda m: rename_run(m, "x\x07"), "give up to 150 letters"),
        (
            lambda m: m["model"].update(postprocessing={"thresholds": [0.5], "cleaning": [{}]}),
            "give it together with the reason for it, chosen",
        ),
        (
            lambda m: m["model"]["familiar"].update(channels=7),
            r"model.json: model\.familiar\.means is .* give two numbers for each of 7 channels",
        ),
        (
            lambda m: m["model"]["familiar"].update(channels=1, means=[[0, 1]]),
            "model.json: familiar images have 1 channels, the plan's 3",
        ),
        (
            lambda m: m["model"].update(
                expected_dice=to_json(EXPECTED_DICE)
                | {"models": {RUN: {"0": {"intercept": 0, "coefficients": [None] * 5}}}}
            ),
            r"model.json: .*coefficients is \(nan",
        ),
        (
            lambda m: m["model"].update(expected_dice=to_json(EXPECTED_DICE) | {"rank_correlation": None}),
            r"model\.expected_dice\.skipped is '': give why there are no models",
        ),
        (
            lambda m: m["model"].update(expected_dice=to_json(ExpectedDice(skipped="few")) | {"skipped": "\x1b[31m"}),
            r"model\.expected_dice\.skipped is ",
        ),
    ],
)
def test_a_wrong_manifest_is_refused(model_zip, tmp_path, refused, edit, message):
    refused(pack(tmp_path / "m.zip", edited(files_of(model_zip), "model.json", edit)), message)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 100_000, b"[]", b"null", b'"a"', b"NaN"])
@pytest.mark.parametrize("name", ["model.json", PLAN, "crossval.json"])
def test_what_is_no_json_or_no_object_is_refused(model_zip, tmp_path, refused, name, text):
    files = files_of(model_zip) | {name: text}

    refused(pack(tmp_path / "m.zip", files if name == "model.json" else seal(files)), "m.zip ")


def test_scores_that_lack_a_metric_are_refused(model_zip, tmp_path, refused):
    def without_dice(scores):
        del scores["scores"][0]["scores"]["labels"]["foreground"]["all_cases"]["dice"]

    changed = edited(files_of(model_zip), "crossval.json", without_dice)

    refused(
        pack(tmp_path / "m.zip", seal(changed)), r"crossval\.json: scores.* of foreground is .*: give all of dice, iou"
    )


def test_a_choice_of_other_runs_is_refused(folder, choose, tmp_path, refused):
    choose(RUN)
    export_model(folder, tmp_path / "m.zip")
    files = files_of(tmp_path / "m.zip")

    def another(manifest):
        manifest["model"]["chosen"]["members"][0]["run"] = "another"

    def elsewhere(manifest):
        manifest["model"]["chosen"]["members"][0]["run"] = "../../secret"

    def for_two_labels(manifest):
        manifest["model"]["postprocessing"]["thresholds"] = [0.5, 0.5]

    refused(pack(tmp_path / "m.zip", edited(files, "model.json", another)), "give the model's runs and weights")
    refused(
        pack(tmp_path / "m.zip", edited(files, "model.json", elsewhere)),
        r"members\[0\].run is '../../secret': give a path below a folder",
    )
    refused(
        pack(tmp_path / "m.zip", edited(files, "model.json", for_two_labels)),
        "postprocessing is for other labels than the plan's",
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.update(channels=0), f"{PLAN}: channels is 0: give a whole number from 1 to 64"),
        (lambda p: p["network"].update(width=8), "holds weights of another network than the plan's .* tensors differ"),
        (lambda p: p["network"].update(width=1024, depth=6), "holds weights of another network than the plan's"),
        (lambda p: p["network"].update(name="os"), "unknown network 'os'"),
        (lambda p: p["network"].update(options={"a": 1}), "has no option 'a'"),
        (lambda p: p["network"].update(name="swin_unet", options={"window": 10**12}), "m.zip "),
    ],
)
def test_a_wrong_plan_is_refused(model_zip, tmp_path, refused, edit, message):
    refused(pack(tmp_path / "m.zip", seal(edited(files_of(model_zip), PLAN, edit))), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no safetensors file"),
        (struct.pack("<Q", 100 << 30) + b"{}", "is no safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "holds weights of another network"),
        (safetensors.torch.save({"a": torch.zeros(3)}), "holds weights of another network"),
    ],
)
def test_wrong_weights_are_refused(model_zip, tmp_path, refused, data, message):
    refused(pack(tmp_path / "m.zip", seal(files_of(model_zip) | {WEIGHTS: data})), f"{WEIGHTS} {message}")


def test_weights_of_another_type_are_refused(model_zip, tmp_path, refused):
    files = files_of(model_zip)
    doubled = {name: tensor.double() for name, tensor in safetensors.torch.load(files[WEIGHTS]).items()}

    refused(pack(tmp_path / "m.zip", seal(files | {WEIGHTS: safetensors.torch.save(doubled)})), "another network")


def test_a_text_that_is_too_long_is_refused(model_zip, tmp_path, refused):
    files = seal(files_of(model_zip) | {"README.md": bytes(MOST_TEXT + 1)})

    refused(pack(tmp_path / "m.zip", files), f"README.md has {MOST_TEXT + 1} bytes, {MOST_TEXT} at most are read")


def test_runs_that_differ_are_refused(make_folder, make_plan, tmp_path, refused):
    folder = make_folder(one=make_plan(), two=make_plan())
    export_model(folder, tmp_path / "m.zip", runs=["one", "two"])
    files = files_of(tmp_path / "m.zip")

    changed = edited(files, "plan_two.json", lambda plan: plan.update(fingerprint="1"))

    refused(pack(tmp_path / "m.zip", seal(changed)), "two and one differ in data, input, labels or thresholds")


def test_a_strangers_network_runs_only_when_it_is_trusted(make_folder, make_plan, tmp_path, elsewhere, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "trainers")
    name = "strange_networks:Strange"
    import_module("strange_networks")
    folder = make_folder(one=make_plan(network=NetworkPlan(name=name, width=4, depth=3)))
    export_model(folder, tmp_path / "m.zip")

    with pytest.raises(
        PredictionError, match=f"trained with {name}, whose code would be run: give its name with --net"
    ):
        open_model(tmp_path / "m.zip")
    with pytest.raises(PredictionError, match="whose code would be run"):
        open_model(tmp_path / "m.zip", "strange_networks:Dropping")
    model = open_model(tmp_path / "m.zip", name)
    assert_same_probabilities(
        predictor_of(model), Predictor.from_runs([Run(folder.runs / "one")], None, "cpu", trusted_network=name)
    )
    assert f"--network {name}" in model.card
    assert "its parameters were not counted" in model.card

    def break_down(**sizes):
        raise RuntimeError("a fault of the network's own")

    monkeypatch.setattr(import_module("strange_networks"), "Strange", break_down)
    with pytest.raises(RuntimeError, match=r"^a fault of the network's own$"):  # not taken for damage of the file
        open_model(tmp_path / "m.zip", name)


def test_a_strangers_network_is_imported_without_running_its_code(make_folder, make_plan, tmp_path, elsewhere):
    export_model(make_folder(one=make_plan()), tmp_path / "plain.zip")
    files = edited(files_of(tmp_path / "plain.zip"), "plan_one.json", lambda p: p["network"].update(name="absent:f"))
    pack(tmp_path / "m.zip", seal(files))

    folder = import_model(tmp_path / "m.zip", elsewhere)

    with pytest.raises(PredictionError, match="whose code would be run"):
        Predictor.from_runs([Run(folder.runs / "one")], device="cpu")


def test_an_imported_model_predicts_as_its_runs_did_and_can_be_exported_again(
    source, model_zip, images, tmp_path, elsewhere
):
    folder = import_model(model_zip, elsewhere, "anew ü")

    assert elsewhere.names() == ["anew ü"]
    assert {path.name for path in elsewhere.root.iterdir()} - {".lock"} == {"anew ü"}
    run, before = Run(folder.runs / RUN), Run(source.runs / RUN)
    assert_same_masks(Predictor.from_runs([run], device="cpu"), Predictor.from_runs([before], device="cpu"), images)
    assert run.record == dataclasses.replace(before.record, overrides={})
    assert json.loads(run.crossval_json.read_text()) == json.loads(before.crossval_json.read_text())
    again = export_model(folder, tmp_path / "again.zip").model
    assert (again.members, again.scores) == (open_model(model_zip).facts.members, open_model(model_zip).facts.scores)
    assert again.data is None


def test_the_scores_of_folds_are_imported_with_them(source, tmp_path, elsewhere):
    export_model(source, tmp_path / "m.zip", folds=["1"])

    folder = import_model(tmp_path / "m.zip", elsewhere)

    imported, before = (Run(each.runs / RUN).fold("1").summary_json for each in (folder, source))
    assert json.loads(imported.read_text()) == json.loads(before.read_text())


def test_a_chosen_model_is_the_chosen_one_where_it_is_imported(folder, choose, tmp_path, elsewhere):
    tuning = choose(RUN)
    export_model(folder, tmp_path / "m.zip")

    imported = import_model(tmp_path / "m.zip", elsewhere, "other")

    model, read = BestFolder.of(imported).read()
    assert (model.dataset, model.why, read) == ("other", "Dice 0.9, for once", tuning)
    before, after = (json.loads((BestFolder.of(each).root / CROSSVAL).read_text()) for each in (folder, imported))
    assert after["scores"] == before["scores"]
    chosen = find_chosen(imported)
    assert (chosen.runs, chosen.tuning) == ([RUN], tuning)
    assert (
        find_familiar(imported, load_plan(imported.plan_json))
        == find_familiar(folder, load_plan(folder.plan_json))
        is not None
    )


def test_runs_that_were_exported_together_predict_together_where_they_are_imported(
    make_folder, make_plan, tmp_path, elsewhere
):
    folder = make_folder(one=make_plan(), two=make_plan())
    export_model(folder, tmp_path / "m.zip", runs=["two", "one"])

    imported = import_model(tmp_path / "m.zip", elsewhere)

    model, tuning = BestFolder.of(imported).read()
    assert [member.run for member in model.members] == ["two", "one"]
    assert tuning.postprocessing.is_nothing((0.5,))
    assert tuning.calibration is tuning.expected_dice is None
    assert find_chosen(imported).runs == ["two", "one"]


def test_an_import_never_replaces_a_dataset(model_zip, elsewhere):
    import_model(model_zip, elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.folder("toy").root.rglob("*")}

    with pytest.raises(WorkspaceError, match="toy is there already: give the model another name with --dataset_name"):
        import_model(model_zip, elsewhere)

    assert {path: path.stat().st_mtime_ns for path in elsewhere.folder("toy").root.rglob("*")} == before


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "_x", "a\\b", "x" * 101, "a\n"])
def test_a_name_that_is_no_datasets_is_refused(model_zip, elsewhere, tmp_path, name):
    with pytest.raises(WorkspaceError, match="cannot be a data set's name: give --dataset_name with letters") as caught:
        import_model(model_zip, elsewhere, name)
    files = edited(files_of(model_zip), "model.json", lambda m: m["model"].update(dataset=name))
    with pytest.raises(WorkspaceError, match="cannot be a data set's name"):
        import_model(pack(tmp_path / "m.zip", files), elsewhere)

    assert str(caught.value).isprintable()
    assert not elsewhere.root.exists()


def test_what_a_killed_import_left_is_removed_and_two_at_once_are_refused(model_zip, elsewhere):
    left = elsewhere.root / ".importing" / "toy"
    left.mkdir(parents=True)
    (left / "dataset.json").write_text("{}")
    assert elsewhere.names() == []

    with (
        locked(elsewhere.root, "importing a model"),
        pytest.raises(WorkspaceError, match="another process is importing a model in"),
    ):
        import_model(model_zip, elsewhere)
    import_model(model_zip, elsewhere)

    assert not left.parent.exists()
    assert elsewhere.names() == ["toy"]
