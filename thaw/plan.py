"""Plan and Phase: which stages train, at what rate, for how long."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
from pathlib import Path

from thaw._files import to_toml
from thaw._validation import as_number

SCHEDULES = ("cosine", "linear", "constant")
CACHE_DTYPES = ("float32", "float16")
VARIABLES = ("all", "pointwise", "norms", "bias", "adapters")
SOLVERS = ("gradient", "lbfgs", "svm", "ridge")
PLANS = ("probe", "probe_then_tune", "gradual", "full")
# Keys of plan.toml that version 0.1 wrote under another name.
RENAMED_KEYS = {"stage_decay": "layer_decay", "anchor": "l2_sp", "precision": "cache_dtype"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One phase of training: which stages train, at what learning rate, for how many epochs.

    Args:
        name: name of the phase, in the history and in messages.
        epochs: maximum number of passes over the training data.
        train: ``"head"``; ``"all"``; an integer ``n`` for the head and the ``n`` stages below it; or a tuple of stage
            names. The rest of the model is frozen. Defaults to ``"all"``.
        learning_rate: peak learning rate, of the topmost trainable stage. Defaults to 1e-4.
        schedule: ``"cosine"`` or ``"linear"`` decay to zero, or ``"constant"``; each begins with the warm-up. Defaults
            to ``"cosine"``.
        warmup: fraction of the phase's steps, 0 to 1, in which the rate rises linearly from zero to its peak. Defaults
            to 0.1.
        layer_decay: layerwise learning-rate decay (Howard and Ruder 2018): the factor, above 0 and at most 1, from the
            rate of a stage to that of the stage below it. Defaults to 1.0, the same rate everywhere.
        batchnorm: ``"frozen"`` keeps the moving statistics of BatchNormalization; ``"trained"`` updates those of
            trainable stages. Defaults to ``"frozen"``.
        patience: end the phase after this many epochs in which the monitored value did not improve. Defaults to 0,
            never.
        views: number of fixed augmented versions of each example, used in turn, one an epoch, so that the frozen
            prefix is run once for each version instead of in every epoch. Defaults to 0, a new augmentation in every
            epoch.
        l2_sp: strength of L2-SP regularization (Li et al. 2018), which penalizes the distance of the backbone's weights
            from their values at the start of the run; 0.001 to 0.1 is usual. Defaults to 0.0, none.
        cache_dtype: dtype of the cached features: ``"float32"``, or ``"float16"`` for half the disk space. Defaults to
            ``"float32"``.
        solver: how a phase of the head alone fits it. ``"gradient"`` trains it by the model's optimizer. ``"lbfgs"``
            (multinomial logistic regression), ``"svm"`` (a linear support vector machine, calibrated) and ``"ridge"``
            (numbers) solve for its weights in one pass over the data, the strength of the regularization chosen by
            cross-validation: see :func:`thaw.transfer.solve_head`. Such a phase is one epoch; with ``views=0`` it sees
            the examples without augmentation. Where the head is not linear in its features, or the loss is another,
            it is trained by gradient descent for ``epochs``, and a note says so. Defaults to ``"gradient"``.
        soup: at the end of the phase, average the weights of the best of up to this many epochs, the one before the
            phase among them, where that is better on the validation data (greedy model soup, Wortsman et al. 2022); 3
            is usual. Needs validation data and frozen BatchNorm statistics. Defaults to 0, the best epoch alone.
        variables: which weights of the trainable stages below the head are trained. ``"pointwise"`` leaves out the
            filters of convolutions wider than one pixel, the depthwise ones among them, whose gradients take long and
            change little (Lin et al. 2022, Zhu et al. 2023). ``"norms"`` are the scales and offsets of normalization
            layers, of BatchNorm only with ``batchnorm="trained"`` (Frankle et al. 2021); ``"bias"`` the biases and
            these offsets (Ben Zaken et al. 2022); ``"adapters"`` the low-rank matrices that :func:`thaw.add_lora` adds
            (Hu et al. 2022). The head is always trained. Defaults to ``"all"``.

    Raises:
        ValueError: a value is invalid; the message names it and says what is expected.

    Example:
        >>> from thaw import Phase
        >>> Phase(name="head", epochs=5, train="head", learning_rate=1e-3).epochs
        5
    """

    name: str
    epochs: int
    train: str | int | tuple[str, ...] = "all"
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.1
    layer_decay: float = 1.0
    batchnorm: str = "frozen"
    patience: int = 0
    views: int = 0
    l2_sp: float = 0.0
    cache_dtype: str = "float32"
    solver: str = "gradient"
    soup: int = 0
    variables: str = "all"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, as_number(getattr(self, field.name)))
        _expect(isinstance(self.name, str) and self.name.strip(), self, "name", "a word")
        _expect(_is_integer(self.epochs) and self.epochs >= 1, self, "epochs", "a whole number from 1")
        if isinstance(self.train, list):
            object.__setattr__(self, "train", tuple(self.train))
        _expect(
            (_is_integer(self.train) and self.train >= 0)
            or (isinstance(self.train, str) and self.train.strip())
            or (isinstance(self.train, tuple) and self.train and all(isinstance(s, str) for s in self.train)),
            self,
            "train",
            '"head", "all", a number of stages below the head, or a list of stage names',
        )
        _expect(_is_finite(self.learning_rate) and self.learning_rate > 0, self, "learning_rate", "a number above 0")
        _expect(self.schedule in SCHEDULES, self, "schedule", f"one of {', '.join(SCHEDULES)}")
        _expect(_is_finite(self.warmup) and 0 <= self.warmup <= 1, self, "warmup", "a number from 0 to 1")
        _expect(_is_finite(self.layer_decay) and 0 < self.layer_decay <= 1, self, "layer_decay", "above 0, at most 1")
        _expect(self.batchnorm in ("frozen", "trained"), self, "batchnorm", '"frozen" or "trained"')
        _expect(_is_integer(self.patience) and self.patience >= 0, self, "patience", "a whole number from 0")
        _expect(_is_integer(self.views) and self.views >= 0, self, "views", "a whole number from 0")
        _expect(_is_finite(self.l2_sp) and self.l2_sp >= 0, self, "l2_sp", "a number from 0")
        _expect(self.cache_dtype in CACHE_DTYPES, self, "cache_dtype", '"float32" or "float16"')
        _expect(self.solver in SOLVERS, self, "solver", f"one of {', '.join(SOLVERS)}")
        _expect(_is_integer(self.soup) and self.soup >= 0, self, "soup", "a whole number from 0")
        _expect(self.variables in VARIABLES, self, "variables", f"one of {', '.join(VARIABLES)}")
        if self.variables == "adapters":
            _expect(self.batchnorm == "frozen", self, "batchnorm", '"frozen", because adapters are trained alone')
        if self.soup > 1:
            _expect(self.batchnorm == "frozen", self, "batchnorm", '"frozen", because statistics cannot be averaged')
        if self.solves and self.trains_backbone:
            raise ValueError(
                f'Phase "{self.name}" has solver = "{self.solver}" and train = {self.train!r}; a solver fits the head '
                'alone: expected train = "head".'
            )
        if self.solves:
            _expect(self.batchnorm == "frozen", self, "batchnorm", '"frozen", because a solver trains nothing else')

    @property
    def versions(self):
        """Number of augmented versions that its epochs use."""
        return min(self.views, self.epochs)

    @property
    def solves(self):
        """Whether it solves for the head, in one epoch, where that can be solved for."""
        return self.solver != "gradient"

    @property
    def trains_backbone(self):
        """Whether it trains anything but the head."""
        return self.train not in ("head", 0, ("head",))


