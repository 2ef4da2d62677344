import json
import shutil
import subprocess
import sys
import unicodedata

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from iaunet.errors import DatasetError, PredictionError
from iaunet.files import write_png
from iaunet.inference.evaluate_command import main
from iaunet.inference.evaluation import evaluate_folders, judge_folders, pair_masks, save_evaluation
from iaunet.inference.scores import read_scores
from iaunet.workspace import LOCK


def disc(radius, size=(48, 64), centre=(24, 30)):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


def write(path, mask, value=255, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((mask * value).astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "pred", tmp_path / "truth"


def write_cases(folders, n=4):
    """Predictions in 0 and 1, truth in 0 and 255, of growing disagreement."""
    predictions, truth = folders
    for i in range(n):
        write(predictions / f"case_{i}.png", disc(12 + i), value=1)
        write(truth / f"case_{i}.png", disc(12))
    return folders


def dice_of(evaluation, label="foreground"):
    return [case.labels[label].metrics["dice"] for case in evaluation.scores]


def dice(prediction, truth):
    return 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())


def names_of(folders):
    return [pair.name for pair in pair_masks(*folders)[0]]


def test_masks_of_0_and_1_are_scored_on_masks_of_0_and_255(folders):
    write_cases(folders)

    evaluation = evaluate_folders(*folders, groups=None)

    assert dice_of(evaluation) == [pytest.approx(dice(disc(12 + i), disc(12))) for i in range(4)]
    assert evaluation.understood == "one label: predicted masks 0 and 1, true masks 0 and 255"
    assert evaluation.problems == ()
    assert evaluation.summary.labels["foreground"].all_cases["dice"].mean == np.mean(dice_of(evaluation))


def test_the_number_of_workers_changes_nothing(folders):
    write_cases(folders, n=26)

    alone, together = (evaluate_folders(*folders, groups=r"\d", workers=n) for n in (1, 2))

    assert repr(alone) == repr(together)


def test_noisy_masks_are_cut_in_the_middle(folders):
    predictions, truth = folders
    for i in range(3):
        mask = disc(50 + i, size=(200, 260), centre=(100, 120))
        write(predictions / f"{i}.jpg", mask, quality=75)
        write(truth / f"{i}.png", mask, value=1)

    evaluation = evaluate_folders(*folders, groups=None)

    assert evaluation.understood == "one label: predicted masks noisy, cut at 127, true masks 0 and 1"
    assert min(dice_of(evaluation)) > 0.99


def test_label_maps_are_scored_by_value_even_where_a_label_is_rare_or_missing(folders):
    predictions, truth = folders
    organ, speck = disc(15, size=(200, 200)) * 1, disc(1, size=(200, 200), centre=(150, 150)) * 5
    lesion = disc(5, size=(200, 200), centre=(90, 90)) * 3
    write(predictions / "a.png", organ + speck, value=1)
    write(truth / "a.png", organ + speck, value=1)
    write(predictions / "b.png", organ, value=1)
    write(truth / "b.png", organ + lesion, value=1)

    evaluation = evaluate_folders(*folders, groups=None)

    assert evaluation.understood == "labels by value: 1, 3, 5"
    assert dice_of(evaluation, "label_1") == [1, 1]
    assert dice_of(evaluation, "label_3") == [1, 0]
    assert dice_of(evaluation, "label_5") == [1, 1]


@pytest.mark.parametrize(
    ("predictions", "truth", "understood"),
    [
        ({0: 9, 1: 1}, {0: 9, 1: 1}, "one label: predicted masks 0 and 1, true masks 0 and 1"),
        ({0: 9}, {0: 9, 1: 1}, "one label: predicted masks 0 and 255, true masks 0 and 1"),
        ({255: 9}, {0: 9, 1: 1}, "one label: predicted masks 0 and 255, true masks 0 and 1"),
        ({0: 9}, {0: 9}, "one label: predicted masks 0 and 255, true masks 0 and 255"),
        ({0: 9, 1: 1}, {0: 9, 1: 1, 2: 1}, "labels by value: 1, 2"),
        ({0: 9}, {0: 9, 7: 1}, "labels by value: 7"),
        ({0: 9, 300: 1}, {0: 9, 300: 1, 65535: 1}, "labels by value: 300, 65535"),
    ],
)
def test_values_are_judged_together(predictions, truth, understood):
    assert judge_folders(predictions, truth).understood == understood


def test_a_single_value_of_any_size_is_the_foreground():
    assert judge_folders({0: 9, 7: 1}, {0: 9, 7: 1}).labels == ("foreground",)


@pytest.mark.parametrize(
    ("predictions", "truth", "message"),
    [
        ({0: 9, 255: 1}, {0: 9, 1: 1, 2: 1}, "hold the labels 255, true masks 1, 2: write the same values"),
        ({0: 9, 128: 1}, {0: 9, 255: 1}, "hold the labels 128, true masks 255"),
        (dict.fromkeys(range(90), 5), {0: 9, 1: 1}, "predicted masks hold 90 values from 0 to 89.*save them"),
        ({0: 9, 1: 1}, {0: 9, 70000: 1}, "true masks hold 2 values from 0 to 70000.*save them"),
        ({-1: 9, 1: 1}, {0: 9, 1: 1}, "predicted masks hold 2 values from -1 to 1.*save them"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(predictions, truth, message):
    with pytest.raises(PredictionError, match=message):
        judge_folders(predictions, truth)


def test_names_pair_across_folders_endings_and_suffixes_in_natural_order(folders):
    predictions, truth = folders
    for name in ("p2/frame_10.png", "p2/frame_2.png", "p1/frame_1_mask.tif"):
        write(predictions / name, disc(9))
    for name in ("p2/frame_10_segmentation.bmp", "p2/frame_2_Seg.png", "p1/frame_1.png"):
        write(truth / name, disc(9))

    assert names_of(folders) == ["p1/frame_1", "p2/frame_2", "p2/frame_10"]
    assert dice_of(evaluate_folders(*folders, groups="folder")) == [1, 1, 1]


def test_equal_stems_are_told_apart_by_their_ending(folders):
    predictions, truth = folders
    for radius, ending in ((10, ".tif"), (14, ".bmp")):
        write(predictions / f"a{ending}.png", disc(radius))
        write(truth / f"a{ending}", disc(radius))

    assert names_of(folders) == ["a.bmp", "a.tif"]
    assert dice_of(evaluate_folders(*folders, groups=None)) == [1, 1]


def test_two_masks_of_one_name_are_refused(folders):
    predictions, truth = folders
    write(predictions / "a.png", disc(9))
    for name in ("a.tif", "a.bmp", "a.bmp.png"):
        write(truth / name, disc(9))

    with pytest.raises(PredictionError, match=r"a\.bmp.* have the same name: rename"):
        pair_masks(*folders)


def test_masks_pair_whichever_way_an_accent_is_written(folders):
    predictions, truth = folders
    for name in ("ä.png", "ö.png", "ö.jpg"):
        write(predictions / unicodedata.normalize("NFC", name), disc(9))
        write(truth / unicodedata.normalize("NFD", name), disc(9))

    assert names_of(folders) == ["ä", "ö.jpg", "ö.png"]


def test_a_missing_prediction_is_a_failure_and_a_spare_one_a_note(folders):
    predictions, truth = write_cases(folders)
    (predictions / "case_2.png").rename(predictions / "other.png")

    evaluation = evaluate_folders(*folders, groups=None)

    assert len(evaluation.scores) == 3
    assert [(p.file, p.what) for p in evaluation.failures] == [(str(truth / "case_2.png"), "has no prediction")]
    notes = [p for p in evaluation.problems if p.level == "note"]
    assert [(p.file, p.what) for p in notes] == [(str(predictions / "other.png"), "has no truth and is left out")]


def test_a_mask_of_another_size_is_a_failure_that_names_both(folders):
    predictions, _ = write_cases(folders)
    write(predictions / "case_1.png", disc(9, size=(50, 60)))

    evaluation = evaluate_folders(*folders, groups=None)

    (failure,) = evaluation.failures
    assert failure.file == str(predictions / "case_1.png")
    assert failure.what == "is 50 x 60, its truth 48 x 64 (height x width)"
    assert len(evaluation.scores) == 3


def write_volume(path, mask, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), path)


def block(shape=(20, 24, 8), at=(5, 6, 2), size=(8, 10, 3)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, start + length) for start, length in zip(at, size, strict=True))] = True
    return mask


SPACED = np.diag([0.5, 0.75, 4.0, 1.0])


def test_volumes_are_scored_as_a_whole_and_in_mm(folders):
    predictions, truth = folders
    write_volume(truth / "a.nii.gz", block(), SPACED)
    write_volume(predictions / "a.nii.gz", block(size=(8, 10, 4)), SPACED)  # a slice too many, 4 mm
    write_volume(truth / "b.nii.gz", block(), SPACED)
    write_volume(predictions / "b.nii.gz", block(at=(8, 6, 2)), SPACED)  # 3 voxels of 0.5 mm aside

    evaluation = evaluate_folders(*folders, groups="none", tolerance=3.0)

    thick, aside = (score.labels["foreground"] for score in evaluation.scores)
    assert (thick.counts.tp, thick.counts.fp, thick.counts.fn, thick.counts.tn) == (240, 80, 0, 3840 - 320)
    assert thick.metrics["dice"] == pytest.approx(480 / 560)
    assert thick.metrics["hd95"] == pytest.approx(4.0)  # 80 of the 224 surface voxels are those of the added slice
    assert (aside.counts.tp, aside.counts.fp, aside.counts.fn) == (150, 90, 90)
    assert aside.metrics["hd95"] == pytest.approx(1.5)
    assert aside.metrics["surface_dice"] == 1  # 3 voxels of the finest axis are 1.5 mm
    assert evaluation.summary.distance_unit == "mm"
    assert evaluation.summary.labels["foreground"].all_cases["hd95"].mean == pytest.approx(2.75)


def test_a_slice_that_is_missing_lies_its_thickness_away(folders):
    predictions, truth = folders
    write_volume(truth / "a.nii.gz", block(at=(5, 6, 2), size=(8, 10, 1)), SPACED)
    write_volume(predictions / "a.nii.gz", block(at=(5, 6, 3), size=(8, 10, 1)), SPACED)

    [score] = evaluate_folders(*folders, groups="none").scores

    assert score.labels["foreground"].metrics["hd95"] == pytest.approx(4.0)
    assert score.labels["foreground"].metrics["surface_dice"] == 0


def test_a_mask_in_another_orientation_is_scored_where_it_lies(folders):
    predictions, truth = folders
    mask = block(size=(8, 10, 4))
    write_volume(truth / "a.nii.gz", block(), SPACED)
    write_volume(predictions / "a.nii.gz", mask, SPACED)
    straight = evaluate_folders(*folders, groups="none").scores
    turned = SPACED[:, [2, 0, 1, 3]].copy()
    turned[:3, 3] = turned[:3, 1] * (mask.shape[0] - 1)
    turned[:, 1] *= -1
    write_volume(predictions / "a.nii.gz", mask.transpose(2, 0, 1)[:, ::-1], turned)

    evaluation = evaluate_folders(*folders, groups="none")

    assert repr(evaluation.scores) == repr(straight)
    assert evaluation.problems == ()


def test_a_mask_in_another_place_or_of_another_shape_is_named_and_the_rest_scored(folders):
    predictions, truth = folders
    for name in "abc":
        write_volume(truth / f"{name}.nii.gz", block(), SPACED)
    moved = SPACED.copy()
    moved[2, 3] = 2.5
    write_volume(predictions / "a.nii.gz", block(), moved)
    write_volume(predictions / "b.nii.gz", block(shape=(20, 24, 9)), SPACED)
    write_volume(predictions / "c.nii.gz", block(), SPACED)

    evaluation = evaluate_folders(*folders, groups="none")

    assert [score.name for score in evaluation.scores] == ["c"]
    place, shape = evaluation.failures
    assert place.file.endswith("a.nii.gz")
    assert place.what == "mask lies up to 2.5 mm away from its image"
    assert shape.what == "is 9 x 24 x 20, its truth 8 x 24 x 20 (slices x height x width)"


def test_distances_are_in_pixels_for_all_where_one_mask_tells_no_spacing(folders):
    predictions, truth = folders
    write_volume(truth / "a.nii.gz", block(), SPACED)
    write_volume(predictions / "a.nii.gz", block(at=(8, 6, 2)), SPACED)
    write(truth / "b.png", disc(12), value=1)
    write(predictions / "b.png", disc(12, centre=(24, 34)), value=1)

    evaluation = evaluate_folders(*folders, groups="none")

    volume, _ = (score.labels["foreground"].metrics for score in evaluation.scores)
    assert volume["hd95"] == 3.0
    assert evaluation.summary.distance_unit == "px"


def test_a_predicted_stack_of_pages_is_scored_on_a_true_one(folders):
    predictions, truth = folders
    for folder, mask in ((predictions, block(size=(8, 10, 4))), (truth, block())):
        folder.mkdir()
        pages = np.moveaxis(mask, 2, 0).astype(np.uint8) * 255
        tifffile.imwrite(folder / "a.tif", pages, imagej=True, metadata={"axes": "ZYX"})

    [score] = evaluate_folders(*folders, groups="none").scores

    assert score.labels["foreground"].metrics["dice"] == pytest.approx(480 / 560)


def test_groups_widen_the_interval(folders):
    predictions, truth = folders
    for patient in range(12):
        for frame in range(2):
            write(predictions / f"{patient}_{frame}.png", disc(5 + patient))
            write(truth / f"{patient}_{frame}.png", disc(16))

    def interval(groups):
        evaluation = evaluate_folders(*folders, groups)
        of_dice = evaluation.summary.labels["foreground"].all_cases["dice"]
        return evaluation.summary.n_groups, of_dice.high - of_dice.low

    (n_grouped, grouped), (n_alone, alone) = interval(r"(\d+)_"), interval("none")
    assert (n_grouped, n_alone) == (12, 0)
    assert grouped > 1.2 * alone


def test_groups_that_cannot_be_used_are_refused_before_masks_are_read(folders):
    predictions, _ = write_cases(folders)
    (predictions / "case_0.png").write_bytes(b"")

    with pytest.raises(DatasetError, match=r"--groups patient .* case_0"):
        evaluate_folders(*folders, groups="patient")


def test_nothing_that_can_be_scored_is_refused_with_the_first_fault(folders):
    predictions, _ = write_cases(folders, n=2)
    for path in predictions.iterdir():
        path.write_bytes(b"")

    with pytest.raises(PredictionError, match=r"none of the 2 pairs .*case_0\.png: file is empty: copy"):
        evaluate_folders(*folders, groups=None)


def test_an_evaluation_is_saved_whole(folders, tmp_path):
    predictions, truth = write_cases(folders)
    (predictions / "case_3.png").unlink()
    evaluation = evaluate_folders(*folders, groups=None)

    save_evaluation(tmp_path / "new" / "scores", evaluation)

    assert repr(tuple(read_scores(tmp_path / "new/scores/scores.csv"))) == repr(evaluation.scores)
    summary = json.loads((tmp_path / "new/scores/summary.json").read_text())
    assert summary["truth"] == str(truth)
    assert summary["summary"]["labels"]["foreground"]["all_cases"]["dice"]["n_defined"] == 3
    assert [problem["what"] for problem in summary["problems"]] == ["has no prediction"]
    assert "scores" not in summary


def evaluate(folders, *options):
    predictions, truth = folders
    return main(["--pred", str(predictions), "--truth", str(truth), "--workers", "1", *options])


@pytest.mark.parametrize("tolerance", ["nan", "-1", "inf", "far"])
def test_a_tolerance_that_is_no_distance_is_refused(folders, tolerance, capsys):
    with pytest.raises(SystemExit):
        evaluate(folders, f"--tolerance={tolerance}")

    assert f"'{tolerance}' is no distance: give a number of pixels, 0 or more" in capsys.readouterr().err


def test_what_predictions_write_beside_their_masks_is_no_mask(folders):
    predictions, truth = write_cases(folders)
    before = len(evaluate_folders(predictions, truth, None).scores)
    (predictions / "predictions.json").write_text("{}")
    for name in ("uncertainty", "probabilities", "overlays"):
        (predictions / name).mkdir()
        shutil.copyfile(next(predictions.glob("*.png")), predictions / name / "other.png")

    evaluation = evaluate_folders(predictions, truth, None)

    assert len(evaluation.scores) == before
    assert not [problem for problem in evaluation.problems if "other.png" in problem.file]


def test_the_command_prints_the_table_and_writes_nothing_unless_asked(folders, tmp_path, capsys):
    write_cases(folders)
    before = sorted(tmp_path.rglob("*"))

    assert evaluate(folders, "--groups", "none") == 0

    out = capsys.readouterr().out
    assert "no groups: optimistic if images share patients" in out
    assert "scored     4 of 4 cases, 0 failed" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_writes_where_asked(folders, tmp_path, capsys):
    write_cases(folders)

    assert evaluate(folders, "--output", str(tmp_path / "out")) == 0

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOCK, "scores.csv", "summary.json"]
    assert f"written    {tmp_path / 'out'}" in capsys.readouterr().out


