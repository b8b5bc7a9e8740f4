"""The laws for people: the table of all, which

    python -m analysis.laws.catalog > docs/reference/laws.md

writes, and what one of them is, which `scaling laws` prints.
"""

from __future__ import annotations

from analysis.laws.base import MEANINGS, Law, Nonlinear
from analysis.laws.curves import CURVE_LAWS, CurveLaw
from analysis.laws.library import LAWS, get_law

_INTRODUCTION = """\
# The laws

Each is fitted by name, `scaling fit TABLE --law NAME` or `analysis.fit(runs, law="NAME")`,
with a certificate, intervals, profiles and hold-outs. `scaling laws NAME` says what its
variables and parameters are. A variable that is not N, D or C is a column that you name:
`--variable U=unique_tokens`, or `load_runs(..., U="unique_tokens")`; so is what a law
predicts if it is not the loss: `load_runs(..., accuracy="acc")`.

Every law is tested twice: against its formula written a second time, on both sides of
each branch, and by fitting runs that are simulated from it. The last column names the
parameters of these runs, or the published fit that the tests or `scaling reproduce
literature` repeat. Laws of learning curves are in [a guide of their
own](../guides/curves.md), and [another page](../how_to/add_a_law.md) says how to add
one.
"""


def describe_variable(law: Law, name: str) -> str:
    """What a variable of a law, or its target, is; "" where that is not known."""
    return (MEANINGS | dict(law.meanings)).get(name, "")


def format_table() -> str:
    """The page of all laws, in Markdown."""
    lines = [
        _INTRODUCTION,
        "| Name | Law | Variables | Source | Verified on |",
        "| --- | --- | --- | --- | --- |",
    ]
    for law in LAWS.values():
        variables = ", ".join(law.variables)
        cells = [f"`{law.name}`", law.equation, variables, law.source, law.verified]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def list_laws() -> str:
    """A line for each law, those of learning curves last: its name and its formula."""
    laws = [*LAWS.values(), *CURVE_LAWS.values()]
    width = max(len(law.name) for law in laws)
    return "\n".join(f"{law.name:<{width}}  {law.equation}" for law in laws)


def find_law(name: str) -> Law:
    """The law of that name, of runs or of learning curves.

    Raises:
        ValueError: unknown name.
    """
    return CURVE_LAWS[name] if name in CURVE_LAWS else get_law(name)


def explain_law(law: Law) -> str:
    """What a law says, of what, and in which ranges its parameters are searched."""
    lines = [f"{law.name}: {law.equation}", "", f"source: {law.source or 'none given'}"]
    if law.verified:
        lines.append(f"verified on: {law.verified}")
    lines += ["", "variables:"]
    for name in law.variables:
        lines.append(_format_item(name, describe_variable(law, name)))
    lines += ["", "predicts:"]
    target = describe_variable(law, law.target)
    lines.append(_format_item(law.target, target or law.target.replace("_", " ")))
    lines += ["", "parameters:"]
    for name in law.linear:
        lines.append(_format_item(name, "0 or more"))
    for entry in law.nonlinear:
        span = f"{entry.low:g} to {entry.high:g}{_format_unit(entry)}"
        lines.append(_format_item(entry.name, span))
    if isinstance(law, CurveLaw):
        call = f'analysis.fit_curves(curves, law="{law.name}")'
        return "\n".join([*lines, "", call])
    command = ["scaling fit TABLE --law", law.name]
    for name in (*law.quantities, law.target):
        if name not in MEANINGS:
            command.append(f"--variable {name}=COLUMN")
    return "\n".join([*lines, "", " ".join(command)])


def _format_unit(entry: Nonlinear) -> str:
    """What the range of a parameter is in units of."""
    if not entry.unit:
        return ""
    factors = []
    for variable, exponent in entry.unit:
        factors.append(variable if exponent == 1 else f"{variable}^{exponent:g}")
    return f", in units of {' '.join(factors)} at the geometric-mean run"


def _format_item(name: str, text: str) -> str:
    return f"  {name:<16} {text}".rstrip()


if __name__ == "__main__":
    print(format_table())
