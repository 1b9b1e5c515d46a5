"""Results as JSON has them."""

import dataclasses
import math


def plain(found, *left_out):
    """A dataclass as JSON has it, without the fields that are left out; what is no finite number is ``None``.

    Args:
        found: a dataclass, an array, a list, a dict, a number or a text; each may hold the others.
        left_out: names of fields.

    Example:
        >>> from thaw.plain import plain
        >>> import dataclasses
        >>> found = dataclasses.make_dataclass("Found", ["score", "errors"])(float("nan"), [1])
        >>> plain(found, "errors")
        {'score': None}
    """
    if dataclasses.is_dataclass(found):
        names = [field.name for field in dataclasses.fields(found)]
        return {name: plain(getattr(found, name), *left_out) for name in names if name not in left_out}
    if isinstance(found, dict):
        return {name: plain(value, *left_out) for name, value in found.items()}
    if hasattr(found, "tolist"):
        found = found.tolist()
    if isinstance(found, (list, tuple)):
        return [plain(value, *left_out) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
