"""Write a study as one HTML file: figures, fit, runs and provenance.

The file is self-contained: it loads nothing else, and runs no script but its own.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.checking.holdout import HeldOutRun
from analysis.decisions.allocate import (
    Allocation,
    allocate,
    counted_flops_per_token,
)
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.hoffmann.isoflop import IsoFlop
from analysis.plots.extrapolation import plot_extrapolation
from analysis.plots.fit import plot_fit, plot_frontier
from analysis.plots.isoflop import plot_isoflop
from analysis.plots.style import (
    LEVEL,
    STYLE,
    HoverPoints,
    format_count,
    format_flops,
    format_law,
)
from analysis.report import tables
from analysis.report.tables import format_exponent, format_interval
from analysis.table.readers import replace_unseen
from analysis.table.runs import Runs, load_runs

SVG = "{http://www.w3.org/2000/svg}"
# A figure with more points than this is drawn as a bitmap without hover texts, so that
# the page stays small enough to mail.
MAX_HOVER = 1000


@dataclass(frozen=True)
class Picture:
    """A figure of the page, or the problem for which it is missing."""

    name: str
    caption: str
    svg: Markup
    problem: str = ""


def write_report(
    path: str | Path,
    *,
    runs: Runs | pd.DataFrame,
    fit: Fit,
    boot: Bootstrap | None = None,
    isoflop: IsoFlop | None = None,
    holdout: Sequence[HeldOutRun] | None = None,
    plan: pd.DataFrame | None = None,
    decisions: pd.DataFrame | None = None,
    target: Allocation | None = None,
    provenance: Mapping[str, object] | None = None,
    title: str = "Scaling law",
) -> Path:
    """Write the report as one self-contained HTML file and return its path.

    The page says which of the optional parts are missing.

    Args:
        path: of the file; its folder is created.
        runs: all runs, those held out included.
        fit: of the runs that were not held out.
        boot: its bootstrap, which gives the intervals.
        isoflop: approach 2 on the fitted runs.
        holdout: one row per held-out run.
        plan: the runs to train next.
        decisions: one row per decision by which the runs were chosen.
        target: the training run that is to be decided on; by default that of ten times
            the largest fitted compute.
        provenance: names and values that say where the numbers come from.
        title: of the page.
    """
    path = Path(path)
    if not isinstance(runs, Runs):
        runs = load_runs(runs)
    held = list(holdout or ())
    optimum = None
    no_optimum = ""
    try:
        optimum = tables.tabulate_optimum(runs, fit, boot)
    except ValueError as error:
        no_optimum = str(error)
    approaches = None
    minima = None
    if isoflop is not None:
        minima = tables.tabulate_minima(isoflop)
        # A law without the exponents a and b has no such table.
        with contextlib.suppress(ValueError):
            approaches = tables.tabulate_approaches(isoflop, fit, boot)
    origin = {"run table": runs.source, "columns": runs.columns, **(provenance or {})}
    page = load_template("report.html.j2").render(
        title=title,
        headline=_write_headline(fit, boot, held, target),
        warnings=_collect_warnings(runs, fit, boot, isoflop),
        pictures=_draw_pictures(runs, fit, boot, isoflop, held),
        optimum=optimum,
        no_optimum=no_optimum,
        relation=_describe_compute(fit),
        holdout=tables.tabulate_holdout(held) if held else None,
        law=_format_law_html(fit),
        parameters=tables.tabulate_parameters(fit, boot),
        protocol=tables.table_from_pairs(_list_protocol(fit, boot)),
        certificate=tables.table_from_pairs(_list_certificate(fit)),
        certified=fit.certificate.ok,
        approaches=approaches,
        minima=minima,
        runs=tables.tabulate_runs(runs, fit),
        n_runs=len(runs),
        rejected=tables.tabulate_rejected(runs),
        plan=tables.table_from_frame(plan) if plan is not None and len(plan) else None,
        decisions=None if decisions is None else tables.table_from_frame(decisions),
        provenance=tables.table_from_pairs(origin),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replace_unseen(page), encoding="utf-8")
    return path


def inline_svg(fig: Figure, prefix: str, label: str) -> Markup:
    """The figure as an <svg> element of an HTML page.

    Several figures share a page, so every id that something refers to gets a prefix,
    and the others are removed. A point that carries a text gets it as its <title>.
    Coordinates keep two decimals of a point (1/72 inch).

    Args:
        fig: the figure.
        prefix: of the ids, different for each figure of a page.
        label: what a screen reader says.
    """
    points = _find_hover_points(fig)
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        fig.savefig(buffer, format="svg", dpi=160, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _add_titles(root, points)
    _remove_elements(root, (f"{SVG}metadata", f"{SVG}style"))
    used = _find_references(root)
    for element in root.iter():
        # An HTML page knows SVG's elements without their namespace.
        element.tag = element.tag.removeprefix(SVG)
        element.tail = None
        if element.tag not in ("text", "tspan", "title"):
            element.text = None
        attributes = element.attrib
        element.attrib = {}
        for name, value in attributes.items():
            if name != "id":
                rounded = re.sub(r"(\.\d\d)\d+", r"\1", value)
                prefixed = re.sub(r"(^|url\()#", rf"\1#{prefix}-", rounded)
                element.set(name.rpartition("}")[2], prefixed)
            elif value in used:
                element.set("id", f"{prefix}-{value}")
    root.attrib = {
        "viewBox": root.get("viewBox", ""),
        "role": "img",
        "aria-label": label,
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _add_titles(root: ElementTree.Element, points: Sequence[HoverPoints]) -> None:
    """Give each marker its text, which a browser shows on pointing at it."""
    for series in points:
        marks = root.findall(f".//*[@id='{series.get_gid()}']//{SVG}use")
        if len(marks) != len(series.titles):
            continue
        for mark, text in zip(marks, series.titles, strict=True):
            ElementTree.SubElement(mark, "title").text = text


def _remove_elements(root: ElementTree.Element, tags: Sequence[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)


def _find_references(root: ElementTree.Element) -> set[str]:
    """The ids that an attribute refers to."""
    found: set[str] = set()
    for element in root.iter():
        for value in element.attrib.values():
            found.update(re.findall(r"#([\w.-]+)", value))
    return found


def _find_hover_points(fig: Figure) -> list[HoverPoints]:
    """The points that carry texts; none if there are too many, which then become a
    bitmap.
    """
    found = []
    for artist in fig.findobj(HoverPoints):
        assert isinstance(artist, HoverPoints)
        found.append(artist)
    count = sum(len(points.titles) for points in found)
    is_bitmap = count > MAX_HOVER
    for points in found:
        points.set_rasterized(is_bitmap)
    return [] if is_bitmap else found


def load_template(name: str) -> jinja2.Template:
    """The template of a page, which escapes every value."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _format_law_html(fit: Fit) -> Markup:
    """The law with its fitted numbers, exponents raised."""
    formula = str(escape(format_law(fit)))
    return Markup(re.sub(r"\^([\d.]+)", r"<sup>\1</sup>", formula))


