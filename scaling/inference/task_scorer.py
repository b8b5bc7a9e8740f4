"""A trained model as tasks see it: probabilities of texts, and text that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.inference.generation import GenerationConfig, TextWriter
from scaling.inference.model import TrainedModel
from scaling.inference.sampling import SamplingConfig
from scaling.inference.scoring import Row, cut_into_rows, sum_losses
from scaling.inference.tokens import encode_document, encode_text, make_separator
from scaling.tasks.evaluate import (
    Scores,
    TaskResult,
    evaluate_task,
)
from scaling.tasks.registry import check_pretraining, open_task


@dataclass(frozen=True)
class ModelScorer:
    """The `Scorer` of a trained model.

    A prompt is the beginning of a document. Where prompt and completion outgrow the
    model's context, the prompt loses its beginning. Text is written greedily.
    """

    model: TrainedModel

    def score_completions(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> Scores:
        """Probability of each completion after its prompt."""
        tokenizer = self.model.require_tokenizer()
        separator = make_separator(tokenizer)
        rows: list[Row] = []
        counts = []
        for i, (prompt, completion) in enumerate(
            zip(prompts, completions, strict=True)
        ):
            answer = encode_text(tokenizer, completion)
            read = np.concatenate([separator, encode_text(tokenizer, prompt)])
            ids = np.concatenate([read, answer])[-(self.model.context + 1) :]
            # A first token without anything before it has no probability.
            counted = min(len(answer), len(ids) - 1)
            rows.append(Row(i, ids, first=len(ids) - counted))
            counts.append(counted)
        nats = sum_losses(self.model.config, self.model.params, rows, len(prompts))
        return Scores(-nats, np.asarray(counts, int))

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str]
    ) -> list[str]:
        """The likeliest text after each prompt, token by token."""
        model = self.model
        writer = TextWriter(model.config, model.params, model.require_tokenizer())
        texts = writer.write(
            prompts,
            SamplingConfig(temperature=0.0),
            GenerationConfig(max_tokens=max_tokens, stop=tuple(stop)),
        )
        return [text.text for text in texts]

    def score_texts(self, texts: Sequence[str]) -> Scores:
        """Probability of each text, from its beginning to its end."""
        tokenizer = self.model.require_tokenizer()
        rows: list[Row] = []
        counts = []
        for i, text in enumerate(texts):
            ids = encode_document(tokenizer, text)
            rows += cut_into_rows(i, ids, self.model.context)
            counts.append(len(ids) - 1)
        nats = sum_losses(self.model.config, self.model.params, rows, len(texts))
        return Scores(-nats, np.asarray(counts, int))


def evaluate_on_task(
    model: TrainedModel,
    task: str,
    *,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 0,
) -> TaskResult:
    """Evaluate a trained model on the held-out examples of a task.

    Args:
        model: The model.
        task: A name or a file, see `scaling.tasks.open_task`.
        shots: Solved training examples before each prompt.
        limit: Evaluate the first so many examples.
        seed: Of the draw of shots.

    Raises:
        DataError: the task cannot be used, or the model was trained on the documents of
            its held-out examples.
    """
    data = open_task(task)
    check_pretraining(data, model.run.data)
    return evaluate_task(data, ModelScorer(model), shots=shots, limit=limit, seed=seed)
