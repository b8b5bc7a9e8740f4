"""From a source to token files: tokenized once into a cache entry, then memory-mapped.

An entry `<cache>/<key>/` holds train.bin, heldout.bin (uint16 or uint32 ids) and
meta.json. Its key is a hash of what decides its content: the fingerprint of the text,
the tokenizer, the held-out fraction. `<cache>/index/` remembers which fingerprint
belongs to the cheap signature of a source, so that a second call reads no text at all.

A document is held out if and only if its own hash falls below the fraction: adding,
removing or reordering other documents never moves it. Documents are laid out in the
order of their hashes, so that any prefix of the training stream is a fair sample of it.
Exact duplicates count once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from scaling.config import DataConfig
from scaling.config.conversion import JsonObject
from scaling.config.mixture import (
    is_mixture,
    parse_mixture,
)
from scaling.data import tokenizers
from scaling.data.cache import (
    cache_root,
    entry_key,
    is_sound,
    publish_entry,
    read_json,
    write_json,
)
from scaling.data.dataset import Component, Dataset
from scaling.data.errors import DataError
from scaling.data.examples import (
    COUNTS,
    ExampleSplits,
    ReadExamples,
    count_answer_bytes,
    encode_examples,
    read_examples,
    write_examples,
)
from scaling.data.identity import (
    Part,
    list_parts,
)
from scaling.data.sources import (
    Source,
    check_reads_files,
    open_source,
    reads_files,
)
from scaling.data.spool import Spool
from scaling.data.synthetic.protocol import Synthetic, is_synthetic, open_synthetic
from scaling.data.text.invalid import InvalidText, InvalidTextWarning
from scaling.data.text.reading import DEFAULT_READING, get_reading

SMALLEST_HELDOUT = 1024  # tokens; a loss over fewer says nothing
ENOUGH_HELDOUT = 8192  # bytes that an error message proposes to hold out


def load_dataset(config: DataConfig, cache: Path | None = None) -> Dataset:
    """Prepare what is missing and open the token files.

    Args:
        config: the source, the tokenizer and the held-out fraction.
        cache: folder of the entries. Default: the environment's SCALING_CACHE, else
            `~/.cache/scaling`.

    Raises:
        DataError: the source, the tokenizer or an option is unknown, or there is too
            little text.
    """
    root = cache_root() if cache is None else Path(cache)
    dataset = _open_dataset(config, root)
    if not config.separate_documents:
        return dataset
    separator = load_tokenizer(config, root).separator
    if separator is None:
        raise DataError(
            f"data.tokenizer = {config.tokenizer!r}: has no separator between documents, "
            "which data.separate_documents needs; leave that out, or add one of "
            f"{', '.join(tokenizers.SEPARATORS)} to the tokenizer"
        )
    return dataclasses.replace(dataset, separator=separator)


def _open_dataset(config: DataConfig, root: Path) -> Dataset:
    if is_mixture(config.source):
        return _load_mixture(config, root)
    invalid = InvalidText()
    if is_synthetic(config.source):
        check_reads_files(config.source, get_reading(config))
        entry = _find_synthetic_entry(config, root)
    else:
        source = open_source(config.source, get_reading(config))
        if source.examples is not None:
            return _load_examples(config, source, source.examples, root)
        entry, invalid = _find_text_entry(config, source, root)
    meta = json.loads((entry / "meta.json").read_text()) | {"source": config.source}
    train = np.memmap(entry / "train.bin", meta["dtype"], "r")
    if config.unique_tokens is not None and config.unique_tokens > len(train):
        raise DataError(
            f"data.unique_tokens = {config.unique_tokens}: the training stream has "
            f"{len(train):,} tokens; lower it, or use more text"
        )
    bytes_per_token = meta["bytes_per_token"]
    loss_range = meta["loss_range"]
    return Dataset(
        train=train[: config.unique_tokens],
        heldout=np.memmap(entry / "heldout.bin", meta["dtype"], "r"),
        vocab=meta["vocab"],
        parts=list_parts(config, meta["fingerprint"], meta["tokenizer_hash"]),
        bytes_per_token=math.nan if bytes_per_token is None else bytes_per_token,
        loss_range=None if loss_range is None else (loss_range[0], loss_range[1]),
        entropy=meta["entropy"],
        document_length=meta["document_length"],
        meta=meta,
        invalid=invalid,
    )


def load_tokenizer(
    config: DataConfig, cache: Path | None = None
) -> tokenizers.Tokenizer:
    """The tokenizer of a data set, trained if need be, to read ids as text again."""
    if is_synthetic(config.source):
        raise DataError(
            f"data.source = {config.source!r}: a synthetic source emits ids and has no "
            "tokenizer"
        )
    if not tokenizers.is_bpe(config.tokenizer):
        return tokenizers.open_tokenizer(config.tokenizer)
    if is_mixture(config.source):
        _refuse_training_tokenizer(config, "a mixture")
    root = cache_root() if cache is None else Path(cache)
    source = open_source(config.source, get_reading(config))
    if source.examples is not None:
        _refuse_training_tokenizer(config, "a task")
    entry, _ = _find_text_entry(config, source, root)
    return tokenizers.open_tokenizer(config.tokenizer, entry)


# --- mixtures -------------------------------------------------------------------------


def _load_mixture(config: DataConfig, root: Path) -> Dataset:
    """The dataset of several sources of text."""
    if tokenizers.is_bpe(config.tokenizer):
        _refuse_training_tokenizer(config, "a mixture")
    mixture = parse_mixture(config.source)
    last = mixture.stages[-1]
    _check_mixture_reading(config, mixture.sources)
    components = []
    invalid = InvalidText()
    for source, weight in zip(mixture.sources, last.weights, strict=True):
        if is_synthetic(source) or source.startswith("task:"):
            raise DataError(
                f"data.source = {config.source!r}: {source!r} is no text; a mixture "
                "is of sources of text"
            )
        dataset = load_dataset(configure_component(config, source), root)
        components.append(Component(source, weight, dataset))
        invalid.files.update(dataset.invalid.files)
    first = components[0].dataset
    parts: list[Part] = []
    bytes_per_token = 0.0
    for component in components:
        parts += component.dataset.parts
        bytes_per_token += component.weight * component.dataset.bytes_per_token
    return Dataset(
        train=first.train[:0],
        heldout=first.heldout[:0],
        vocab=first.vocab,
        parts=tuple(parts),
        bytes_per_token=bytes_per_token,
        loss_range=None,
        entropy=None,
        document_length=None,
        meta={"source": config.source, "tokenizer_hash": first.meta["tokenizer_hash"]},
        components=tuple(components),
        stages=mixture.stages,
        invalid=invalid,
    )


def _check_mixture_reading(config: DataConfig, sources: Sequence[str]) -> None:
    """Check that some source of a mixture is a path, unless the reading is the default.

    Raises:
        DataError: none is.
    """
    if not any(reads_files(source) for source in sources):
        check_reads_files(sources[0], get_reading(config))


def configure_component(config: DataConfig, source: str) -> DataConfig:
    """The configuration of a source of a mixture. How files are read is said to paths
    alone.
    """
    reading = get_reading(config) if reads_files(source) else DEFAULT_READING
    return dataclasses.replace(config, source=source, **reading._asdict())


# --- text -----------------------------------------------------------------------------


def _find_text_entry(
    config: DataConfig, source: Source, root: Path
) -> tuple[Path, InvalidText]:
    """The entry of a text source, from the index if nothing changed, else by reading
    the documents; and what of the text cannot be used.

    The latter stands in the index: two texts may share an entry, and one of them hold
    documents that are left out.
    """
    is_trained = tokenizers.is_bpe(config.tokenizer)
    tokenizer = (
        config.tokenizer
        if is_trained
        else tokenizers.open_tokenizer(config.tokenizer).hash
    )
    signature = source.signature()
    index = root / "index" / f"{_make_index_key(config, signature)}.json"
    content = read_json(index)
    if known := content.get("fingerprint"):
        entry = root / entry_key(known, tokenizer, config.heldout_fraction)
        if is_sound(entry):
            return entry, InvalidText.from_json(content.get("invalid", {}))
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as file:
        spool = Spool(file)
        spool.fill(source.documents())
        invalid = _collect_invalid(config, source, spool)
        key = entry_key(spool.fingerprint, tokenizer, config.heldout_fraction)
        entry = publish_entry(
            root, key, lambda folder: _write_text(config, source, spool, folder)
        )
    if source.signature() == signature:  # else the files changed while they were read
        content: JsonObject = {}
        content["source"] = config.source
        content["fingerprint"] = spool.fingerprint
        if invalid:
            content["invalid"] = invalid.to_json()
        write_json(index, content)
    return entry, invalid


def _make_index_key(config: DataConfig, signature: str) -> str:
    """The name of the index of a text: of its state, and of how it is read unless that
    is the default.
    """
    reading = get_reading(config)
    if reading == DEFAULT_READING:
        return entry_key(config.source, signature)
    return entry_key(config.source, signature, reading._asdict())


def _collect_invalid(config: DataConfig, source: Source, spool: Spool) -> InvalidText:
    """What of a text that was just read cannot be used. The user is warned of it.

    Raises:
        DataError: there is no text left.
    """
    invalid = InvalidText(source.invalid.files)
    if spool.skipped:
        problem = "byte 0, or half of a surrogate pair"
        invalid.add(
            config.source, problem, documents=spool.skipped, size=spool.skipped_bytes
        )
    if not spool.places:
        found = invalid.describe() if invalid else "check what the files hold"
        raise DataError(
            f"data.source = {config.source!r}: there is no text in it; {found}"
        )
    if invalid:
        message = f"data.source = {config.source!r}: {invalid.describe()}"
        warnings.warn(message, InvalidTextWarning, stacklevel=2)
    return invalid


def _write_text(
    config: DataConfig, source: Source, spool: Spool, folder: Path
) -> JsonObject:
    """Fill a cache entry from the documents; returns its metadata."""
    train, heldout = spool.split(config.heldout_fraction)
    if not heldout or not train:
        documents, empty = len(spool.places), "training" if heldout else "held-out"
        raise DataError(
            f"data.heldout_fraction = {config.heldout_fraction}: none of the "
            f"{documents} documents of "
            f"{config.source!r} falls into the {empty} slice; "
            f"{_suggest_more_text(spool)}"
        )
    if tokenizers.is_bpe(config.tokenizer):
        tokenizer = tokenizers.train_bpe(
            config.tokenizer, _sample_documents(spool, train), folder / "tokenizer.json"
        )
    else:
        tokenizer = tokenizers.open_tokenizer(config.tokenizer)
    dtype = tokenizers.id_dtype(tokenizer.vocab)
    train_tokens = _write_ids(
        folder / "train.bin", spool.batches(train), tokenizer, dtype
    )
    heldout_tokens = _write_ids(
        folder / "heldout.bin", spool.batches(heldout), tokenizer, dtype
    )
    if heldout_tokens < SMALLEST_HELDOUT:
        raise DataError(
            f"data.heldout_fraction = {config.heldout_fraction}: holds out only "
            f"{heldout_tokens} tokens of "
            f"{config.source!r}, at least {SMALLEST_HELDOUT} are needed; "
            f"{_suggest_more_text(spool)}"
        )
    ends = len(heldout) if tokenizer.separator is not None else 0
    return {
        "fingerprint": spool.fingerprint,
        "tokenizer": config.tokenizer,
        "tokenizer_hash": tokenizer.hash,
        "vocab": tokenizer.vocab,
        "separator": tokenizer.separator,
        "dtype": dtype.name,
        "bytes_per_token": (spool.size(heldout) + ends) / heldout_tokens,
        "documents": len(train) + len(heldout),
        "duplicates": spool.duplicates,
        "skipped": spool.skipped,
        "heldout_documents": len(heldout),
        "bytes": spool.size(train) + spool.size(heldout),
        "heldout_bytes": spool.size(heldout),
        "train_tokens": train_tokens,
        "heldout_tokens": heldout_tokens,
        "loss_range": None,
        "entropy": None,
        "document_length": None,
        **source.about,
    }


def _suggest_more_text(spool: Spool) -> str:
    """What to do about a slice that is too small."""
    enough = spool.fraction_for(ENOUGH_HELDOUT)
    other = (
        f"set data.heldout_fraction = {enough:g}"
        if enough < 1
        else "split it into more documents"
    )
    return (
        f"use more text, or {other} (a single .txt file is cut into many, a .jsonl file "
        "holds one a line)"
    )


def _sample_documents(spool: Spool, digests: Sequence[bytes]) -> Iterator[str]:
    """Documents to train a tokenizer on."""
    size = 0
    for batch in spool.batches(digests):
        for text in batch:
            yield text
            size += len(text)
            if size > tokenizers.BPE_TRAINING_BYTES:
                return


def _write_ids(
    path: Path,
    batches: Iterable[list[str]],
    tokenizer: tokenizers.Tokenizer,
    dtype: np.dtype[np.unsignedinteger],
) -> int:
    """Tokenize into a file; returns the number of ids."""
    count = 0
    with path.open("wb") as file:
        for batch in batches:
            ids = tokenizer.encode(batch).astype(dtype, copy=False)
            ids.tofile(file)
            count += len(ids)
    return count


# --- examples -------------------------------------------------------------------------


def _load_examples(
    config: DataConfig, source: Source, read: ReadExamples, root: Path
) -> Dataset:
    """The dataset of a task."""
    if tokenizers.is_bpe(config.tokenizer):
        _refuse_training_tokenizer(config, "a task")
    tokenizer = tokenizers.open_tokenizer(config.tokenizer)
    key = entry_key("examples", source.signature(), tokenizer.hash)
    entry = publish_entry(
        root,
        key,
        lambda folder: _write_examples(config, source, read(), tokenizer, folder),
    )
    meta = json.loads((entry / "meta.json").read_text()) | {"source": config.source}
    train = read_examples(entry, "train")
    heldout = read_examples(entry, "heldout")
    if config.examples is not None:
        if config.examples > len(train.ends):
            raise DataError(
                f"data.examples = {config.examples}: {config.source!r} has "
                f"{len(train.ends):,} examples to train on; lower it"
            )
        train = train.take_first(config.examples)
    return Dataset(
        train=train.ids,
        heldout=heldout.ids,
        vocab=meta["vocab"],
        parts=list_parts(config, meta["fingerprint"], meta["tokenizer_hash"]),
        bytes_per_token=meta["bytes_per_token"],
        loss_range=None,
        entropy=None,
        document_length=None,
        meta=meta,
        train_examples=train,
        heldout_examples=heldout,
    )


def _refuse_training_tokenizer(config: DataConfig, what: str) -> None:
    raise DataError(
        f"data.tokenizer = {config.tokenizer!r}: {what} does not train a tokenizer; "
        "use 'bytes' or the path of a tokenizer.json, such as the one in the folder of "
        "the sweep that the model comes from"
    )


def _write_examples(
    config: DataConfig,
    source: Source,
    splits: ExampleSplits,
    tokenizer: tokenizers.Tokenizer,
    folder: Path,
) -> JsonObject:
    """Fill a cache entry from examples; returns its metadata."""
    for name, pairs in (("training", splits.train), ("held-out", splits.heldout)):
        if not pairs:
            raise DataError(
                f"data.source = {config.source!r}: the task has no {name} examples; "
                "give it more, or another held-out fraction"
            )
    train = encode_examples(tokenizer, splits.train)
    heldout = encode_examples(tokenizer, splits.heldout)
    write_examples(folder, "train", train)
    write_examples(folder, "heldout", heldout)
    counted = int((heldout.ids & COUNTS > 0).sum())
    size = count_answer_bytes(tokenizer, splits.heldout)
    return {
        "fingerprint": splits.fingerprint,
        "tokenizer": config.tokenizer,
        "tokenizer_hash": tokenizer.hash,
        "vocab": tokenizer.vocab,
        "separator": tokenizer.separator,
        "dtype": "int32",
        "bytes_per_token": size / counted,
        "documents": len(splits.train) + len(splits.heldout),
        "heldout_documents": len(splits.heldout),
        "train_tokens": len(train.ids),
        "heldout_tokens": len(heldout.ids),
        "loss_range": None,
        "entropy": None,
        "document_length": None,
        **source.about,
    }


# --- synthetic sources ----------------------------------------------------------------


def _find_synthetic_entry(config: DataConfig, root: Path) -> Path:
    """The entry of a synthetic source."""
    source = open_synthetic(config.source)
    # NumPy's generators may change with its version
    key = entry_key(repr(source), config.heldout_fraction, np.__version__)
    return publish_entry(
        root, key, lambda folder: _write_synthetic(config, source, folder)
    )


def _write_synthetic(config: DataConfig, source: Synthetic, folder: Path) -> JsonObject:
    """Fill a cache entry from a generator; returns its metadata."""
    dtype = tokenizers.id_dtype(source.vocab)
    streams = source.generate(config.heldout_fraction)
    contents = {
        name: streams[name].astype(dtype).tobytes() for name in ("train", "heldout")
    }
    for name, content in contents.items():
        (folder / f"{name}.bin").write_bytes(content)
    return {
        "fingerprint": hashlib.sha256(
            contents["train"] + contents["heldout"]
        ).hexdigest(),
        "tokenizer": "ids",
        "tokenizer_hash": None,
        "vocab": source.vocab,
        "separator": None,
        "dtype": dtype.name,
        "bytes_per_token": None,
        "train_tokens": len(streams["train"]),
        "heldout_tokens": len(streams["heldout"]),
        "loss_range": source.loss_range,
        "entropy": source.entropy,
        "document_length": source.document_length,
        "generator": repr(source),
        "numpy": np.__version__,
    }
