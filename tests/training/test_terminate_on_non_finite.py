"""Stop at the first loss that is not a number."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from thaw.training.callbacks import TerminateOnNonFinite


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "nan"), (np.inf, "inf")])
def test_it_says_where(bad, word):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25), "mae", run_eagerly=True)
    x = np.ones((8, 1), "float32")
    y = np.ones((8, 1), "float32")
    y[5] = bad
    with pytest.raises(FloatingPointError) as error:
        model.fit(x, y, batch_size=2, shuffle=False, callbacks=[TerminateOnNonFinite("top")], verbose=0)
    message = str(error.value)
    assert f'The loss became {word} in phase "top", epoch 1, batch 3 (step 3 of the phase)' in message
    assert "at a learning rate of 0.25" in message
    assert "Try a tenth of the learning rate" in message


def test_it_names_the_epoch():
    callback = TerminateOnNonFinite("a")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    callback.set_model(model)
    callback.on_epoch_begin(6)
    callback.on_train_batch_end(0, {"loss": 1e30})
    callback.on_train_batch_end(0)
    with pytest.raises(FloatingPointError, match="epoch 7, batch 5"):
        callback.on_train_batch_end(4, {"loss": float("-inf")})
