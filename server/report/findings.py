"""What a run's numbers allow to say in plain words: findings, what is missing, caveats.

A verdict is given only by a paired difference whose p-value, adjusted for all others of the run, is
below 5 %; where too few people stand behind it, none is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from common.errors import SENTENCES
from common.study import Study
from server import overlap, site_findings
from server.report.comparisons import Comparison, Line
from server.report.tables import (
    FEDERATED,
    SMALL,
    Cell,
    digits_of,
    of_metric,
    p_shown,
    sentence,
    shown,
)
from server.report.task_tables import TaskTable
from server.results import TOGETHER
from server.run import Run, lineage_told

_JOINED: Final = {"not distinguishable": "from", "not judged": "against"}
_MOST_NAMED: Final = 6  # rounds or sites spelt out in a sentence

Record = Mapping[str, Any]
Census = Mapping[str, Mapping[str, Any]]


def opening(run: Run, records: Sequence[Record]) -> list[str]:
    """Who did what: the study, the sites by role, the rounds."""
    study = run.study
    heldout = (
        f"{_are(study.sites.heldout)} held out of training to judge the result"
        if study.sites.heldout
        else "no site was held out"
    )
    backbone = study.backbone.name  # type: ignore[attr-defined]
    verb = "trains" if len(study.sites.train) == 1 else "train"
    who = f"{_counted(len(study.sites.train), 'site')} ({_listed(study.sites.train)})"
    what = "weights and counts"
    if study.secure_sums.on:
        what = "weights and counts under masks, which only their sum sheds,"
    began = (
        f"In the study {study.name}, {who} {verb} one {backbone} backbone together, "
        f"sending {what} but no scans; {heldout}."
    )
    done = f"{len(records)} of {_counted(study.pretraining.rounds, 'round')} are finished. "
    return [began, done + degraded(records)]


def degraded(records: Sequence[Record]) -> str:
    """Whether any round went on without all the sites that were asked, and why."""
    found = [record for record in records if record["degraded"]]
    if not records:
        return "Nothing has been trained yet."
    if not found:
        return "No round was degraded: in each of them every site that was asked answered."
    reasons = [f"round {record['round']}: {_absent(record)}" for record in found[:_MOST_NAMED]]
    more = f", and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return (
        f"{_counted(len(found), 'round')} {'was' if len(found) == 1 else 'were'} DEGRADED, "
        f"averaged without every site that was asked ({'; '.join(reasons)}{more})."
    )


def finding(comparison: Comparison, percent: str) -> list[str]:
    """The federated model at one held-out site, then how it stands against its rivals there."""
    federated = comparison.federated
    whose = "the federated model's"
    if federated is None and comparison.probe is not None:
        federated = comparison.probe
        whose = "for a head of the site's own on the federated network, the"
    subject = f"At {comparison.place}, {whose} {of_metric(comparison)} for {comparison.target}"
    if federated is None or federated.cell.value is None:
        return [f"{subject} cannot be shown: {_why(federated)}."]
    digits = digits_of(comparison.metric, *(line.cell.value for line in comparison.lines))
    parts = [f"{subject} is {_with_interval(federated, digits, percent)}."]
    parts += [
        _against(line, comparison, digits)
        for line in comparison.rivals()
        if line.model in ("pooled", "pooled-linear")
    ]
    alone = [line for line in comparison.rivals() if line.model.startswith("single-")]
    if alone:
        parts.append(_against_singles(alone, comparison))
    parts += _for_scale(comparison, digits)
    return [part for part in parts if part]


def _why(line: Line | None) -> str:
    """Why a number is not there."""
    if line is None:
        return "the site reported none"
    if line.cell.undefined:
        return "all labels there are of one class"
    return "too few participants stand behind it"


def direction(line: Line, comparison: Comparison) -> str:
    """`lower (better)`: where the federated value lies from the line's, by the paired interval."""
    if line.verdict == "not distinguishable":
        return line.verdict
    if line.verdict == "too few people":
        return "not judged"
    lower = (line.verdict == "federated better") == (comparison.metric == "mae")
    good = "better" if line.verdict == "federated better" else "worse"
    return f"{'lower' if lower else 'higher'} ({good})"


def missing(
    run: Run,
    census: Census,
    records: Sequence[Record],
    compared: Sequence[Comparison],
    tasks: Sequence[TaskTable],
) -> list[str]:
    """What a reader would look for on the page and not find, with the reason where it is known."""
    found = list(_unfinished(run, records))
    found += [
        f"{site} could not take part: {line['refused']}: {said(line['refused'])}"
        for site, line in census.items()
        if line.get("refused")
    ]
    found += site_findings.without_labels(run.study, census)
    found += _unjudged(run, census, compared)
    found += _rivals_missing(run.study, compared)
    for task in tasks:
        found += _cells_missing(task, census)
    found += _withheld(compared, tasks)
    if not tasks:
        found.append("The study has no fine-tuning task.")
    return found