def _write_headline(
    fit: Fit,
    boot: Bootstrap | None,
    held: Sequence[HeldOutRun],
    target: Allocation | None,
) -> list[Markup]:
    """What was found, in sentences."""
    return [
        _write_decision_sentence(fit, boot, target),
        _write_fit_sentence(fit),
        _write_exponent_sentence(fit, boot),
        _write_holdout_sentence(fit, held),
    ]


def _write_decision_sentence(
    fit: Fit, boot: Bootstrap | None, target: Allocation | None
) -> Markup:
    """What to train at the target, or at the largest fitted compute and at ten times as
    much; empty for a law that has no optimum.
    """
    if set(fit.law.variables) != {"N", "D"}:
        return Markup("")
    largest = float(fit.compute.max())
    try:
        at_largest = _write_decision(_find_best(fit, largest, boot))
        if target is None:
            beyond = _write_decision(_find_best(fit, 10 * largest, boot))
    except ValueError:  # the section of the optimum says why
        return Markup("")
    if target is None:
        sentence = Markup(
            "At the largest fitted compute, {}. At ten times as much, {}."
        )
        return sentence.format(at_largest, beyond)
    sentence = Markup(
        "At the target, {}. That is {} times the largest fitted compute, where the "
        "answer is: {}."
    )
    factor = f"{target.C / largest:.3g}"
    return sentence.format(_write_decision(target), factor, at_largest)


