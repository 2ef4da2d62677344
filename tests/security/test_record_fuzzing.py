"""Files spoilt at random in bytes and in structure: what reads them gives a value, or a fault in one line."""

import contextlib
import copy
import dataclasses
import io
import itertools
import json
import math
import re
import shutil
import signal
import struct
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iaunet.annotations.colours import convert_colours, find_label_map
from iaunet.annotations.conversion import convert
from iaunet.annotations.recognition import find_annotations
from iaunet.errors import FileError, IaunetError
from iaunet.grouping import resolve_groups
from iaunet.inference.audit import audit_line, read_audit
from iaunet.inference.best import BEST, CASES, CROSSVAL, BestFolder, BestModel, CaseRow, Member, write_case_table
from iaunet.inference.calibration import Calibration, Reliability
from iaunet.inference.expected_dice import FEATURES, DiceModel, ExpectedDice
from iaunet.inference.folder import predict_folder
from iaunet.inference.model_export import export_model
from iaunet.inference.model_file import open_model
from iaunet.inference.model_import import import_model
from iaunet.inference.out_of_fold import read_disagreement, write_disagreement
from iaunet.inference.output import AUDIT, FolderOptions
from iaunet.inference.postprocessing import LabelCleaning, Postprocessing
from iaunet.inference.predictor import Predictor
from iaunet.inference.report.runs import read_curve
from iaunet.inference.runs import FoldFolder, Run, RunRecord
from iaunet.inference.runtime.iaunet_runtime import RuntimeFault, read_settings
from iaunet.inference.scores import CaseScore, read_scores, score_masks, write_scores
from iaunet.inference.tuning import Tuning
from iaunet.inference.validation import write_summary
from iaunet.nnunet import is_nnunet_dataset, read_nnunet
from iaunet.planners.familiar import FAMILIAR, Familiar, find_familiar, keep_familiar
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.folds import find_split, load_splits
from iaunet.planners.plan import NetworkPlan, Plan, build_planned_network, content_digest, load_plan, save_plan
from iaunet.preprocessing.arrays import open_arrays, truth_path
from iaunet.preprocessing.cases import prepare_case
from iaunet.records import FieldError, from_json, load_record, to_json
from iaunet.stacks import read_stack
from iaunet.storage import write_json
from iaunet.trainers.checkpoint import load_checkpoint
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.progress import COLUMNS, Metrics
from iaunet.trainers.trainer import Trainer
from iaunet.trainers.training import TrainingOptions, resolve_plan
from iaunet.weights import load_weights, save_weights
from iaunet.workspace import DatasetFolder, Workspace
from model_zips import files_of, packed, seal

SHORT, LONG, LONG_MODEL = 60, 10_000, 100_000
LEAST_ACCEPTED = 0.01
SECONDS = 60
"""That reading one file may take, on a machine that does other things as well."""

MEMORY = 1 << 30
"""Bytes that reading one file may take."""

PREDICTED, IMPORTED = 50, 10
"""Of so many audit files one is predicted beside, of so many models one is imported."""

LONGEST = 3000
"""Characters of a message."""

RUN = "unet-best-random"

Spoil = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Target:
    """A file that is spoilt, in turn as each of ``sound``, and what reads it: true if it took the file as it is."""

    path: Path
    sound: Sequence[bytes]
    spoil: Spoil
    read: Callable[[], bool]


class TooSlow(BaseException):
    """Reading one file took longer than `SECONDS`."""


# Changes of structure -----------------------------------------------------------------------------------------------

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 0.5, -0.5, 1e-320, 1e308, 65536, 2**31, 2**63, 10**30, 10**400),
    *(math.nan, math.inf, -math.inf, "", "a", "0", "ä", "all", "values", "iaunet", "swin_unet", "\ud800", "a\0b"),
    *("a line\nand another\x1b[31m\u2028", "../../escaped", "/etc/passwd", "C:\\x", "x" * 100_000, "os.path:join"),
    *([], {}, [[]], [0, 0], [1, 2], {"a": 1}, [None], [0] * 1000, "@deep@", "@deep@"),
)
"""What takes the place of a value; `_written` puts brackets in the place of "@deep@"."""


