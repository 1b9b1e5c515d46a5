"""Five epochs of the head, ten of the top two stages: thaw against plain Keras, whole processes.

    scripts/setup
    python benchmarks/top_stages.py [PAIRS] [--pictures 2000]

What plain Keras does, and what is the same in both, stands in benchmarks/both_ways.py; thaw solves for the head
instead of training it for five epochs. Every pair has a seed of its own. The aim is at least 4 times faster, with the
best validation accuracy within 0.3 points: the mean over the pairs, to be judged beside its deviation, since one
picture of 400 is a quarter of a point.
"""

from both_ways import both_ways

from thaw import Phase, Plan

PLAN = Plan(
    [
        Phase(name="head", epochs=5, train="head", learning_rate=1e-3, views=1, solver="lbfgs"),
        Phase(name="top", epochs=10, train=2, learning_rate=5e-4, views=1),
    ]
)

if __name__ == "__main__":
    both_ways(__file__, PLAN, aim=4, points=0.3)