def _find_best(fit: Fit, C: float, boot: Bootstrap | None) -> Allocation:
    per_token = counted_flops_per_token(fit)
    return allocate(fit, C, boot, per_token, LEVEL, extrapolate=True)


def _write_decision(best: Allocation) -> Markup:
    interval = ""
    if "loss" in best.intervals:
        low, high = best.intervals["loss"]
        interval = f" (90 % interval {low:.3f} to {high:.3f})"
    bound = f" ({best.describe_bound()})" if best.bound else ""
    return Markup("{} FLOPs, train {} parameters on {} tokens{}: loss {}{}").format(
        format_flops(best.C),
        format_count(best.N),
        format_count(best.D),
        bound,
        f"{best.loss:.3f}",
        interval,
    )


def _write_fit_sentence(fit: Fit) -> Markup:
    ranges = []
    for name, unit, write in (
        ("N", "parameters", format_count),
        ("D", "tokens", format_count),
        ("C", "FLOPs", format_flops),
    ):
        if name not in fit.data:
            continue
        low = write(fit.data[name].min())
        high = write(fit.data[name].max())
        values = low if low == high else f"{low} to {high}"
        ranges.append(f"{values} {unit}")
    law = Markup("{}")
    if fit.law.target == "loss":
        law = Markup("loss = {} nats per token")
    return Markup("Fitted to {} runs of {}: {}.").format(
        len(fit.residuals), ", ".join(ranges), law.format(_format_law_html(fit))
    )


def _write_exponent_sentence(fit: Fit, boot: Bootstrap | None) -> Markup:
    """The exponent of compute-optimal size, or of a law of one variable; or nothing."""
    derived = fit.derived()
    if "a" in derived:
        name = "a"
        value = derived["a"]
    elif "alpha" in fit.params:
        name = "alpha"
        value = fit.params["alpha"]
    else:
        return Markup("")
    interval = Markup(" (no interval: the fit was not bootstrapped)")
    if boot is not None:
        ends = format_interval(boot.interval(name, LEVEL), format_exponent)
        if ends:
            interval = Markup(" (90 % interval {})").format(ends)
    if name == "alpha":
        return Markup("The exponent alpha is {}{}.").format(
            format_exponent(value), interval
        )
    return Markup(
        "The model size that minimizes the loss at compute C grows as "
        "C<sup>{}</sup>{}, and its number of training tokens as C<sup>{}</sup>."
    ).format(format_exponent(value), interval, format_exponent(1 - value))


def _write_holdout_sentence(fit: Fit, held: Sequence[HeldOutRun]) -> Markup:
    if not held:
        return Markup(
            "No run was held out, so how well the law predicts beyond the fitted runs "
            "has not been tested."
        )
    errors = np.array([abs(row["predicted"] / row["measured"] - 1) for row in held])
    inside = sum(row["lower_90"] <= row["measured"] <= row["upper_90"] for row in held)
    distance = ""
    if "C" in fit.data:
        factor = max(row["C"] for row in held) / fit.data["C"].max()
        distance = f" with up to {factor:.2g} times the largest fitted compute"
    mean = f"{100 * errors.mean():.2f}"
    largest = f"{100 * errors.max():.2f}"
    if len(held) == 1:
        where = "inside" if inside else "outside"
        return Markup(
            "The law predicts the loss of one held-out run{} with an error of {} %; "
            "the "
            "measured loss lies {} the 90 % interval."
        ).format(distance, largest, where)
    return Markup(
        "The law predicts the losses of {} held-out runs{} with an error of {} % on "
        "average and {} % at most; {} of {} measured losses lie inside their 90 % "
        "interval."
    ).format(len(held), distance, mean, largest, inside, len(held))


