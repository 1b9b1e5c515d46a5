"""Export a model for serving."""

import os
import re
import tempfile
from pathlib import Path


def export_model(model, folder):
    """Export a model as a TensorFlow SavedModel whose endpoint ``serve`` predicts as ``model.predict`` does.

    ``model.export`` calls the model without saying that it is not trained, and layers that augment, such as
    ``RandomFlip``, take that for training: what is served then differs from call to call. Here every layer is called in
    inference.

    Args:
        model: functional or sequential ``keras.Model``; neither its weights nor its compilation change.
        folder: path of the folder to write; it appears when it is complete.

    Raises:
        TypeError: no model was given, but a path, say.
        FileExistsError: the folder exists and is not empty.
        ValueError: a subclassed model, whose inputs are not known.

    Example:
        >>> import keras, numpy as np
        >>> import tensorflow as tf
        >>> from thaw.runs import export_model
        >>> model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.RandomFlip(), keras.layers.Flatten()])
        >>> export_model(model, "served")
        >>> served = tf.saved_model.load("served")
        >>> x = np.arange(48, dtype="float32").reshape(1, 4, 4, 3)
        >>> np.array_equal(served.serve(x), x.reshape(1, 48))
        True
    """
    import keras
    import tensorflow as tf

    from thaw._keras import functional_graph, graph_nodes
    from thaw._validation import check_model

    check_model(model)
    if graph_nodes(model) is None:
        raise ValueError(f"{model.name} is a subclassed model, whose inputs are not known; write model.export(folder).")
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists{' and is not empty' if folder.is_dir() else ''}; name another folder.")
    inputs = functional_graph(model).input
    inputs = inputs[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else inputs
    taken = set()

    def spec(tensor):
        # The name of an input may hold what an endpoint's may not, such as that of a column with a space.
        name = plain = re.sub(r"[^A-Za-z0-9_]", "_", tensor.name)
        while name in taken:  # "size 1" and "size-1"
            name = f"{plain}_{len(taken)}"
        taken.add(name)
        return tf.TensorSpec(tensor.shape, tensor.dtype, name=name)

    signature = keras.tree.map_structure(spec, inputs)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x, training=False), input_signature=[signature])
    final = folder.resolve()  # of a link, the folder it leads to
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".export-") as temporary:
        archive.write_out(os.path.join(temporary, "model"), verbose=False)
        if final.is_dir():  # empty, and in the way on Windows
            final.rmdir()
        os.replace(os.path.join(temporary, "model"), final)