def spoil_json(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one to three changes of its structure."""
    content = json.loads(data)
    for _ in range(int(rng.integers(1, 4))):
        content = _changed(content, rng)
    return _written(content, rng)


def _pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every container of a value with each of its keys."""
    found, waiting = [], [content]
    while waiting:
        container = waiting.pop()
        keys = [*container] if isinstance(container, dict) else range(len(container))
        found += [(container, key) for key in keys]
        waiting += [item for key in keys if isinstance(item := container[key], dict | list)]
    return found


def _junk(rng: np.random.Generator) -> Any:
    """One of `JUNK`, as a copy: what is put in may be changed again."""
    return copy.deepcopy(_pick(rng, JUNK))


def _changed(content: Any, rng: np.random.Generator) -> Any:
    places = _places(content) if isinstance(content, dict | list) else []
    if not places or rng.integers(200) == 0:
        return _junk(rng)
    container, key = _pick(rng, places)
    change = int(rng.integers(8))
    if change <= 1:
        container[key] = _nudged(container[key], rng)
    elif change == 2:
        container[key] = _junk(rng)
    elif change == 3:
        other, place = _pick(rng, places)
        container[key] = json.loads(json.dumps(other[place]))
    elif change == 4:
        del container[key]
    elif isinstance(container, list):
        container.insert(int(key), json.loads(json.dumps(container[key])))
    elif change == 5:
        container[str(_junk(rng))] = container.pop(key)
    elif change == 6:
        container[str(_pick(rng, [name for _, name in places]))] = container[key]
    else:
        container[key] = [container[key]]
    return content


def _nudged(value: Any, rng: np.random.Generator) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        if not abs(value) < 1e300:
            return -value
        return _pick(rng, (value + 1, value - 1, -value, value * 2, value / 3, float(value), int(value)))
    if isinstance(value, str):
        return _pick(rng, (value + "x", value[1:], value.upper(), value * 2, value + "\n", value[::-1]))
    if isinstance(value, list):
        return _pick(rng, (value[::-1], value[1:], value * 2, value[:1] * 300))
    return dict([*value.items()][1:])


def _written(content: Any, rng: np.random.Generator) -> bytes:
    text = json.dumps(content, ensure_ascii=bool(rng.integers(2)))
    depth = int(_pick(rng, (10, 700, 850, 900, 930, 950, 970, 985, 100_000)))
    deep = _pick(rng, ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
    text = text.replace('"@deep@"', deep)
    keys = [*re.finditer(r'"[\w.]+": ', text)]
    if keys and rng.integers(10) == 0:  # a key that is there twice
        key = _pick(rng, keys)
        junk = json.dumps(_junk(rng))
        text = text[: key.start()] + key[0] + junk + ", " + text[key.start() :]
    encoding = _pick(rng, ("utf-8",) * 20 + ("utf-8-sig", "utf-16", "utf-32-le"))
    return text.encode(encoding, "surrogatepass")


def spoil_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """A text table with one to three of its fields or lines changed."""
    lines = data.decode().splitlines()
    words = (
        "",
        "0",
        "-1",
        "1e400",
        "nan",
        "a",
        "ä",
        "x" * 200_000,
        '"',
        "\0",
        "../x",
        "9" * 5000,
        "a\x1b[31m",
        "'",
        ":",
    )
    for _ in range(int(rng.integers(1, 4))):
        row = int(rng.integers(len(lines))) if lines else 0
        change = int(rng.integers(5))
        if not lines or change == 0:
            lines.insert(row, str(_pick(rng, words)))
        elif change == 1:
            del lines[row]
        elif change == 2:
            lines.insert(row, lines[int(rng.integers(len(lines)))])
        else:
            fields = re.split(r"([,;\t :]+)", lines[row])
            fields[int(rng.integers(len(fields)))] = str(_pick(rng, (*words, *fields)))
            lines[row] = "".join(fields)
    end = _pick(rng, ("\n", "\n", "\n", "\r\n", "\r"))
    return (end.join(lines) + _pick(rng, (end, ""))).encode()


def spoil_tensors(data: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file whose header says something else, with its own length made right mostly."""
    (length,) = struct.unpack_from("<Q", data)
    header = spoil_json(data[8 : 8 + length], rng)
    told = len(header) if rng.integers(10) else int(_pick(rng, (0, 1, length, 2**40, 2**63, 2**64 - 1)))
    return struct.pack("<Q", told) + header + data[8 + length :]


@pytest.fixture(scope="module")
def spoils(mutate: Callable[..., bytes]) -> dict[str, Spoil]:
    """Ways to spoil a file by its kind: half of all changes are of bytes."""

    def mixed(by_structure: Spoil) -> Spoil:
        return lambda data, rng: mutate(data, rng) if rng.integers(2) else by_structure(data, rng)

    def member(name: str, data: bytes, rng: np.random.Generator) -> bytes:
        kinds = {".json": mixed(spoil_json), ".safetensors": mixed(spoil_tensors)}
        return kinds.get(Path(name).suffix, mutate)(data, rng)

    def model(data: bytes, rng: np.random.Generator) -> bytes:
        """Its bytes, or one of its files with all hashes made right again."""
        if rng.integers(4) == 0:
            return mutate(data, rng)
        files = files_of(io.BytesIO(data))
        name = _pick(rng, [*files, "model.json", "model.json"])
        spoilt = files | {name: member(name, files[name], rng)}
        return packed(spoilt if name == "model.json" else seal(spoilt))

    def checkpoint(data: bytes, rng: np.random.Generator) -> bytes:
        if rng.integers(2):
            return mutate(data, rng)
        files = files_of(io.BytesIO(data))
        name = _pick(rng, [*files, *[name for name in files if name.endswith(".pkl")] * len(files)])
        return packed(files | {name: mutate(files[name], rng)})

    kinds = {"json": mixed(spoil_json), "lines": mixed(spoil_lines), "tensors": mixed(spoil_tensors)}
    return kinds | {"model": model, "checkpoint": checkpoint}


# What reads the files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lab:
    """A dataset with arrays, a run of one fold with random weights, what was learnt of it, and a folder to work in."""

    root: Path
    dataset: DatasetFolder
    run: Run
    images: Path
    spoils: Mapping[str, Spoil]

    @property
    def plan(self) -> Plan:
        """The run's."""
        return Run(self.run.root).record.plan

    @property
    def image(self) -> Path:
        """A picture."""
        return self.images / "case_00.png"

    def record(self, path: Path, read: Callable[[], object], how: str = "json") -> Target:
        """A file that is there, and is taken if it can be read."""
        return Target(path, [path.read_bytes()], self.spoils[how], lambda: read() is not None)


@pytest.fixture(scope="module")
def lab(toy_workspace: Path, tmp_path_factory: pytest.TempPathFactory, spoils: Mapping[str, Spoil]) -> Lab:
    """See `Lab`; the network is as small as networks get."""
    root = tmp_path_factory.mktemp("lab")
    dataset = DatasetFolder(shutil.copytree(toy_workspace / "toy", root / "workspace" / "toy"))
    content = json.loads(dataset.plan_json.read_text(encoding="utf-8"))
    content["network"] = {"name": "unet", "width": 2, "depth": 3}
    dataset.plan_json.write_text(json.dumps(content), encoding="utf-8")
    plan = load_plan(dataset.plan_json)
    run = Run(dataset.runs / RUN)
    add_run(run, plan)
    (dataset.root / FAMILIAR).unlink()  # so that the fingerprint is read
    images = root / "images"
    images.mkdir()
    raw = Path(dataset.load_dataset().source.root) / "images"
    shutil.copyfile(raw / "case_00.png", images / "case_00.png")
    return Lab(root, dataset, run, images, spoils)


def add_run(run: Run, plan: Plan) -> None:
    """Fold 0 of a run with random weights."""
    record = RunRecord(plan=plan, split="random", split_digest="0", seed=0, micro_batch=4, device="cpu", threads=1)
    run.write_record(record)
    torch.manual_seed(0)
    save_weights(run.fold("0").weights, build_planned_network(plan).state_dict())
    write_summary(run.fold("0"), {"split": "random", "inflated": "", "scores": None})


def choose(lab: Lab) -> BestFolder:
    """What `iaunet_find_best` would leave, but for the digest by which another file than that of the choice is told."""
    reliability = Reliability(
        pixels=(4, 0), probability=(0.2, None), frequency=(0.25, None), ece=0.05, brier=0.2, log_loss=0.6
    )
    model = DiceModel(intercept=0.1, coefficients=(0.8,) + (0.0,) * (len(FEATURES) - 1))
    tuning = Tuning(
        postprocessing=Postprocessing(thresholds=(0.35,), cleaning=(LabelCleaning(smallest=4, fill_holes=True),)),
        calibration=Calibration(temperatures={RUN: {"0": 1.5}}, before=reliability, after=reliability),
        expected_dice=ExpectedDice(
            flag_below=0.4,
            rank_correlation=0.7,
            low=0.6,
            high=0.8,
            n_flagged=9,
            dice_flagged=0.3,
            dice_unflagged=0.9,
            models={RUN: {"0": model}},
        ),
    )
    folder = BestFolder.of(lab.dataset)
    member = Member(run=RUN, weights_sha256=(lab.run.fold("0").weights_digest(),))
    best = BestModel(
        dataset="toy", split="random", members=(member,), candidates=(), why="the only one", postprocessing_why="kept"
    )
    folder.write(best, tuning)
    content = {"split": "random", "inflated": "", "scores": None, "members": to_json(best.members)}
    write_json(folder.root / CROSSVAL, content)
    write_json(folder.root / BEST, to_json(best))
    return folder


def predict_once(lab: Lab) -> bool:
    """Predict a picture with the dataset's best model, or its only one."""
    predictor = Predictor.from_dataset(lab.dataset, device="cpu")
    predictor.describe()
    return predictor.predict(np.asarray(Image.open(lab.image))).shape == (64, 64)


def dataset_json(lab: Lab) -> Target:
    return lab.record(lab.dataset.dataset_json, lambda: to_json(lab.dataset.load_cases()))


def nnunet_json(lab: Lab) -> Target:
    root = lab.root / "nnunet"
    for part, value in (("imagesTr", "case_{}_0000.png"), ("labelsTr", "case_{}.png")):
        (root / part).mkdir(parents=True)
        for number in range(3):
            (root / part / value.format(number)).write_bytes(lab.image.read_bytes())
    listed = {
        f"case_{i}": {"images": [f"imagesTr/case_{i}_0000.png"], "label": f"labelsTr/case_{i}.png"} for i in (0, 1)
    }
    content: dict[str, Any] = {
        "channel_names": {"0": "R"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": 3,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "training": [{"image": "imagesTr/case_0.png", "label": "labelsTr/case_0.png"}],
    }
    path = root / "dataset.json"
    sound = [json.dumps(each).encode() for each in (content, content | {"dataset": listed})]

    def read() -> bool:
        is_nnunet_dataset(root)
        return all(problem.level == "note" for problem in read_nnunet(root).problems)

    return Target(path, sound, lab.spoils["json"], read)


def plan_json(lab: Lab) -> Target:
    stack = read_stack((lab.image,), lab.plan.slicing)

    def read() -> bool:
        plan = load_plan(lab.dataset.plan_json)
        _ = plan.arrays_digest, content_digest(plan), plan.value_names, plan.is_edited
        save_plan(resolve_plan(plan, TrainingOptions()), lab.root / "plan.json")
        with contextlib.suppress(FileError):  # of other channels or pixels
            next(prepare_case(stack, plan).rows())
        return True

    return Target(lab.dataset.plan_json, [lab.dataset.plan_json.read_bytes()], lab.spoils["json"], read)


def index_json(lab: Lab) -> Target:
    def read() -> bool:
        arrays = open_arrays(lab.dataset.preprocessed, lab.plan.arrays_digest)
        for name in arrays.cases:
            arrays.truth(name)
            assert all(row.shape == (3, 64, 64) for row in arrays.case_input(name).rows())
        return True

    return lab.record(lab.dataset.preprocessed / "index.json", read)


def splits_json(lab: Lab) -> Target:
    names = [case.name for case in lab.dataset.load_dataset().cases]

    def read() -> bool:
        split = find_split(load_splits(lab.dataset.splits_json), "random", names, {})
        return {name for fold in split.folds for name in fold.validation} <= {*names}

    return lab.record(lab.dataset.splits_json, read)


def splits_file(lab: Lab) -> Target:
    """A user's own, as nnU-Net's splits_final.json."""
    splits = load_splits(lab.dataset.splits_json)
    names = [case.name for case in lab.dataset.load_dataset().cases]
    path = lab.root / "splits_final.json"
    folds = [{"train": fold.train, "val": fold.validation} for fold in splits.splits["random"].folds]
    path.write_text(json.dumps(folds), encoding="utf-8")
    return lab.record(path, lambda: find_split(splits, str(path), names, dict.fromkeys(names, "a")))


def run_json(lab: Lab) -> Target:
    return lab.record(lab.run.run_json, lambda: Predictor.from_runs([Run(lab.run.root)], device="cpu").describe())


def summary_json(lab: Lab) -> Target:
    return lab.record(lab.run.fold("0").summary_json, lambda: predict_once(lab))


def best_file(name: str) -> Callable[[Lab], Target]:
    def target(lab: Lab) -> Target:
        path = choose(lab).root / name
        return Target(path, [path.read_bytes()], lab.spoils["json"], lambda: predict_once(lab))

    return target


def fingerprint_json(lab: Lab) -> Target:
    path = lab.dataset.fingerprint_json

    def read() -> bool:
        find_familiar(lab.dataset, lab.plan)
        found = load_record(Fingerprint, path, IaunetError, "plan again")
        _ = found.digest, found.are_volumes, found.empty_masks, [case.ceiling for case in found.cases]
        return True

    return Target(path, [path.read_bytes()], lab.spoils["json"], read)


def familiar_json(lab: Lab) -> Target:
    path = lab.root / "imported" / FAMILIAR
    path.parent.mkdir()
    stack = read_stack((lab.image,), lab.plan.slicing)
    familiar = Familiar.of(load_record(Fingerprint, lab.dataset.fingerprint_json, IaunetError, ""))
    keep_familiar(DatasetFolder(path.parent), lab.plan.fingerprint, familiar)

    def read() -> bool:
        found = find_familiar(DatasetFolder(path.parent), lab.plan)
        return found is not None and isinstance([*found.differences(stack)], list)

    return Target(path, [path.read_bytes()], lab.spoils["json"], read)


def predicted(lab: Lab, name: str) -> Target:
    """A file in a folder of predictions that is predicted into again, which takes so long that it is done sometimes."""
    predictor, output = Predictor.from_runs([lab.run], device="cpu"), lab.root / f"masks of {name}"
    predict_folder(predictor, lab.images, output, FolderOptions(overwrite=True))
    sound = (output / name).read_bytes()

    calls = itertools.count()

    def read() -> bool:
        if name == AUDIT:
            lines = [audit_line(values) for values in read_audit(output / AUDIT)]
            if next(calls) % PREDICTED:
                return None not in lines
        predict_folder(predictor, lab.images, output, FolderOptions())
        return True

    return Target(output / name, [sound], lab.spoils["json" if name.endswith("json") else "lines"], read)


def checkpoint_file(lab: Lab) -> Target:
    fold = load_splits(lab.dataset.splits_json).splits["random"].folds[0]
    setup = FoldSetup(
        plan=lab.plan,
        folder=FoldFolder(lab.root / "fold_0"),
        preprocessed=lab.dataset.preprocessed,
        run="a run",
        train=fold.train[:4],
        validation=fold.validation[:1],
        seed=0,
        device=torch.device("cpu"),
        micro_batch=4,
        workers=0,
        epochs=1,
    )
    setup.folder.root.mkdir()
    trainer = Trainer(setup)
    trainer.fit()
    trainer.save_checkpoint()
    path = setup.folder.checkpoint
    sound = path.read_bytes()

    def read() -> bool:
        trainer.load(load_checkpoint(path))
        return True

    return Target(path, [sound], lab.spoils["checkpoint"], read)


def metrics_csv(lab: Lab) -> Target:
    path = lab.root / "metrics.csv"
    rows = [",".join(str(epoch) for _ in COLUMNS) for epoch in (1, 2, 3)]
    path.write_text("\n".join([",".join(COLUMNS), *rows, ""]), encoding="utf-8")
    return lab.record(path, lambda: Metrics(path, 2), "lines")


def scores_csv(lab: Lab) -> Target:
    path, ones = lab.root / "scores.csv", np.ones((1, 4, 4), np.uint8)
    scores: list[CaseScore] = [score_masks(name, ones, ones, ("a", "b"), None, outputs=((1,), (2,))) for name in "xy"]
    write_scores(path, scores)
    return lab.record(path, lambda: read_scores(path), "lines")


def cases_csv(lab: Lab) -> Target:
    folder = choose(lab)
    row = CaseRow(name="a", fold=0, group="", dice=0.5, expected_dice=0.4, flagged=True)
    write_case_table(folder.root / CASES, [row, row])
    return lab.record(folder.root / CASES, folder.read_cases, "lines")


def disagreement_csv(lab: Lab) -> Target:
    path = lab.root / "disagreement.csv"
    write_disagreement(path, {"a": np.ones(2), "b": np.ones(2)}, ["one", "two"])
    return lab.record(path, lambda: read_disagreement(path), "lines")


def groups_csv(lab: Lab) -> Target:
    path, names = lab.root / "groups.csv", [f"folder/case_{i}" for i in range(6)]
    path.write_text("".join(f"{name}.png,patient {i // 2}\n" for i, name in enumerate(names)), encoding="utf-8")
    return lab.record(path, lambda: resolve_groups(names, str(path)), "lines")


def weights_file(lab: Lab) -> Target:
    network = build_planned_network(lab.plan)
    path = lab.root / "weights.safetensors"
    save_weights(path, network.state_dict())

    def read() -> bool:
        load_weights(path, network)
        return True

    return Target(path, [path.read_bytes()], lab.spoils["tensors"], read)


def annotated(name: str, how: str, *sound: bytes, **others: str) -> Callable[[Lab], Target]:
    """An annotation file of an image of 20 x 30 pixels called ``a.png``, with other files beside it."""

    def target(lab: Lab) -> Target:
        root = lab.root / f"annotated {name}"
        root.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / "a.png")
        for other, text in others.items():
            (root / other.replace("_", ".")).write_text(text, encoding="utf-8")

        def read() -> bool:
            found = find_annotations(root, [root / "a.png"])
            if found is None:
                return False
            converted = convert(found, {"a": root / "a.png"}, lab.root / "drawn")
            faults = [problem for problem in converted.problems if problem.level == "fault"]
            return bool(converted.masks) and not faults

        return Target(root / name, sound, lab.spoils[how], read)

    return target


def label_map(name: str, how: str, *sound: bytes) -> Callable[[Lab], Target]:
    """A file that names the colours of masks."""

    def target(lab: Lab) -> Target:
        root = lab.root / f"coloured {name}"
        root.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).save(root / "mask.png")

        def read() -> bool:
            found = find_label_map(root)
            converted = convert_colours({"a": root / "mask.png"}, lab.root / "coloured", root, found)
            return bool(converted.masks) and found is not None

        return Target(root / name, sound, lab.spoils[how], read)

    return target


def runtime_json(lab: Lab) -> Target:
    path = lab.root / "runtime.json"
    settings = {
        "onnx_sha256": "0",
        "channels": 1,
        "depth": "uint8",
        "size": [64, 64],
        "mode": "resize",
        "tile_scale": 1.0,
        "channel_files": 0,
        "reads_tiff": True,
        "mean": [1.0],
        "sd": [1.0],
        "windows": [],
        "percentiles": [],
        "thresholds": [0.5],
        "painted": [],
        "names": ["a"],
        "outputs": [[1]],
        "written": [255],
        "cleaning": [{"smallest": 4, "largest_only": False, "fill_holes": True}],
    }
    path.write_text(json.dumps({"version": 1, "settings": settings, "facts": {}}), encoding="utf-8")
    return lab.record(path, lambda: read_settings(path))


def model_file(lab: Lab) -> Target:
    """Models of several networks; some are imported as well."""
    path, networks = (
        lab.root / "model.zip",
        {
            "unet": {},
            "iaunet": {"spatial_attention": "scaled", "max_keys": 16, "gamma_init": 0.1, "channel_attention": True},
            "swin_unet": {"window": 2, "drop_path": 0.1},
        },
    )
    sound = []
    for name, options in networks.items():
        dataset = DatasetFolder(lab.root / name / "made")
        plan = load_plan(lab.dataset.plan_json)
        network = NetworkPlan(name=name, width=2, depth=3, options=options)  # type: ignore[arg-type]
        add_run(Run(dataset.runs / "one"), dataclasses.replace(plan, network=network))
        export_model(dataset, path.with_name(f"{name}.zip"))
        sound.append(path.with_name(f"{name}.zip").read_bytes())
    best = choose(lab)
    export_model(lab.dataset, lab.root / "chosen.zip")
    sound += [sound[0], (lab.root / "chosen.zip").read_bytes()] * 4  # the quick ones
    shutil.rmtree(best.root)
    workspace = Workspace(lab.root / "imported models")
    around = {*lab.root.iterdir()} | {path, workspace.root}
    calls = itertools.count()

    def read() -> bool:
        if next(calls) % IMPORTED == 0:
            with contextlib.suppress(IaunetError):
                import_model(path, workspace, "name")
            assert {*lab.root.iterdir()} <= around
            assert {entry.name for entry in workspace.root.glob("*")} <= {"name", ".lock"}
            shutil.rmtree(workspace.root / "name", ignore_errors=True)
        model = open_model(path)
        Predictor(model.plan, model.networks, torch.device("cpu"), tuning=model.tuning, members=model.members)
        return True

    return Target(path, sound, lab.spoils["model"], read)


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
    "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9.5, 1, 9, 9, 1, 9]]},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": {"counts": [100, 20, 480], "size": [20, 30]}},
        {"id": 3, "image_id": 1, "category_id": 2, "segmentation": {"counts": "T3d0l1d0P:", "size": [20, 30]}},
    ],
}
LABELME = {
    "version": "5.0",
    "imagePath": "a.png",
    "imageHeight": 20,
    "imageWidth": 30,
    "shapes": [
        {"label": "one", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon", "group_id": None},
        {"label": "two", "points": [[12, 2], [18, 8]], "shape_type": "rectangle"},
        {"label": "two", "points": [[20, 10], [22, 10]], "shape_type": "circle"},
        {"label": "point", "points": [[20, 10]], "shape_type": "point"},
    ],
}
YOLO = "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0.6 0.6 0.9 0.6 0.9 0.9 0.6 0.9\n"
CLASSES = "one\ntwo\n"
DATA_YAML = "path: ../data\ntrain: images\nnames:\n  0: one\n  1: 'two'\n"
RUN_LENGTHS = "ImageId,ClassId,EncodedPixels\na.png,one,1 20 41 10\na.png,two,101 20 131 10\n"
LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\none:255,0,0::\n"

KINDS: dict[str, Callable[[Lab], Target]] = {
    "dataset.json": dataset_json,
    "dataset.json of nnU-Net": nnunet_json,
    "plan.json": plan_json,
    "index.json": index_json,
    "splits.json": splits_json,
    "splits_final.json": splits_file,
    "run.json": run_json,
    "summary.json": summary_json,
    "best.json": best_file("best.json"),
    "postprocessing.json": best_file("postprocessing.json"),
    "calibration.json": best_file("calibration.json"),
    "expected_dice.json": best_file("expected_dice.json"),
    "fingerprint.json": fingerprint_json,
    "familiar.json": familiar_json,
    "predictions.json": lambda lab: predicted(lab, "predictions.json"),
    "audit.jsonl": lambda lab: predicted(lab, "audit.jsonl"),
    "checkpoint.pt": checkpoint_file,
    "weights.safetensors": weights_file,
    "metrics.csv": metrics_csv,
    "scores.csv": scores_csv,
    "cases.csv": cases_csv,
    "mirror_disagreement.csv": disagreement_csv,
    "groups.csv": groups_csv,
    "runtime.json": runtime_json,
    "COCO": annotated("coco.json", "json", json.dumps(COCO).encode()),
    "Labelme": annotated("a.json", "json", json.dumps(LABELME).encode()),
    "YOLO": annotated("a.txt", "lines", YOLO.encode(), classes_txt=CLASSES),
    "classes.txt": annotated("classes.txt", "lines", CLASSES.encode(), a_txt=YOLO),
    "data.yaml": annotated("data.yaml", "lines", DATA_YAML.encode(), a_txt=YOLO),
    "run lengths": annotated("train.csv", "lines", RUN_LENGTHS.encode()),
    "labelmap.txt": label_map("labelmap.txt", "lines", LABEL_MAP.encode()),
    "colours.csv": label_map("colours.csv", "lines", b"name,r,g,b\none,255,0,0\ntwo,0,255,0\n"),
    "colours.json": label_map("colours.json", "json", b'{"one": [255, 0, 0], "two": [0, 255, 0]}'),
    "model.zip": model_file,
}


# The harness --------------------------------------------------------------------------------------------------------


def require_lines(texts: Sequence[str]) -> None:
    """Assert that each text is one line that a terminal shows as it is, and no longer than a person reads."""
    for text in texts:
        assert text.isprintable(), f"no line: {text[:500]!r}"
        assert len(text) <= LONGEST, f"a line of {len(text)} characters: {text[:500]}"


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let this process take only so many bytes more, where the system can do that."""
    resource = pytest.importorskip("resource", reason="no limits on memory on this system")
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raise `TooSlow` in the block after `SECONDS`."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timers on this system")

    def give_up(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(target: Target) -> str:
    """What comes of the file as it lies there: "accepted", "left" or "refused", else what escaped and where."""
    try:
        return "accepted" if target.read() else "left"
    except (IaunetError, RuntimeFault) as fault:
        try:
            require_lines([str(fault)])
        except AssertionError as wrong:
            return str(wrong)
        return "refused"
    except (Exception, TooSlow) as fault:
        places = [frame for frame in traceback.extract_tb(fault.__traceback__) if "/tests/" not in frame.filename]
        place = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "the test"
        return f"{type(fault).__name__} at {place}: {str(fault)[:300]}"


def attack(kind: str, lab: Lab, n: int) -> None:
    """Spoil a file in n ways, have each read, and assert that nothing escapes and that enough are accepted."""
    target = KINDS[kind](lab)
    sound = target.path.read_bytes() if target.path.exists() else None
    outcomes: Counter[str] = Counter()
    first: dict[str, int] = {}
    with limited_memory(MEMORY):
        for number in range(n):
            rng = np.random.default_rng([zlib.crc32(kind.encode()), number])
            target.path.write_bytes(target.spoil(target.sound[number % len(target.sound)], rng))
            with watched():
                what = outcome(target)
            outcomes[what] += 1
            first.setdefault(what, number)
    if sound is not None:
        target.path.write_bytes(sound)
    escaped = [f"input {first[what]} of {kind}: {what} ({outcomes[what]} times)" for what in outcomes.keys() - OUTCOMES]
    told = ", ".join(f"{outcomes[what]} {what}" for what in OUTCOMES)
    print(f"{kind}: {n} inputs, {told}, {sum(outcomes.values()) - sum(outcomes[what] for what in OUTCOMES)} escaped")
    assert not escaped, "\n".join(sorted(escaped))
    assert outcomes["accepted"] >= LEAST_ACCEPTED * n, told


OUTCOMES = ("accepted", "left", "refused")


def test_a_number_stands_for_the_same_input_whatever_came_before():
    data = json.dumps({"a": [1, 2, {"b": [3]}], "c": {"d": None}}).encode()

    def inputs() -> list[bytes]:
        return [spoil_json(data, np.random.default_rng(number)) for number in range(1000)]

    assert inputs() == inputs()


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds_one_line_comes_of_it(lab, kind):
    attack(kind, lab, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds_one_line_comes_of_it_ten_thousand_times(lab, kind):
    attack(kind, lab, LONG_MODEL if kind == "model.zip" else LONG)


# Faults that were found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scores.csv", "cases.csv", "metrics.csv", "mirror_disagreement.csv"])
def test_a_field_longer_than_tables_have_is_a_fault(lab, kind):
    target = KINDS[kind](lab)
    target.path.write_bytes(target.sound[0] + b"x" * 200_000 + b"\n")

    with pytest.raises(IaunetError, match=r"in line \d+|, line \d+, holds no score"):
        target.read()
    target.path.unlink()


def test_a_curve_with_a_field_longer_than_tables_have_is_a_fault(tmp_path):
    (tmp_path / "metrics.csv").write_text(f"{','.join(COLUMNS)}\n{'x' * 200_000}\n", encoding="utf-8")

    with pytest.raises(IaunetError, match="holds no metrics in line"):
        read_curve(tmp_path / "metrics.csv", "0")


@pytest.mark.parametrize("value", ["a\0b", "x" * 10_000, ["\n"]])
def test_settings_of_the_runtime_are_told_in_one_line(tmp_path, value):
    (tmp_path / "runtime.json").write_text(json.dumps({"version": value}), encoding="utf-8")

    with pytest.raises(RuntimeFault, match=r"is of version .*: use the") as caught:
        read_settings(tmp_path / "runtime.json")

    require_lines([str(caught.value)])
    (tmp_path / "runtime.json").write_text(json.dumps({"version": 1, "settings": {"\x1b": 1, "cleaning": []}}))
    with pytest.raises(RuntimeFault, match="is damaged") as caught:
        read_settings(tmp_path / "runtime.json")
    require_lines([str(caught.value)])


def test_a_true_mask_of_another_size_is_a_fault(lab):
    arrays = open_arrays(lab.dataset.preprocessed, lab.plan.arrays_digest)
    path = truth_path(lab.dataset.preprocessed, "case_00")
    sound = path.read_bytes()
    Image.fromarray(np.zeros((64, 63), np.uint8)).save(path)

    with pytest.raises(IaunetError, match=r"has 64 x 63 pixels, not those of its case: .*run iaunet_plan_and_pre"):
        arrays.truth("case_00")
    path.write_bytes(sound)


def test_a_fingerprint_without_cases_or_with_too_many_channels_is_a_fault(lab):
    content = json.loads(lab.dataset.fingerprint_json.read_text(encoding="utf-8"))
    wrong = content | {"channels": 2}

    with pytest.raises(FieldError, match=r"cases is \[\]: give one at least"):
        from_json(Fingerprint, content | {"cases": []})
    with pytest.raises(FieldError, match="intensity of case_00 is 3: give 1 or 2, one a channel"):
        from_json(Fingerprint, wrong)
