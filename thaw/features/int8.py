"""Quantize a frozen prefix to 8-bit integers once, keep it, and judge it by the decisions of a readout.

With int8 OpenVINO computes a convolutional network two to three times as fast as in float32, on CPUs with instructions
for it, and its features are a little different. How much that matters is measured on examples that had no part in the
calibration: a linear readout that was fitted to int8 features has to decide as one that was fitted to float32 features.
Both decide on float32 features, which is what the finished model computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from thaw._files import write_atomically, write_text
from thaw.features.inference import flat_batch, trace_model
from thaw.features.openvino_conversion import (
    ConvertedModel,
    convert_traced,
    import_openvino,
    short_reason,
    unsupported_reason,
)
from thaw.features.ridge import ridge_predict
from thaw.metrics.intervals import binomial_interval
from thaw.tasks import class_numbers

CALIBRATION_EXAMPLES = 300
JUDGED_EXAMPLES = (256, 512, 1000)  # it is judged on more, where fewer cannot tell
MIN_JUDGED_EXAMPLES = 100
MAX_DIFFERENT_DECISIONS = 0.1
FOLDS = 5
INSTALL = 'pip install "keras-thaw[int8]"'


class CannotQuantize(ValueError):
    """Raised where features are not computed in int8; the message says why.

    Example:
        >>> from thaw.features.int8 import CannotQuantize
        >>> issubclass(CannotQuantize, ValueError)
        True
    """


def quantize(model, batches, batch_size, file, notes):
    """Return the quantized model that is kept in a file; where there is none, calibrate it and keep it.

    The weights and the activations of convolutions and matrix products become 8-bit integers, whose ranges are measured
    on examples (Jacob et al. 2018), by NNCF. A model that is kept needs no NNCF, and gives the same bits in every
    process.

    Args:
        model: ``keras.Model``.
        batches: function without arguments that returns batches of inputs; called only to calibrate.
        batch_size: rows that are computed at a time.
        file: its path.
        notes: list of sentences, to which damage is added.

    Returns:
        :class:`thaw.features.openvino_conversion.ConvertedModel`.

    Raises:
        CannotQuantize: OpenVINO or NNCF does not take the model, or no layer of it can be quantized.
        ImportError: NNCF is needed and not installed.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile
        >>> from thaw.features.inference import inference_runner
        >>> from thaw.features.int8 import quantize
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
        >>> x = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
        >>> file = pathlib.Path(tempfile.mkdtemp(), "small.quantized")
        >>> small = quantize(model, lambda: [x], 32, file, [])              # doctest: +SKIP
        >>> run = inference_runner(model, 32, runtime="int8", quantized=small)  # doctest: +SKIP
        >>> float(abs(run(x)[0] - model(x)).max()) < 0.1                    # doctest: +SKIP
        True
    """
    file = Path(file)
    if (kept := _read(file, notes)) is not None:
        return kept
    if importlib.util.find_spec("nncf") is None:
        raise ImportError(f"int8 needs NNCF to calibrate, which is not installed. Install it: {INSTALL}.")
    xml, weights, about = _calibrated(model, list(batches()), batch_size)
    about["sha256"] = _digest_of(xml, weights)
    if (kept := _read(file, notes)) is None:  # where another process was faster, its calibration holds
        write_atomically(file, functools.partial(_write, xml=xml, weights=weights, about=json.dumps(about)))
        kept = _converted(xml, weights, about)
    return kept


def _calibrated(model, batches, batch_size):
    """Return the quantized model as OpenVINO saves it, and what else belongs to it."""
    import keras

    flat, specs = [], None
    for x in batches:
        arrays, specs, _ = flat_batch(model, x, batch_size)
        flat.append({f"input_{i}": np.asarray(array) for i, array in enumerate(arrays)})
    traced = trace_model(model, keras.tree.map_structure(lambda _: 0, batches[0]), specs, True)
    if reason := unsupported_reason(traced):
        raise CannotQuantize(reason)
    openvino = import_openvino()
    with _quiet_nncf() as nncf:
        try:
            converted = convert_traced(traced, len(specs))
            # An input that nothing is computed from is none of the converted model's.
            names = {name for port in converted.model.inputs for name in port.get_names()}
            flat = [{name: array for name, array in arrays.items() if name in names} for arrays in flat]
            # A CPU without VNNI adds two products in 16 bits; weights of 7 bits never overflow there.
            settings = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
            quantized = nncf.quantize(
                converted.model, nncf.Dataset(flat), subset_size=len(flat), advanced_parameters=settings
            )
        except Exception as error:  # whatever fails there, float32 can do it, and the reason is reported
            raise CannotQuantize(f"NNCF does not take the model ({short_reason(error)}).") from error
    if not any(operation.get_type_name() == "FakeQuantize" for operation in quantized.get_ops()):
        raise CannotQuantize("it has no convolutions or matrix products that NNCF can quantize.")
    with tempfile.TemporaryDirectory(prefix="thaw-") as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(quantized, path, compress_to_fp16=False)
        xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    about = {"passed": converted.passed, "inside": converted.inside, "nncf": nncf.__version__, "model": model.name}
    return xml, weights, about


@contextlib.contextmanager
def _quiet_nncf():
    """Import NNCF without its usage reports, and keep its progress bars and its log from the console."""
    import rich

    logger_class, console = logging.getLoggerClass(), rich.get_console()
    reports, was_quiet = os.environ.get("NNCF_CI"), console.quiet
    os.environ["NNCF_CI"] = "1"  # read at the import: nothing is reported
    try:
        import nncf
    finally:
        logging.setLoggerClass(logger_class)
        os.environ.pop("NNCF_CI") if reports is None else os.environ.update(NNCF_CI=reports)
    log = logging.getLogger("nncf")
    level = log.level
    try:
        console.quiet = True
        log.setLevel(logging.ERROR)
        yield nncf
    finally:
        console.quiet = was_quiet
        log.setLevel(level)


def _write(path, xml, weights, about):
    with open(path, "wb") as out:
        np.savez(out, xml=np.frombuffer(xml, np.uint8), weights=np.frombuffer(weights, np.uint8), about=about)


def _read(file, notes):
    """Return the quantized model that a file keeps; ``None`` where there is none, or it is damaged."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as saved:
            xml, weights, about = saved["xml"].tobytes(), saved["weights"].tobytes(), json.loads(str(saved["about"]))
        if about["sha256"] != _digest_of(xml, weights):
            raise ValueError("its checksum is another")
        return _converted(xml, weights, about)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises whatever it meets
        notes.append(f"The quantized network was damaged and is calibrated again ({file}: {short_reason(error)}).")
        file.unlink(missing_ok=True)
        return None


