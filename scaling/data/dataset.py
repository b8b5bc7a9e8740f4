"""The token streams of a source, or of a mixture of sources, open for reading."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32

from scaling.config.conversion import JsonObject
from scaling.config.mixture import Stage, count_tokens_before_repeat, share_heldout
from scaling.data.errors import DataError
from scaling.data.examples import EncodedExamples, pack_rows
from scaling.data.identity import Part, check_fingerprint, combine_parts
from scaling.data.loader import Batches, Rows, Windows, heldout_windows
from scaling.data.mixture import MixedRows, find_first_rows
from scaling.data.row_format import RowFormat
from scaling.data.text.invalid import InvalidText


@dataclass(frozen=True)
class Component:
    """A source of a mixture.

    Attributes:
        source: its name.
        weight: the share of the training tokens of the last stage that come from it, by
            which its loss enters the mean; 0 if that stage leaves it out.
        dataset: its token streams.
    """

    source: str
    weight: float
    dataset: Dataset


@dataclass(frozen=True, eq=False)
class Dataset:
    """Token streams of one source, memory-mapped and read-only.

    Attributes:
        train: [tokens] ids to train on; only the first `unique_tokens` if the
            configuration says so.
        heldout: [tokens] ids to evaluate on, disjoint from `train` by document.
        vocab: number of ids that the model needs.
        parts: what decides the token stream: the text and, unless it is built in, the
            tokenizer.
        bytes_per_token: UTF-8 bytes per held-out token, one byte counted for each
            separator, so that bits per byte = loss / ln 2 / bytes_per_token; NaN for
            synthetic sources.
        loss_range: (low, high): only targets with low <= id < high count in the loss;
            None: all count.
        entropy: exact irreducible loss in nats per counted token; None if unknown.
        document_length: windows must hold whole documents of so many tokens; None: any
            window will do.
        meta: all of meta.json.
        train_examples: the examples of a task, whose ids are then those of `train`;
            None for text.
        heldout_examples: the same of `heldout`.
        components: the sources of a mixture, whose own `train` and `heldout` are empty;
            none for a single source.
        stages: of the mixture, with a weight for each component.
        separator: the id between documents, if each token is to see its own alone.
        invalid: what of the text could not be used, by file; of a mixture that of all
            sources.
    """

    train: np.ndarray
    heldout: np.ndarray
    vocab: int
    parts: tuple[Part, ...]
    bytes_per_token: float
    loss_range: tuple[int, int] | None
    entropy: float | None
    document_length: int | None
    meta: JsonObject
    train_examples: EncodedExamples | None = None
    heldout_examples: EncodedExamples | None = None
    components: tuple[Component, ...] = ()
    stages: tuple[Stage, ...] = ()
    separator: int | None = None
    invalid: InvalidText = field(default_factory=InvalidText)

    @property
    def train_tokens(self) -> int:
        """Tokens to train on before any repeats; of a mixture by the weights of the
        stages that they lie in.
        """
        if not self.components:
            return len(self.train)
        lengths = [len(component.dataset.train) for component in self.components]
        return count_tokens_before_repeat(self.stages, tuple(lengths))

    @property
    def has_examples(self) -> bool:
        """Whether the rows hold examples, with flags in their ids."""
        return self.train_examples is not None

    @property
    def row_format(self) -> RowFormat:
        """What the ids of its rows mean to training."""
        return RowFormat(self.loss_range, self.has_examples, self.separator)

    def make_windows(self, context: int, batch_size: int, seed: int) -> Batches:
        """The rows to train on, in a replayable order.

        Raises:
            DataError: the stream holds less than one batch, or a stage of a mixture less
                than one row.
        """
        if self.components:
            sources = []
            for component in self.components:
                sources.append(Windows(component.dataset.train, context, 1, seed))
            return MixedRows(sources, self.stages, batch_size, seed)
        if self.train_examples is None:
            return Windows(self.train, context, batch_size, seed)
        rows = pack_rows(self.train_examples.list_arrays(), context)
        return Rows(rows, batch_size, seed)

    def make_heldout_windows(
        self, context: int, limit_tokens: int | None = None
    ) -> Int32[np.ndarray, "M window"]:
        """The rows to evaluate on: of text at most `limit_tokens` targets, of a task
        all. Those of a mixture follow each other source by source.
        """
        if self.components:
            return np.concatenate(self.split_heldout(context, limit_tokens))
        if self.heldout_examples is None:
            return heldout_windows(self.heldout, context, limit_tokens)
        return pack_rows(self.heldout_examples.list_arrays(), context)

    def split_heldout(
        self, context: int, limit_tokens: int | None = None
    ) -> list[Int32[np.ndarray, "M window"]]:
        """The rows of `make_heldout_windows` of each source of a mixture, as many as its
        weight in the last stage that has it says (`share_heldout`), at least one.
        """
        pieces = []
        shares = share_heldout(self.stages)
        for component, share in zip(self.components, shares, strict=True):
            limit = limit_tokens
            if limit is not None:
                limit = max(context, round(share * limit))
            heldout = component.dataset.heldout
            pieces.append(heldout_windows(heldout, context, limit))
        return pieces

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides the token stream."""
        return combine_parts(self.parts)

    @property
    def text_fingerprint(self) -> str:
        """sha256 of the documents (of the ids, for a synthetic source) alone."""
        return self.parts[0].digest

    def describe_invalid(self) -> JsonObject:
        """The columns of the run table that say how much of the text could not be used;
        none where all could.
        """
        counts = self.invalid.sum_counts()
        columns: JsonObject = {}
        if counts.documents:
            columns["skipped_documents"] = counts.documents
            columns["skipped_bytes"] = counts.bytes
        if counts.characters:
            columns["replaced_characters"] = counts.characters
        return columns

    def check_trained_on(self, stored: str, run_id: str) -> None:
        """Raise `DataError` when a run has another fingerprint stored than this data
        set has; see `identity.check_fingerprint`.
        """
        check_fingerprint(self.parts, stored, run_id)

    def check_context(self, context: int) -> None:
        """Raise `DataError` when windows of `context` tokens would cut a document of
        fixed length, or leave a stage of a mixture without a row.
        """
        find_first_rows(self.stages, context)
        length = self.document_length
        if length is not None and context % length:
            below = max(length, context - context % length)
            raise DataError(
                f"model.context = {context}: must be a multiple of {length}, the "
                "document length of "
                f"{self.meta['source']!r}; use {below}"
            )