def test_tolerance_reaches_the_scores(folders, tmp_path):
    write_cases(folders)

    def surface_dice(tolerance):
        evaluate(folders, "--output", str(tmp_path / "out"), "--tolerance", tolerance)
        return read_scores(tmp_path / "out/scores.csv")[3].labels["foreground"].metrics["surface_dice"]

    assert surface_dice("1.0") < 0.5
    assert surface_dice("4.0") == 1


def test_a_truncated_mask_among_good_ones_is_named_and_the_rest_scored(folders, capsys):
    predictions, _ = write_cases(folders)
    broken = predictions / "case_2.png"
    broken.write_bytes(broken.read_bytes()[:60])

    assert evaluate(folders) == 1

    out = capsys.readouterr().out
    assert f"failed     {broken}: is truncated or damaged" in out
    assert "scored     3 of 4 cases, 1 failed" in out


def test_many_spare_predictions_are_counted_on_the_screen(folders, capsys):
    predictions, _ = write_cases(folders)
    for i in range(14):
        write(predictions / f"spare_{i}.png", disc(9))

    assert evaluate(folders) == 0

    out = capsys.readouterr().out
    assert out.count("has no truth") == 10
    assert "and 4 more of this kind" in out


def test_folders_without_a_common_name_cannot_be_evaluated(folders, capsys):
    predictions, truth = folders
    write(predictions / "a.png", disc(9))
    write(truth / "b.png", disc(9))

    assert evaluate(folders) == 2

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "have no name in common: give folders whose masks have the same names" in error


