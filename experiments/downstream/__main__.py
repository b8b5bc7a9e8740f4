"""Whether the law of the loss carries over to what a model is used for.

    python -m experiments.downstream --out runs/downstream

It trains small models on source code, on two budgets, measures them on the tasks of
`scaling/tasks/library` without training and after it, and asks four things: does the
error of the widest models follow in two steps from the loss, as Gadre et al. 2024
(arXiv:2403.08540) and Bhagia et al. 2024 (arXiv:2412.04403) have it; how many examples is
pre-training worth (Hernandez et al. 2021, arXiv:2102.01293); what is forgotten; at which
learning rate are models fine-tuned. `table.csv` has every measurement, `report.md` the
tables, and there are three figures.

It may be interrupted at any time and goes on where it was. `--quick` takes a quarter of
the time. docs/notes/downstream.md has the answers, and how long it takes.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from analysis.plots.style import save_figure
from experiments.downstream.figures import (
    plot_metrics,
    plot_transfer,
    plot_two_steps,
)
from experiments.downstream.laws import (
    FIRST_STEPS,
    TwoSteps,
    fit_transfer,
    fit_two_steps,
    measure_transfer,
    tabulate_first_steps,
    tabulate_forgetting,
    tabulate_two_steps,
)
from experiments.downstream.measure import measure_all, tabulate_children
from experiments.downstream.settings import Settings, make_quick
from experiments.downstream.tables import (
    count_covered,
    list_unlearned,
    write_first_steps,
    write_forgetting,
    write_metrics,
    write_perplexity,
    write_rates,
    write_transfer,
    write_two_steps,
)
from experiments.downstream.training import (
    LORA_TASKS,
    train_children,
    train_parents,
)
from scaling import run_table

MODES = ("zero-shot", "fine-tuned")


def run_experiment(settings: Settings) -> Path:
    """Train, measure, fit and draw; returns the path of the report."""
    parents = train_parents(settings)
    plan = train_children(settings)
    trained = run_table(settings.children, [child.run for child in plan])
    children = tabulate_children(trained, plan, parents)
    children.to_csv(settings.out / "children.csv", index=False)
    table = measure_all(settings, parents, plan)
    steps: list[TwoSteps] = []
    for choice in settings.tasks:
        for mode in MODES:
            for first_step in FIRST_STEPS:
                steps.append(fit_two_steps(table, choice, mode, first_step, settings))
    predicted = tabulate_two_steps(steps)
    predicted.to_csv(settings.out / "two_steps.csv", index=False)
    first = tabulate_first_steps(steps, settings.draws)
    first.to_csv(settings.out / "first_step.csv", index=False)
    transferred = measure_transfer(children)
    transferred.to_csv(settings.out / "transfer.csv", index=False)
    transfer = list(fit_transfer(transferred, settings.draws))
    forgotten = tabulate_forgetting(children)
    sections = {
        "Main metrics": write_metrics(table, settings),
        "Bits per byte of speeches": write_perplexity(table, settings),
        "First step": write_first_steps(first),
        "Two steps": write_two_steps(predicted),
        "Covered": count_covered(predicted),
        "Without a prediction": list_unlearned(predicted),
        "Transfer": write_transfer(transfer),
        "Forgetting": write_forgetting(forgotten, LORA_TASKS),
        "Learning rates": write_rates(children, settings),
    }
    lines = [f"## {title}\n\n{text}\n" for title, text in sections.items()]
    report = settings.out / "report.md"
    report.write_text("\n".join(lines), encoding="utf-8")
    save_figure(plot_metrics(table, settings), settings.out / "metrics.png")
    save_figure(plot_two_steps(steps), settings.out / "two_steps.png")
    save_figure(plot_transfer(transfer), settings.out / "transfer.png")
    return report


def main() -> None:
    """Run the experiment, and print its report."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.quick:
        settings = make_quick(settings)
    report = run_experiment(settings)
    print(report.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
