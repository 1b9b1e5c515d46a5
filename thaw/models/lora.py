"""LoRA: add low-rank adapters to layers of a model, and merge them into the kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections import Counter
from typing import Any

import numpy as np

from thaw._keras import (
    learnable_variables,
    lora_base_variables,
    set_layer_trainable,
    set_trainable_flag,
    sublayers,
    trainable_flag,
)
from thaw._validation import as_int, as_number, as_seed, check_model
from thaw.models.stages import HEAD, stages_of

_VARIABLES = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Adapters:
    """Tell which layers of a model were given LoRA, and which could not be.

    Args:
        layers: the layers with adapters, in the order of the computation.
        without: ``(layer, reason)`` for each layer of the same stages that has a kernel and no adapters. In a phase
            with ``variables="adapters"`` it stays frozen.
        rank: rank of the products that are added to the kernels.

    Example:
        >>> import keras
        >>> from thaw import add_lora
        >>> convolutions = [keras.layers.DepthwiseConv2D(3), keras.layers.Conv2D(32, 1)]
        >>> model = keras.Sequential([keras.Input((8, 8, 16)), *convolutions])
        >>> print(add_lora(model, rank=4))
        LoRA of rank 4 on 1 layer (1 Conv2D), 192 weights; frozen: 1 DepthwiseConv2D (Keras has no LoRA for it).
    """

    layers: tuple[Any, ...]
    without: tuple[tuple[Any, str], ...]
    rank: int

    @property
    def parameters(self):
        """Number of parameters in the adapters."""
        return sum(math.prod(v.shape) for layer in self.layers for v in adapter_variables(layer))

    def __str__(self):
        count = len(self.layers)
        text = f"LoRA of rank {self.rank} on {count} layer{'s' * (count != 1)} ({_counted(self.layers)})"
        text += f", {self.parameters:,} weights"
        by_reason = {}
        for layer, reason in self.without:
            by_reason.setdefault(reason, []).append(layer)
        frozen = ", ".join(f"{_counted(layers)} ({reason})" for reason, layers in by_reason.items())
        return f"{text}; frozen: {frozen}." if frozen else f"{text}."

    __repr__ = __str__


def add_lora(model, stages=None, rank=8, alpha=None, seed=0):
    """Add LoRA (Hu et al. 2022) to the layers of a model: a trainable low-rank product beside each frozen kernel.

    Keras' own LoRA is switched on, layer by layer, by the layer object: in ``Dense``, ``EinsumDense``, ``Embedding``
    and convolutions with one group or several, nested models and layers inside other layers included. The kernel ``W``
    is frozen and becomes ``W + alpha / rank * A @ B``. ``B`` starts at zero, so that the predictions stay the same.
    Depthwise, separable and transposed convolutions and recurrent layers have no LoRA in Keras: their kernels stay as
    they are, and what is returned names them.

    :func:`thaw.freeze` and all phases of :func:`thaw.fine_tune` keep the kernel frozen. A phase with
    ``variables="adapters"`` trains the adapters and the head alone. :func:`thaw.save_adapters` saves them, and
    :func:`thaw.merge_lora` makes a plain model again, which is what to save as a file: Keras opens a model with LoRA
    with the right kernels, and with adapters of zeros that cannot learn.

    Adapters save disk and memory, and no time on a CPU: the products are computed in addition to the kernels.

    Args:
        model: a built ``keras.Model``, flat or nested, changed in place. One that was trained before has to be compiled
            again.
        stages: names of stages from :func:`thaw.stages_of`, or a number of stages below the head. Default ``None``: all
            stages below the head, which itself is trained as a whole.
        rank: int, rank of the products. Default 8.
        alpha: number above 0; the products are scaled by ``alpha / rank``. Default ``None``: ``rank``.
        seed: int, seeds the matrices ``A``. Default 0.

    Returns:
        :class:`thaw.models.Adapters`, which prints the layers that have adapters and those that cannot.

    Raises:
        ValueError: an invalid argument, no such stage, a layer that has LoRA already, or no layer that can have it.

    Example:
        >>> import keras
        >>> from thaw import add_lora, freeze
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64), keras.layers.Dense(2)])
        >>> add_lora(model, rank=4)
        LoRA of rank 4 on 1 layer (1 Dense), 512 weights.
        >>> trainable = freeze(model, "all", variables="adapters")
        >>> [v.name for v in model.trainable_variables]
        ['lora_kernel_a', 'lora_kernel_b', 'kernel', 'bias']
    """
    import keras

    check_model(model)
    rank, seed = as_int("rank", rank, 1), as_seed(seed)
    alpha = as_number(alpha)
    if alpha is not None and not (isinstance(alpha, (int, float)) and 0 < alpha < math.inf):
        raise ValueError(f"alpha={alpha!r}; expected a number above 0, or None for the rank.")
    chosen = _chosen_stages(stages_of(model), stages)
    can, without, seen = [], [], set()
    for layer in (layer for stage in chosen for layer in stage.layers):
        normalized = _inside_spectral_normalization(layer)
        for part in sublayers(layer):
            if id(part) in seen:
                continue
            seen.add(id(part))
            if getattr(part, "lora_enabled", False):
                raise ValueError(
                    f"{part.name} has LoRA already; choose other stages, or merge it first: merge_lora(model)."
                )
            reason = "a SpectralNormalization scales its kernel" if id(part) in normalized else _reason_against(part)
            if reason is None:
                can.append(part)
            elif hasattr(part, "enable_lora") or _has_kernel(part):
                without.append((part, reason))
    names = ", ".join(stage.name for stage in chosen)
    if not can:
        reasons = ", ".join(dict.fromkeys(reason for _, reason in without)) or "there is no kernel"
        raise ValueError(
            f"No layer in {names} can have LoRA ({reasons}); expected a Dense, EinsumDense, Embedding or convolution."
        )
    rng = np.random.default_rng(seed)
    with scope_of(model):
        for layer in can:
            initializer = keras.initializers.HeUniform(seed=int(rng.integers(2**31)))
            layer.enable_lora(rank, lora_alpha=alpha, a_initializer=initializer)
    forget_traces(model)
    return Adapters(tuple(can), tuple(without), rank)


def merge_lora(model):
    """Merge the adapters of a model into its kernels, in place: the same predictions, and a plain model.

    Each kernel becomes ``W + alpha / rank * A @ B``, and is trainable again. The model has the layers, the
    configuration and the number of weights that it had before :func:`thaw.add_lora`, so that its file opens with Keras
    alone. What was added to the kernels cannot be taken back: to keep the adapters, save them first
    (:func:`thaw.save_adapters`).

    Args:
        model: a built ``keras.Model``, changed in place; one that was trained has to be compiled again. A model without
            LoRA stays as it is.

    Returns:
        The model.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import add_lora, merge_lora
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        >>> adapters = add_lora(model, rank=2)
        >>> _ = adapters.layers[0].lora_kernel_b.assign(np.ones((2, 4)))
        >>> before = model(np.ones((1, 3)))
        >>> np.allclose(merge_lora(model)(np.ones((1, 3))), before, atol=1e-5)
        True
        >>> len(model.weights)
        4
    """
    import keras

    check_model(model)
    adapted = [layer for layer in sublayers(model) if adapter_variables(layer)]
    # In float32, whatever the layers compute in: half precision would round the kernels for good.
    scales = [layer.lora_alpha / layer.lora_rank for layer in adapted]
    products = [keras.ops.matmul(*(v.value for v in adapter_variables(layer))) for layer in adapted]
    with _cheap_collection():
        for layer, scale, product in zip(adapted, scales, products):
            [kernel] = lora_base_variables(layer)
            kernel.assign(keras.ops.add(keras.ops.cast(kernel.value, "float32"), scale * product))
            flag = trainable_flag(layer)
            set_layer_trainable(layer, True)  # so that what is frozen is not taken for frozen by the user
            for name in _VARIABLES:
                if getattr(layer, name, None) is not None:
                    delattr(layer, name)  # with which Keras forgets the variable
            layer.lora_enabled, layer.lora_rank, layer.lora_alpha = False, None, None
            kernel.trainable = True
            set_layer_trainable(layer, flag)
            set_trainable_flag(layer, flag)
    if adapted:
        forget_traces(model)
    return model


def adapter_variables(layer):
    """Return the matrices ``A`` and ``B`` of a layer with LoRA, as a list; an empty one for any other layer.

    Args:
        layer: a ``keras.Layer``; layers inside it are not looked at.

    Example:
        >>> import keras
        >>> from thaw.models.lora import adapter_variables
        >>> dense = keras.layers.Dense(3)
        >>> dense.build((None, 2))
        >>> dense.enable_lora(1)
        >>> [tuple(v.shape) for v in adapter_variables(dense)]
        [(2, 1), (1, 3)]
    """
    if not getattr(layer, "lora_enabled", False):
        return []
    return [v for name in _VARIABLES if (v := getattr(layer, name, None)) is not None]


def forget_traces(model):
    """Let a model trace its functions again, which would go on to compute with the variables of before.

    An optimizer that was built knows those variables only: the model then counts as not compiled.

    Args:
        model: ``keras.Model`` whose variables are others now.
    """
    model.train_function = model.test_function = model.predict_function = None
    if getattr(getattr(model, "optimizer", None), "built", False):
        model.compiled = False


def scope_of(model):
    """Return the scope of the strategy that a model was made under, into which its new variables belong.

    Args:
        model: ``keras.Model``.

    Returns:
        A context manager; one that does nothing where the backend has no strategies.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _chosen_stages(stages, chosen):
    """Return the stages that are named, or as many below the head as the number says."""
    below = [stage for stage in stages if stage.name != HEAD]
    if chosen is None:
        return below
    names = [stage.name for stage in stages]
    count = as_number(chosen)
    if isinstance(count, int) and not isinstance(count, bool):
        if not 1 <= count <= len(below):
            raise ValueError(f"stages={count}; the model has {len(below)} stages below the head: expected 1 or more.")
        return below[len(below) - count :]
    if isinstance(chosen, str):
        chosen = (chosen,)
    if not isinstance(chosen, (tuple, list)) or not chosen:
        raise ValueError(f"stages={chosen!r}; expected names of stages, or a number of stages below the head.")
    for name in chosen:
        if name not in names:
            raise ValueError(f'The model has no stage "{name}"; it has {", ".join(names)}.')
    return [stage for stage in stages if stage.name in chosen]


