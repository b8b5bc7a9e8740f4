"""A trained model: text in, logits, losses and text out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scaling import data
from scaling.config import ArchitectureConfig, ConfigError, RunConfig
from scaling.data import DataError
from scaling.data.tokenizers import Tokenizer
from scaling.inference.generation import (
    BeamConfig,
    Generation,
    GenerationConfig,
    Show,
    TextWriter,
)
from scaling.inference.sampling import SamplingConfig
from scaling.inference.scoring import Row, cut_into_rows, sum_losses
from scaling.inference.tokens import (
    TokenIds,
    encode_document,
    encode_text,
    make_separator,
)
from scaling.model.architecture import Params
from scaling.model.family import Family, build_family, require_next_tokens
from scaling.training.heldout import evaluate_heldout
from scaling.training.rows import make_heldout_rows
from scaling.training.sharding import Single
from scaling.training.step import Executable, TrainState, get_executable


@dataclass(frozen=True)
class TextLoss:
    """The loss on some text.

    Attributes:
        loss: In nats per token.
        loss_se: Its standard error over documents; over rows of the model's context if
            there is one document; NaN if there is one row.
        bits_per_byte: The loss in bits per byte of UTF-8. The separator after a document
            counts as one byte.
        tokens: Tokens that count.
        bytes: Their bytes; NaN for a synthetic source.
        documents: A row for each document: `nats`, `tokens` and `bytes`.
    """

    loss: float
    loss_se: float
    bits_per_byte: float
    tokens: int
    bytes: float
    documents: Float[np.ndarray, "documents 3"]

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)


class HeldoutSlice(NamedTuple):
    """What a run was evaluated on.

    Attributes:
        executable: Its compiled evaluation.
        dataset: The dataset that they are of.
        windows: The windows.
        bytes_per_token: NaN for a synthetic source.
    """

    executable: Executable
    dataset: data.Dataset
    windows: Int[np.ndarray, "M T1"]
    bytes_per_token: float


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model that a run has trained; `scaling.load` opens one.

    Attributes:
        run: The run's configuration.
        config: The model, with its layers in a list.
        params: The parameters, float32.
        tokenizer: From text to ids; None for a synthetic source.
        step: The optimizer steps that the parameters have seen.
        folder: The folder of the run.
        fingerprint: Of the data that the run was trained on; None if it is not known.
    """

    run: RunConfig
    config: ArchitectureConfig
    params: Params
    tokenizer: Tokenizer | None
    step: int
    folder: Path
    fingerprint: str | None = None

    def __repr__(self) -> str:
        model = self.config
        return (
            f"<{type(self).__name__} {self.folder}: {model.architecture}, width "
            f"{model.width}, depth {model.depth}, step {self.step}>"
        )

    @functools.cached_property
    def family(self) -> Family:
        """The model as functions of its parameters."""
        return build_family(self.config)

    @property
    def context(self) -> int:
        """Tokens that the model sees at once."""
        return self.config.context

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            DataError: the model was trained on a synthetic source.
        """
        if self.tokenizer is None:
            raise DataError(
                f"data.source = {self.run.data.source!r}: a synthetic source emits ids "
                "and has no text; use a run on text"
            )
        return self.tokenizer

    def encode(self, text: str) -> TokenIds:
        """The ids of a text, without separators."""
        return encode_text(self.require_tokenizer(), text)

    def logits(self, text: str) -> Float[np.ndarray, "T V"]:
        """Logits of the token after each token of a text, float32.

        The text is the beginning of a document: the first row belongs to its first
        token, which the separator predicts. Without a separator it belongs to the
        second.

        Raises:
            ConfigError: the model reads a part of its context as a whole.
            DataError: the text is longer than the model's context.
        """
        require_next_tokens(self.config, "give the logits of a text")
        tokenizer = self.require_tokenizer()
        ids = np.concatenate([make_separator(tokenizer), self.encode(text)])
        if not 1 <= len(ids) <= self.context:
            raise DataError(
                f"text: has {len(ids)} tokens, must have 1 to model.context = "
                f"{self.context}; use `loss` for longer texts"
            )
        length = min(self.context, 1 << (len(ids) - 1).bit_length())
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(self._apply(self.params, padded)[0, : len(ids)])

    @functools.cached_property
    def _apply(self) -> jax.stages.Wrapped:
        return jax.jit(self.family.apply)

    def loss(self, texts: str | Sequence[str], stride: int | None = None) -> TextLoss:
        """The loss on one or several documents.

        Every token counts once, the separator after each document too.

        Args:
            texts: The documents.
            stride: Tokens that the window moves by. The default is the model's context,
                as where a run is evaluated; a smaller stride gives each token more
                context and takes longer.

        Raises:
            ConfigError: the stride is not between 1 and the context, or the model reads
                a part of its context as a whole.
            DataError: there is no token to predict.
        """
        if stride is not None and not 1 <= stride <= self.context:
            raise ConfigError(
                f"stride = {stride}: must lie between 1 and model.context = "
                f"{self.context}"
            )
        tokenizer = self.require_tokenizer()
        documents = [texts] if isinstance(texts, str) else list(texts)
        separators = len(make_separator(tokenizer))
        rows: list[Row] = []
        counts = []
        sizes = []
        for i, text in enumerate(documents):
            ids = encode_document(tokenizer, text)
            rows += cut_into_rows(i, ids, self.context, stride)
            counts.append(max(0, len(ids) - 1))
            sizes.append(len(text.encode("utf-8")) + separators)
        if sum(counts) == 0:
            raise DataError("text: holds no token to predict; give some text")
        if len(documents) == 1:
            return self._make_text_loss_of_rows(rows, sizes[0])
        nats = sum_losses(self.config, self.params, rows, len(documents))
        return _make_text_loss(nats, np.array(counts), np.array(sizes))

    def _make_text_loss_of_rows(self, rows: list[Row], size: int) -> TextLoss:
        """The loss on one document, with the standard error over its rows."""
        numbered = []
        counts = []
        for i, row in enumerate(rows):
            numbered.append(dataclasses.replace(row, sequence=i))
            counts.append(len(row.ids) - row.first)
        nats = sum_losses(self.config, self.params, numbered, len(rows))
        over_rows = _make_text_loss(nats, np.array(counts), np.zeros(len(rows)))
        whole = np.array([[nats.sum(), over_rows.tokens, size]], np.float64)
        bits = nats.sum() / math.log(2)
        return dataclasses.replace(
            over_rows,
            bits_per_byte=float(bits / size),
            bytes=float(size),
            documents=whole,
        )

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        ends_with_document: bool = True,
        samples: int = 1,
        seed: int = 0,
        beams: int | None = None,
        length_penalty: float = 1.0,
        show: Show | None = None,
    ) -> list[Generation]:
        """Continue prompts, each as the beginning of a document.

        A text that outgrows the model's context goes on from its last half context.

        Args:
            prompts: One or several.
            max_tokens: The most tokens to write.
            temperature: 0 chooses the likeliest token; see `SamplingConfig` for this
                and the next four.
            top_k: Only the k likeliest tokens.
            top_p: Only the likeliest tokens of this total probability.
            min_p: Only tokens at least this share as likely as the likeliest.
            repetition_penalty: Makes tokens that have occurred less likely.
            stop: A text ends before the first of these strings.
            ends_with_document: A text ends where the model ends the document.
            samples: Texts for each prompt.
            seed: Of the draws.
            beams: Search the likeliest texts by so many beams instead of sampling; see
                `BeamConfig`. The settings of sampling, but for the repetition penalty,
                do not apply, and the best `samples` texts are returned.
            length_penalty: Of the beam search.
            show: Receives a text whenever it has grown.

        Returns:
            The texts, those of a prompt next to each other.

        Raises:
            ConfigError: a setting is out of range.
        """
        writer = TextWriter(self.config, self.params, self.require_tokenizer())
        sampling = SamplingConfig(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        generation = GenerationConfig(
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            ends_with_document=ends_with_document,
            samples=samples,
            seed=seed,
        )
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        if beams is not None:
            search = BeamConfig(beams, length_penalty, repetition_penalty)
            return writer.search(asked, search, generation)
        return writer.write(asked, sampling, generation, show)

    def replace_params(self, params: Params) -> TrainedModel:
        """The same model with other parameters of the same shapes."""
        placed = jax.tree.map(jnp.asarray, params)
        return dataclasses.replace(self, params=placed)

    def evaluate_heldout(self) -> TextLoss:
        """The loss on the held-out slice of the run's own data, as the run recorded it.

        Raises:
            DataError: the data have changed since the run was trained.
        """
        heldout = self.open_heldout()
        state = TrainState(self.params, opt_state=(), step=jnp.int32(self.step))
        found = evaluate_heldout(
            heldout.executable,
            state,
            heldout.dataset,
            heldout.windows,
            self.run.eval_tokens,
        ).whole
        size = found.tokens * heldout.bytes_per_token
        bits = found.loss / math.log(2) / heldout.bytes_per_token
        whole = [[found.loss * found.tokens, found.tokens, size]]
        return TextLoss(
            loss=found.loss,
            loss_se=found.loss_se,
            bits_per_byte=bits,
            tokens=found.tokens,
            bytes=size,
            documents=np.array(whole, np.float64),
        )

    def open_heldout(self) -> HeldoutSlice:
        """The windows over which the run was evaluated, and the program that evaluates.

        Raises:
            DataError: the data cannot be read, or have changed since the run was
                trained.
        """
        dataset = data.load_dataset(self.run.data)
        if self.fingerprint is not None:
            dataset.check_trained_on(self.fingerprint, self.run.run_id)
        # The parameters are those of the model itself, with all adapters added.
        optim = dataclasses.replace(self.run.optim, lora_rank=None)
        run = dataclasses.replace(self.run, model=self.config, optim=optim)
        executable = get_executable(run, Single(), dataset.row_format)
        return HeldoutSlice(
            executable=executable,
            dataset=dataset,
            windows=make_heldout_rows(self.config, dataset, self.run.eval_tokens),
            bytes_per_token=dataset.bytes_per_token,
        )


def _make_text_loss(
    nats: Float[np.ndarray, " n"], tokens: np.ndarray, sizes: np.ndarray
) -> TextLoss:
    """The loss on some documents, with the standard error of a ratio of two sums."""
    n = len(nats)
    total = tokens.sum()
    loss = nats.sum() / total
    residuals = nats - loss * tokens
    se = math.nan
    if n > 1:
        se = math.sqrt(np.square(residuals).sum() * n / (n - 1)) / total
    size = sizes.sum()
    bits = nats.sum() / math.log(2)
    return TextLoss(
        loss=float(loss),
        loss_se=float(se),
        bits_per_byte=float(bits / size) if size else math.nan,
        tokens=int(total),
        bytes=float(size),
        documents=np.column_stack([nats, tokens, sizes]).astype(np.float64),
    )
