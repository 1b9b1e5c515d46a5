"""Load texts from a table or a folder, as numbers of word pieces."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thaw._validation import as_int, as_seed
from thaw.data.minilm_files import minilm_file
from thaw.data.splits import FRACTIONS, Splits
from thaw.data.splitting import check_split_arguments, split_examples
from thaw.data.target_columns import TARGET_TASKS
from thaw.data.text_checks import check_texts, note_foreign
from thaw.data.text_files import read_texts

LENGTHS = (32, 64, 128, 256)  # that texts are padded to, in pieces
PADDING = 0  # number of the piece that fills a text up; models mask it


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TextSplits(Splits):
    """The :class:`thaw.Splits` of texts, with what makes pieces of them.

    Args:
        column: name of the column of texts, as it was asked for; ``None`` for a usual name, or a folder.
        tokenizer: what :func:`load_tokenizer` returns.
    """

    column: str | None = None
    tokenizer: Any = None


def load_text(
    data: Any,
    *,
    task: str = "classification",
    text: str | None = None,
    label: str | Sequence[str] | None = None,
    split: str | None = None,
    group: str | None = None,
    max_length: int = 128,
    length: int | None = None,
    tokenizer=None,
    seed: int = 0,
    splits: tuple[float, float, float] = FRACTIONS,
    max_bad: float = 0.05,
    balance: str = "auto",
) -> TextSplits:
    """Load a table or a folder of labelled texts as training, validation and test datasets.

    Splits given by the user are used as they are. Without them, texts are split by their content, so that adding rows
    moves no others; the texts of a group, and those that differ in nothing but capitals, spaces and punctuation, share
    a split. If only train and test are given, validation is cut from train in the proportion of ``splits``; if only
    train and validation are given, there is no test.

    Empty texts, and those without a label, are left out and listed; so is the copy in train of a text in test. Texts
    in several classes or in a wrong encoding, those that are cut off, and languages that the tokenizer does not know
    are noted.

    All texts are padded to one length, the smallest of 32, 64, 128 and 256 pieces in which the longest fits; what is
    longer than ``max_length`` is cut off. The model must be built for that length, ``splits.train.x.shape[1]``.

    Args:
        data: a CSV or TSV file, JSON lines (``.jsonl``), a Parquet file; a pandas or polars frame, a PyArrow table or a
            dict of columns; or a folder ``class/text.txt``, with or without train, val and test folders above the
            classes.
        task: what is predicted: ``"classification"`` (default), one class for each text; ``"multilabel"``, any number
            of labels; or ``"regression"``, numbers. The last two need a table.
        text: name of the column of texts; ``None`` (default) for "text" or another usual name, such as "review".
        label: name of the column of classes, of labels (``sport|chess``) or of a number; or a list of names, of columns
            of 0 and 1 or of several numbers. Default ``None``: "label" or another usual name.
        split: name of the column that says train, validation or test; ``None`` (default) for "split", if there is one.
        group: name of the column of groups, such as authors; ``None`` (default) for "group", if there is one.
        max_length: largest length in pieces, with the two at both ends: 32, 64, 128 (default) or 256.
        length: length in pieces that texts are padded to and cut at, such as that of a model's input. Default ``None``:
            the smallest of those above.
        tokenizer: as in :func:`load_tokenizer`; default ``None`` for that of all-MiniLM-L6-v2.
        seed: int; another seed gives another split.
        splits: fractions of train, validation and test; that of test may be 0.
        max_bad: largest fraction of empty and unlabelled texts that is accepted, 0 to 1; default 0.05.
        balance: what is done about classes of different size, as in :func:`thaw.data.splits.resolve_balance`.

    Returns:
        :class:`TextSplits`: a :class:`thaw.Splits` whose datasets hold int32 ``(n, length)`` numbers of pieces, 0 for
        padding. ``files`` names each text by its file, or its row.

    Raises:
        FileNotFoundError: nothing is at ``data``.
        ModuleNotFoundError: ``tokenizers``, the vocabulary, or the reader of Parquet files is not installed.
        ValueError: the data are invalid, or too many texts are bad.

    Example:
        >>> import tempfile
        >>> from thaw.data.text import load_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mail.csv")
        ...     rows = [f"{('buy this now', 'see you soon')[i % 2]} number {i},{('spam', 'ham')[i % 2]}\\n"
        ...             for i in range(40)]
        ...     _ = path.write_text("text,label\\n" + "".join(rows))
        ...     mail = load_text(path)
        >>> mail.labels, mail.train.x.shape[1]
        (('ham', 'spam'), 32)
    """
    if max_length not in LENGTHS:
        raise ValueError(f"max_length={max_length!r}; expected one of {', '.join(map(str, LENGTHS))} pieces.")
    if task not in ("classification", *TARGET_TASKS):
        raise ValueError(f"task={task!r}; expected one of classification, {', '.join(TARGET_TASKS)}.")
    if length is not None:
        length = as_int("length", length, 3)  # the ends, and a piece between them
    check_split_arguments(splits, max_bad, balance)
    if task != "classification" and balance not in ("auto", "none"):
        raise ValueError(f"balance={balance!r} is for classes, and the task is {task}; leave balance out.")
    seed, tokenizer = as_seed(seed), load_tokenizer(tokenizer)
    source = Path(data) if isinstance(data, (str, os.PathLike)) else Path("the table")
    columns, target_names, notes = read_texts(data, task=task, text=text, label=label, split=split, group=group)
    names = columns.pop("name")
    texts = columns.pop("text")
    # Copies with other labels contradict one another, those with other numbers do not.
    said = ["|".join(labels) for labels in columns["target"]] if task == "multilabel" else columns["label"]
    checks = check_texts(texts, said, columns.get("split"), names)
    encodings = tokenizer.encode_batch(texts)
    longest = max(len(encoding.ids) for encoding in encodings)
    fits = min(next((n for n in LENGTHS if longest <= n), max_length), max_length)
    pieces = _padded(tokenizer, texts, encodings, fits if length is None else length)
    unknown = getattr(tokenizer.model, "unk_token", None)
    more = [*note_foreign(encodings, unknown, names), _note_length(encodings, pieces.shape[1])]
    divided = split_examples(
        source,
        columns,
        checks.keys,
        checks.bad,
        repeated=checks.repeated,
        names=names,
        noun="text",
        cluster=lambda rows: checks.clusters[rows],
        # Cached features are found by these keys: another tokenizer makes other pieces of the same text.
        inputs=lambda rows: {"x": pieces[rows], "keys": None},
        unlabelled="has no number" if task == "regression" else "has no label",
        fractions=splits,
        seed=seed,
        max_bad=max_bad,
        balance=balance,
        task=task,
        target_names=target_names,
        notes=notes,
        more_notes=[*checks.notes, *more],
    )
    fields = {field.name: getattr(divided, field.name) for field in dataclasses.fields(divided)}
    return TextSplits(**fields, column=text, tokenizer=tokenizer)


def encode_texts(tokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """Return texts as numbers of word pieces, as a model takes them.

    Args:
        tokenizer: what :func:`load_tokenizer` returns.
        texts: ``n`` texts.
        length: pieces of each; shorter texts are padded, and longer ones cut off.

    Returns:
        int32 ``(n, length)``.

    Example:
        >>> from thaw.data.text import encode_texts, load_tokenizer
        >>> encode_texts(load_tokenizer(), ["Melting ice", "Ice"], 5).tolist()
        [[101, 13721, 3256, 102, 0], [101, 3256, 102, 0, 0]]
    """
    return _padded(tokenizer, list(texts), tokenizer.encode_batch(list(texts)), length)


def load_tokenizer(source=None):
    """Load the tokenizer of a text model, without a download.

    Args:
        source: ``None`` (default) for that of all-MiniLM-L6-v2; the path of a ``tokenizer.json``, or of the
            ``vocab.txt`` of an uncased BERT; or a ``tokenizers.Tokenizer``. Its piece 0 must be padding.

    Returns:
        A ``tokenizers.Tokenizer`` that neither cuts texts off nor pads them. ``save(path)`` writes it to a file that
        this function loads.

    Raises:
        FileNotFoundError: nothing is at ``source``.
        ModuleNotFoundError: ``tokenizers``, or the vocabulary, is not installed.
        ValueError: it is no tokenizer, or its piece 0 is a word.

    Example:
        >>> from thaw.data.text import load_tokenizer
        >>> load_tokenizer().encode("Melting ice").tokens
        ['[CLS]', 'melting', 'ice', '[SEP]']
    """
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'tokenizers, which cuts texts into pieces, is not installed; install it: pip install "keras-thaw[text]".'
        ) from error
    if isinstance(source, tokenizers.Tokenizer):
        tokenizer = tokenizers.Tokenizer.from_str(source.to_str())  # the caller's own stays as it is
    elif source is None or Path(source).suffix == ".txt":
        tokenizer = _word_pieces(minilm_file("vocab.txt") if source is None else Path(source))
    else:
        tokenizer = _from_file(Path(source))
    if tokenizer.id_to_token(PADDING) not in ("[PAD]", "<pad>"):
        raise ValueError(
            f"Piece 0 of the tokenizer is {tokenizer.id_to_token(PADDING)!r}; expected [PAD], for models mask it."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _word_pieces(vocabulary: Path):
    """Build the tokenizer of an uncased BERT (Devlin et al. 2019) of its vocabulary."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    if not vocabulary.is_file():
        raise FileNotFoundError(f"{vocabulary} does not exist; expected the vocabulary of a tokenizer.")
    tokenizer = tokenizers.Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))
    ends = [(piece, tokenizer.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")]
    if None in (number for _, number in ends):
        raise ValueError(f"{vocabulary} has no pieces [CLS] and [SEP]; expected the vocabulary of an uncased BERT.")
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _from_file(path: Path):
    import tokenizers

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected the file of a tokenizer (tokenizer.json).")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(
            f"{path} is no file of a tokenizer ({error}); expected tokenizer.json or vocab.txt."
        ) from error


def _padded(tokenizer, texts, encodings, length) -> np.ndarray:
    """Return int32 ``(n, length)``: the pieces of each text, the ends kept where it is cut off."""
    if any(len(encoding.ids) > length for encoding in encodings):
        tokenizer.enable_truncation(length)
        encodings = tokenizer.encode_batch(texts)
        tokenizer.no_truncation()
    pieces = np.full((len(encodings), length), PADDING, np.int32)
    for row, encoding in zip(pieces, encodings):
        row[: len(encoding.ids)] = encoding.ids
    return pieces


def _note_length(encodings, length) -> str:
    sizes = [len(encoding.ids) for encoding in encodings]
    cut = sum(size > length for size in sizes)
    text = f"Texts are padded to {length} pieces; the longest has {max(sizes)}"
    if not cut:
        return f"{text}, and none is cut off."
    larger = [n for n in LENGTHS if n > length]
    more = f" (max_length={larger[0]} takes more)" if larger else ""
    return f"{text}, and {cut} of {len(sizes)} are cut off{more}."