def _collect_warnings(
    runs: Runs, fit: Fit, boot: Bootstrap | None, isoflop: IsoFlop | None
) -> list[str]:
    """Everything a reader should know before using the numbers."""
    certificate = fit.certificate
    found = list(dict.fromkeys((*runs.notes, *fit.protocol.notes)))
    if not certificate.ok:
        found.insert(
            0,
            "The fit is not certified: do not rely on its numbers. See the certificate "
            "below.",
        )
    for meaning, names in (
        ("These runs cannot identify", certificate.not_identified),
        ("The fitted value lies on a bound of its range", certificate.at_bound),
        ("The standard error is larger than the value itself", certificate.weak),
    ):
        if names:
            found.append(f"{meaning}: {', '.join(names)}.")
    for name, (low, high) in certificate.ridges.items():
        found.append(
            f"These runs do not bound {name}: any value from {low:.4g} to {high:.4g} "
            "fits as well (95 %)."
        )
    if boot is not None:
        found += boot.notes
        if boot.unconverged:
            found.append(
                f"{boot.unconverged} of {len(boot)} bootstrap replicates did not "
                "converge."
            )
    if isoflop is not None:
        found += isoflop.notes
        found += _describe_unused_budgets(isoflop)
    return [write_sentence(text) for text in found]


def _describe_unused_budgets(isoflop: IsoFlop) -> list[str]:
    """The budgets that approach 2 left out, those of one reason in a sentence."""
    budgets: dict[str, list[str]] = {}
    unused = isoflop.minima.loc[~isoflop.minima["used"]]
    for row in unused.to_dict("records"):
        budgets.setdefault(row["reason"], []).append(format_flops(row["budget"]))
    sentences = []
    for reason, values in budgets.items():
        word = "budget" if len(values) == 1 else "budgets"
        sentences.append(
            f"Approach 2 left out the {word} of {', '.join(values)} FLOPs: {reason}."
        )
    return sentences


def write_sentence(text: str) -> str:
    """A note as a sentence: a capital at its start and a period at its end."""
    return text[:1].upper() + text[1:].removesuffix(".") + "."


def _draw_pictures(
    runs: Runs,
    fit: Fit,
    boot: Bootstrap | None,
    isoflop: IsoFlop | None,
    held: Sequence[HeldOutRun],
) -> list[Picture]:
    """The four figures of the page, each with its caption or why it is missing."""
    is_surface = set(fit.law.variables) == {"N", "D"}
    frontier = (
        "Each line joins the runs of one model size, which differ in training tokens. "
        "The dashed line is the lowest loss measured with that compute or less."
    )
    if is_surface:
        frontier += (
            " The orange line is the lowest loss that the fitted law predicts for that "
            "compute, over all model sizes."
        )
    law = "The curve is the fitted law"
    if is_surface:
        law = "Each curve is the fitted law at one model size"
    if boot is not None:
        law += "; the band is its 90 % interval"
    fitted = (
        f"Above: markers are measured losses. {law}. Below: how far each measured loss "
        "lies above or below the law, in percent."
    )
    return [
        draw_picture("Frontier", frontier, lambda: plot_frontier(runs, fit)),
        _draw_profiles(runs, isoflop),
        draw_picture("The fitted law", fitted, lambda: plot_fit(runs, fit, boot)),
        _draw_extrapolation(fit, boot, held),
    ]


