"""Methods and results of a paper as Markdown, every figure from the facts; what is not known is left to the authors."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from iaunet.detection import LEAST_IOU
from iaunet.inference.crossval import Summary
from iaunet.inference.model_card import CHANNELS
from iaunet.inference.report.citations import CITATIONS, cited_keys
from iaunet.inference.report.facts import LeakageFacts, ReportFacts
from iaunet.inference.report.runs import RunFacts
from iaunet.inference.scores import ScoreSummary
from iaunet.metrics import METRICS
from iaunet.planners.plan import Normalisation
from iaunet.planners.recipes import Augmentation, Recipe

PREFACE = (
    "Written by iaunet from what it measured and did. Sentences in square brackets are for the authors to fill in: the "
    "files do not say. Sources are cited as Pandoc does, `[@key]`; their BibTeX is at the end. Check every sentence "
    "before it is published."
)

NETWORKS_IN_WORDS: Mapping[str, str] = {
    "iaunet": (
        "a U-Net [@unet] with integrated attention on its skip connections: scale feature attention on the first, "
        "spatial and channel attention on the deeper ones [cite the paper of the integrated attention network: its "
        "authors, journal and year are not recorded in iaunet]"
    ),
    "unet": "a U-Net [@unet]",
    "attention_unet": "an Attention U-Net [@attention_unet]",
    "resunet": "a ResUNet [@resunet]",
    "swin_unet": "a Swin-UNet [@swin_unet], trained from scratch",
    "unext": "a UNeXt [@unext]",
}

OPTIMISERS: Mapping[str, str] = {"adam": "Adam [@adam] (L2 coefficient {:g})", "adamw": "AdamW [@adamw] (decay {:g})"}

SCHEDULES: Mapping[str, str] = {
    "constant": "a constant learning rate of {:g}",
    "cosine": "a learning rate of {:g} that followed a cosine to zero [@cosine]",
}

LOSSES: Mapping[str, str] = {"bce_dice": "the sum of binary cross entropy and soft Dice loss"}


def write_methods(facts: ReportFacts) -> str:
    """The paragraphs for the methods and results of a paper, with the BibTeX of what they cite.

    Args:
        facts: Of the report. Only they are told: of an anonymous report nothing that names a case, a group or a path.
    """
    sections = {
        "Methods: data": _data(facts),
        "Methods: preprocessing": _preprocessing(facts),
        "Methods: networks and training": _training(facts),
        "Methods: prediction and postprocessing": _prediction(facts),
        "Methods: evaluation and statistics": _evaluation(facts),
        "Results: segmentation": _segmentation(facts),
        "Results: detection of lesions": _detection(facts),
        "Results: calibration and expected Dice": _reliability(facts),
        "Results: random against grouped folds": _leakage(facts),
        "Results: held-out test": _held_out(facts),
        "Limits": _limits(facts),
        "Software": _software(facts),
    }
    paragraphs = {title: " ".join(sentences) for title, sentences in sections.items()}
    lines = [f"# {_plain(facts.dataset)}: methods and results", "", PREFACE, ""]
    for title, paragraph in paragraphs.items():
        lines += [f"## {title}", "", paragraph, ""] if paragraph else []
    known = {**CITATIONS, "iaunet": _own_entry(facts)}
    entries = [known[key] for key in cited_keys("\n".join(paragraphs.values()))]
    return "\n".join([*lines, "## BibTeX", "", "```bibtex", *entries, "```"]) + "\n"


def members(facts: ReportFacts) -> list[RunFacts]:
    """The runs the scores are about: those that were chosen to predict together, else the one that is shown."""
    chosen = facts.chosen.runs if facts.chosen else (facts.shown.name,)
    return [run for run in facts.runs if run.name in chosen] or [facts.shown]


def with_interval(summary: Summary, metric: str, sign: str = "") -> str:
    """A mean with its 95 % interval, ``0.871 (95 % CI 0.840 to 0.899)``, in words where it is undefined.

    Args:
        summary: In the metric's unit.
        metric: Its name.
        sign: ``+`` to write the sign of what is positive.
    """
    pattern = METRICS[metric].pattern.replace("{:", "{:" + sign)
    if math.isnan(summary.mean):
        return "not defined"
    interval = "no interval: fewer than two groups"
    if not math.isnan(summary.low):
        interval = f"95 % CI {pattern.format(summary.low)} to {pattern.format(summary.high)}"
    return f"{pattern.format(summary.mean)} ({interval})"


def _plain(text: str) -> str:
    """A name from the user's data that Markdown takes for text."""
    return re.sub(r"([\\`*_\[\]<>|#&@])", r"\\\1", text)


