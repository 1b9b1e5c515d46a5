"""all-MiniLM-L6-v2 for English texts, and its published weights from an installed package."""

import numpy as np

from thaw.data.minilm_files import minilm_file

_WIDTH, _HEADS, _BLOCKS, _HIDDEN = 384, 12, 6, 1536
_TOKENS, _POSITIONS = 30522, 512
_EPSILON = 1e-12


def minilm(weights="published", *, length=128):
    """Build all-MiniLM-L6-v2: 22.6 million weights, from token numbers to a sequence of 384 features.

    A BERT encoder (Devlin et al. 2019) of six blocks with 12 heads of attention, distilled as Wang et al. (2020) write
    and tuned on pairs of sentences (Reimers and Gurevych 2019). Token 0 is padding: it is masked in attention, and in
    the pooling that :func:`thaw.attach_head` puts on top, so that a text has the same features at any length. The
    published head is the mean over the tokens, normalized to length 1. Every token is of the first of the two types,
    whose embedding is added to those of the positions.

    Args:
        weights: ``"published"`` (default), or ``None`` for random weights.
        length: tokens of each text, 2 to 512; ``None`` for any number of them. Default 128.

    Returns:
        A plain ``keras.Model`` from int32 ``(length,)`` to float32 ``(length, 384)``.

    Raises:
        ModuleNotFoundError: the package with the weights, or the one that reads them, is not installed.
        ValueError: the file of weights is not the published one, or the length is invalid.

    Example:
        >>> from thaw.models.minilm import minilm
        >>> minilm(weights=None, length=32).output_shape
        (None, 32, 384)
    """
    import keras
    from keras import layers, ops

    if weights not in ("published", None):
        raise ValueError(f'weights={weights!r}; MiniLM takes "published" or None.')
    if length is not None and (type(length) is not int or not 2 <= length <= _POSITIONS):
        raise ValueError(f"length={length!r}; expected 2 to {_POSITIONS} tokens, or None for any number of them.")
    tensors = _read_weights() if weights else None

    def normed(x, y, name):
        return layers.LayerNormalization(epsilon=_EPSILON, name=f"{name}_norm")(layers.Add(name=f"{name}_add")([x, y]))

    tokens = keras.Input((length,), dtype="int32", name="tokens")
    is_token = ops.not_equal(tokens, 0)
    # Given to every attention: the mask that a tensor carries is lost in the first residual sum behind one.
    attended = ops.expand_dims(is_token, 1)
    count = ops.cast(is_token, "int32")
    # From 1, for a sum is masked only where both parts are; padding has position 0.
    positions = ops.cumsum(count, axis=-1) * count
    x = normed(
        layers.Embedding(_TOKENS, _WIDTH, mask_zero=True, name="token_embedding")(tokens),
        layers.Embedding(_POSITIONS + 1, _WIDTH, mask_zero=True, name="position_embedding")(positions),
        "embedding",
    )
    for i in range(_BLOCKS):
        name = f"block{i}"
        attention = layers.MultiHeadAttention(_HEADS, _WIDTH // _HEADS, name=f"{name}_attention")
        x = normed(x, attention(x, x, attention_mask=attended), f"{name}_attention")
        hidden = layers.Dense(_HIDDEN, activation="gelu", name=f"{name}_expand")(x)
        x = normed(x, layers.Dense(_WIDTH, name=f"{name}_project")(hidden), f"{name}_output")
    model = keras.Model(tokens, x, name="all_minilm_l6_v2")
    if tensors is not None:
        _assign(model, tensors)
    return model


def _read_weights():
    path = minilm_file("model.safetensors")
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "safetensors, which reads the weights of all-MiniLM-L6-v2, is not installed; install it: "
            'pip install "keras-thaw[text]".'
        ) from error
    return load_file(path)


def _assign(model, tensors):
    """Copy the published tensors into the layers of a model."""

    def assign(layer, *values):
        model.get_layer(layer).set_weights(values)

    def norm(layer, name):
        assign(layer, tensors[f"{name}.LayerNorm.weight"], tensors[f"{name}.LayerNorm.bias"])

    def dense(layer, name):
        assign(layer, tensors[f"{name}.weight"].T, tensors[f"{name}.bias"])

    first_type = tensors["embeddings.token_type_embeddings.weight"][0]
    assign("token_embedding", tensors["embeddings.word_embeddings.weight"])
    positions = tensors["embeddings.position_embeddings.weight"] + first_type
    assign("position_embedding", np.concatenate([np.zeros_like(positions[:1]), positions]))
    norm("embedding_norm", "embeddings")
    by_head = (_HEADS, _WIDTH // _HEADS)
    for i in range(_BLOCKS):
        name, block = f"encoder.layer.{i}", f"block{i}"
        values = []
        for part in ("query", "key", "value"):
            weight, bias = (tensors[f"{name}.attention.self.{part}.{kind}"] for kind in ("weight", "bias"))
            values += [weight.T.reshape(_WIDTH, *by_head), bias.reshape(by_head)]
        weight, bias = (tensors[f"{name}.attention.output.dense.{kind}"] for kind in ("weight", "bias"))
        assign(f"{block}_attention", *values, weight.T.reshape(*by_head, _WIDTH), bias)
        norm(f"{block}_attention_norm", f"{name}.attention.output")
        dense(f"{block}_expand", f"{name}.intermediate.dense")
        dense(f"{block}_project", f"{name}.output.dense")
        norm(f"{block}_output_norm", f"{name}.output")
