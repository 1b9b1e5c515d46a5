"""What a checkpoint says of its arrays: the types that NumPy does not have by itself, and anything else is refused."""

import json

import ml_dtypes
import numpy as np
import pytest

from thaw.training.checkpoint import read_checkpoint, write_checkpoint


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_types_of_ml_dtypes(tmp_path, dtype):
    values = np.array([1.5, -2.0], dtype)
    write_checkpoint(tmp_path / "c.npz", {}, {"model": [values]})
    (found,) = read_checkpoint(tmp_path / "c.npz")[1]["model"]
    assert found.dtype == dtype
    assert found.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("named", ["finfo", "__name__", "no_such", "O", "float64", 3, [], {"names": 1}])
def test_other_types(tmp_path, named):
    """The name in a file is data, and never that of an attribute."""
    meta = np.frombuffer(json.dumps({"format": 2, "types": {"model/0": named}}).encode(), np.uint8)
    np.savez(tmp_path / "c.npz", meta=meta, **{"model/0": np.zeros(3, "V2")})
    with pytest.raises(ValueError, match=r"c\.npz is damaged; delete it to start the run"):
        read_checkpoint(tmp_path / "c.npz")
