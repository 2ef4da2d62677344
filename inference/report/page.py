"""The page ``report.html``: what `ReportFacts` say, with charts and pictures of cases, in one file."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iaunet.contours import label_colour
from iaunet.durations import duration
from iaunet.inference.crossval import Summary
from iaunet.inference.report.charts import (
    draw_expected,
    draw_histogram,
    draw_loss,
    draw_reliability,
    draw_validation_dice,
)
from iaunet.inference.report.facts import CaseFacts, DataFacts, ReportFacts
from iaunet.inference.report.pictures import CasePicture
from iaunet.inference.report.runs import RunFacts
from iaunet.metrics import METRICS

PAGE = "report.html"
GENERATOR = "iaunet_report"
TEMPLATES = Path(__file__).parent / "templates"

N_WORST, N_MEDIAN, N_BEST = 6, 3, 3
MOST_GROUPS = 60
MOST_CURVED_RUNS = 12
MOST_RUNS = 100
TABLE_CHARACTERS = 4_000_000
"""Of the table of cases as the page writes it, in ASCII: if there are more, the worst are in it."""

SHOWN_METRICS = ("iou", "precision", "sensitivity", "hd95")
"""Beside Dice, in the table of cases where there is one label."""

Value = str | float | None
"""Of a cell of the table of cases."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table of cases; ``digits`` is None for text."""

    title: str
    digits: int | None = None


@dataclass(frozen=True, kw_only=True)
class CaseTable:
    """The cases as rows of plain values, None where undefined; ``n_left_out`` cases did not fit on the page."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    n_left_out: int


@dataclass(frozen=True, kw_only=True)
class CaseCard:
    """A case that is shown: what is said of it and its picture, None if it could not be drawn (``blank`` says why)."""

    name: str
    says: tuple[str, ...]
    picture: CasePicture | None
    blank: str = ""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A figure that stands out at the head of the page."""

    title: str
    value: str
    note: str


