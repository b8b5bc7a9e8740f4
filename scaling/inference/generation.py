"""Text that a model writes: prompts in batches, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from scaling.config import ArchitectureConfig, ConfigError
from scaling.data.tokenizers import Tokenizer
from scaling.inference.beam_search import BeamValues, get_beam_search
from scaling.inference.decoding import (
    CHUNK,
    choose_cache_length,
    get_decoder,
    make_row_keys,
    round_up_to_power_of_two,
)
from scaling.inference.sampling import SamplingConfig
from scaling.inference.tokens import TokenIds, encode_text, make_separator
from scaling.model.architecture import Params

Finish = Literal["end", "stop", "length"]
"""Why a text ends: the model ended the document, a stop string came, or the limit."""

ROWS = 64
"""Sequences that are written at once."""

_UNFINISHED = "\ufffd"
"""What a character becomes of which only the first bytes are there."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt.

    Attributes:
        prompt: The prompt.
        text: What follows it, without the stop string or the end of the document.
        tokens: The ids that were written, the end of the document among them.
        log_probability: Of these tokens by the model's own distribution, in nats.
        finish: Why it ends.
    """

    prompt: str
    text: str
    tokens: TokenIds
    log_probability: float
    finish: Finish

    def __str__(self) -> str:
        return self.prompt + self.text


@dataclass
class Draft:
    """A text while it is written.

    Attributes:
        number: The numbers of its prompt and of its sample.
        prompt: The prompt.
        read: The tokens of the prompt, with the separator before them.
        tokens: The tokens that were written since.
        log_probabilities: Of these tokens.
        text: What is known of the text, without an unfinished character at its end.
        finish: Why it ended; None until then.
    """

    number: tuple[int, int]
    prompt: str
    read: TokenIds
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None

    def extend(
        self,
        tokens: Sequence[int],
        log_probabilities: Sequence[float],
        tokenizer: Tokenizer,
        ends: Ends,
    ) -> None:
        """Append tokens, up to the end of the text."""
        for token, log_probability in zip(tokens, log_probabilities, strict=True):
            self.tokens.append(token)
            self.log_probabilities.append(log_probability)
            if token == ends.token:
                self.finish = "end"
                break
        count = len(self.tokens) - (self.finish == "end")
        text = decode_tokens(tokenizer, self.tokens[:count])
        places = [text.find(stop) for stop in ends.strings if stop in text]
        if places:
            self.text = text[: min(places)]
            self.finish = "stop"
            self._drop_tokens_after_stop(tokenizer, ends)
        elif self.finish == "end":
            self.text = text
        else:
            self.text = text.rstrip(_UNFINISHED)

    def _drop_tokens_after_stop(self, tokenizer: Tokenizer, ends: Ends) -> None:
        """Drop the tokens after the first one that completes a stop string."""
        for count in range(1, len(self.tokens)):
            text = decode_tokens(tokenizer, self.tokens[:count])
            if any(stop in text for stop in ends.strings):
                del self.tokens[count:]
                del self.log_probabilities[count:]
                return

    def make_generation(self, tokenizer: Tokenizer) -> Generation:
        """The text as it is now."""
        text = self.text
        if self.finish is None:
            text = decode_tokens(tokenizer, self.tokens)
        return Generation(
            prompt=self.prompt,
            text=text,
            tokens=np.asarray(self.tokens, np.int32),
            log_probability=float(sum(self.log_probabilities)),
            finish=self.finish or "length",
        )


class Ends(NamedTuple):
    """What ends a text.

    Attributes:
        token: This token; -1 if none does.
        strings: The text ends before the first of these.
    """

    token: int
    strings: tuple[str, ...]


def decode_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of some tokens."""
    return tokenizer.decode(np.asarray(tokens, np.int32))


Show = Callable[[Draft], None]
"""Receives a text whenever it has grown."""


@dataclass(frozen=True)
class GenerationConfig:
    """How long texts become and where they end.

    Attributes:
        max_tokens: The most tokens to write.
        stop: A text ends before the first of these strings.
        ends_with_document: Whether a text ends where the model ends the document.
        samples: Texts for each prompt.
        seed: Of the draws. A text depends on the seed and on the number of its prompt
            and of its sample, not on the texts that are written beside it.

    Raises:
        ConfigError: a value is out of range.
    """

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    ends_with_document: bool = True
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed = {self.seed}: must lie in [0, 2^32)")
        if "" in self.stop:
            raise ConfigError("stop = '': an empty string ends every text at once")