def _converted(xml, weights, about):
    network = import_openvino().Core().read_model(xml, weights)
    # All numbers are among the weights, the measured ranges too; names in the text have counters of the process.
    identity = hashlib.sha256(weights).hexdigest()[:16]
    return ConvertedModel(network, about["passed"], tuple(about["inside"]), identity)


def _digest_of(xml, weights):
    return hashlib.sha256(hashlib.sha256(xml).digest() + hashlib.sha256(weights).digest()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Int8Judgement:
    """How far int8 features are from float32 features; ``str()`` is a sentence.

    Attributes:
        examples: how many examples were compared, none of which was calibrated on.
        different: how many decisions of a linear readout change where it is fitted to int8 features.
        decisions: of how many.
        cosine: mean cosine between the features of an example.
    """

    examples: int
    different: int
    decisions: int
    cosine: float

    @property
    def is_accepted(self):
        """Whether few enough decisions differ."""
        return self.different <= MAX_DIFFERENT_DECISIONS * self.decisions

    def __str__(self):
        share = f"{100 * self.different / self.decisions:.1f} %"
        return (
            f"of {self.decisions:,} decisions of a linear readout on {self.examples:,} examples held out from the "
            f"calibration, {self.different:,} ({share}) differ where it is fitted to int8 features instead of float32 "
            f"ones; the cosine of the features is {self.cosine:.3f}"
        )


def judge(quantized, exact, y):
    """Compare the decisions of linear readouts that were fitted to int8 and to float32 features.

    Each fifth of the examples is decided, from its float32 features, by two ridge regressions
    (:func:`thaw.features.ridge.ridge_predict`) that were fitted to the int8 and to the float32 features of the others.

    Args:
        quantized: ``(n, d)`` int8 features.
        exact: ``(n, d)`` float32 features of the same examples.
        y: ``(n,)`` or ``(n, t)`` targets: classes, of which the readout decides for one; of other numbers it decides
            whether they are above their mean.

    Returns:
        :class:`Int8Judgement`.

    Example:
        >>> import numpy as np
        >>> from thaw.features.int8 import judge
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> judge(x, x, x[:, 0] > 0).different
        0
    """
    targets, decide = _readout_targets(y)
    order = np.argsort(targets @ np.arange(targets.shape[1]) if decide is _largest else targets[:, 0], kind="stable")
    fold = np.empty(len(order), np.int64)
    fold[order] = np.arange(len(order)) % FOLDS  # each class evenly
    different = decisions = 0
    for number in range(FOLDS):
        held = fold == number
        ours, theirs = (
            decide(ridge_predict(features[~held], targets[~held], exact[held]), targets)
            for features in (quantized, exact)
        )
        different, decisions = different + int((ours != theirs).sum()), decisions + ours.size
    norms = np.linalg.norm(quantized, axis=1) * np.linalg.norm(exact, axis=1)
    products = (quantized.astype(np.float64) * exact).sum(axis=1)
    cosine = np.divide(products, norms, out=np.ones(len(norms)), where=norms > 0)
    return Int8Judgement(len(order), different, decisions, round(float(cosine.mean()), 4))


def _largest(predicted, targets):
    return predicted.argmax(axis=1)


def _above_mean(predicted, targets):
    return predicted > targets.mean(axis=0)


def _readout_targets(y):
    """Return float64 ``(n, t)`` targets of a ridge regression, and the function from predictions to decisions."""
    y = np.asarray(y)
    with contextlib.suppress(ValueError):
        numbers = np.unique(class_numbers(y), return_inverse=True)[1]
        if numbers.max() < len(numbers) / FOLDS:  # otherwise they are counts or years, say
            return np.eye(numbers.max() + 1)[numbers], _largest
    return y.reshape(len(y), -1).astype(np.float64), _above_mean


def targets_to_judge(dataset, rows):
    """Return the targets of the examples on which int8 features are judged.

    Args:
        dataset: :class:`thaw.Dataset`.
        rows: ``(n,)`` numbers of the examples.

    Returns:
        ``(n,)`` or ``(n, t)`` array.

    Raises:
        CannotQuantize: too few examples, or no targets that a readout could decide about.
    """
    y = dataset.y
    if y is None or isinstance(y, (dict, list, tuple)) or not 1 <= np.ndim(y) <= 2:
        raise CannotQuantize("it is judged by decisions, and the data have no single array of targets to decide about.")
    if len(rows) < MIN_JUDGED_EXAMPLES:
        raise CannotQuantize(
            f"{len(rows)} examples are left to judge it by, beside those to calibrate on; expected at least "
            f"{MIN_JUDGED_EXAMPLES}."
        )
    return np.ascontiguousarray(np.asarray(y)[rows])


def judge_runner(runner, exact, outputs, part, rows, y, file=None):
    """Judge an int8 runner on some examples, as many as it takes to tell; the judgement is kept in a file.

    Args:
        runner: of the quantized model.
        exact: function without arguments that returns the runner of the same model in float32.
        outputs: how many of the first output tensors are judged.
        part: :class:`thaw.features.extraction.RowKeys` of the dataset.
        rows: ``(n,)`` numbers of the examples, in an order of chance.
        y: their targets, from :func:`targets_to_judge`.
        file: path where the judgement is kept; ``None`` to keep none.

    Returns:
        :class:`Int8Judgement`.
    """
    if file is not None and (kept := _read_judgement(file)) is not None:
        return kept
    exact, features, done = exact(), [[], []], 0
    for end in [n for n in JUDGED_EXAMPLES if n < len(rows)] + [min(len(rows), JUDGED_EXAMPLES[-1])]:
        for x in part.batches(runner.batch_size, None, rows[done:end]):
            for found, run in zip(features, (runner, exact)):
                found.append(np.concatenate([_pooled(tensor) for tensor in run(x)[:outputs]], axis=1))
        done = end
        judgement = judge(*map(np.concatenate, features), y[:done])
        interval = binomial_interval(judgement.different, judgement.decisions)
        if not interval.low < MAX_DIFFERENT_DECISIONS < interval.high:
            break
    if file is not None:
        write_atomically(file, write_text(json.dumps(dataclasses.asdict(judgement))))
    return judgement


def _read_judgement(file):
    try:
        return Int8Judgement(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # none, or a damaged one: it is judged again
        return None


def _pooled(tensor):
    """Return one vector for each example, the mean over the places of a map or a sequence."""
    vectors = tensor.mean(axis=tuple(range(1, tensor.ndim - 1))) if tensor.ndim > 2 else tensor
    return vectors.reshape(len(vectors), -1)
