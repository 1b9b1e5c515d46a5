"""Keras and TensorFlow without the page that TensorFlow writes about itself."""

import os
import sys


def import_keras():
    """Import Keras and TensorFlow, and keep what their libraries write to stderr meanwhile off the screen.

    TensorFlow does so past every setting of its own. Errors of Python come through.

    Raises:
        ModuleNotFoundError: TensorFlow is not installed; the message says how to install it.

    Example:
        >>> from thaw.jobs.import_keras import import_keras
        >>> import_keras()
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; install thaw with its TensorFlow: pip install 'keras-thaw[cpu]' "
            "(or [gpu])."
        ) from error
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