def caveats(
    run: Run,
    compared: Sequence[Comparison],
    tasks: Sequence[TaskTable],
    records: Sequence[Record],
) -> list[str]:
    """What to keep in mind while reading this run's numbers."""
    small = sorted({
        f"{c.target} at {c.place} ({line.participants})"
        for c in compared
        for line in c.lines
        if line.model == FEDERATED and line.participants < SMALL and line.cell.value is not None
    } | {
        f"{task.task} at {row.site} ({row.n_participants})"
        for task in tasks
        for row in task.cells.values()
        if row.n_participants < SMALL and row.cell.value is not None
    })  # fmt: skip
    found = [
        f"{text}." for text in (*site_findings.kept(run.folder), *overlap.kept(run.folder).findings)
    ]
    if lineage := lineage_told(run):
        found.append(f"What went into the model: {'; '.join(lineage)}.")
    if small:
        found.append(
            f"Fewer than {SMALL} participants stand behind: {'; '.join(small)}. "
            "There, one or two people can move a metric visibly."
        )
    if compared and reestimates(run.study):
        found.append(
            "Held-out sites estimated normalisation statistics anew, on the very scans that they "
            "then judged by, without labels: at a new hospital as many scans are needed first."
        )
    if any(record["degraded"] for record in records):
        found.append(
            "Degraded rounds were averaged over fewer sites; the model leans towards those that "
            "answered."
        )
    return found


def reestimates(study: Study) -> bool:
    """Whether an unseen site changes a network before it judges it."""
    policy = study.aggregation.normalisation
    asked = study.evaluation.statistics == "reestimated" and policy != "groupnorm"
    return asked or policy == "silobn"


def said(code: str) -> str:
    """The sentence of a code; a code that nobody documented says so."""
    return SENTENCES.get(code, "A code that this version does not know.")


def _absent(record: Record) -> str:
    refused = sorted(record["refused"].items())
    spoilt = ["its sum was spoilt, so that it changed nothing"] * _is_spoilt(record)
    told = [*(f"{site} {status(code)}" for site, code in refused), *spoilt]
    return ", ".join(told) or "a site is missing"


def _is_spoilt(record: Record) -> bool:
    """Whether the masks of a secure sum could not be taken off, or what came out was no sum."""
    return bool(record.get("sum", {}).get("spoilt"))


def status(code: str) -> str:
    """One word or two for what became of a request, told by its code."""
    return "no answer" if code == "NO_ANSWER" else f"refused {code}"


def _with_interval(line: Line, digits: int, percent: str) -> str:
    cell, n = line.cell, f"{_counted(line.participants, 'participant')}, "
    n += _counted(line.scans, "scan")
    if cell.value is None or cell.low is None or cell.high is None:
        return f"{sentence(cell, digits)} ({n}; without an interval)"
    low, high = shown(cell.low, digits), shown(cell.high, digits)
    return f"{shown(cell.value, digits)} ({percent} interval {low} to {high}; {n})"


def _against(line: Line, comparison: Comparison, digits: int) -> str:
    """The paired difference, turned round: federated minus rival."""
    if line.difference is None or line.difference.value is None:
        return ""
    low, high = line.difference.low, line.difference.high
    if low is None or high is None:
        return ""
    apart = shown(-line.difference.value, digits, signed=True)
    between = f"{shown(-high, digits)} to {shown(-low, digits)}"
    word = direction(line, comparison)
    joined = _JOINED.get(word, "than")
    return (
        f"On the same participants it is {word} {joined} the {line.title.removesuffix(' model')} "
        f"model's (difference {apart}, interval {between}{_p(line.difference)})."
    )


def _p(difference: Cell) -> str:
    if difference.p is None or difference.adjusted is None:
        return "; too few people for a verdict"
    return f", p {p_shown(difference.p)}, adjusted {p_shown(difference.adjusted)}"


def _against_singles(alone: Sequence[Line], comparison: Comparison) -> str:
    words: dict[str, list[str]] = {}
    for line in alone:
        words.setdefault(direction(line, comparison), []).append(line.title.removesuffix(" alone"))
    parts = [
        f"{word} {_JOINED.get(word, 'than')} {_listed(names)}"
        for word, names in sorted(words.items())
    ]
    return f"Against models of one training site alone it is {'; '.join(parts)}."