class Plan(tuple):
    """Describe a fine-tuning run as an immutable sequence of phases.

    A plan is a tuple of :class:`Phase`: it prints, compares, and converts to TOML and back.

    Args:
        phases: iterable of :class:`Phase`, in order; at least one, each with a name of its own.

    Raises:
        ValueError: there is no phase, two have the same name, or an item is not a :class:`Phase`.

    Example:
        >>> from thaw import Phase, Plan
        >>> plan = Plan([Phase(name="head", epochs=3, train="head", learning_rate=1e-3)])
        >>> Plan.from_toml(plan.to_toml()) == plan
        True
        >>> print(Plan.named("probe"))
        phase  epochs  train  rate  schedule  batchnorm
        head        1  head   -     lbfgs     frozen
    """

    __slots__ = ()

    def __new__(cls, phases):
        phases = tuple(phases)
        if not phases:
            raise ValueError("The plan has no phase; expected at least one phase ([[phase]] in a file).")
        for phase in phases:
            if not isinstance(phase, Phase):
                raise ValueError(f"A plan is made of phases; {phase!r} is a {type(phase).__name__}.")
        names = [phase.name for phase in phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'Two phases are named "{name}"; give each a name of its own.')
        return super().__new__(cls, phases)

    def __repr__(self):
        return f"Plan({list(self)!r})"

    def __str__(self):
        rows = [("phase", "epochs", "train", "rate", "schedule", "batchnorm")]
        for p in self:
            train = " ".join(p.train) if isinstance(p.train, tuple) else str(p.train)
            if _is_integer(p.train):
                train = f"head + {p.train}"
            train += f" ({p.variables})" if p.variables != "all" else ""
            rate = f"{p.learning_rate:g}" + (f" x {p.layer_decay:g} a stage" if p.layer_decay < 1 else "")
            how = (str(p.epochs), train, rate, p.schedule) if not p.solves else ("1", train, "-", p.solver)
            rows.append((p.name, *how, p.batchnorm))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = []
        for row in rows:
            cells = [c.rjust(w) if i == 1 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    @property
    def epochs(self):
        """Number of epochs of all phases together."""
        return sum(phase.epochs for phase in self)

    @classmethod
    def named(cls, name, *, head_epochs=None, epochs=None, learning_rate=None):
        """Make one of the predefined plans.

        ``probe`` solves for the head alone, in one pass over the examples. ``probe_then_tune`` does so first, then
        trains the head and the top two stages (Kumar et al. 2022). ``gradual`` solves for the head, then unfreezes
        stage by stage (Howard and Ruder 2018). ``full`` solves for the head, then trains the whole model at a small
        learning rate. A head that cannot be solved for is trained for ``head_epochs``: see :class:`Phase`.

        Args:
            name: ``"probe"``, ``"probe_then_tune"``, ``"gradual"`` or ``"full"``.
            head_epochs: epochs of the head alone where it cannot be solved for. Defaults to 10 in ``probe``, else to 5.
            epochs: epochs of each later phase; of the head, in ``probe``.
            learning_rate: peak rate of the phases that train the backbone (of the head, in ``probe``).

        Returns:
            A :class:`Plan`.

        Raises:
            ValueError: no predefined plan has that name.
        """
        if name not in PLANS:
            raise ValueError(
                f'There is no plan "{name}"; expected {_alternatives(name, PLANS)}, or the path of a .toml file.'
            )
        if name == "probe":
            rate, passes = _default(learning_rate, 1e-3), _default(epochs, _default(head_epochs, 10))
            return cls([Phase(name="head", epochs=passes, train="head", learning_rate=rate, solver="lbfgs")])
        passes = _default(head_epochs, 5)
        head = Phase(name="head", epochs=passes, train="head", learning_rate=1e-3, solver="lbfgs")
        if name == "full":
            rate, passes = _default(learning_rate, 1e-4), _default(epochs, 10)
            return cls([head, Phase(name="all", epochs=passes, learning_rate=rate, layer_decay=0.7)])
        rate = _default(learning_rate, 5e-4)
        top = {"layer_decay": 0.7, "views": 4}
        if name == "probe_then_tune":
            return cls([head, Phase(name="tune", epochs=_default(epochs, 12), train=2, learning_rate=rate, **top)])
        passes = _default(epochs, 4)
        later = [Phase(name=f"top{n}", epochs=passes, train=n, learning_rate=rate / n, **top) for n in (1, 2, 3)]
        return cls([head, *later])

    @classmethod
    def from_toml(cls, text):
        """Read a plan from TOML.

        Args:
            text: content of a plan file: a ``[[phase]]`` table for each phase, with the arguments of :class:`Phase` as
                keys. The keys of version 0.1 (``stage_decay``, ``anchor``, ``precision``) are read too.

        Returns:
            A :class:`Plan`.

        Raises:
            ValueError: invalid TOML, an unknown key, or an invalid value.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"The plan is not valid TOML: {error}.") from None
        for key in table:
            if key != "phase":
                raise ValueError(f'The plan has a key "{key}"; expected nothing but [[phase]] tables.')
        entries = table.get("phase", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("The plan's phase is not a list of tables; write [[phase]], with two brackets.")
        fields = [field.name for field in dataclasses.fields(Phase)]
        phases = []
        for number, entry in enumerate(entries, 1):
            for old, new in RENAMED_KEYS.items():
                if old in entry and new in entry:
                    raise ValueError(f'Phase {number} has both "{old}" and its new name "{new}"; expected one.')
            entry = {RENAMED_KEYS.get(key, key): value for key, value in entry.items()}
            for key in entry:
                if key not in fields:
                    raise ValueError(f'Phase {number} has a key "{key}"; expected {_alternatives(key, fields)}.')
            for key in ("name", "epochs"):
                if key not in entry:
                    raise ValueError(f'Phase {number} has no "{key}"; every phase needs one.')
            phases.append(Phase(**entry))
        return cls(phases)

    def to_toml(self):
        """Write the plan as TOML, to be edited by hand and read by :meth:`from_toml`.

        Returns:
            A string; :meth:`from_toml` makes an equal plan of it.
        """
        blocks = []
        for phase in self:
            lines = ["[[phase]]"]
            for field in dataclasses.fields(phase):
                lines.append(f"{field.name} = {to_toml(getattr(phase, field.name))}")
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n"

    @classmethod
    def load(cls, path):
        """Read a plan file.

        Args:
            path: path of a TOML file, UTF-8.

        Returns:
            A :class:`Plan`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a plan; the message names the file and the error.
        """
        path = Path(path)
        if not path.is_file():
            state = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{path} {state}; expected a plan in TOML.")
        try:
            return cls.from_toml(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def with_l2_sp(self, strength):
        """Regularize the phases that train the backbone by L2-SP.

        Args:
            strength: the strength; see :class:`Phase`.

        Returns:
            A :class:`Plan`.

        Raises:
            ValueError: the strength is negative, or the plan trains the head alone.

        Example:
            >>> [phase.l2_sp for phase in Plan.named("probe_then_tune").with_l2_sp(0.01)]
            [0.0, 0.01]
        """
        if not any(phase.trains_backbone for phase in self):
            raise ValueError("The plan trains the head alone, which has no pre-trained weights; leave out l2_sp.")
        return Plan(dataclasses.replace(p, l2_sp=strength) if p.trains_backbone else p for p in self)

    def with_soup(self, count):
        """Average the weights of the best epochs of each phase that keeps the BatchNorm statistics.

        Args:
            count: up to how many epochs are averaged; 0 for the best epoch alone. See :class:`Phase`.

        Returns:
            A :class:`Plan`.

        Example:
            >>> [phase.soup for phase in Plan.named("probe_then_tune").with_soup(3)]
            [3, 3]
        """
        return Plan(dataclasses.replace(p, soup=count) if p.batchnorm == "frozen" else p for p in self)

    def with_patience(self, patience):
        """Stop each phase early.

        Args:
            patience: number of epochs without a better validation score; see :class:`Phase`.

        Returns:
            A :class:`Plan`.
        """
        return Plan(dataclasses.replace(phase, patience=patience) for phase in self)


def _default(value, default):
    return default if value is None else value


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def _expect(holds, phase, field, expected):
    if not holds:
        raise ValueError(f'Phase "{phase.name}" has {field} = {getattr(phase, field)!r}; expected {expected}.')


def _alternatives(given, allowed):
    close = difflib.get_close_matches(str(given), allowed, n=1)
    return f'"{close[0]}"' if close else "one of " + ", ".join(allowed)


def read_plan(name, *, epochs=None, head_epochs=None, learning_rate=None, l2_sp=None, patience=None):
    """Make a plan from the name of a predefined one, or read a plan file.

    Args:
        name: ``"probe"``, ``"probe_then_tune"``, ``"gradual"`` or ``"full"``; or the path of a ``.toml`` file, which
            says all of the following itself.
        epochs: epochs of each phase that trains the backbone.
        head_epochs: epochs of the head alone.
        learning_rate: peak rate of the phases that train the backbone.
        l2_sp: strength of L2-SP in the phases that train the backbone.
        patience: epochs without a better validation score after which a phase ends.

    Returns:
        A :class:`Plan`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, an invalid file, or options together with a file.

    Example:
        >>> from thaw.plan import read_plan
        >>> read_plan("probe", epochs=3).epochs
        3
    """
    if is_plan_file(name):
        if (epochs, head_epochs, learning_rate, l2_sp, patience) != (None,) * 5:
            raise ValueError(
                "Epochs, learning rates, L2-SP and patience are set in the plan file; leave these options out."
            )
        return Plan.load(name)
    plan = Plan.named(name, epochs=epochs, head_epochs=head_epochs, learning_rate=learning_rate)
    plan = plan if l2_sp is None else plan.with_l2_sp(l2_sp)
    return plan if patience is None else plan.with_patience(patience)


def as_plan(plan):
    """Convert what a user gives as a plan.

    Args:
        plan: a :class:`Plan`; the name of one, or the path of a ``.toml`` file; or a list of :class:`Phase`.

    Returns:
        A :class:`Plan`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: anything else.

    Example:
        >>> from thaw.plan import Phase, as_plan
        >>> [phase.name for phase in as_plan([Phase(name="all", epochs=2)])]
        ['all']
    """
    if isinstance(plan, (str, os.PathLike)):
        return read_plan(plan)
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, (tuple, list)) and plan and all(isinstance(phase, Phase) for phase in plan):
        return Plan(plan)
    raise ValueError(
        f'The plan is a {type(plan).__name__}; expected a thaw.Plan, such as Plan.named("probe_then_tune"), '
        "Plan([Phase(...)]) or advise(...).plan."
    )


def is_plan_file(name):
    """Whether the name of a plan is the path of a TOML file."""
    return os.fspath(name).lower().endswith(".toml")
