"""Ten epochs of the head on 2,000 photographs: thaw against plain Keras, whole processes.

    scripts/setup
    python benchmarks/head_only.py [PAIRS] [--pictures 2000]

What plain Keras does, and what is the same in both, is written in benchmarks/both_ways.py. Imports, decoding and
compilation are counted in both; thaw begins with an empty cache. The aim is at least 9.5 times faster. A third way is
shown for comparison: who knows that the backbone is frozen can run it once by hand, with `predict`, and fit the head
on what comes out, in code of their own and with a model that they have to put together again.

The fourth way is thaw with the frozen layers in int8, and its aim is at least 12 times. The quantized network was
calibrated, and judged on these pictures, by a run before that is not timed (some 20 seconds more, once for a backbone);
nothing else of that run is kept, neither decoded pictures nor features. It needs the extra [int8].
"""

import functools

from both_ways import BATCH, both_ways, in_plain_keras, network, ours, timed_phases

from thaw import Phase, Plan

PLAN = Plan([Phase(name="head", epochs=10, train="head", learning_rate=1e-3, views=1)])


def by_hand(folder, plan, seed, clock):
    import keras
    import numpy as np

    from thaw.training import lr_schedule

    clock("imports")
    keras.utils.set_random_seed(seed)
    (phase,) = plan
    model = network(seed)
    clock("backbone and head")
    standing = keras.Model(model.input, model.get_layer("head_pool").output)
    standing.compile(jit_compile=False)
    parts = []
    for split in ("train", "validation"):
        # Cached, since the labels are read after the pictures; Keras' order is another in every pass.
        data = in_plain_keras(folder / split).batch(BATCH).cache()
        labels = np.concatenate([y for _, y in data])
        parts.append((standing.predict(data, verbose=0), labels))
    features = keras.Input(standing.output_shape[1:])
    head = keras.Model(features, model.get_layer("head_classes")(model.get_layer("head_dropout")(features)))
    rate = lr_schedule(phase.schedule, phase.learning_rate, phase.epochs * -(-len(parts[0][1]) // BATCH), phase.warmup)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=1.0)
    head.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    timed = timed_phases(clock)
    timed.on_phase_begin(phase)
    history = head.fit(
        *parts[0], batch_size=BATCH, validation_data=parts[1], epochs=phase.epochs, callbacks=[timed], verbose=0
    )
    return [len(y) for _, y in parts], history.history["val_accuracy"], []


if __name__ == "__main__":
    both_ways(
        __file__,
        PLAN,
        aim=9.5,
        also={"by hand": by_hand, "int8": functools.partial(ours, runtime="int8")},
        kept={"int8": ["activations/*.quantized", "activations/*.judged"]},
        aims={"int8": 12},
    )
