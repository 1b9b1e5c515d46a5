"""What works with which kind of model: each of zoo.py is inspected, fine-tuned, killed, resumed, saved and exported.

    scripts/setup
    python benchmarks/contract.py [MODEL ...] [--json]

A cell says "works", or "refused" where thaw says in one sentence, before the first epoch, why it will not, and zoo.py
expects it to. Anything else is "FAILED", and the command ends with 1. "-" is a cell that thaw does not offer yet. What
"works" means:

- inspect: the stages are found, preflight has no error, and forecast and probe (where there are classes) give a result;
- frozen: after a phase of the head the weights below it are bit-identical, and those of the head have changed;
- unfrozen: after a phase of all stages every weight that can be trained has changed, and no other;
- resume: killed (kill -9) in the second phase and started again, it ends with the same bits as the run that was not;
- evaluate: the accuracy that thaw reports is that computed by hand from model.predict; of several labels the share of
  rows with all of them right, of numbers the root mean squared error of each;
- open: a process with only Keras (and the user's own classes) opens the saved file and predicts the same to 1e-6;
- export: the exported SavedModel, loaded by TensorFlow, predicts the same to 1e-5.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # every process below is a fork of this one, which has imported Keras and done nothing with it

CELLS = ("inspect", "frozen", "unfrozen", "resume", "evaluate", "open", "export")
WORKS, REFUSED, FAILED, NONE = "works", "refused", "FAILED", "-"
FILES = {"open": "model.keras", "export": "served"}
MAX_SECONDS = 400  # of one process
MAX_LETTERS = 400  # of a sentence


class Wrong(Exception):
    """What a cell promises is not so."""


# ---- what the processes do


def start(kind):
    """Build a model of the zoo as every process of the row does."""
    import tensorflow as tf

    if kind.devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * kind.devices)
    import thaw

    thaw.seed_everything(0)
    return kind.build()


def plan_of():
    from thaw import Phase, Plan

    head = Phase(name="head", train="head", epochs=2, learning_rate=1e-2)
    return Plan([head, Phase(name="all", train="all", epochs=2, learning_rate=1e-2)])


def fit(model, x, y, callbacks=(), folder=None):
    import zoo

    import thaw

    return thaw.fine_tune(
        model,
        plan_of(),
        x,
        y,
        validation_data=(x, y),
        batch_size=zoo.BATCH,
        callbacks=list(callbacks),
        backup_dir=folder,
        monitor="val_loss",
        verbose=0,
    )


def for_keras(x):
    """Inputs as Keras takes them: texts as tensors."""
    import tensorflow as tf

    return keras.tree.map_structure(lambda v: tf.constant(v) if v.dtype.kind in "OU" else v, x)


def values(weights):
    return [w.numpy().copy() for w in weights]


def reset_states(model):
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_states()


def digest(model):
    return hashlib.sha256(b"".join(value.tobytes() for value in values(model.weights))).hexdigest()


def same(a, b):
    return a.tobytes() == b.tobytes()


def judge_phase(weights, before, may_change):
    """Raise where a frozen weight has changed, or a trainable one has not."""
    wrong = []
    for w, old in zip(weights, before, strict=True):
        changed = not same(old, w.numpy())
        if changed != (id(w) in may_change):
            wrong.append(f"{w.path} {'changed' if changed else 'did not change'}")
    if wrong:
        raise Wrong("; ".join(wrong[:3]))


def whole_run(name, folder):
    """All cells that one process can fill; yields (cell, function) for each."""
    import numpy as np
    import zoo

    import thaw
    from thaw._keras import sublayers
    from thaw.checks import raise_on_errors
    from thaw.runs import export_model

    kind = zoo.MODELS[name]
    model, x, y = start(kind)
    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    state = {"epochs": epochs}

    def inspect():
        stages = thaw.stages_of(model)
        if not stages:
            raise Wrong("no stages")
        findings = thaw.preflight(model, x, y, plan_of(), validation_data=(x, y), batch_size=zoo.BATCH)
        state["unsaveable"] = next((str(f) for f in findings if f.code == "unsaveable"), None)
        raise_on_errors(findings)
        thaw.forecast(model, plan_of(), (zoo.EXAMPLES, zoo.EXAMPLES), batch_size=zoo.BATCH)
        if kind.predicts == "classes":
            thaw.probe(model, x, y)

    def frozen():
        weights = list(model.weights)
        judged = {}
        trainable = {id(w) for w in weights if w.trainable}
        if name == "partly_frozen_by_the_user":
            trainable |= {id(w) for w in model.layers[0].weights}
        for layer in sublayers(model):
            own = {id(w) for w in layer.weights}
            if isinstance(layer, keras.layers.BatchNormalization):  # frozen, unless a phase says otherwise
                trainable -= own
            elif isinstance(layer, keras.layers.SpectralNormalization):  # its vector changes in each training step
                trainable |= own
        head = {id(w) for layer in thaw.stages_of(model)[-1].layers for w in layer.weights} & trainable

        class Judge(thaw.TuneCallback):
            def on_phase_begin(self, phase, stages):
                self.phase, self.before = phase.name, values(weights)

            def on_epoch_end(self, epoch, logs=None):  # at the end of the phase the best weights may be those before it
                judged.pop(self.phase, None)
                try:
                    judge_phase(weights, self.before, head if self.phase == "head" else trainable)
                except Wrong as wrong:
                    judged[self.phase] = str(wrong)

        fit(model, x, y, [count, Judge()])
        state.update(judged=judged, digest=digest(model))
        if "head" in judged:
            raise Wrong(judged["head"])

    def unfrozen():
        if "all" in state["judged"]:
            raise Wrong(state["judged"]["all"])

    def evaluate():
        p = np.asarray(model.predict(for_keras(x), batch_size=zoo.BATCH, verbose=0), "float64")
        if kind.predicts == "classes":
            found = [thaw.evaluate(model, x, y, batch_size=zoo.BATCH)["accuracy"]["value"]]
            by_hand = [(p.argmax(axis=-1) == y).mean()]
        elif kind.predicts == "labels":
            task = thaw.MultiLabel([f"label {i}" for i in range(p.shape[1])])
            found = [thaw.evaluate(model, x, y, task=task, batch_size=zoo.BATCH)["subset_accuracy"]["value"]]
            is_probability = p.min() >= 0 and p.max() <= 1  # else they are logits
            by_hand = [((p >= (0.5 if is_probability else 0)) == y).all(axis=1).mean()]
        else:
            task = thaw.Regression([f"target {i}" for i in range(p.shape[1])])
            targets = thaw.evaluate(model, x, y, task=task, batch_size=zoo.BATCH)["targets"]
            found = [target["rmse"]["value"] for target in targets]
            by_hand = np.sqrt(((p - y.reshape(p.shape)) ** 2).mean(axis=0))
        if not np.allclose(found, by_hand, rtol=1e-5, atol=1e-6):
            raise Wrong(f"evaluate gives {found}, by hand it is {list(map(float, by_hand))}")

    def save():
        reset_states(model)
        outputs = keras.tree.flatten(model.predict(for_keras(x), batch_size=zoo.BATCH, verbose=0))
        arrays = [v.astype(str) if v.dtype == object else v for v in keras.tree.flatten(x)]  # nothing is pickled
        inputs = {str(i): value for i, value in enumerate(arrays)}
        np.savez(f"{folder}/inputs.npz", **inputs)
        np.savez(f"{folder}/outputs.npz", **{str(i): value for i, value in enumerate(outputs)})
        with open(f"{folder}/structure.json", "w") as file:
            json.dump(sorted(x) if isinstance(x, dict) else len(inputs), file)
        takes = getattr(model, "input", None)  # an exported model takes the structure that it was built with
        order = [tensor.name for tensor in takes] if isinstance(x, dict) and isinstance(takes, list) else None
        with open(f"{folder}/exported.json", "w") as file:
            json.dump([order, isinstance(takes, tuple)], file)
        model.save(f"{folder}/model.keras")

    def export():
        reset_states(model)
        if getattr(model, "inputs", None):  # a subclassed model names none
            export_model(model, f"{folder}/served")
        else:
            model.export(f"{folder}/served", verbose=False)

    return state, {
        "inspect": inspect,
        "frozen": frozen,
        "unfrozen": unfrozen,
        "evaluate": evaluate,
        "open": save,
        "export": export,
    }


def outcome(function, epochs=()):
    """Run a cell; return what it is and why."""
    try:
        function()
    except Wrong as wrong:
        return FAILED, str(wrong)
    except ValueError as error:
        sentence = str(error)
        if epochs:
            return FAILED, f"refused after {len(epochs)} epochs: {sentence[:300]}"
        if "\n" in sentence.strip() or len(sentence) > MAX_LETTERS or "Traceback" in sentence:
            return FAILED, f"no sentence: {sentence[:300]}"
        return REFUSED, sentence
    except Exception as error:
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return WORKS, ""


def run_all(name, folder):
    """Fill the cells of one process."""
    import zoo

    cells = {}
    try:
        state, functions = whole_run(name, folder)
    except Exception as error:
        traceback.print_exc()
        return {"cells": {"inspect": (FAILED, f"it cannot be built: {type(error).__name__}: {error}")}}
    for cell, function in functions.items():
        if cell == "unfrozen" and cells["frozen"][0] != WORKS and "judged" not in state:
            cells[cell] = cells["frozen"]
        elif cell == "evaluate" and zoo.MODELS[name].predicts == "other":
            cells[cell] = NONE, ""
        elif cell == "open" and state.get("unsaveable"):  # announced by preflight; here it is seen to be true
            opened, _ = outcome(lambda: _reopen(functions["open"], folder))
            it_opens = FAILED, "preflight says that it cannot be opened, and it can"
            cells[cell] = it_opens if opened == WORKS else (REFUSED, state["unsaveable"])
        else:
            cells[cell] = outcome(function, () if cell == "inspect" else state["epochs"])
    return {"cells": cells, "digest": state.get("digest")}


def _reopen(save, folder):
    save()
    keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)


def run_killed(name, folder):
    """Die in the second phase."""
    import zoo

    model, x, y = start(zoo.MODELS[name])

    def die(epoch, logs):
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(model, x, y, [keras.callbacks.LambdaCallback(on_epoch_begin=die)], f"{folder}/backup")
    return {"digest": digest(model)}


def run_resumed(name, folder):
    import zoo

    model, x, y = start(zoo.MODELS[name])
    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    fit(model, x, y, [count], f"{folder}/backup")
    return {"digest": digest(model), "epochs": epochs}


def open_alone(folder, own, hub):
    """Open the saved and the exported file with Keras, and TensorFlow, alone; return how far the predictions differ."""
    import numpy as np

    if own:
        import zoo  # noqa: F401
    if hub:
        import keras_hub  # noqa: F401
    inputs = np.load(f"{folder}/inputs.npz")
    inputs = [inputs[str(i)] for i in range(len(inputs))]
    expected = np.load(f"{folder}/outputs.npz")
    expected = [expected[str(i)] for i in range(len(expected))]
    with open(f"{folder}/structure.json") as file:
        structure = json.load(file)
    x = dict(zip(structure, inputs, strict=True)) if isinstance(structure, list) else inputs
    x = x[0] if structure == 1 else x
    found = {}

    def differ(outputs):
        pairs = zip(keras.tree.flatten(outputs), expected, strict=True)
        return max(float(np.abs(np.asarray(a, "float64") - np.asarray(b, "float64")).max()) for a, b in pairs)

    for cell, predict in (("open", _by_keras), ("export", _by_tensorflow)):
        if os.path.exists(f"{folder}/{FILES[cell]}"):
            try:
                found[cell] = differ(predict(folder, x))
            except Exception as error:
                traceback.print_exc()
                found[cell] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if any(module.partition(".")[0] == "thaw" for module in sys.modules):
        raise Wrong("thaw was imported")
    return found


def _by_keras(folder, x):
    model = keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)
    reset_states(model)
    return model.predict(for_keras(x), batch_size=8, verbose=0)


def _by_tensorflow(folder, x):
    import numpy as np
    import tensorflow as tf

    loaded = tf.saved_model.load(f"{folder}/served")  # its variables live as long as this object
    with open(f"{folder}/exported.json") as file:
        order, as_tuple = json.load(file)
    x, parts = [x[name] for name in order] if order else tuple(x) if as_tuple else x, []
    for first in range(0, len(keras.tree.flatten(x)[0]), 8):
        batch = keras.tree.map_structure(lambda v, first=first: tf.constant(v[first : first + 8]), x)
        output = loaded.serve(batch)
        parts.append([np.asarray(t) for t in keras.tree.flatten(output)])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


# ---- the processes


def in_process(function, *arguments, seconds=MAX_SECONDS):
    """Call a function in a fork; return ``(its result, None)`` or ``(None, why there is none)``."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work():
        log = os.open(os.environ.get("CONTRACT_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        try:
            theirs.send((function(*arguments), None))
        except ValueError as error:
            theirs.send((None, (REFUSED, str(error))))
        except BaseException as error:
            traceback.print_exc()
            theirs.send((None, (FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")))

    child = context.Process(target=work)
    child.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            child.kill()
            return None, (FAILED, f"no answer after {seconds} s")
        return ours.recv()
    except EOFError:
        child.join()
        return None, (FAILED, f"ended with {child.exitcode}")
    finally:
        child.join()


def _rows():
    import zoo

    return [(name, kind.own, kind.hub, kind.refused) for name, kind in zoo.MODELS.items()]


def row(name, own, hub, refused):
    """All cells of one model: a dict from cell to (outcome, why)."""
    cells = _cells(name, own, hub)
    for cell, (kind, why) in cells.items():
        if (kind == REFUSED) != (cell in refused):
            cells[cell] = FAILED, f"refused: {why}" if kind == REFUSED else why or "it was to be refused"
    return cells


def _cells(name, own, hub):
    with tempfile.TemporaryDirectory(prefix="thaw-contract-") as folder:
        os.environ["THAW_CACHE"] = f"{folder}/cache"
        result, why = in_process(run_all, name, folder)
        if why:
            return dict.fromkeys(CELLS, why)
        cells = {cell: tuple(value) for cell, value in result["cells"].items()}
        if set(cells) == {"inspect"}:
            return dict.fromkeys(CELLS, cells["inspect"])
        cells["resume"] = _resume(name, folder, cells, result["digest"])
        alone, why = in_process(open_alone, folder, own, hub)
        for cell, limit in (("open", 1e-6), ("export", 1e-5)):
            if cells[cell][0] != WORKS:
                continue
            differs = why[1] if why else alone.get(cell, "not written")
            if isinstance(differs, str):
                cells[cell] = FAILED, differs
            elif not differs <= limit:
                cells[cell] = FAILED, f"predictions differ by {differs:.2g}"
        return cells


def _resume(name, folder, cells, expected):
    if cells["frozen"][0] == REFUSED:
        return cells["frozen"]
    result, why = in_process(run_killed, name, folder)
    if result or why[0] == REFUSED or "ended with" not in why[1]:
        return (FAILED, "it was not killed") if result else why
    result, why = in_process(run_resumed, name, folder)
    if why:
        return FAILED, why[1]
    if result["epochs"] != [3]:
        return FAILED, f"resumed with the epochs {result['epochs']}, expected [3]"
    return (WORKS, "") if result["digest"] == expected else (FAILED, "other bits than the run that was not killed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of zoo.py; all without one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    given = parser.parse_args()
    rows, why = in_process(_rows)
    if why:
        sys.exit(why[1])
    rows = [r for r in rows if not given.models or r[0] in given.models]
    unknown = set(given.models) - {name for name, *_ in rows}
    if unknown:
        parser.error(f"zoo.py has no model {', '.join(sorted(unknown))}")
    table, began = {}, time.monotonic()
    if not given.json:
        print(f"{'':36}" + "".join(f"{cell:>9} " for cell in CELLS), flush=True)
    for number, (name, *about) in enumerate(rows, 1):
        table[name] = row(name, *about)
        if not given.json:
            left = (time.monotonic() - began) / number * (len(rows) - number) / 60
            print(f"{name:36}" + "".join(f"{table[name][cell][0]:>9} " for cell in CELLS), flush=True)
            print(f"{number} of {len(rows)}, about {left:.0f} min left", end="\r", file=sys.stderr, flush=True)
    failed = [(name, cell) for name, cells in table.items() for cell in CELLS if cells[cell][0] == FAILED]
    if given.json:
        print(json.dumps(table))
    else:
        print_reasons(table)
        counts = [
            sum(cells[cell][0] == kind for cells in table.values() for cell in CELLS)
            for kind in (WORKS, REFUSED, FAILED)
        ]
        print(f"\n{len(table)} models: {counts[0]} cells work, {counts[1]} are refused, {counts[2]} failed")
    sys.exit(bool(failed))


def print_reasons(table):
    """Print each sentence once, below the models and cells it belongs to."""
    for kind in (REFUSED, FAILED):
        said = {}
        for name, cells in table.items():
            for cell in CELLS:
                if cells[cell][0] == kind:
                    said.setdefault((name, cells[cell][1]), []).append(cell)
        for (name, sentence), cells in said.items():
            print(f"\n{kind}: {name} ({', '.join(cells)})\n    {sentence}")


if __name__ == "__main__":
    main()