def _for_scale(comparison: Comparison, digits: int) -> list[str]:
    """Values that put the others into proportion; they have no paired interval."""
    wanted = ("constant", "site-linear")
    lines = {line.model: line for line in comparison.lines if line.cell.value is not None}
    parts = [
        f"{lines[model].title} gives {sentence(lines[model].cell, digits)}"
        for model in wanted
        if model in lines
    ]
    return [f"For scale, without a paired test: {' and '.join(parts)}."] if parts else []


def _unfinished(run: Run, records: Sequence[Record]) -> Iterator[str]:
    if not run.federated.final.exists():
        yield (
            f"The run is unfinished: {len(records)} of {run.study.pretraining.rounds} rounds are "
            "done. The command that started it goes on from here."
        )
    elif not (run.folder / "results.csv").exists():
        yield "The run is unfinished: rounds are done, results.csv is not written yet."


def _reason(census: Census, site: str, target: str, line: Line | None) -> str:
    """Why a held-out site has no number for a target, as far as its census tells."""
    held = census.get(site, {}).get("held", {}).get(f"labels/{target}")
    if line is not None and line.cell.undefined:
        return f"its {held or line.scans} labels are of one class"
    if held is None:
        return "its census does not say how many labels it holds"
    if not held:
        return "it holds no labels"
    return f"it holds {held} labels, and sent no measurement of them"


def _unjudged(run: Run, census: Census, compared: Sequence[Comparison]) -> Iterator[str]:
    study = run.study
    judged = {comparison.site for comparison in compared}
    if not study.sites.heldout and not judged:
        yield (
            "The study holds no site out, so nothing on this page says how the model does at a "
            "hospital that it has never seen."
        )
    if not (run.folder / "results.csv").exists():
        return
    predicts = any(comparison.federated is not None for comparison in compared)
    if judged and not predicts:
        yield (
            "The network predicts no target by itself, so held-out sites judged it by linear heads "
            "of their own on its features."
        )
    for site in study.sites.heldout:
        if site not in judged:
            yield f"{site} was to judge the model and has reported nothing."
            continue
        told = {c.target: c for c in compared if c.site == site}
        for name in study.pretraining_targets if predicts else ():
            line = told[name].federated if name in told else None
            if line is None or line.cell.undefined:
                yield f"{site} reported no result for {name}: {_reason(census, site, name, line)}."


def _rivals_missing(study: Study, compared: Sequence[Comparison]) -> Iterator[str]:
    if not compared:
        return
    models = {line.model for comparison in compared for line in comparison.lines}
    wanted = study.comparisons
    if "pooled" not in models:
        why = "was not reported" if wanted.pooled else "was not asked for"
        yield f"A pooled model, the usual yardstick, {why}."
    if not any(model.startswith("single-") for model in models):
        why = "were not reported" if wanted.single_site else "were not asked for"
        yield f"Models of one training site alone {why}."


def _cells_missing(task: TaskTable, census: Census) -> Iterator[str]:
    what = "Fine-tuning" if task.phase == "finetune" else "Judging tuned models of"
    lacking = [site for site in task.sites if not _holds(census, site, task.target)]
    if not task.cells:
        yield f"{what} {task.task}: no site reported a result.{_labels(task, census)}"
        return
    if lacking:
        yield f"{what} {task.task}: no labels of {task.target} at {_listed(lacking)}."
    for site in task.sites:
        if site == TOGETHER:
            continue
        empty = [method for method in task.methods if (site, method) not in task.cells]
        if empty and site not in lacking:
            yield f"{what} {task.task}: {site} reported no result for {_listed(empty)}."


def _withheld(compared: Sequence[Comparison], tasks: Sequence[TaskTable]) -> Iterator[str]:
    lines = [line for comparison in compared for line in comparison.lines]
    n = sum(
        line.cell.value is None and not line.cell.undefined and not line.is_made_here
        for line in lines
    )
    cells = [row.cell for task in tasks for row in task.cells.values()]
    n += sum(cell.value is None and not cell.undefined for cell in cells)
    if n:
        yield (
            f"{_counted(n, 'value')} {'is' if n == 1 else 'are'} withheld: fewer participants "
            "stand behind than the site's policy asks for."
        )


def _holds(census: Census, site: str, target: str) -> bool:
    """Whether a site has labels of a target, or was not asked."""
    held = census.get(site, {}).get("held", {})
    return not held or bool(held.get(f"labels/{target}"))


def _labels(task: TaskTable, census: Census) -> str:
    held = [census.get(site, {}).get("held", {}) for site in task.sites]
    if held and all(counts and not counts.get(f"labels/{task.target}") for counts in held):
        return f" By the census no training site holds a label of {task.target}."
    return ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _are(names: Sequence[str]) -> str:
    return f"{_listed(names)} {'is' if len(names) == 1 else 'are'}"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
