"""Every form of data gives the same inputs, labels left out."""

import hashlib

import numpy as np
import pytest

from thaw.examples import Examples
from thaw.measuring.inputs_of import inputs_of

X = np.arange(14.0, dtype="float32").reshape(7, 2)


def dataset(*parts):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(3)


def test_all_forms_of_data_say_the_same():
    y = np.zeros(7)
    for data in (X, (X, y), [X, y], Examples(x=X, y=y), dataset(X), dataset(X, y), dataset(X, y, y)):
        batches = [np.asarray(batch) for batch in inputs_of(data, 3)]
        assert [len(batch) for batch in batches] == [3, 3, 1]
        assert np.array_equal(np.concatenate(batches), X)


def test_the_digest_tells_the_order_of_a_data_set():
    def digest(data):
        found = hashlib.sha256()
        list(inputs_of(data, 3, found))
        return found.hexdigest()

    assert digest(dataset(X)) == digest(dataset(X, X)) != digest(dataset(X[::-1].copy()))
    assert digest(X) == digest(X[::-1]) == hashlib.sha256().hexdigest()  # arrays stay in their order


@pytest.mark.parametrize(
    ("data", "message"), [(lambda: "photos", "are a str; expected"), (lambda: dataset(X).repeat(), "never ends")]
)
def test_what_cannot_be_read_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        next(inputs_of(data(), 3))
