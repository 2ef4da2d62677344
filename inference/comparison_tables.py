"""Comparisons as text: Markdown to read, CSV to compute with."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from iaunet.inference.comparison import Contest, Contestant, Size, Standing, Table
from iaunet.inference.costs import Cost
from iaunet.inference.crossval import Summary
from iaunet.inference.published import PAPER_METRICS, PAPER_SIZE, PUBLISHED
from iaunet.inference.text_tables import csv_number, markdown_table, p_text
from iaunet.metrics import METRICS
from iaunet.networks import NETWORKS, default_sizes
from iaunet.planners.planner import NO_GROUPS
from iaunet.planners.recipes import RECIPES, find_recipe
from iaunet.records import differences, to_json

SIZES: Mapping[Size, str] = {"native": "native size", "input": "the network's size"}

LEGEND = (
    "Figures in percent. Each case was predicted by the network of the fold that held it out. Scores are means over "
    "cases, ± the standard deviation of the means of folds, [95 % bootstrap interval over groups]. *Pooled*: of the "
    "pixels of all cases together. *p*: sign-flip permutation test of the means of groups against the reference, "
    "Holm-corrected over the other rows. *Empty* cases lack the label: Dice and IoU are 1 where none of it is "
    "predicted, else 0. Masks are as they come, without what `iaunet_find_best` chose. A row that says *incomplete* is "
    "of fewer folds than its table."
)

ON_THE_PAPER = (
    "The paper's figures are those it gives for {}: means over images at 256x256. The split, and which epoch's weights "
    "were scored, are not given. Well-trained U-Nets reach more than its U-Net does, so a difference to these figures "
    "says little about a network."
)

UNEQUAL: Mapping[str, Callable[[Contestant], object]] = {
    "epochs": lambda contestant: contestant.epochs,
    "seed": lambda contestant: contestant.record.seed,
    "mirroring": lambda contestant: contestant.record.plan.inference.mirroring,
    "how images become inputs": lambda contestant: contestant.record.plan.input_mode,
}
"""What makes a comparison unequal where runs differ in it."""

CSV_COLUMNS = (
    *("recipe", "split", "fold_set", "label", "size", "run", "network", "epochs", "folds", "complete", "cases"),
    *("without_label", "metric", "mean", "sd_of_fold_means", "low", "high", "left_out", "pooled"),
    *("difference", "p", "p_holm", "tested_cases", "tested_groups"),
)


def format_markdown(
    dataset: str, contests: Sequence[Contest], costs: Mapping[str, Cost], timed_on: str, published: str | None
) -> str:
    """The whole comparison as Markdown.

    Args:
        dataset: Its name.
        contests: What is compared.
        costs: By the name of the run; a run without one has dashes.
        timed_on: The device that images a second were measured on; empty where they were not.
        published: The data set of `PUBLISHED` whose figures are set beside, if any.
    """
    lines = [f"# {dataset}: networks compared", "", LEGEND]
    for contest in contests:
        lines += ["", *_contest_lines(contest, costs, timed_on, published)]
    if published is not None:
        lines += ["", ON_THE_PAPER.format(published)]
    return "\n".join(lines) + "\n"


def format_csv(contests: Sequence[Contest]) -> str:
    """Every figure of the comparison, a row a run, metric, size, label and set of folds; undefined figures are blank.

    Means and intervals are shares, not percent.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for contest in contests:
        for table in contest.tables:
            for standing in table.standings:
                writer.writerows(_csv_row(contest, table, standing, metric) for metric in PAPER_METRICS)
    return text.getvalue()


def name_folds(folds: Sequence[int], n_folds: int) -> str:
    """A set of folds in words."""
    if len(folds) == n_folds:
        return f"all {n_folds} folds"
    return f"folds {', '.join(map(str, folds))}" if len(folds) > 1 else f"fold {folds[0]}"


