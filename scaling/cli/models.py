"""Verbs of the `scaling` command that use a trained model: generate, evaluate,
prune-checkpoints.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scaling.cli.fit import Positional
from scaling.cli.output import print_json
from scaling.config import ConfigError

if TYPE_CHECKING:
    from scaling.inference.generation import Draft, Generation
    from scaling.inference.model import TextLoss, TrainedModel
    from scaling.tasks import TaskResult

Texts = tyro.conf.UseAppendAction[tuple[str, ...]]  # one per flag


@dataclass(frozen=True)
class ModelArgs:
    """Which trained model."""

    path: Positional[Path]
    """The folder of a sweep, of a run, or of a compressed model."""
    run: str | None = None
    """In a sweep's folder, the beginning of the run's id, or best: the lowest loss."""
    step: int | None = None
    """A step that has a checkpoint. Default: the end of the run."""

    @contextmanager
    def open_model(self) -> Iterator[TrainedModel]:
        """The model; programs are kept below the sweep's folder while it is open, or
        below that of the compressed model.
        """
        from scaling.inference.compressed import is_compressed
        from scaling.inference.load import load
        from scaling.training.compile_cache import compilation_cache

        model = load(self.path, self.run, step=self.step)
        folder = model.folder
        with compilation_cache(folder if is_compressed(folder) else folder.parent):
            yield model


@dataclass(frozen=True)
class SamplingArgs:
    """How the text is chosen."""

    max_tokens: int = 128
    """The most tokens to write."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Only tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that have occurred become less likely."""
    beams: int | None = None
    """Search the likeliest text with so many beams instead of sampling."""
    length_penalty: float = 1.0
    """Of the beam search: texts are compared by their log-probability over their length
    to this power."""
    stop: Texts = ()
    """The text ends before this string; repeat the flag for more."""
    ends_with_document: bool = True
    """The text ends where the model ends the document."""
    samples: int = 1
    """Texts for each prompt."""
    seed: int = 0


@dataclass(frozen=True)
class GenerateArgs:
    """Continue a prompt with a trained model.

    Examples: scaling generate runs/quickstart --run best --prompt 'def '
              scaling generate runs/quickstart --run d20d --prompt 'import ' --beams 4
    """

    model: Annotated[ModelArgs, tyro.conf.arg(name="")]
    prompt: Texts = ()
    """The beginning of the text; repeat the flag for more. Default: standard input, or
    the beginning of a document if that is a terminal."""
    chat: bool = False
    """Answer messages from standard input, one a line, by the template of
    docs/guides/models.md; for models that were fine-tuned on messages."""
    sampling: Annotated[SamplingArgs, tyro.conf.arg(name="")] = field(
        default_factory=SamplingArgs
    )
    json: bool = False

    def __call__(self) -> int:
        if self.chat:
            return self._chat()
        prompts = list(self.prompt)
        if not prompts:
            prompts = ["" if sys.stdin.isatty() else sys.stdin.read()]
        is_single = len(prompts) == 1 and self.sampling.samples == 1
        streams = is_single and self.sampling.beams is None and not self.json
        with self.model.open_model() as model:
            settings = vars(self.sampling)
            if streams:
                printer = StreamPrinter(prompts[0])
                (text,) = model.generate(prompts, **settings, show=printer.show)
                printer.finish(text)
                return 0
            texts = model.generate(prompts, **settings)
        if self.json:
            print_json([describe_generation(text) for text in texts])
        else:
            print_generations(texts)
        return 0

    def _chat(self) -> int:
        """Answer each line of standard input, with the conversation so far before it."""
        from scaling.tasks.chat import STOP, Message, format_chat_prompt

        if self.prompt or self.json or self.sampling.samples > 1:
            raise ConfigError("--chat: takes neither --prompt, --json nor --samples")
        settings = vars(self.sampling)
        if self.sampling.beams is None:
            settings = {**settings, "stop": (STOP, *self.sampling.stop)}
        messages: list[Message] = []
        with self.model.open_model() as model:
            while True:
                question = read_line("User: ")
                if question is None:
                    return 0
                messages.append(Message("user", question))
                (text,) = model.generate(format_chat_prompt(messages), **settings)
                answer = text.text.strip()
                print(f"Assistant: {answer}", flush=True)
                messages.append(Message("assistant", answer or "..."))


def read_line(prompt: str) -> str | None:
    """A line of standard input that is not empty; None at its end. A terminal shows the
    prompt.
    """
    while True:
        if sys.stdin.isatty():
            print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return None
        if line.strip():
            return line.strip()


class StreamPrinter:
    """Prints a text while it is written."""

    def __init__(self, prompt: str) -> None:
        self.shown = 0
        print(prompt, end="", flush=True)

    def show(self, draft: Draft) -> None:
        """Print what is new."""
        print(draft.text[self.shown :], end="", flush=True)
        self.shown = max(self.shown, len(draft.text))

    def finish(self, text: Generation) -> None:
        """Print the rest and end the line."""
        print(text.text[self.shown :])


