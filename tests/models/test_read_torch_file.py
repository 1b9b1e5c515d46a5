"""Reading a checkpoint: the tensors, and nothing else."""

import collections
import io
import os
import pickle
import struct

import numpy as np
import pytest

from thaw.models.efficientnet_lite0 import read_torch_file

MAGIC = 0x1950A86A20F9469CFC6C


class Global:
    """Pickled as a call of a global that need not exist here."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args


class Stored:
    def __init__(self, key, size, view=None, kind="storage"):
        self.id = (kind, key, size, view)


class Writer(pickle._Pickler):  # the Python one: its opcodes can be written by hand
    def save(self, thing, save_persistent_id=True):
        if isinstance(thing, Global):
            self.write(f"c{thing.module}\n{thing.name}\n".encode())
            self.save(tuple(thing.args))
            self.write(pickle.REDUCE)
        elif isinstance(thing, Stored):
            kind, key, size, view = thing.id
            self.write(pickle.MARK)
            self.save(kind)
            self.write(b"ctorch\nFloatStorage\n")
            for part in (key, "cpu", size, view):
                self.save(part)
            self.write(pickle.TUPLE + pickle.BINPERSID)
        else:
            super().save(thing, save_persistent_id)


def pickled(thing):
    file = io.BytesIO()
    Writer(file, protocol=2).dump(thing)
    return file.getvalue()


def checkpoint(state, data=b"", keys=()):
    return b"".join(map(pickled, (MAGIC, 1001, {}, state, list(keys)))) + data


def tensor(offset, shape, stride, *, size=6):
    return Global("torch._utils", "_rebuild_tensor_v2", Stored("1", size), offset, shape, stride)


SIX = struct.pack("<q6f", 6, *range(6))


def read(tmp_path, content):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    return read_torch_file(path)


def test_tensors_with_offset_and_strides_and_a_scalar(tmp_path):
    state = collections.OrderedDict(
        plain=tensor(0, (2, 3), (3, 1)),
        turned=tensor(0, (3, 2), (1, 3)),
        end=tensor(4, (2,), (1,)),
        one=tensor(5, (), ()),
    )
    found = read(tmp_path, checkpoint(state, SIX, ["1"]))
    assert list(found) == ["plain", "turned", "end", "one"]
    np.testing.assert_array_equal(found["plain"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["turned"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["end"], [4, 5])
    assert found["one"] == 5
    assert found["plain"].flags.writeable


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("collections", "Counter")],
)
def test_any_other_global_is_refused(tmp_path, module, name):
    with pytest.raises(ValueError, match=rf"asks for {module}\.{name}; only tensors are read"):
        read(tmp_path, checkpoint({"w": Global(module, name, "x")}))


def test_code_in_a_pickle_does_not_run(tmp_path):
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(witness),)

    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.mkdir; only tensors"):
        read(tmp_path, pickle.dumps(Evil(), 2))
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.mkdir; only tensors"):
        read(tmp_path, checkpoint({"w": Evil()}))
    assert not witness.exists()


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    whole = checkpoint({"w": tensor(0, (2, 3), (3, 1))}, SIX, ["1"])
    assert read(tmp_path, whole)["w"].sum() == 15
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"cut short or damaged|not a legacy PyTorch checkpoint"):
            read(tmp_path, whole[:length])


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (1, (2, 3), (3, 1)),
        (-1, (1,), (1,)),
        (0, (10**13,), (0,)),
        (0, (2,), (-1,)),
        (0, (2, 3), (3,)),
        (0, "ab", (1, 1)),
    ],
)
def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path, offset, shape, stride):
    with pytest.raises(ValueError, match="cut short or damaged"):
        read(tmp_path, checkpoint({"w": tensor(offset, shape, stride)}, SIX, ["1"]))


def test_a_storage_larger_than_the_file_is_refused_unread(tmp_path):
    huge = checkpoint({"w": tensor(0, (1,), (1,), size=2**60)}, struct.pack("<q", 2**60), ["1"])
    with pytest.raises(ValueError, match="cut short or damaged"):
        read(tmp_path, huge)


def test_what_is_not_a_state_dict(tmp_path):
    with pytest.raises(ValueError, match="is no state dict; expected names with a tensor each"):
        read(tmp_path, checkpoint([1, 2]))
    with pytest.raises(ValueError, match=r"expected a file made by torch\.save before PyTorch 1\.6"):
        read(tmp_path, b"PK\x03\x04 a zip")
    view = Stored("1", 6, view=("2", 0, 3))
    state = {"w": Global("torch._utils", "_rebuild_tensor_v2", view, 0, (1,), (1,))}
    with pytest.raises(ValueError, match="holds a storage that is not a plain storage"):
        read(tmp_path, checkpoint(state))
    with pytest.raises(FileNotFoundError, match="does not exist; expected a legacy PyTorch checkpoint"):
        read_torch_file(tmp_path / "none.pth")