def render_page(facts: ReportFacts, pictures: Mapping[str, CasePicture | str]) -> str:
    """The page.

    Args:
        facts: What it says.
        pictures: By the case's name its picture, or why there is none. No card is shown for other cases.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": _metric, "interval": _interval, "by": _by, "quoted": shlex.quote}
    cards = {name: _card(case, facts.shown.name, pictures) for case in facts.cases if (name := case.name) in pictures}
    worst, median, best = choose_cases(facts.cases)
    groups = {"Worst": worst, "Around the median": median, "Best": best}
    curves = [(run, draw_loss(run.curves), draw_validation_dice(run.curves)) for run in _curved(facts)]
    return environment.get_template(f"{PAGE}.j2").render(
        facts=facts,
        generator=GENERATOR,
        metrics=METRICS,
        state=_state(facts),
        tiles=[*_tiles(facts)],
        data=[*_data(facts.data)],
        most_groups=MOST_GROUPS,
        curves=[each for each in curves if each[1] or each[2]],
        histogram=draw_histogram([case.dice for case in facts.cases]),
        runs=[*_run_rows(facts)],
        table=tabulate_cases(facts.cases),
        groups={title: [cards[case.name] for case in cases if case.name in cards] for title, cases in groups.items()},
        suspects=[(suspect, cards.get(suspect.name)) for suspect in facts.suspects],
        legend=_legend(facts),
        verdicts=[_judge_difference(pair.difference) for pair in facts.leakage],
        reliability=draw_reliability(facts.calibration.before, facts.calibration.after) if facts.calibration else None,
        scatter=draw_expected(facts.cases, facts.expected_dice.flag_below if facts.expected_dice else None),
        seconds={run.name: duration(run.seconds) for run in facts.runs},
    )


def choose_cases(cases: Sequence[CaseFacts]) -> tuple[list[CaseFacts], list[CaseFacts], list[CaseFacts]]:
    """The cases to show: the worst first, those nearest to the median rising, and the best first, each only once.

    Of equally bad cases those with more wrong pixels come first. The worst and the best are of different groups as far
    as there are enough. Cases without any label in their truth are among the worst if something was predicted, never
    among the others.
    """
    ranked = sorted(cases, key=lambda case: (case.dice, -_wrong_pixels(case)))
    worst = _of_different_groups(ranked, N_WORST)
    others = [case for case in ranked if case not in worst and _has_label(case)]
    best = _of_different_groups(others[::-1], N_BEST)
    between = [case for case in others if case not in best]
    median = ranked[len(ranked) // 2].dice if ranked else math.nan
    nearest = sorted(between, key=lambda case: abs(case.dice - median))[:N_MEDIAN]
    return worst, sorted(nearest, key=lambda case: case.dice), best


def _of_different_groups(ranked: Sequence[CaseFacts], n: int) -> list[CaseFacts]:
    """The first ``n`` cases, those of a group that is there already only where others do not suffice."""
    firsts: dict[str, CaseFacts] = {}
    for case in ranked:
        firsts.setdefault(case.group or case.name, case)
    chosen = [*firsts.values()][:n]
    chosen += [case for case in ranked if case not in chosen][: n - len(chosen)]
    return sorted(chosen, key=ranked.index)


def _wrong_pixels(case: CaseFacts) -> int:
    return sum(score.counts.fp + score.counts.fn for score in case.labels.values())


def _has_label(case: CaseFacts) -> bool:
    return not all(score.counts.truth_is_empty for score in case.labels.values())


def shown_cases(facts: ReportFacts) -> list[str]:
    """The names of the cases to picture, the most important first."""
    worst, median, best = choose_cases(facts.cases)
    names = [case.name for case in (*worst, *best, *median)]
    return [*dict.fromkeys([*names, *(suspect.name for suspect in facts.suspects)])]


def tabulate_cases(cases: Sequence[CaseFacts]) -> CaseTable:
    """The table of cases, those with the least Dice first."""
    from jinja2.utils import htmlsafe_json_dumps

    fields = [*_fields(cases)]
    rows: list[tuple[Value, ...]] = []
    room = TABLE_CHARACTERS
    for case in sorted(cases, key=lambda case: case.dice):
        row = tuple(value(case) for _, value in fields)
        room -= len(htmlsafe_json_dumps(row))
        if room < 0:
            break
        rows.append(row)
    return CaseTable(columns=tuple(column for column, _ in fields), rows=tuple(rows), n_left_out=len(cases) - len(rows))


def _fields(cases: Sequence[CaseFacts]) -> Iterator[tuple[Column, Callable[[CaseFacts], Value]]]:
    """The columns of the table of cases that have something to show, and how each is filled."""
    labels = [*cases[0].labels]
    yield Column(title="Case"), lambda case: case.name
    yield Column(title="Fold", digits=0), lambda case: case.fold
    if any(case.group for case in cases):
        yield Column(title="Group"), lambda case: case.group
    yield Column(title="Dice", digits=3), lambda case: _number(case.dice)
    for label in labels if len(labels) > 1 else ():
        yield Column(title=f"Dice {label}", digits=3), partial(_score, label=label, metric="dice")
    for metric in SHOWN_METRICS if len(labels) == 1 else ():
        digits = 1 if metric == "hd95" else 3
        yield Column(title=METRICS[metric].title, digits=digits), partial(_score, label=labels[0], metric=metric)
    if any(case.expected_dice is not None for case in cases):
        yield Column(title="Expected Dice", digits=3), lambda case: _number(case.expected_dice)
        yield Column(title="Flag"), lambda case: "flagged" if case.flagged else ""
    if any(case.suspect for case in cases):
        yield Column(title="Suspect label"), lambda case: case.suspect


def _score(case: CaseFacts, label: str, metric: str) -> Value:
    return _number(case.labels[label].metrics[metric])


def _number(value: float | None) -> float | None:
    """A number as JSON holds it: short, and None where undefined."""
    return None if value is None or math.isnan(value) else round(value, 4)


def _card(case: CaseFacts, shown: str, pictures: Mapping[str, CasePicture | str]) -> CaseCard:
    """A case with its scores, which are not those of the mask that is shown where a model was chosen."""
    found = pictures[case.name]
    dice = ", ".join(f"{label} {_metric(score.metrics['dice'])}" for label, score in case.labels.items())
    says = [f"Dice {_metric(case.dice)}" + (f" ({dice})" if len(case.labels) > 1 else "")]
    own = case.of_runs.get(shown)
    if own is not None and _metric(own) != _metric(case.dice):
        says.append(f"of the mask shown {_metric(own)}")
    says += [f"expected Dice {_metric(case.expected_dice)}"] * (case.expected_dice is not None)
    says.append(", ".join([f"fold {case.fold}", *([f"group {case.group}"] if case.group else [])]))
    if isinstance(found, str):
        return CaseCard(name=case.name, says=tuple(says), picture=None, blank=found)
    return CaseCard(name=case.name, says=(*says, *([found.place] if found.place else [])), picture=found)


def _state(facts: ReportFacts) -> tuple[str, str, str]:
    """A tone, a headline, and what to keep in mind of the scores."""
    scored, overall = facts.scored, facts.scored.overall
    what = f"the chosen model, {scored.title}" if scored.of == "model" else f"run {scored.title}"
    headline = f"Dice {_interval(overall)} on images that the networks had not seen"
    minds = []
    if scored.inflated:
        minds.append(f"These scores are {scored.inflated}.")
    if not scored.is_complete:
        folds = ", ".join(map(str, scored.folds))
        minds.append(f"Only fold {folds} of {scored.n_folds} was scored: train the others before you rely on this.")
    if facts.shown.stale:
        minds.append(f"Stale: {facts.shown.stale}; run iaunet_train with --val_only.")
    if not facts.shown.is_current:
        minds.append("The run was trained on an older state of the data, the plan or the folds.")
    return ("mind" if minds else "good"), headline, " ".join([f"Out of fold, {what}, split {scored.split}.", *minds])


def _tiles(facts: ReportFacts) -> Iterator[Tile]:
    scored, data = facts.scored, facts.data
    yield Tile(title="Dice", value=_metric(scored.overall.mean), note=f"95 %: {_range(scored.overall)}")
    label, of_label = next(iter(scored.summary.labels.items()))
    if len(scored.summary.labels) == 1:
        for name in ("sensitivity", "precision"):
            summary = of_label.all_cases[name]
            yield Tile(title=METRICS[name].title, value=_metric(summary.mean), note=f"95 %: {_range(summary)}")
    found = facts.detection.get(label)
    if found is not None and found.overall.lesions:
        value = f"{found.overall.found} of {found.overall.lesions}"
        alarms = f"{found.alarms_per_case:.2g} false alarms a case; masks as they come"
        of_what = "Lesions found" if len(facts.detection) == 1 else f"{label} found"
        yield Tile(title=of_what, value=value, note=alarms)
    groups = f"of {data.n_groups} groups" if data.n_groups else "groups are not known"
    yield Tile(title="Cases", value=f"{scored.summary.n_cases}", note=groups)


def _data(data: DataFacts) -> Iterator[tuple[str, str]]:
    volumes = f", {data.n_volumes} of them volumes with {data.n_slices} slices in all" if data.n_volumes else ""
    yield "Cases", f"{data.n_cases}{volumes}"
    others = f" most often ({data.n_usual} cases), {_by(data.smallest)} to {_by(data.largest)}" * (data.n_sizes > 1)
    yield "Size", f"{_by(data.usual)} px{others}"
    if data.spacing_mm is not None:
        shown = " x ".join(f"{length:.3g}" for length in data.spacing_mm[0 if data.n_volumes else 1 :])
        yield "Spacing", f"{shown} mm (median)"
    yield "Pixels", f"{data.channels} channel{'s' if data.channels > 1 else ''}, {data.depth}"
    yield "Labels", ", ".join(data.labels)
    yield "Foreground", f"{data.foreground_share:.1%} of an image (median)"
    yield "Empty masks", f"{data.n_empty}"
    sizes = [n for _, n in data.group_sizes]
    known = f"{data.n_groups}, {min(sizes)} to {max(sizes)} cases each" if sizes else "none"
    yield "Groups", f"{known} ({data.groups_from})"
    yield "Duplicates", f"{data.n_copies} exact copies, {data.n_near} cases nearly equal to another"
    if data.ceiling is not None:
        yield "Ceiling", f"median Dice {data.ceiling:.3f} for true masks taken to the network's size and back"
    yield "Fingerprint", data.fingerprint[:16]
    if data.understood:
        yield "Read as", data.understood


def _run_rows(facts: ReportFacts) -> Iterator[tuple[RunFacts, str]]:
    """The scored runs, the best first, each with what there is to mind."""
    members = facts.chosen.runs if facts.chosen else ()
    scored = sorted((run for run in facts.runs if run.overall), key=lambda run: -run.dice)
    for run in scored[:MOST_RUNS]:
        notes = {
            "chosen": run.name in members,
            "inflated": bool(run.inflated),
            "stale": bool(run.stale),
            "older data, plan or folds": not run.is_current,
            "incomplete": not run.is_complete,
        }
        yield run, ", ".join(note for note, holds in notes.items() if holds)


def _curved(facts: ReportFacts) -> list[RunFacts]:
    """The runs whose curves are shown, the one that is shown first."""
    others = [run for run in facts.runs if run.name != facts.shown.name]
    return [facts.shown, *others][:MOST_CURVED_RUNS]


def _legend(facts: ReportFacts) -> list[tuple[str, str]]:
    """The colour of each value that masks hold."""
    names = facts.shown.plan.value_names
    return [(name, f"rgb{label_colour(number)}") for number, name in enumerate(names, start=1)]


def _judge_difference(difference: Summary) -> str:
    """What to think of random minus grouped, empty where there is no interval."""
    if math.isnan(difference.low):
        return ""
    if difference.low > 0:
        return "so much of the random split's score was leakage."
    if difference.high < 0:
        return "the grouped split's score is the higher one, by more than chance: this shows no leakage."
    return "it can be chance."


def _metric(value: float | None, name: str = "dice") -> str:
    """A value as the metric is printed; a dash where it is undefined."""
    return METRICS[name].text(math.nan if value is None else value)


def _range(summary: Summary, name: str = "dice") -> str:
    """An interval as the metric is printed."""
    if math.isnan(summary.low):
        return "not known"
    return f"{_metric(summary.low, name)} to {_metric(summary.high, name)}"


def _interval(summary: Summary, name: str = "dice") -> str:
    """A mean and its interval as the metric is printed."""
    known = "" if math.isnan(summary.low) else f" ({_range(summary, name)})"
    return f"{_metric(summary.mean, name)}{known}"


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