def _contest_lines(contest: Contest, costs: Mapping[str, Cost], timed_on: str, published: str | None) -> list[str]:
    lines = [f"## Recipe {contest.recipe}, split {contest.split}", ""]
    lines += [f"- **{remark}**" for remark in _remarks(contest)]
    for table in contest.tables:
        about = f"{name_folds(table.folds, contest.n_folds)}, {SIZES[table.size]}"
        about = f"{table.label}, {about}" if len(contest.labels) > 1 else about
        lines += ["", f"### {about[0].upper()}{about[1:]}", ""]
        lines += _score_table(contest, table, published) if table.standings else ["No run has been scored there."]
    return [*lines, "", "### Size and speed", "", *_cost_table(contest, costs, timed_on)]


def _remarks(contest: Contest) -> Iterator[str]:
    if contest.inflated:
        yield f"These scores are {contest.inflated}."
    if not contest.groups:
        yield f"{NO_GROUPS[0].upper()}{NO_GROUPS[1:]}."
    if not contest.is_current:
        yield "These runs were trained on another state of the data than the one planned now."
    if not contest.knows_split:
        yield "This split is not among those planned now: whether folds are missing is not known."
    if contest.reference is None:
        yield "The reference has not been trained: there are no tests."
    if len(contest.fold_sets) > 1:
        yield "If settings were chosen on fold 0, the tables without it are the ones to quote."
    sizes = {contestant.record.plan.input_size for contestant in contest.contestants}
    if sizes != {PAPER_SIZE}:
        named = ", ".join(_size(size) for size in sorted(sizes))
        yield f"The network's size is {named}, the paper's {_size(PAPER_SIZE)}."
    for what, say in (
        ("Not of the published size", _unlike_published),
        ("Not trained by the recipe alone", _unlike_recipe),
        ("Shortened", _shortened),
    ):
        yield from _together(what, {contestant.title: say(contestant) for contestant in contest.contestants})
    for what, of_record in UNEQUAL.items():
        if len({of_record(contestant) for contestant in contest.contestants}) > 1:
            yield f"The runs differ in {what}."
    missing = {each.title: _missing_folds(contest, each) for each in contest.contestants}
    yield from _together("Incomplete, not scored yet", missing)


def _together(what: str, by_title: Mapping[str, str]) -> Iterator[str]:
    """One remark for all the rows that it is true of, those with the same words side by side."""
    titles: dict[str, list[str]] = {}
    for title, words in by_title.items():
        if words:
            titles.setdefault(words, []).append(title)
    if titles:
        every = [f"all {len(by_title)} runs"] if len(by_title) > 1 else [*by_title]
        named = {words: every if len(those) == len(by_title) else those for words, those in titles.items()}
        yield f"{what}: " + "; ".join(f"{', '.join(those)} ({words})" for words, those in named.items()) + "."


def _missing_folds(contest: Contest, contestant: Contestant) -> str:
    missing = [fold for fold in range(contest.n_folds) if fold not in contestant.folds]
    return name_folds(missing, contest.n_folds) if missing else ""


def _unlike_published(contestant: Contestant) -> str:
    network = contestant.record.plan.network
    published = default_sizes(network.name) if network.name in NETWORKS else {}
    apart = [
        f"{size} {getattr(network, size)} instead of {usual}"
        for size, usual in published.items()
        if getattr(network, size) != usual
    ]
    return ", ".join(apart)


def _unlike_recipe(contestant: Contestant) -> str:
    """What of a run's recipe is not as its name says; epochs and draws of a case, which follow from the data, apart."""
    record, recipe = contestant.record, contestant.record.plan.recipe
    apart = []
    if recipe.name in RECIPES:
        usual = find_recipe(recipe.name, record.plan.network.name)
        now = dataclasses.replace(recipe, draws_a_case=usual.draws_a_case, epochs=usual.epochs)
        apart = differences(to_json(usual), to_json(now))
    return ", ".join([*apart, *(["started from trained weights"] if record.weights_sha256 else [])])


def _shortened(contestant: Contestant) -> str:
    recipe = contestant.record.plan.recipe
    usual = RECIPES[recipe.name].epochs if recipe.name in RECIPES else recipe.epochs
    return f"{contestant.epochs} of the recipe's {usual} epochs" if contestant.epochs < usual else ""


