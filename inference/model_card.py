"""The model card: what people should know before they use a model, written from the facts alone."""

from collections.abc import Iterator, Mapping, Sequence

from iaunet.inference.model_manifest import ModelData, ModelFacts, ModelRun, ModelScores
from iaunet.inference.postprocessing import describe_postprocessing
from iaunet.inference.scores import format_table
from iaunet.planners.plan import Plan, build_planned_network
from iaunet.planners.planner import NO_GROUPS

CHANNELS = {1: "1 channel (grey)", 3: "3 channels (colour)"}

_TITLES = {
    "model": "The model as it predicts, postprocessed: each case by the folds that held it out",
    "run": "Run {0.run}, masks as they come: each case by the fold that held it out",
    "fold": "Run {0.run}, fold {0.fold}, masks as they come: the cases this fold held out",
}


def write_card(facts: ModelFacts, plans: Mapping[str, Plan], scores: Sequence[ModelScores], notes: str = "") -> str:
    """The card as Markdown.

    Args:
        facts: Of the model.
        plans: The plan of each of its runs.
        scores: All that are known.
        notes: What the owner says besides.
    """
    plan = plans[facts.runs[0].name]
    sections = {
        "Intended use": _intended_use(plan),
        "Data": _data(facts, plan),
        "Training": _training(facts, plans),
        "Scores": _scores(scores),
        "Postprocessing": _postprocessing(facts, plan),
        "Calibration": _calibration(facts),
        "Images to look at": _flags(facts),
        "Input and output": _input(plan),
        "How to predict": _use(plans),
        "Versions": _versions(facts),
        "Notes of the owner": [notes.strip() or "None: licence and origin of the data are not recorded in this file."],
        "How to cite": _citation(facts),
    }
    lines = [f"# Model for {facts.dataset}", ""]
    for title, body in sections.items():
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines[:-1]) + "\n"


def _intended_use(plan: Plan) -> Iterator[str]:
    yield f"Marks {_listed(plan.labels)} in images like those it was trained on (see Data), for research."
    yield ""
    yield (
        "Not a medical device: not for diagnosis or treatment. Not for images of other devices, sites, patients or "
        "findings than those under Data, unless it was evaluated on them: the scores below say nothing about these."
    )


def _data(facts: ModelFacts, plan: Plan) -> Iterator[str]:
    yield f"- Name: {facts.dataset}; fingerprint `{facts.fingerprint}`"
    yield from _numbers(facts.data) if facts.data else ["- Number of cases, groups and sizes: not known at export"]
    yield f"- Labels: {_listed(plan.labels)}" + (" (regions: they may overlap)" if plan.coding.regions else "")
    yield f"- Images: {CHANNELS.get(plan.channels, f'{plan.channels} channels')}, {plan.depth}"
    yield from (f"- Mind: {warning}" for warning in plan.warnings)
    yield "- Where the data come from, who marked them, and who agreed to their use: not recorded, left for the owner"


def _numbers(data: ModelData) -> Iterator[str]:
    volumes = f", {data.n_volumes} of them volumes" if data.n_volumes else ""
    empty = f", {data.n_empty} without any label" if data.n_empty else ""
    yield f"- Cases: {data.n_cases}{volumes}{empty}"
    yield f"- Groups (patients, videos): {data.n_groups or f'not known; {NO_GROUPS}'}"
    sizes = dict.fromkeys(f"{height} x {width}" for height, width in (data.smallest, data.largest))
    yield f"- Size (height x width, pixels): {' to '.join(sizes)}"


def _training(facts: ModelFacts, plans: Mapping[str, Plan]) -> Iterator[str]:
    n = len(facts.members)
    yield f"{n} network{'s, whose probabilities are averaged' if n > 1 else ''}:"
    yield ""
    for run in facts.runs:
        yield from _run(run, plans[run.name])
    if facts.chosen is not None:
        yield f"- Chosen by iaunet_find_best: {facts.chosen.why}"


def _run(run: ModelRun, plan: Plan) -> Iterator[str]:
    network, recipe, training = plan.network, plan.recipe, run.training
    options = "".join(f", {name} {value}" for name, value in network.options.items())
    on = f"folds {', '.join(run.folds)} of the split {training.split}"
    if [*run.folds] == ["all"]:
        on = "on all cases, none held out"
    epochs = training.epochs or recipe.epochs
    yield f"- Run {run.name}: {on}"
    yield f"  - network {network.name}, width {network.width}, depth {network.depth}{options}; {_count(plan)}"
    yield f"  - recipe {recipe.name}: {epochs} epochs, {recipe.optimiser}, learning rate {recipe.lr:g}"
    yield f"    ({recipe.schedule}), batches of {recipe.batch_size}, loss {recipe.loss}, seed {training.seed}"
    yield f"  - began with {'weights of another training' if training.weights_sha256 else 'random weights'};"
    yield f"    trained on {training.device}"


def _count(plan: Plan) -> str:
    """How many parameters the network has, without running a stranger's code."""
    if ":" in plan.network.name:
        return "not a network of iaunet's, its parameters were not counted"
    import torch

    from iaunet.networks.counting import count_parameters

    with torch.device("meta"):
        return f"{count_parameters(build_planned_network(plan)):,} parameters"


def _scores(scores: Sequence[ModelScores]) -> Iterator[str]:
    if not scores:
        yield "None: no cases were held out of training, or their scores were not known at export."
        return
    yield "On cases that the networks had not seen; 95 % intervals from a bootstrap over groups, else over cases."
    for each in scores:
        yield ""
        yield f"{_TITLES[each.of].format(each)} (split {each.split})."
        yield f"**These scores are {each.inflated}.**" if each.inflated else "Nothing is known that inflates them."
        yield from ("", "```", *format_table(each.scores), "```")