def _reason_against(layer):
    """Say why a layer cannot have LoRA; ``None`` where it can."""
    if not hasattr(layer, "enable_lora"):
        return "Keras has no LoRA for it"
    if type(layer).__module__.split(".")[0] not in ("keras", "keras_hub"):
        return "a class of your own may compute without its LoRA"
    if getattr(layer, "kernel_constraint", None) or getattr(layer, "embeddings_constraint", None):
        return "its kernel has a constraint"
    if getattr(layer, "quantization_mode", None):
        return "its kernel is quantized"
    return None if layer.built else "it is not built"


def _has_kernel(layer):
    """Say whether a layer has a kernel of its own; a wrapper may list that of the layer inside it."""
    inside = {id(v) for part in sublayers(layer, include_self=False) for v in learnable_variables(part)}
    return any(len(v.shape) > 1 and id(v) not in inside for v in learnable_variables(layer))


def _inside_spectral_normalization(layer):
    """Return the ids of layers whose kernels a wrapper changes in place, which LoRA would hide from it."""
    import keras

    norms = [part for part in sublayers(layer) if isinstance(part, keras.layers.SpectralNormalization)]
    return {id(part) for norm in norms for part in sublayers(norm, include_self=False)}


def _counted(layers):
    """Return ``"16 Conv2D, 8 Dense"``."""
    return ", ".join(f"{count} {name}" for name, count in Counter(type(layer).__name__ for layer in layers).items())


@contextlib.contextmanager
def _cheap_collection():
    """Make garbage collections cheap: Keras runs one for each variable that is deleted, half a second each."""
    if gc.get_freeze_count():  # the caller has frozen objects of their own
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