def _score_table(contest: Contest, table: Table, published: str | None) -> list[str]:
    """The paper's figures stand beside those at the network's size, which is what they are of."""
    paper = PUBLISHED[published] if published is not None and table.size == "input" else {}
    reference = contest.reference.title if contest.reference else "the reference"
    titles = [METRICS[metric].title for metric in PAPER_METRICS]
    pooled = [f"pooled {title}" for title in titles]
    beside = [f"the paper's {title}" for title in titles] if paper else []
    head = ["network", "cases", "epochs", *titles, *beside, *pooled, f"Dice less {reference}'s", "p"]
    rows = []
    for standing in table.standings:
        title, network = standing.contestant.title, standing.contestant.record.plan.network.name
        if not standing.is_complete:
            scored, wanted = (name_folds(folds, contest.n_folds) for folds in (standing.folds, table.folds))
            title += f" (*incomplete: {scored} of {wanted}*)"
        test = standing.tests.get("dice")
        rows.append(
            [
                title,
                f"{standing.n_cases} ({standing.n_empty} empty)" if standing.n_empty else str(standing.n_cases),
                str(standing.contestant.epochs),
                *(_cell(standing.means[metric]) for metric in PAPER_METRICS),
                *([f"{figure:.2f}" for figure in paper.get(network, ())] or ["-"] * len(beside)),
                *(_percent(standing.pooled.get(metric, math.nan)) for metric in PAPER_METRICS),
                f"{100 * test.mean_difference:+.2f}" if test and test.n_cases else "-",
                p_text(standing.adjusted["dice"]) if test else "-",
            ]
        )
    return markdown_table(head, rows)


def _cost_table(contest: Contest, costs: Mapping[str, Cost], timed_on: str) -> list[str]:
    head = ["network", "width", "depth", "size", "parameters (M)", "multiply-adds (G)"]
    head.append(f"images/s, bare network, {timed_on}" if timed_on else "images/s")
    rows = []
    for contestant in contest.contestants:
        plan, cost = contestant.record.plan, costs.get(contestant.run.name)
        figures = ["-", "-", "-"]
        if cost is not None:
            speed = f"{cost.images_per_second:.3g}" if cost.images_per_second else "-"
            figures = [f"{cost.parameters / 1e6:.3f}", f"{cost.multiply_adds / 1e9:.3f}", speed]
        sizes = [str(plan.network.width), str(plan.network.depth), _size(plan.input_size)]
        rows.append([contestant.title, *sizes, *figures])
    return markdown_table(head, rows)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _cell(summary: Summary) -> str:
    sd = "" if math.isnan(summary.sd) else f" ± {100 * summary.sd:.2f}"
    interval = "" if math.isnan(summary.low) else f" [{100 * summary.low:.1f}, {100 * summary.high:.1f}]"
    left_out = f" ({summary.n_left_out} undefined)" if summary.n_left_out else ""
    return f"{_percent(summary.mean)}{sd}{interval}{left_out}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def _csv_row(contest: Contest, table: Table, standing: Standing, metric: str) -> list[str | int | bool]:
    contestant, mean, test = standing.contestant, standing.means[metric], standing.tests.get(metric)
    return [
        *(contest.recipe, contest.split, _folds(table.folds), table.label, table.size, contestant.run.name),
        *(contestant.title, contestant.epochs, _folds(standing.folds), standing.is_complete),
        *(standing.n_cases, standing.n_empty, metric),
        *(*map(csv_number, (mean.mean, mean.sd, mean.low, mean.high)), mean.n_left_out),
        csv_number(standing.pooled.get(metric, math.nan)),
        *(csv_number(value) for value in ((test.mean_difference, test.p) if test else (math.nan, math.nan))),
        csv_number(standing.adjusted.get(metric, math.nan)),
        *((test.n_cases, test.n_groups) if test else ("", "")),
    ]


def _folds(folds: Sequence[int]) -> str:
    return " ".join(map(str, folds))