def describe_generation(text: Generation) -> dict[str, object]:
    """A text as plain data."""
    return {
        "prompt": text.prompt,
        "text": text.text,
        "finish": text.finish,
        "tokens": len(text.tokens),
        "log_probability": text.log_probability,
    }


def print_generations(texts: list[Generation]) -> None:
    """Print several texts, each under a line that numbers it."""
    for i, text in enumerate(texts):
        mean = text.log_probability / max(1, len(text.tokens))
        print(f"--- {i + 1}: {len(text.tokens)} tokens, {mean:.3f} nats each")
        print(text)


@dataclass(frozen=True)
class ReadingArgs:
    """How the files of --data are read, as for a sweep."""

    field: str = "text"
    """The key of a .jsonl file, or the column of a .parquet, .csv or .tsv file."""
    encoding: str = "utf-8"
    """Any that Python knows, e.g. latin-1."""
    invalid: Literal["error", "skip", "replace"] = "error"
    """What to do about text that is not in its encoding or is malformed."""

    def read_documents(self, name: str) -> list[str]:
        """The documents of a source. What of it cannot be used is printed.

        Raises:
            ConfigError: there is no such encoding.
            DataError: the source cannot be read.
        """
        from scaling.config import DataConfig
        from scaling.data.sources import open_source
        from scaling.data.text.reading import get_reading

        config = DataConfig(name, **dataclasses.asdict(self))
        source = open_source(name, get_reading(config))
        documents = list(source.documents())
        if source.invalid:
            print(f"--data {name}: {source.invalid.describe()}", file=sys.stderr)
        return documents


@dataclass(frozen=True)
class EvaluateArgs:
    """Measure a trained model: its loss on text, by default on the held-out slice of its
    own data, or what it does on a task.

    Examples: scaling evaluate runs/quickstart --run best --data my_texts/
              scaling evaluate runs/addition --run best --task addition --shots 2
    """

    model: Annotated[ModelArgs, tyro.conf.arg(name="")]
    data: str | None = None
    """A source of text, as for a sweep: a path, code, sotu, hf:NAME."""
    reading: Annotated[ReadingArgs, tyro.conf.arg(name="data")] = field(
        default_factory=ReadingArgs
    )
    stride: int | None = None
    """Tokens that the model's window moves by; less than its context gives every token
    more context. Default: the context."""
    per_document: Path | None = None
    """Write the loss of each document to this .csv file."""
    task: str | None = None
    """A task's name, or a file of examples, see `scaling finetune --help`."""
    shots: int = 0
    """Solved training examples of the task before each prompt."""
    limit: int | None = None
    """Evaluate the first so many examples of the task."""
    samples: int | None = None
    """Sample so many answers to each example, and print how often one of the first k is
    right."""
    predictions: Path | None = None
    """Write what the model answered to each example to this .csv file."""
    json: bool = False

    def __call__(self) -> int:
        if self.task is not None:
            return self._evaluate_task(self.task)
        with self.model.open_model() as model:
            if self.data is None:
                if self.stride is not None or self.per_document is not None:
                    raise ConfigError(
                        "--stride, --per-document: the held-out slice is a stream of "
                        "windows; give documents by --data"
                    )
                answer = model.evaluate_heldout()
                name = f"held-out slice of {model.run.data.source}"
            else:
                warn_of_training_text(model, self.data)
                documents = self.reading.read_documents(self.data)
                answer = model.loss(documents, self.stride)
                name = self.data
        if self.per_document is not None:
            write_documents(answer, self.per_document)
        if self.json:
            print_json(describe_loss(answer))
        else:
            print_loss(answer, name)
        return 0

    def _evaluate_task(self, task: str) -> int:
        from scaling.inference.task_scorer import evaluate_on_task

        if self.data is not None:
            raise ConfigError("--data, --task: give one of the two")
        if self.samples is not None:
            return self._sample_answers(task, self.samples)
        with self.model.open_model() as model:
            result = evaluate_on_task(model, task, shots=self.shots, limit=self.limit)
        if self.predictions is not None:
            result.predictions.to_csv(self.predictions, index=False)
        if self.json:
            print_json(describe_task_result(result))
        else:
            print_task_result(result)
        return 0

    def _sample_answers(self, task: str, samples: int) -> int:
        from scaling.inference.repeated_sampling import list_powers, measure_coverage
        from scaling.tasks import open_task

        k = list_powers(samples)
        with self.model.open_model() as model:
            found = measure_coverage(
                model, open_task(task), samples=samples, k=k, limit=self.limit
            )
        rows: list[dict[str, float]] = []
        for number, rate, error in zip(
            k, found.coverage, found.standard_error, strict=True
        ):
            rows.append({"k": number, "coverage": rate, "standard_error": error})
        if self.json:
            print_json(rows)
            return 0
        print(f"{task}: {len(found.right):,} examples, {samples} samples of each")
        for row in rows:
            print(f"{row['k']:6d}  {row['coverage']:.4f} ± {row['standard_error']:.4f}")
        return 0