@dataclass(frozen=True)
class BeamConfig:
    """A beam search, `scaling.inference.beam_search`.

    Attributes:
        beams: Texts that are extended side by side.
        length_penalty: Texts are compared by their log-probability over their length to
            this power. 0 prefers short texts, 1 compares the mean of a token.
        repetition_penalty: As in `SamplingConfig`. With it the log-probabilities are
            those of the changed distribution.

    Raises:
        ConfigError: a value is out of range.
    """

    beams: int
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ConfigError(f"beams = {self.beams}: must be at least 1")
        if not 0 <= self.length_penalty < float("inf"):
            raise ConfigError(
                f"length_penalty = {self.length_penalty}: must not be negative"
            )
        if not self.repetition_penalty > 0:
            raise ConfigError(
                f"repetition_penalty = {self.repetition_penalty}: must be positive"
            )


class TextWriter:
    """Writes texts after prompts."""

    def __init__(
        self, config: ArchitectureConfig, params: Params, tokenizer: Tokenizer
    ) -> None:
        self.config = config
        self.params = params
        self.tokenizer = tokenizer

    def read_prompt(self, prompt: str) -> TokenIds:
        """The tokens of a prompt as the beginning of a document.

        Raises:
            ConfigError: there is nothing to begin with.
        """
        separator = make_separator(self.tokenizer)
        ids = np.concatenate([separator, encode_text(self.tokenizer, prompt)])
        if not len(ids):
            raise ConfigError(
                "prompt = '': the tokenizer has no separator to begin a document with; "
                "give at least one character"
            )
        return ids

    def write(
        self,
        prompts: Sequence[str],
        sampling: SamplingConfig,
        generation: GenerationConfig,
        show: Show | None = None,
    ) -> list[Generation]:
        """Write `samples` texts after each prompt, those of a prompt next to each other.

        Args:
            prompts: The prompts.
            sampling: How tokens are chosen.
            generation: How long texts become and where they end.
            show: Receives a text whenever it has grown.
        """
        drafts: list[Draft] = []
        for i, prompt in enumerate(prompts):
            read = self.read_prompt(prompt)
            for sample in range(generation.samples):
                drafts.append(Draft(number=(i, sample), prompt=prompt, read=read))
        # Prompts of similar length share a batch, because all are as long as the longest.
        by_length = sorted(drafts, key=lambda draft: len(draft.read))
        for start in range(0, len(by_length), ROWS):
            batch = by_length[start : start + ROWS]
            self._write_batch(batch, sampling, generation, show)
        return [draft.make_generation(self.tokenizer) for draft in drafts]

    def search(
        self, prompts: Sequence[str], search: BeamConfig, generation: GenerationConfig
    ) -> list[Generation]:
        """Find the best texts after each prompt, the best first.

        Args:
            prompts: The prompts.
            search: The search.
            generation: How long texts become; `samples` of the beams are returned.

        Raises:
            ConfigError: a prompt and its texts do not fit the model's context, or there
                are stop strings or more samples than beams.
        """
        limit = generation.max_tokens
        if generation.stop:
            raise ConfigError("stop: beam search ends texts at the end of a document")
        if generation.samples > search.beams:
            raise ConfigError(
                f"samples = {generation.samples}: must be at most beams = "
                f"{search.beams}"
            )
        drafts = []
        for i, prompt in enumerate(prompts):
            read = self.read_prompt(prompt)
            drafts.append(Draft(number=(i, 0), prompt=prompt, read=read))
            if len(read) + limit > self.config.context:
                raise ConfigError(
                    f"max_tokens = {limit}: beam search needs prompt and text within "
                    f"model.context = {self.config.context}, and a prompt has "
                    f"{len(read)} tokens; lower it, or sample"
                )
        found: list[Generation] = []
        rows = max(1, ROWS // search.beams)
        for start in range(0, len(drafts), rows):
            found += self._search_batch(
                drafts[start : start + rows], search, generation
            )
        return found

    def _search_batch(
        self,
        drafts: Sequence[Draft],
        search: BeamConfig,
        generation: GenerationConfig,
    ) -> list[Generation]:
        limit = generation.max_tokens
        ends = find_ends(self.tokenizer, generation)
        batch = make_batch(self.config, drafts, limit)
        program = get_beam_search(
            self.config,
            batch.length,
            ends.token,
            beams=search.beams,
            capacity=round_up_to_power_of_two(limit),
        )
        values = BeamValues(
            max_tokens=jnp.int32(limit),
            length_penalty=jnp.float32(search.length_penalty),
            repetition_penalty=jnp.float32(search.repetition_penalty),
        )
        texts = program(
            self.params, batch.prompts, batch.counts, batch.has_occurred, values
        )
        tokens = np.asarray(texts.tokens)
        lengths = np.asarray(texts.lengths)
        log_probabilities = np.asarray(texts.log_probabilities, np.float64)
        found = []
        for i, draft in enumerate(drafts):
            for k in range(generation.samples):
                ids = tokens[i, k, : lengths[i, k]]
                has_ended = len(ids) > 0 and ids[-1] == ends.token
                content = ids[:-1] if has_ended else ids
                text = Generation(
                    prompt=draft.prompt,
                    text=self.tokenizer.decode(content),
                    tokens=ids,
                    log_probability=float(log_probabilities[i, k]),
                    finish="end" if has_ended else "length",
                )
                found.append(text)
        return found

    def _write_batch(
        self,
        drafts: Sequence[Draft],
        sampling: SamplingConfig,
        generation: GenerationConfig,
        show: Show | None,
    ) -> None:
        """Write texts side by side, until each has ended or reached the limit."""
        limit = generation.max_tokens
        ends = find_ends(self.tokenizer, generation)
        batch = make_batch(self.config, drafts, limit)
        decoder = get_decoder(self.config, batch.length, sampling.kind, ends.token)
        keys = make_row_keys(generation.seed, batch.numbers)
        values = sampling.make_values(self.config.vocab)
        state = decoder.start(
            self.params, batch.prompts, batch.counts, batch.has_occurred, batch.is_done
        )
        for start in range(0, limit, CHUNK):
            count = min(CHUNK, limit - start)
            state, chunk = decoder.write(
                self.params, state, np.int32(count), keys, values
            )
            tokens = np.asarray(chunk.tokens)[:, :count].tolist()
            log_probabilities = np.asarray(chunk.log_probabilities, np.float64)
            written = log_probabilities[:, :count].tolist()
            is_done = batch.is_done.copy()
            for i, draft in enumerate(drafts):
                if draft.finish is None:
                    draft.extend(tokens[i], written[i], self.tokenizer, ends)
                    if show is not None:
                        show(draft)
                is_done[i] = draft.finish is not None
            if is_done.all():
                return
            state = state._replace(is_done=jnp.asarray(is_done))


def find_ends(tokenizer: Tokenizer, generation: GenerationConfig) -> Ends:
    """What ends the texts of a model."""
    token = -1
    if generation.ends_with_document and tokenizer.separator is not None:
        token = tokenizer.separator
    return Ends(token, generation.stop)


class Batch(NamedTuple):
    """Prompts as the compiled programs read them.

    Attributes:
        length: Positions of the cache.
        prompts: The last tokens of each prompt, as many as the model's context holds.
        counts: Their numbers.
        has_occurred: The tokens of the whole prompts.
        is_done: True for rows that only fill the batch up.
        numbers: The numbers of the prompt and of the sample of each row.
    """

    length: int
    prompts: Int[np.ndarray, "B P"]
    counts: Int[np.ndarray, " B"]
    has_occurred: Bool[np.ndarray, "B V"]
    is_done: Bool[np.ndarray, " B"]
    numbers: Int[np.ndarray, "B 2"]


def make_batch(
    config: ArchitectureConfig, drafts: Sequence[Draft], max_tokens: int
) -> Batch:
    """The prompts of some texts, with numbers of rows and positions rounded up."""
    longest = max(len(draft.read) for draft in drafts)
    length = choose_cache_length(config, longest + max_tokens)
    rows = round_up_to_power_of_two(len(drafts))
    width = min(length, round_up_to_power_of_two(longest))
    batch = Batch(
        length=length,
        prompts=np.zeros((rows, width), np.int32),
        counts=np.ones(rows, np.int32),
        has_occurred=np.zeros((rows, config.vocab), bool),
        is_done=np.ones(rows, bool),
        numbers=np.zeros((rows, 2), np.int64),
    )
    for i, draft in enumerate(drafts):
        seen = draft.read[-width:]
        batch.prompts[i, : len(seen)] = seen
        batch.counts[i] = len(seen)
        batch.has_occurred[i, draft.read] = True
        batch.is_done[i] = False
        batch.numbers[i] = draft.number
    return batch
