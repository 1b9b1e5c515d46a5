"""Plan and Phase: when what moves. Values that print, compare and go through TOML; they train nothing."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib

from thaw.number import plain_number

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "float16")
PLANS = ("probe", "probe_then_tune", "gradual", "full")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One stretch of training: which stages move, at what rate, for how long.

    Args:
        name: for people and for the history.
        epochs: passes over the training data, at most.
        train: ``"head"``; ``"all"``; a number ``n``, the head and the ``n`` stages below it; or stage names.
        learning_rate: the peak, at the topmost stage.
        schedule: ``"cosine"`` or ``"linear"`` fall to zero, ``"constant"`` stays; all start with the warm-up.
        warmup: share of the phase's steps in which the rate rises from zero to its peak.
        stage_decay: each stage below learns at this share of the rate of the one above: discriminative, or
            layer-wise, learning rates (Howard and Ruder 2018).
        batchnorm: ``"frozen"`` holds the statistics of BatchNorm; ``"trained"`` lets them move with their stage.
        patience: stop the phase after this many epochs without a better validation score; 0 for never.
        views: augmented versions of each example, fixed, one for each epoch in turn, so that what stands still
            is run once for each and not in every epoch; 0 for new ones in every epoch.
        anchor: pull the weights back to where the run began, the head's left free: the strength of L2-SP (Li et al.
            2018), where 0.001 to 0.1 is usual; 0 for none.
        precision: what is kept of the standing part's output: ``"float32"``, or ``"float16"`` for half the disk.

    Raises:
        ValueError: a value that cannot be meant; the message says which, and what is expected.

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
    stage_decay: float = 1.0
    batchnorm: str = "frozen"
    patience: int = 0
    views: int = 0
    anchor: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain_number(getattr(self, field.name)))
        _expect(isinstance(self.name, str) and self.name.strip(), self, "name", "a word")
        _expect(_whole(self.epochs) and self.epochs >= 1, self, "epochs", "a whole number from 1")
        if isinstance(self.train, list):
            object.__setattr__(self, "train", tuple(self.train))
        _expect(
            (_whole(self.train) and self.train >= 0)
            or (isinstance(self.train, str) and self.train.strip())
            or (isinstance(self.train, tuple) and self.train and all(isinstance(s, str) for s in self.train)),
            self,
            "train",
            '"head", "all", a number of stages below the head, or a list of stage names',
        )
        _expect(_number(self.learning_rate) and self.learning_rate > 0, self, "learning_rate", "a number above 0")
        _expect(self.schedule in SCHEDULES, self, "schedule", f"one of {', '.join(SCHEDULES)}")
        _expect(_number(self.warmup) and 0 <= self.warmup <= 1, self, "warmup", "a share from 0 to 1")
        _expect(_number(self.stage_decay) and 0 < self.stage_decay <= 1, self, "stage_decay", "above 0, at most 1")
        _expect(self.batchnorm in ("frozen", "trained"), self, "batchnorm", '"frozen" or "trained"')
        _expect(_whole(self.patience) and self.patience >= 0, self, "patience", "a whole number from 0")
        _expect(_whole(self.views) and self.views >= 0, self, "views", "a whole number from 0")
        _expect(_number(self.anchor) and self.anchor >= 0, self, "anchor", "a number from 0")
        _expect(self.precision in PRECISIONS, self, "precision", '"float32" or "float16"')

    @property
    def versions(self):
        """How many of the views its epochs can come to."""
        return min(self.views, self.epochs)


class Plan(tuple):
    """An immutable sequence of phases.

    Args:
        phases: the :class:`Phase` objects, first to last; at least one, with names that differ.

    Raises:
        ValueError: no phase, two of one name, or something that is not a phase.

    Example:
        >>> from thaw import Phase, Plan
        >>> plan = Plan([Phase(name="head", epochs=3, train="head", learning_rate=1e-3)])
        >>> Plan.from_toml(plan.to_toml()) == plan
        True
        >>> print(Plan.named("probe"))
        phase  epochs  moves  rate   schedule  batchnorm
        head       10  head   0.001  cosine    frozen
    """

    __slots__ = ()

    def __new__(cls, phases):
        phases = tuple(phases)
        if not phases:
            raise ValueError("The plan has no phase; expected at least one [[phase]].")
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
        rows = [("phase", "epochs", "moves", "rate", "schedule", "batchnorm")]
        for p in self:
            moves = " ".join(p.train) if isinstance(p.train, tuple) else str(p.train)
            if _whole(p.train):
                moves = f"head + {p.train}"
            rate = f"{p.learning_rate:g}" + (f" x {p.stage_decay:g} a stage" if p.stage_decay < 1 else "")
            rows.append((p.name, str(p.epochs), moves, rate, p.schedule, p.batchnorm))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = []
        for row in rows:
            cells = [c.rjust(w) if i == 1 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    @property
    def epochs(self):
        """All epochs of all phases."""
        return sum(phase.epochs for phase in self)

    @classmethod
    def named(cls, name, *, head_epochs=None, epochs=None, learning_rate=None):
        """One of the plans with a name.

        ``probe`` trains the head only. ``probe_then_tune`` goes on with the head and the top two stages
        (Kumar et al. 2022). ``gradual`` unfreezes stage by stage (Howard and Ruder 2018). ``full`` moves
        everything at once, at a small rate.

        Args:
            name: ``"probe"``, ``"probe_then_tune"``, ``"gradual"`` or ``"full"``.
            head_epochs: epochs of the head alone, where the plan has such a phase.
            epochs: epochs of each later phase, or of the only one.
            learning_rate: the peak of the phases that move the backbone (of the head, in ``probe``).

        Raises:
            ValueError: no plan has that name.
        """
        if name not in PLANS:
            raise ValueError(f'There is no plan "{name}"; expected {_alternatives(name, PLANS)}, or a TOML file.')
        if name == "probe":
            rate, passes = _given(learning_rate, 1e-3), _given(epochs, _given(head_epochs, 10))
            return cls([Phase(name="head", epochs=passes, train="head", learning_rate=rate, views=4)])
        if name == "full":
            rate, passes = _given(learning_rate, 1e-4), _given(epochs, 10)
            return cls([Phase(name="all", epochs=passes, learning_rate=rate, stage_decay=0.7)])
        rate = _given(learning_rate, 5e-4)
        head = Phase(name="head", epochs=_given(head_epochs, 5), train="head", learning_rate=1e-3, views=4)
        top = {"stage_decay": 0.7, "views": 4}
        if name == "probe_then_tune":
            return cls([head, Phase(name="tune", epochs=_given(epochs, 12), train=2, learning_rate=rate, **top)])
        passes = _given(epochs, 4)
        later = [Phase(name=f"top{n}", epochs=passes, train=n, learning_rate=rate / n, **top) for n in (1, 2, 3)]
        return cls([head, *later])

    @classmethod
    def from_toml(cls, text):
        """Read a plan from TOML: one ``[[phase]]`` table a phase, its keys the arguments of :class:`Phase`.

        Args:
            text: the contents of the file.

        Raises:
            ValueError: not TOML, an unknown key, or a value that cannot be meant.
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
            for key in entry:
                if key not in fields:
                    raise ValueError(f'Phase {number} has a key "{key}"; expected {_alternatives(key, fields)}.')
            for key in ("name", "epochs"):
                if key not in entry:
                    raise ValueError(f'Phase {number} has no "{key}"; every phase needs one.')
            phases.append(Phase(**entry))
        return cls(phases)

    def to_toml(self):
        """The plan as TOML that a person can edit and :meth:`from_toml` reads back unchanged."""
        blocks = []
        for phase in self:
            lines = ["[[phase]]"]
            for field in dataclasses.fields(phase):
                lines.append(f"{field.name} = {_toml(getattr(phase, field.name))}")
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n"


def _toml(value):
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _given(value, default):
    return default if value is None else value


def _whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def _expect(holds, phase, field, expected):
    if not holds:
        raise ValueError(f'Phase "{phase.name}" has {field} = {getattr(phase, field)!r}; expected {expected}.')


def _alternatives(given, allowed):
    close = difflib.get_close_matches(str(given), allowed, n=1)
    return f'"{close[0]}"' if close else "one of " + ", ".join(allowed)