def _postprocessing(facts: ModelFacts, plan: Plan) -> Iterator[str]:
    if facts.postprocessing is None or facts.chosen is None:
        thresholds = ", ".join(f"{value:g}" for value in plan.inference.thresholds)
        yield f"None but the thresholds of the plan: {thresholds}."
        return
    yield f"{describe_postprocessing(facts.postprocessing, plan)}."
    yield ""
    yield f"Because: {facts.chosen.postprocessing_why}"


def _calibration(facts: ModelFacts) -> Iterator[str]:
    if facts.calibration is None:
        yield "Not measured: probabilities are as the networks give them."
        return
    values = [value for folds in facts.calibration.temperatures.values() for value in folds.values()]
    before, after = facts.calibration.before, facts.calibration.after
    yield f"The logits of each network are divided by a temperature ({min(values):.2f} to {max(values):.2f}), fitted on"
    yield "the cases that its fold held out. Over the pixels of held-out cases, each fold with the temperature that the"
    yield f"other folds ask for: expected calibration error {before.ece:.4f} before, {after.ece:.4f} after; Brier score"
    yield f"{before.brier:.4f} before, {after.brier:.4f} after."
    yield ""
    yield "That is of single networks. What averaging them does to calibration cannot be measured by cross-validation:"
    yield "every case was seen by all networks but one."


def _flags(facts: ModelFacts) -> Iterator[str]:
    learnt = facts.expected_dice
    if learnt is None or learnt.skipped:
        yield f"No Dice is expected of a mask: {learnt.skipped if learnt else 'that was not learnt'}."
    else:
        flagged = "no Dice" if learnt.dice_flagged is None else f"Dice {learnt.dice_flagged:.3f}"
        yield "With each mask comes the Dice it is expected to have, from what the networks say of the image."
        yield f"Out of fold it has a rank correlation of {learnt.rank_correlation:.2f} ({learnt.low:.2f} to"
        yield f"{learnt.high:.2f}) with the true one. Masks with less than {learnt.flag_below:.3f} are flagged: of the"
        yield f"cases held out {learnt.n_flagged}, with {flagged}, against {learnt.dice_unflagged:.3f} of the others."
    familiar = facts.familiar
    if familiar is not None:
        sizes = " to ".join(dict.fromkeys(f"{high} x {wide}" for high, wide in (familiar.smallest, familiar.largest)))
        means = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in familiar.means)
        yield ""
        yield f"Flagged as well are images unlike those of the training: of another size than {sizes}, of another"
        yield f"number of channels than {familiar.channels}, or with a mean intensity outside of {means}"
        yield "(a channel each)."


def _input(plan: Plan) -> Iterator[str]:
    size = " x ".join(map(str, plan.input_size))
    ways = {
        "resize": f"stretched to {size}",
        "letterbox": f"brought to {size} with their aspect kept",
        "tiles": f"cut into overlapping tiles of {size} at {plan.tile_scale:g} of their size",
    }
    yield f"- Takes {CHANNELS.get(plan.channels, f'{plan.channels} channels')} of {plan.depth}, any size"
    if plan.channel_files:
        yield f"- An image consists of {plan.channel_files} files, whose names end in `_0000`, `_0001`, ..."
    yield f"- Images are {ways[plan.input_mode]}" + ("; pixels are made square in mm first" * plan.equal_spacing)
    yield f"- Volumes are predicted slice by slice ({plan.slicing.slice_axis})"
    yield f"- Intensities: {_normalisation(plan)}"
    flips = "averaged over four flips" if plan.inference.mirroring else "one pass an image"
    yield f"- Prediction: {flips}; masks have the size of the image"
    values = zip(plan.value_names, plan.coding.written, strict=True)
    yield f"- Values of masks: 0 background, {', '.join(f'{value} {name}' for name, value in values)}"


def _normalisation(plan: Plan) -> str:
    how = plan.normalisation
    if how.kind == "case":
        low, high = how.percentiles or (0, 100)
        return f"each case by its own mean and sd, clipped to its {low:g} and {high:g} % percentiles first"
    numbers = ", ".join(f"{mean:.4g} and {sd:.4g}" for mean, sd in zip(how.mean, how.sd, strict=True))
    clip = ", ".join(f"{low:g} to {high:g}" for low, high in how.windows)
    return f"minus mean, divided by sd ({numbers}, a channel each)" + (f", clipped to {clip} first" if clip else "")


def _use(plans: Mapping[str, Plan]) -> Iterator[str]:
    strange = [plan.network.name for plan in plans.values() if ":" in plan.network.name]
    yield "```"
    yield " ".join(
        ["iaunet_predict --model MODEL.zip -i IMAGES -o MASKS", *(f"--network {name}" for name in strange[:1])]
    )
    yield "```"
    yield ""
    yield "`iaunet_import_model MODEL.zip` makes a data set of it, to be used by its name."


def _versions(facts: ModelFacts) -> Iterator[str]:
    yield f"- Exported by iaunet {facts.iaunet}"
    for run in facts.runs:
        known = ", ".join(f"{name} {number}" for name, number in run.training.versions.items())
        yield f"- Run {run.name} was trained with {known or 'versions that are not known'}"


def _citation(facts: ModelFacts) -> Iterator[str]:
    yield f"Left for the owner to fill in: how to cite {facts.dataset} and this model. Until then name iaunet"
    yield f"{facts.iaunet}, the data {facts.dataset} and their fingerprint, `{facts.fingerprint[:16]}`."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
