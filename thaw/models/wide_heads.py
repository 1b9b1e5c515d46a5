"""Recognize a wide head in a graph: pooled features of many layers, standardized, under one dense layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from thaw.models.weighted_means import averaged_keys

_POOLING = tuple(f"Global{kind}Pooling{n}D" for kind in ("Average", "Max") for n in (1, 2))


@dataclasses.dataclass(frozen=True, eq=False)
class WideHead:
    """A wide head, as positions and tensors of the calls in which it was found.

    Args:
        calls: positions of its calls.
        output: id of the tensor that the backbone puts out; the head reads others of the backbone too.
        features: ids of its raw vectors, one for each stage, in the order in which they are concatenated.
        norms: the ``BatchNormalization`` that standardizes each of them: its moving mean and variance are constants.
        clip: standardized values are clipped at plus and minus this number.
        vector: id of the tensor that leaves the clip.
    """

    calls: frozenset[int]
    output: int
    features: tuple[int, ...]
    norms: tuple[Any, ...]
    clip: float
    vector: int


def wide_head(calls):
    """Find the wide head that :func:`thaw.attach_head` builds, by its structure and never by names.

    From the output back: a ``Rescaling``, where numbers are put into their units; layers of one vector; a clip
    (``Rescaling``, ``hard_tanh``, ``Rescaling``); a concatenation; for each part a ``BatchNormalization`` without scale
    and offset, and a concatenation of pooled features. Nothing outside reads any of them.

    Args:
        calls: from :func:`thaw.models.stages.calls_of`.

    Returns:
        :class:`WideHead`; ``None`` where the model has none.

    Example:
        >>> import keras
        >>> from thaw.models.stages import calls_of
        >>> from thaw.models.wide_heads import wide_head
        >>> wide_head(calls_of(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))) is None
        True
    """
    if not calls:
        return None
    made_by = {key: i for i, call in enumerate(calls) for key in call.outputs}

    def maker(key, kind):
        """Return the position of the call that makes a tensor, if it is of this kind; else ``None``."""
        position = made_by.get(key)
        return position if position is not None and kind(calls[position]) else None

    position, found = len(calls) - 1, set()
    while position is not None and (not _rescales(calls[position]) or position == len(calls) - 1):
        found.add(position)
        call = calls[position]
        position = maker(call.inputs[0], _puts_out_a_vector) if len(call.inputs) == 1 else None
    if position is None or not found:
        return None
    clip = position
    tanh = maker(calls[clip].inputs[0], _is_hard_tanh)
    shrink = None if tanh is None else maker(calls[tanh].inputs[0], _rescales)
    if shrink is None:
        return None
    found.update({clip, tanh, shrink})
    standardized = calls[shrink].inputs[0]
    joined = maker(standardized, _concatenates)
    found.update({joined} - {None})
    features, norms, pools = [], [], []
    for key in (standardized,) if joined is None else calls[joined].inputs:
        norm = maker(key, _is_norm)
        if norm is None:
            return None
        raw = calls[norm].inputs[0]
        joined = maker(raw, _concatenates)
        pooled = [maker(key, _is_pooling) for key in ((raw,) if joined is None else calls[joined].inputs)]
        if None in pooled:
            return None
        found.update({norm, *pooled} | ({joined} - {None}))
        features.append(raw)
        norms.append(calls[norm].layer)
        pools += pooled
    inside = {key for i in found for key in calls[i].outputs}
    outside = {key for i, call in enumerate(calls) if i not in found for key in call.inputs}
    # The backbone is what is left; its output is the one tensor that it does not read itself.
    outputs = [key for i in pools if (key := calls[i].inputs[0]) not in outside and key in made_by]
    if inside & outside or not outputs:
        return None
    output = max(outputs, key=made_by.__getitem__)
    clipped, scale = calls[clip].outputs[0], float(calls[clip].layer.scale)
    return WideHead(frozenset(found), output, tuple(features), tuple(norms), scale, clipped)


def wide_heads(calls):
    """Find the wide head of a model, or those of the models that a blend is made of.

    Args:
        calls: from :func:`thaw.models.stages.calls_of`.

    Returns:
        A list of :class:`WideHead`, empty where there is none.
    """
    made_by = {key: i for i, call in enumerate(calls) for key in call.outputs}
    heads = [wide_head(calls)]
    for part in averaged_keys(calls):
        needed, left = set(), [part]
        while left:
            position = made_by.get(left.pop())
            if position is not None and position not in needed:
                needed.add(position)
                left += calls[position].inputs
        positions = sorted(needed)
        head = wide_head([calls[i] for i in positions])
        heads.append(head and dataclasses.replace(head, calls=frozenset(positions[i] for i in head.calls)))
    return [head for head in heads if head is not None]


def backbone_path(calls):
    """Return the calls as if a wide head read nothing but the backbone's output: first the backbone, then the head.

    Args:
        calls: from :func:`thaw.models.stages.calls_of`.

    Returns:
        A list of :class:`thaw.models.stages.Call`; ``calls`` itself where the model has no wide head.
    """
    head = wide_head(calls)
    if head is None:
        return _path_of_blend(calls, wide_heads(calls))
    inside = {key for i in head.calls for key in calls[i].outputs} | {head.output}
    tail = [calls[i] for i in sorted(head.calls)]
    reads_output = next(call for call in tail if head.output in call.inputs)
    others = dict.fromkeys(key for call in tail for key in call.inputs)
    path = _in_order([call for i, call in enumerate(calls) if i not in head.calls], reads_output.inputs, others)
    return path + [
        call if call is reads_output else dataclasses.replace(call, inputs=tuple(k for k in call.inputs if k in inside))
        for call in tail
    ]


def _path_of_blend(calls, heads):
    """Return the calls as if each of the wide heads in a blend read nothing but the output of its backbone."""
    positions = frozenset().union(*(head.calls for head in heads))
    inside = {key for i in positions for key in calls[i].outputs} | {head.output for head in heads}
    behind = {key for i in positions for key in calls[i].outputs}
    first, tail = [], []
    for i, call in enumerate(calls):
        if i in positions:
            tail.append(dataclasses.replace(call, inputs=tuple(key for key in call.inputs if key in inside)))
        elif behind.isdisjoint(call.inputs):
            first.append(call)
        else:
            behind.update(call.outputs)
            tail.append(call)
    return first + tail


def _in_order(calls, outputs, others):
    """Order calls as Keras does where one layer reads these outputs: parallel branches come as under a narrow head.

    By depth, the longest way to an output; calls of the same depth in the order in which a search from the outputs
    comes to them. The calls of a shared layer have the depth of the deepest. What only ``others`` need comes with them.
    """
    made_by = {key: call for call in calls for key in call.outputs}
    finished, left = {}, [(made_by[key], False) for key in reversed([*outputs, *others]) if key in made_by]
    while left:  # depth first; a call is finished behind everything that it reads
        call, is_done = left.pop()
        if is_done:
            finished.setdefault(id(call), call)
        elif id(call) not in finished:
            left += [(call, True), *((made_by[key], False) for key in reversed(call.inputs) if key in made_by)]
    depths, of_layer = {id(made_by[key]): 0 for key in outputs if key in made_by}, {}
    for call in reversed(finished.values()):
        depth = max(depths.get(id(call), 0), of_layer.get(id(call.layer), 0))
        depths[id(call)] = of_layer[id(call.layer)] = depth
        for key in call.inputs:
            if key in made_by:
                depths[id(made_by[key])] = max(depths.get(id(made_by[key]), 0), depth + 1)
    return [finished[key] for key in sorted(depths, key=depths.get, reverse=True)]


def _rescales(call):
    from keras import layers

    return isinstance(call.layer, layers.Rescaling) and _puts_out_a_vector(call)


def _is_hard_tanh(call):
    import keras

    return isinstance(call.layer, keras.layers.Activation) and call.layer.activation is keras.activations.hard_tanh


def _concatenates(call):
    from keras import layers

    return isinstance(call.layer, layers.Concatenate) and _puts_out_a_vector(call)


def _puts_out_a_vector(call):
    return [len(shape) for shape in call.shapes] == [2]


def _is_norm(call):
    from keras import layers

    kind = isinstance(call.layer, layers.BatchNormalization)
    return kind and not call.layer.center and not call.layer.scale and _puts_out_a_vector(call)


def _is_pooling(call):
    """Say whether a call pools a tensor, or hands on one that is a vector already."""
    import keras

    hands_on = isinstance(call.layer, keras.layers.Activation) and call.layer.activation is keras.activations.linear
    return (hands_on or type(call.layer).__name__ in _POOLING) and _puts_out_a_vector(call)
