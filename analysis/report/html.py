"""write_report: one HTML file with the figures, the fit, the runs and where they came
from; it loads nothing else.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.decisions.allocate import counted_flops_per_token
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.hoffmann.isoflop import IsoFlop
from analysis.plots.fit import plot_extrapolation, plot_fit, plot_frontier, plot_isoflop
from analysis.plots.style import (
    LEVEL,
    STYLE,
    Frame,
    HoverPoints,
    format_count,
    format_flops,
    format_law,
)
from analysis.report import tables
from analysis.report.tables import Table, format_exponent, format_interval
from analysis.table.readers import visible
from analysis.table.runs import Runs, load_runs

SVG = "{http://www.w3.org/2000/svg}"
MAX_HOVER = 1000  # more points of one figure than this become a bitmap: the page stays small enough to mail


@dataclass(frozen=True)
class Picture:
    """A figure of the page, or why it is missing."""

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
    holdout: Sequence[Mapping[str, Any]] | None = None,
    plan: pd.DataFrame | None = None,
    provenance: Mapping[str, Any] | None = None,
    title: str = "Scaling law",
) -> Path:
    """Write the report as one self-contained HTML file and return its path.

    Args:
        path: where; its folder is made.
        runs: all runs, those held out included.
        boot, isoflop, holdout, plan, provenance: parts that the page says are missing
        when they are not given.
        holdout: rows with run_id, N, D, C, predicted, lower_90, upper_90, measured.
    """
    path = Path(path)
    runs = runs if isinstance(runs, Runs) else load_runs(runs)
    held = [dict(row) for row in holdout or ()]
    optimum, no_optimum = _or_problem(lambda: tables.tabulate_optimum(runs, fit, boot))
    approaches, _ = _or_problem(
        lambda: (
            tables.tabulate_approaches(isoflop, fit, boot)
            if isoflop is not None
            else None
        )
    )
    page = _template().render(
        title=title,
        headline=_headline(fit, boot, held),
        warnings=_warnings(runs, fit, boot, isoflop),
        pictures=_pictures(runs, fit, boot, isoflop, held),
        optimum=optimum,
        no_optimum=no_optimum,
        relation=_relation(fit),
        holdout=tables.tabulate_holdout(held) if held else None,
        law=_law_html(fit),
        parameters=tables.tabulate_parameters(fit, boot),
        protocol=tables.table_from_pairs(_protocol(fit, boot)),
        certificate=tables.table_from_pairs(_certificate(fit)),
        certified=fit.certificate.ok,
        approaches=approaches,
        minima=tables.tabulate_minima(isoflop) if isoflop is not None else None,
        runs=tables.tabulate_runs(runs, fit),
        n_runs=len(runs),
        rejected=tables.tabulate_rejected(runs),
        plan=tables.table_from_frame(plan) if plan is not None and len(plan) else None,
        provenance=tables.table_from_pairs(
            {"run table": runs.source, "columns": runs.columns, **(provenance or {})}
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(visible(page), encoding="utf-8")
    return path


def inline_svg(fig: Figure, prefix: str, label: str) -> Markup:
    """The figure as an <svg> element of an HTML page.

    Ids that something refers to are prefixed, since several figures share the page, and
    the others go; points that carry a text get it as their <title>; coordinates keep
    two decimals of a point (1/72 inch).
    """
    buffer, hover = io.BytesIO(), _hover(fig)
    with mpl.rc_context(STYLE):
        fig.savefig(buffer, format="svg", dpi=160, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for points in hover:
        marks = root.findall(f".//*[@id='{points.get_gid()}']//{SVG}use")
        if len(marks) == len(points.titles):
            for mark, text in zip(marks, points.titles, strict=True):
                ElementTree.SubElement(mark, "title").text = text
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in (f"{SVG}metadata", f"{SVG}style")]:
            parent.remove(child)
    used = set(
        re.findall(
            r"#([\w.-]+)",
            " ".join(value for e in root.iter() for value in e.attrib.values()),
        )
    )
    for element in root.iter():
        element.tag = element.tag.removeprefix(
            SVG
        )  # an HTML page knows SVG without its namespace
        element.tail = None
        if element.tag not in ("text", "tspan", "title"):
            element.text = None
        attributes, element.attrib = element.attrib, {}
        for name, value in attributes.items():
            if name != "id":
                value = re.sub(
                    r"(^|url\()#",
                    rf"\1#{prefix}-",
                    re.sub(r"(\.\d\d)\d+", r"\1", value),
                )
                element.set(name.rpartition("}")[2], value)
            elif value in used:
                element.set("id", f"{prefix}-{value}")
    root.attrib = {
        "viewBox": root.get("viewBox", ""),
        "role": "img",
        "aria-label": label,
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _hover(fig: Figure) -> list[HoverPoints]:
    """The points that carry a text each. Where they are very many they become a bitmap
    instead, without texts.
    """
    found = [
        points for points in fig.findobj(HoverPoints) if isinstance(points, HoverPoints)
    ]
    many = sum(len(points.titles) for points in found) > MAX_HOVER
    for points in found:
        points.set_rasterized(many)
    return [] if many else found


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _or_problem(make: Callable[[], Table | None]) -> tuple[Table | None, str]:
    try:
        return make(), ""
    except ValueError as error:
        return None, str(error)


def _law_html(fit: Fit) -> Markup:
    return Markup(re.sub(r"\^([\d.]+)", r"<sup>\1</sup>", str(escape(format_law(fit)))))


def _headline(
    fit: Fit, boot: Bootstrap | None, held: Sequence[Mapping[str, Any]]
) -> list[Markup]:
    """What was found, in sentences."""
    ranges = []
    for name, unit, write in (
        ("N", "parameters", format_count),
        ("D", "tokens", format_count),
        ("C", "FLOPs", format_flops),
    ):
        if name in fit.data:
            low, high = write(fit.data[name].min()), write(fit.data[name].max())
            ranges.append(f"{low} to {high} {unit}" if low != high else f"{low} {unit}")
    law = (
        Markup("loss = {} nats per token") if fit.law.target == "loss" else Markup("{}")
    )
    fitted = Markup("Fitted to {} runs of {}: {}.").format(
        len(fit.residuals), ", ".join(ranges), law.format(_law_html(fit))
    )
    return [fitted, _exponent_sentence(fit, boot), _holdout_sentence(fit, held)]


def _exponent_sentence(fit: Fit, boot: Bootstrap | None) -> Markup:
    name = "a" if "a" in fit.derived() else "alpha"
    value = (
        {**fit.params, **fit.derived()}[name]
        if name == "a" or name in fit.params
        else None
    )
    if value is None:
        return Markup("")
    ends = (
        format_interval(boot.interval(name, LEVEL), format_exponent)
        if boot is not None
        else ""
    )
    interval = (
        Markup(" (90 % interval {})").format(ends)
        if ends
        else Markup(" (no interval: the fit was not resampled)")
    )
    if name == "alpha":
        return Markup("The exponent alpha is {}{}.").format(
            format_exponent(value), interval
        )
    return Markup(
        "At the best use of compute C, model size grows as C<sup>{}</sup>{} and tokens as C<sup>{}</sup>."
    ).format(format_exponent(value), interval, format_exponent(1 - value))


def _holdout_sentence(fit: Fit, held: Sequence[Mapping[str, Any]]) -> Markup:
    if not held:
        return Markup(
            "No run was held out: how well the law predicts beyond the fitted runs has not been tested."
        )
    errors = np.array([abs(row["predicted"] / row["measured"] - 1) for row in held])
    inside = sum(row["lower_90"] <= row["measured"] <= row["upper_90"] for row in held)
    reach = ""
    if "C" in fit.data:
        reach = f", up to {max(row['C'] for row in held) / fit.data['C'].max():.2g} times the largest fitted compute,"
    mean, most = f"{100 * errors.mean():.2f}", f"{100 * errors.max():.2f}"
    if len(held) == 1:
        where = "inside" if inside else "outside"
        return Markup(
            "One held-out run{} came out {} % off its prediction, {} the 90 % interval."
        ).format(reach, most, where)
    return Markup(
        "{} held-out runs{} came out {} % off their predictions on average and {} % at most; {} of {} lie inside "
        "their 90 % interval."
    ).format(len(held), reach, mean, most, inside, len(held))


def _warnings(
    runs: Runs, fit: Fit, boot: Bootstrap | None, isoflop: IsoFlop | None
) -> list[str]:
    """All that a reader should know before using the numbers."""
    c, found = fit.certificate, list(dict.fromkeys((*runs.notes, *fit.protocol.notes)))
    if not c.ok:
        found.insert(
            0,
            "The fit is not certified: do not rely on its numbers. See the certificate below.",
        )
    for what, names in (
        ("These runs cannot identify", c.not_identified),
        ("On a bound of its range", c.at_bound),
        ("Standard error above the value", c.weak),
    ):
        found += [f"{what}: {', '.join(names)}."] if names else []
    for name, (low, high) in c.ridges.items():
        found.append(
            f"{name} is not bounded by these runs: from {low:.4g} to {high:.4g} fits as well (95 %)."
        )
    if boot is not None:
        found += list(boot.notes)
        if boot.unconverged:
            found.append(
                f"{boot.unconverged} of {len(boot)} bootstrap replicates did not converge."
            )
    if isoflop is not None:
        found += list(isoflop.notes)
        out: Frame = isoflop.minima[~isoflop.minima["used"]]
        found += [
            f"Approach 2 left out the budget of {format_flops(row['budget'])} FLOPs: {row['reason']}."
            for row in out.to_dict("records")
        ]
    return found


def _pictures(
    runs: Runs,
    fit: Fit,
    boot: Bootstrap | None,
    isoflop: IsoFlop | None,
    held: Sequence[Mapping[str, Any]],
) -> list[Picture]:
    surface = set(fit.law.variables) == {"N", "D"}
    frontier = "Each line is one model size on more and more tokens; dashed, the lowest loss measured at that compute"
    frontier += (
        " or less; orange, the lowest loss the law allows at it."
        if surface
        else " or less."
    )
    band = ", with its 90 % interval" if boot is not None else ""
    return [
        _picture("Frontier", frontier, lambda: plot_frontier(runs, fit)),
        _picture(
            "IsoFLOP curves",
            "At equal compute, a parabola in ln N through the losses; diamonds are its minima.",
            (lambda: plot_isoflop(runs, isoflop))
            if isoflop is not None
            else "no table of budgets was given",
        ),
        _picture(
            "The fitted law",
            f"Curves are the law{' at each model size' if surface else ''}{band}; below, how far each measured "
            "loss lies above or below it.",
            lambda: plot_fit(runs, fit, boot),
        ),
        _picture(
            "Extrapolation",
            "Above, the law's way to runs that the fit has not seen; below, the error of each prediction.",
            (lambda: plot_extrapolation(fit, boot, held))
            if held
            else "no run was held out",
        ),
    ]


def _picture(name: str, caption: str, draw: Callable[[], Figure] | str) -> Picture:
    if isinstance(draw, str):
        return Picture(name, "", Markup(""), draw)
    try:
        return Picture(
            name, caption, inline_svg(draw(), re.sub(r"\W+", "-", name.lower()), name)
        )
    except ValueError as error:  # a table without compute, say
        return Picture(name, "", Markup(""), str(error))


def _relation(fit: Fit) -> str:
    if not {"N", "D", "C"} <= set(fit.data) or counted_flops_per_token(fit) is None:
        return "C = 6 N D."
    ratio = fit.data["C"] / (6 * fit.data["N"] * fit.data["D"])
    low, high = f"{ratio.min():.3g}", f"{ratio.max():.3g}"
    times = f"{low} to {high} times 6 N D" if low != high else f"{low} times 6 N D"
    return f"C is counted as in the fitted runs ({times})."


def _protocol(fit: Fit, boot: Bootstrap | None) -> dict[str, Any]:
    p = fit.protocol
    how = {
        "law": fit.law.name,
        "form": fit.law.formula,
        "objective": p.objective,
        "delta": p.delta,
        "residual": f"{p.residual} {fit.law.target}",
        "options": ", ".join(p.options()) or None,
        "rows": p.n_rows,
        "columns": ", ".join(
            f"{name} = {p.columns.get(name, name)}"
            for name in (*fit.law.variables, "loss")
        ),
        "fixed": p.fixed or None,
        "tied": p.tied or None,
        "sum over rows": f"{fit.objective:.9g}",
    }
    if boot is not None:
        how["bootstrap"] = (
            f"{len(boot)} replicates, {boot.method}, by {boot.unit}, seed {boot.seed}"
        )
    return {name: value for name, value in how.items() if value is not None}


def _certificate(fit: Fit) -> dict[str, Any]:
    c = fit.certificate
    return {
        "certified": "yes" if c.ok else "NO",
        "scaled gradient": f"{c.gradient:.1e}",
        "starts that agree": f"{c.agree} of {c.starts}",
        "condition number": f"{c.condition:.3g}",
        "degrees of freedom": c.degrees_of_freedom,
        "not identified": ", ".join(c.not_identified) or "none",
        "at a bound": ", ".join(c.at_bound) or "none",
        "standard error above value": ", ".join(c.weak) or "none",
        "not bounded": ", ".join(c.ridges) or "none",
    }
