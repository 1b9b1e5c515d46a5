"""The same bits from the same seed."""


def reproducible(seed):
    """Make what follows in this process reproducible to the bit: same seed, same data, same machine.

    Call it before a model is built. It sets the global random state and asks TensorFlow for operations that
    give the same bits every time.

    Args:
        seed: a whole number from 0.

    Example:
        >>> from thaw.jobs.reproducible import reproducible
        >>> reproducible(7)
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