def _draw_profiles(runs: Runs, isoflop: IsoFlop | None) -> Picture:
    name = "IsoFLOP profiles"
    if isoflop is None:
        return _skip_picture(name, "no table of budgets was given")
    caption = (
        "Runs of equal training compute, by model size. Each curve is a parabola in "
        "ln N fitted to the losses of one budget; its minimum, the diamond, is the "
        "best size for that budget (approach 2 of Hoffmann et al. 2022). The dotted "
        "line joins the minima that the power law is fitted to."
    )
    return draw_picture(name, caption, lambda: plot_isoflop(runs, isoflop))


def _draw_extrapolation(
    fit: Fit, boot: Bootstrap | None, held: Sequence[HeldOutRun]
) -> Picture:
    name = "Extrapolation"
    if not held:
        return _skip_picture(name, "no run was held out")
    caption = (
        "Above: the law at the sizes of the held-out runs, with predicted and measured "
        "losses; these runs took no part in the fit. Below: the relative error of each "
        "prediction and its 90 % interval."
    )
    return draw_picture(name, caption, lambda: plot_extrapolation(fit, boot, held))


def draw_picture(name: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    """A figure for a page, or why it cannot be drawn."""
    try:
        figure = draw()
    except ValueError as error:  # such as a table without compute
        return _skip_picture(name, str(error))
    prefix = re.sub(r"\W+", "-", name.lower())
    return Picture(name=name, caption=caption, svg=inline_svg(figure, prefix, name))


def _skip_picture(name: str, problem: str) -> Picture:
    return Picture(name=name, caption="", svg=Markup(""), problem=problem)


def _describe_compute(fit: Fit) -> str:
    """How C follows from N and D in the table of compute-optimal sizes."""
    if not {"N", "D", "C"} <= set(fit.data) or counted_flops_per_token(fit) is None:
        return "C = 6 N D."
    ratio = fit.data["C"] / (6 * fit.data["N"] * fit.data["D"])
    low = f"{ratio.min():.3g}"
    high = f"{ratio.max():.3g}"
    factor = low if low == high else f"{low} to {high}"
    return f"C is counted as in the fitted runs ({factor} times 6 N D)."


def _list_protocol(fit: Fit, boot: Bootstrap | None) -> dict[str, object]:
    """How the law was fitted; what does not apply is left out."""
    protocol = fit.protocol
    columns = []
    for name in (*fit.law.variables, "loss"):
        columns.append(f"{name} = {protocol.columns.get(name, name)}")
    entries = {
        "law": fit.law.name,
        "form": fit.law.formula,
        "objective": protocol.objective,
        "delta": protocol.delta,
        "residual": f"{protocol.residual} {fit.law.target}",
        "options": ", ".join(protocol.options()) or None,
        "rows": protocol.n_rows,
        "effects": fit.describe_components() or None,
        "columns": ", ".join(columns),
        "fixed": protocol.fixed or None,
        "tied": protocol.tied or None,
        "objective at the fit, summed over rows": f"{fit.objective:.9g}",
    }
    if boot is not None:
        entries["intervals"] = f"{boot.describe_method()}, seed {boot.seed}"
    return {name: value for name, value in entries.items() if value is not None}


def _list_certificate(fit: Fit) -> dict[str, object]:
    """The checks of the optimum, by name."""
    certificate = fit.certificate
    return {
        "certified": "yes" if certificate.ok else "NO",
        "scaled gradient": f"{certificate.gradient:.1e}",
        "starts that agree": f"{certificate.agree} of {certificate.starts}",
        "condition number": f"{certificate.condition:.3g}",
        "degrees of freedom": certificate.degrees_of_freedom,
        "not identified": ", ".join(certificate.not_identified) or "none",
        "at a bound": ", ".join(certificate.at_bound) or "none",
        "standard error above value": ", ".join(certificate.weak) or "none",
        "not bounded": ", ".join(certificate.ridges) or "none",
    }
