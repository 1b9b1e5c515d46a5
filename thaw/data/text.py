"""Load texts from a table or a folder, as numbers of word pieces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from thaw._validation import as_seed
from thaw.data.minilm_files import minilm_file
from thaw.data.splits import FRACTIONS, Splits
from thaw.data.splitting import check_split_arguments, split_examples
from thaw.data.text_checks import check_texts, note_foreign
from thaw.data.text_files import read_texts

LENGTHS = (32, 64, 128, 256)  # that texts are padded to, in pieces
PADDING = 0  # number of the piece that fills a text up; models mask it


def load_text(
    data: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    max_length: int = 128,
    tokenizer=None,
    seed: int = 0,
    splits: tuple[float, float, float] = FRACTIONS,
    max_bad: float = 0.05,
    balance: str = "auto",
) -> Splits:
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
        text: name of the column of texts; ``None`` (default) for "text" or another usual name, such as "review".
        label: name of the column of classes; ``None`` (default) for "label" or another usual name.
        split: name of the column that says train, validation or test; ``None`` (default) for "split", if there is one.
        group: name of the column of groups, such as authors; ``None`` (default) for "group", if there is one.
        max_length: largest length in pieces, with the two at both ends: 32, 64, 128 (default) or 256.
        tokenizer: as in :func:`load_tokenizer`; default ``None`` for that of all-MiniLM-L6-v2.
        seed: int; another seed gives another split.
        splits: fractions of train, validation and test; that of test may be 0.
        max_bad: largest fraction of empty and unlabelled texts that is accepted, 0 to 1; default 0.05.
        balance: what is done about classes of different size, as in :func:`thaw.data.splits.resolve_balance`.

    Returns:
        :class:`thaw.data.splits.Splits`, whose datasets hold int32 ``(n, length)`` numbers of pieces, 0 for padding.
        ``files`` names each text by its file, or its line.

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
    check_split_arguments(splits, max_bad, balance)
    seed, tokenizer = as_seed(seed), load_tokenizer(tokenizer)
    source = Path(data) if isinstance(data, (str, os.PathLike)) else Path("the table")
    columns, notes = read_texts(data, text=text, label=label, split=split, group=group)
    names = columns.pop("name")
    texts = columns.pop("text")
    checks = check_texts(texts, columns["label"], columns.get("split"), names)
    encodings = tokenizer.encode_batch(texts)
    longest = max(len(encoding.ids) for encoding in encodings)
    length = next((n for n in LENGTHS if longest <= n), max_length)
    pieces = _padded(tokenizer, texts, encodings, min(length, max_length))
    unknown = getattr(tokenizer.model, "unk_token", None)
    more = [*note_foreign(encodings, unknown, names), _note_length(encodings, pieces.shape[1])]
    return split_examples(
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
        unlabelled="has no label",
        fractions=splits,
        seed=seed,
        max_bad=max_bad,
        balance=balance,
        notes=notes,
        more_notes=[*checks.notes, *more],
    )


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
    more = "" if length == LENGTHS[-1] else f" (max_length={LENGTHS[LENGTHS.index(length) + 1]} takes more)"
    return f"{text}, and {cut} of {len(sizes)} are cut off{more}."