def test_a_folder_without_masks_or_no_folder_cannot_be_evaluated(folders, capsys):
    predictions, truth = folders
    write(truth / "a.png", disc(9))

    assert evaluate(folders) == 2
    predictions.mkdir()
    assert evaluate(folders) == 2

    missing, empty = capsys.readouterr().err.splitlines()
    assert "pred does not exist: check the path" in missing
    assert "pred holds no masks (.png" in empty


def test_an_output_that_cannot_be_written_is_named(folders, tmp_path, capsys):
    write_cases(folders)
    (tmp_path / "out").write_text("a file")

    assert evaluate(folders, "--output", str(tmp_path / "out")) == 2

    assert "cannot be written" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom iaunet.inference.evaluate_command import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print({'numpy', 'scipy', 'torch'} & set(sys.modules))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.splitlines()[-1] == "set()"
    assert "--workspace" not in result.stdout


def test_what_a_prediction_writes_beside_its_masks_is_no_mask(tmp_path):
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    for folder in (truth, predictions, predictions / "overlays", predictions / "probabilities"):
        folder.mkdir(parents=True)
        write_png(folder / "a.png", np.eye(8, dtype=np.uint8) * 255)
    (predictions / "predictions.json").write_text("{}")

    pairs, problems = pair_masks(predictions, truth)

    assert [pair.prediction for pair in pairs] == [predictions / "a.png"]
    assert not problems