def describe_task_result(result: TaskResult) -> dict[str, object]:
    """The result of a task as plain data."""
    metrics = {}
    for name, estimate in result.metrics.items():
        metrics[name] = {
            "value": estimate.value,
            "standard_error": estimate.standard_error,
        }
    return {
        "task": result.task,
        "examples": result.n,
        "documents": result.documents,
        "shots": result.shots,
        "metrics": metrics,
        "baselines": result.baselines,
    }


def print_task_result(result: TaskResult) -> None:
    """Print each metric with its standard error, beside what needs no model."""
    print(f"{result.task}: {result.n:,} examples, {result.shots} shots")
    for name, estimate in result.metrics.items():
        line = f"{name:<22}{estimate.value:9.4f} ± {estimate.standard_error:.4f}"
        beside = [
            f"{baseline} {values[name]:.4f}"
            for baseline, values in result.baselines.items()
            if name in values
        ]
        print(f"{line}   {', '.join(beside)}".rstrip())
    if result.confusion is not None:
        print("\nright (rows) and predicted label")
        print(result.confusion.to_string())


def warn_of_training_text(model: TrainedModel, source: str) -> None:
    """Say so if a source is what the model was trained on."""
    if source == model.run.data.source:
        print(
            f"--data {source}: the model was trained on most of these documents; leave "
            "--data out for the held-out slice",
            file=sys.stderr,
        )


def describe_loss(answer: TextLoss) -> dict[str, object]:
    """A loss as plain data."""
    return {
        "loss": answer.loss,
        "loss_se": answer.loss_se,
        "perplexity": answer.perplexity,
        "bits_per_byte": answer.bits_per_byte,
        "tokens": answer.tokens,
        "bytes": answer.bytes,
        "documents": len(answer.documents),
    }


def print_loss(answer: TextLoss, name: str) -> None:
    """Print a loss in words."""
    print(f"{name}: {answer.tokens:,} tokens")
    print(f"loss           {answer.loss:.5f} ± {answer.loss_se:.5f} nats per token")
    print(f"perplexity     {answer.perplexity:.4f}")
    print(f"bits per byte  {answer.bits_per_byte:.5f}")


def write_documents(answer: TextLoss, path: Path) -> None:
    """Write the loss of each document, in the order of the source."""
    import numpy as np
    import pandas as pd

    nats, tokens, sizes = answer.documents.T
    table = pd.DataFrame(
        {
            "document": np.arange(len(nats)),
            "tokens": tokens.astype(int),
            "bytes": sizes.astype(int),
            "loss": nats / tokens,
            "bits_per_byte": nats / np.log(2) / sizes,
        }
    )
    table.to_csv(path, index=False)


@dataclass(frozen=True)
class InferenceCostArgs:
    """Count what a trained model computes and holds to write text, and time it here.

    Example: scaling inference-cost runs/quickstart --run best --batch 1 16
    """

    model: Annotated[ModelArgs, tyro.conf.arg(name="")]
    prompt_tokens: int = 64
    """Tokens of each prompt."""
    new_tokens: int = 64
    """Tokens that are written after it."""
    batch: tuple[int, ...] = (1, 16)
    """Numbers of sequences that are written at once."""
    rounds: int = 5
    """Timed rounds, of which the median is taken; 0 times nothing."""
    json: bool = False

    def __call__(self) -> int:
        import pandas as pd

        from scaling.inference.cost import count_cost, measure_speed

        rows: list[dict[str, float]] = []
        with self.model.open_model() as model:
            for batch in self.batch:
                cost = count_cost(
                    model.config, self.prompt_tokens, self.new_tokens, batch
                )
                row = {"batch": float(batch), **cost._asdict()}
                if self.rounds:
                    speed = measure_speed(
                        model.config,
                        model.params,
                        self.prompt_tokens,
                        self.new_tokens,
                        batch,
                        self.rounds,
                    )
                    row |= speed._asdict()
                rows.append(row)
        table = pd.DataFrame(rows).T
        if self.json:
            print_json(rows)
        else:
            print(table.to_string(header=False, float_format="{:.4g}".format))
        return 0


@dataclass(frozen=True)
class PruneCheckpointsArgs:
    """Remove checkpoints that finished runs no longer need; their parameters stay.

    Example: scaling prune-checkpoints runs/mine --dry-run
    """

    out: Positional[Path]
    """The sweep's folder."""
    trunks: bool = False
    """Also those of trunks all of whose runs are finished. A later run of another token
    budget then trains its trunk again."""
    dry_run: bool = False
    """Only say what would go."""

    def __call__(self) -> int:
        from scaling.training.cleanup import (
            find_disposable_checkpoints,
            remove_checkpoints,
        )

        if not self.out.is_dir():
            raise ConfigError(f"{self.out}: no such folder; give the --out of a sweep")
        found = find_disposable_checkpoints(self.out, self.trunks)
        for item in found:
            print(f"{item.bytes / 1e6:10.2f} MB  {item.folder}")
            if not self.dry_run:
                remove_checkpoints(item)
        total = sum(item.bytes for item in found)
        state = "would be freed" if self.dry_run else "freed"
        print(f"{total / 1e6:10.2f} MB {state} in {len(found)} folders")
        return 0