def _listed(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _count(n: int, one: str, several: str = "") -> str:
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def _data(facts: ReportFacts) -> Iterator[str]:
    data = facts.data
    kind = CHANNELS.get(data.channels, f"{data.channels} channels")
    what = _count(data.n_cases, "image")
    if data.n_volumes:
        volumes = "all" if data.n_volumes == data.n_cases else f"{data.n_volumes:,}"
        what = f"{_count(data.n_cases, 'case')}, {volumes} of them volumes, with {data.n_slices:,} slices"
    yield f"The data set {_plain(facts.dataset)} held {what} ({kind}, {data.depth})."
    if data.n_sizes == 1:
        yield f"All had {_size(data.usual)} pixels (height x width)."
    else:
        yield (
            f"They had {data.n_sizes:,} sizes from {_size(data.smallest)} to {_size(data.largest)} pixels (height x "
            f"width), most often {_size(data.usual)} ({data.n_usual:,} of {data.n_cases:,})."
        )
    if data.spacing_mm is None:
        yield "The size of a pixel in mm was not known of all of them, so lengths are in pixels."
    else:
        yield f"The median spacing of slices, rows and columns was {_listed(f'{mm:.3g}' for mm in data.spacing_mm)} mm."
    if data.n_groups:
        groups = _count(data.n_groups, "group")
        yield f"They came from {groups} (patients, videos or sites; {_plain(data.groups_from)})."
    else:
        yield "Groups (patients, videos) were not known."
    yield f"The label{'s were' if len(data.labels) > 1 else ' was'} {_listed(map(_plain, data.labels))}."
    without = f"{data.n_empty:,} had none" if data.n_empty else "every case had some"
    yield f"The median case had {100 * data.foreground_share:.1f} % of its pixels marked; {without}."
    for n, how in ((data.n_copies, "an exact copy of"), (data.n_near, "nearly the same as")):
        if n:
            yield f"{_count(n, 'case was', 'cases were')} {how} another."
    yield (
        "[Where the data come from, how images were acquired, who marked them and how, inclusion criteria, ethics "
        "approval, and the citation of the data set.]"
    )


def _preprocessing(facts: ReportFacts) -> Iterator[str]:
    plan = facts.shown.plan
    size = _size(plan.input_size)
    if facts.data.n_volumes:
        yield f"Volumes were cut into {plan.slicing.slice_axis} slices, which were segmented one by one."
    if plan.input_mode == "tiles":
        scale = "at native resolution" if plan.tile_scale == 1 else f"resized to {plan.tile_scale:g} of their size"
        yield f"Images were {scale} and cut into overlapping tiles of {size} pixels."
    elif plan.input_mode == "letterbox":
        yield f"Images were brought to {size} pixels with their aspect kept, and padded."
    else:
        yield f"Images were stretched to {size} pixels."
    if plan.equal_spacing:
        yield "Pixels were made square in mm first."
    yield _normalisation(plan.normalisation)
    if facts.plan.is_edited:
        yield "The plan is not as iaunet made it: it was edited by hand."


def _normalisation(how: Normalisation) -> str:
    if how.kind == "case":
        low, high = how.percentiles or (0, 100)
        clipped = f"clipped to its {low:g} and {high:g} % percentiles and " if (low, high) != (0, 100) else ""
        return f"Each case was {clipped}normalised by its own mean and standard deviation."
    clipped = ""
    if how.windows:
        clipped = f"clipped to {_listed(f'{low:g} to {high:g}' for low, high in how.windows)}, and "
    mean, sd = (", ".join(f"{value:.4g}" for value in values) for values in (how.mean, how.sd))
    channels = ", channel by channel" if len(how.mean) > 1 else ""
    return (
        f"Intensities were {clipped}normalised by mean ({mean}) and standard deviation ({sd}) of the data set's "
        f"pixels{channels}, measured on all cases, held-out ones among them."
    )


def _training(facts: ReportFacts) -> Iterator[str]:
    runs = members(facts)
    for run in runs:
        yield f"{'The network was' if len(runs) == 1 else f'Run {_plain(run.name)}:'} {_network(run)}."
    described: dict[str, list[str]] = {}
    for run in runs:
        described.setdefault(" ".join(_recipe(run)), []).append(run.name)
    for words, names in described.items():
        about = f"Of {_listed(map(_plain, names))}: " if len(described) > 1 else ""
        yield about + words


def _network(run: RunFacts) -> str:
    network = run.plan.network
    strange = f"{_plain(network.name)}, a network that is not part of iaunet [describe it]"
    what = NETWORKS_IN_WORDS.get(network.name, strange)
    options = "".join(f", {name.replace('_', ' ')} {value}" for name, value in network.options.items())
    return f"{what}, of {network.depth} stages and {network.width} channels in the first{_plain(options)}"


def _recipe(run: RunFacts) -> Iterator[str]:
    recipe = run.plan.recipe
    yield (
        f"It was trained for {_count(run.epochs, 'epoch')} on batches of {recipe.batch_size} with "
        f"{OPTIMISERS[recipe.optimiser].format(recipe.weight_decay)} and {SCHEDULES[recipe.schedule].format(recipe.lr)}"
        f"{_warmup(recipe)}; the loss was {LOSSES[recipe.loss]}."
    )
    draws = "once" if recipe.draws_a_case == 1 else f"{recipe.draws_a_case} times"
    yield f"An epoch drew each case {draws}, in {recipe.most_steps_an_epoch} batches at most."
    if recipe.clip_gradient_norm is not None:
        yield f"The norm of gradients was clipped to {recipe.clip_gradient_norm:g}."
    if recipe.average_weights:
        yield f"The result is the exponential moving average of the weights (decay {recipe.average_decay:g})."
    else:
        yield "The result is the weights after the last epoch."
    augmented = [*_augmentation(recipe.augmentation)]
    yield f"Training images were changed at random [@batchgenerators]: {', '.join(augmented) or 'not at all'}."
    if recipe.start_at_prior:
        yield "The bias of the last layer began at the data's share of marked pixels."
    started = "from the weights of another training" if "weights" in run.overrides else "from random weights"
    yield f"Training began {started} (seed {run.seed}) on {_plain(run.device)}; no epoch was chosen by its score."


def _warmup(recipe: Recipe) -> str:
    return f", after {_count(recipe.warmup_epochs, 'epoch')} of linear rise" if recipe.warmup_epochs else ""


def _augmentation(augmentation: Augmentation) -> Iterator[str]:
    """Each change that happens at all, with its range and probability."""
    ranges = {
        "brightness": ("factor of brightness", ""),
        "rotation": ("rotation", " degrees"),
        "scaling": ("scaling", ""),
        "contrast": ("contrast", ""),
        "gamma": ("gamma", ""),
        "noise": ("Gaussian noise of standard deviation", ""),
        "blur": ("Gaussian blur of sigma", " px"),
    }
    fields = {"rotation": "rotation_degrees", "noise": "noise_sd", "blur": "blur_sigma"}
    if augmentation.mirror_probability:
        yield f"mirroring of each axis (probability {augmentation.mirror_probability:g})"
    for name, (words, unit) in ranges.items():
        low, high = getattr(augmentation, fields.get(name, name))
        probability = getattr(augmentation, f"{name}_probability")
        if probability:
            yield f"{words} {low:g} to {high:g}{unit} ({probability:g})"
    if augmentation.elastic_probability:
        yield f"elastic deformation ({augmentation.elastic_probability:g})"


def _prediction(facts: ReportFacts) -> Iterator[str]:
    plan, runs = facts.shown.plan, members(facts)
    if plan.inference.mirroring:
        yield "Probabilities were averaged over four flips of the image."
    yield "New images are predicted by the networks of all folds, whose probabilities are averaged."
    if facts.chosen is None:
        thresholds = ", ".join(f"{threshold:g}" for threshold in plan.inference.thresholds)
        yield f"A label counts from a probability of {thresholds} on; masks were not postprocessed."
        return
    n, names = len(facts.chosen.candidates), _listed(_plain(run.name) for run in runs)
    if n > 1:
        yield f"Of {n} candidates, single runs and ensembles of them, one was chosen by held-out cases."
    yield f"{names} {'was' if len(runs) == 1 else 'were'} chosen: {_plain(facts.chosen.why)}."
    yield f"Labels count as follows: {_plain(facts.chosen.masks)}."
    yield f"Postprocessing, searched on held-out cases, was {_plain(facts.chosen.masks_why)}."
    if facts.calibration is not None:
        values = [value for folds in facts.calibration.temperatures.values() for value in folds.values()]
        yield (
            "Before networks were averaged, each network's logits were divided by a temperature fitted on the cases it "
            f"held out [@calibration] ({min(values):.2f} to {max(values):.2f})."
        )


def _evaluation(facts: ReportFacts) -> Iterator[str]:
    scored, summary = facts.scored, facts.scored.summary
    is_grouped = scored.split == "grouped" and not scored.inflated and facts.shown.is_current
    grouped = "; cases of one group were never in both" if is_grouped else ""
    yield (
        f"Networks were trained and scored in {scored.n_folds}-fold cross-validation (split {_plain(scored.split)}): "
        f"each case was predicted by the network of the fold that held it out{grouped}."
    )
    yield (
        "Masks were scored case by case at native size; a case without a label, and without a prediction of it, counts "
        "as Dice and IoU 1. "
        "HD95 is the larger of the two directed 95th percentiles of distances between surfaces, surface Dice "
        f"[@surface_dice] has a tolerance of 2 pixels, where their sides differ of the shorter one; distances are in "
        f"{'mm' if summary.distance_unit == 'mm' else 'pixels'}."
    )
    unit = "groups" if summary.n_groups else "cases (groups not being known)"
    yield (
        f"Scores are means over cases; intervals hold the middle 95 % of the means of 10,000 samples of {unit} drawn "
        f"with replacement [@bootstrap]; standard deviations are over {_over(summary)}."
    )
    if facts.detection:
        yield (
            "For detection, connected components of the true and the predicted mask were matched one to one from an "
            f"intersection over union of {LEAST_IOU:g} on, the most pairs first, then the highest sum [@nndetection]; "
            f"for this the masks of {_plain(facts.shown.name)} were taken as they came."
        )
    if facts.calibration is not None:
        yield (
            "Calibration was measured on pixels of held-out cases, each fold tempered by what the other folds asked "
            "for: expected calibration error in "
            f"{len(facts.calibration.before.pixels)} bins of equal width, and Brier score."
        )
    if facts.expected_dice is not None and not facts.expected_dice.skipped:
        yield (
            "The Dice of an image was predicted by ridge regression from what one network says of it (agreement of "
            "probabilities and mask, disagreement of flips, entropy, area), fitted on cases of the other folds."
        )
    if facts.suspects:
        yield "Suspect labels were sought with confident learning [@confident_learning]."


def _over(summary: ScoreSummary) -> str:
    return "the means of folds" if summary.sd_over == "folds" else "cases"


def _segmentation(facts: ReportFacts) -> Iterator[str]:
    scored, summary = facts.scored, facts.scored.summary
    groups = f" in {_count(summary.n_groups, 'group')}" if summary.n_groups else ""
    yield f"{_count(summary.n_cases, 'case')}{groups} were scored, {_folds(scored.folds, scored.n_folds)}."
    for label, of_label in summary.labels.items():
        scores = of_label.all_cases
        values = {name: with_interval(scores[name], name) for name in METRICS}
        sd = scores["dice"].sd
        spread = "" if math.isnan(sd) else f", standard deviation over {_over(summary)} {sd:.3f}"
        yield (
            f"For {_plain(label)} the mean Dice was {values['dice']}{spread}; IoU {values['iou']}, precision "
            f"{values['precision']}, sensitivity {values['sensitivity']}, specificity {values['specificity']}, HD95 in "
            f"{summary.distance_unit} {values['hd95']}, surface Dice {values['surface_dice']}{_left_out(scores)}."
        )
        if of_label.n_empty:
            yield (
                f"Without the {_count(of_label.n_empty, 'case')} that had none of it, Dice was "
                f"{with_interval(of_label.with_truth['dice'], 'dice')}."
            )
    yield "Every score of every case is in `tables/`."


def _folds(folds: Sequence[int], n_folds: int) -> str:
    if len(folds) == n_folds:
        return f"all {n_folds} folds"
    return f"fold{'s' if len(folds) > 1 else ''} {_listed(map(str, folds))} of {n_folds} only"


def _left_out(scores: Mapping[str, Summary]) -> str:
    left_out = [f"{METRICS[name].title} in {each.n_left_out}" for name, each in scores.items() if each.n_left_out]
    return f" (undefined and left out: {_listed(left_out)} cases)" if left_out else ""


def _detection(facts: ReportFacts) -> Iterator[str]:
    for label, summary in facts.detection.items():
        total = summary.overall
        yield (
            f"Of {_count(total.lesions, 'lesion')} of {_plain(label)}, {total.found:,} were found (sensitivity "
            f"{_share(total.sensitivity)}), with {_count(total.false_alarms, 'false alarm')} (precision "
            f"{_share(total.precision)}, F1 {_share(total.f1)}, {_share(summary.alarms_per_case)} false alarms a case)."
        )
        if summary.sizes:
            by_size = (f"{size.name} {_share(size.detection.sensitivity)}" for size in summary.sizes)
            yield f"Sensitivity by thirds of lesion area: {_listed(by_size)}."
        if summary.n_empty:
            yield (
                f"Of {_count(summary.n_empty, 'case')} without it, {summary.n_empty_with_alarms:,} had a false alarm."
            )


def _share(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.3f}"


def _reliability(facts: ReportFacts) -> Iterator[str]:
    if facts.calibration is not None:
        before, after = facts.calibration.before, facts.calibration.after
        yield (
            f"Tempering changed the expected calibration error from {before.ece:.4f} to {after.ece:.4f} and the Brier "
            f"score from {before.brier:.4f} to {after.brier:.4f}."
        )
    expected = facts.expected_dice
    if expected is None:
        return
    if expected.skipped or expected.rank_correlation is None:
        yield f"The Dice of single images was not predicted: {expected.skipped or 'no correlation is known'}."
        return
    correlation = f"{expected.rank_correlation:.3f}"
    if expected.low is not None and expected.high is not None:
        correlation += f" (95 % CI {expected.low:.3f} to {expected.high:.3f})"
    yield f"Spearman's correlation of expected and true Dice of held-out cases was {correlation}."
    if expected.dice_flagged is not None and expected.dice_unflagged is not None:
        yield (
            f"{_count(expected.n_flagged, 'case was', 'cases were')} flagged for review: of these the mean Dice was "
            f"{expected.dice_flagged:.3f}, that of the others {expected.dice_unflagged:.3f}."
        )


def _leakage(facts: ReportFacts) -> Iterator[str]:
    for pair in facts.leakage:
        yield _compare(pair)


def _compare(pair: LeakageFacts) -> str:
    random, grouped = with_interval(pair.random, "dice"), with_interval(pair.grouped, "dice")
    return (
        f"{_plain(pair.network)}, recipe {_plain(pair.recipe)}, {pair.n_cases:,} cases that both splits held out: Dice "
        f"was {random} with random folds, which share groups between training and validation, and {grouped} with "
        f"grouped ones, a difference of {with_interval(pair.difference, 'dice', '+')}."
    )


def _held_out(facts: ReportFacts) -> Iterator[str]:
    test = facts.held_out
    if test is None:
        return
    cases = _count(test.n_cases, "case")
    yield f"A test set of {cases} was held out of planning, training and the choice of the model."
    if test.summary is None:
        yield "It has not been scored."
    else:
        times = "once" if test.n_times == 1 else f"{test.n_times} times"
        yield f"It was scored {times}{f' with {_plain(test.model)}' if test.model else ''}."
        for label, of_label in test.summary.labels.items():
            yield f"For {_plain(label)} the mean Dice was {with_interval(of_label.all_cases['dice'], 'dice')}."
        if test.n_unscored:
            yield f"{_count(test.n_unscored, 'case')} of it could not be scored."
        if test.stale:
            yield f"That is not the present model: {_plain(test.stale)}."
    if test.leakage:
        yield f"These scores may be too good: {_plain(test.leakage)}."


def _limits(facts: ReportFacts) -> Iterator[str]:
    scored = facts.scored
    if scored.inflated:
        yield f"The scores are {_plain(scored.inflated)}."
    if not facts.data.n_groups:
        yield "Groups were not known: the scores are too good if images of one patient are in several folds."
    if not scored.is_complete:
        yield f"The cross-validation is incomplete: {_folds(scored.folds, scored.n_folds)}."
    planned = facts.plan.recipe
    for run in members(facts):
        if run.plan.recipe.name == planned.name and run.epochs < planned.epochs:
            yield f"{_plain(run.name)} was trained for {run.epochs} of the {planned.epochs} epochs that were planned."
        if run.stale:
            yield f"The scores of {_plain(run.name)} are not those of its present weights: {_plain(run.stale)}."
        if not run.is_current:
            yield f"{_plain(run.name)} was trained on another state of the data or the folds than the one described."
    if facts.chosen is not None and len(facts.chosen.candidates) > 1:
        yield (
            f"The model was chosen among {len(facts.chosen.candidates)} candidates by the cases that its scores are "
            "of, which favours it a little; postprocessing was judged on folds it was not fitted on."
        )
    yield (
        "The scores are those of single folds' networks; how well the ensemble of all folds does, and how well it is "
        "calibrated, cannot be measured by cross-validation."
    )
    if facts.suspects:
        yield (
            "Doubtful masks were not corrected; the report lists "
            f"{_count(len(facts.suspects), 'case')} whose masks held-out predictions contradict most."
        )
    if facts.held_out is None or facts.held_out.summary is None:
        yield "Nothing was tested on data of other sites, devices or times."


def _software(facts: ReportFacts) -> Iterator[str]:
    for run in members(facts):
        known = ", ".join(f"{_plain(name)} {_plain(number)}" for name, number in run.versions.items())
        yield f"Run {_plain(run.name)} was trained with {known or 'versions that are not recorded'}."
    libraries = "PyTorch [@torch], NumPy [@numpy] and SciPy [@scipy]"
    yield f"This was written by iaunet {facts.iaunet} [@iaunet], which builds on {libraries}."
    yield f"The data are named by their fingerprint, `{facts.data.fingerprint[:16]}`."


def _own_entry(facts: ReportFacts) -> str:
    return "\n".join(
        [
            "@misc{iaunet,",
            "  title = {iaunet: cross-validated, ensembled segmentation of {2D} medical images},",
            f"  note = {{Software, version {facts.iaunet}}}",
            "}",
        ]
    )
