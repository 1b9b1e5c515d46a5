"""The head, then one, two and three stages more: thaw against plain Keras, whole processes.

    scripts/setup
    python benchmarks/gradual.py [PAIRS] [--pictures 2000]

The plan is thaw's own `gradual`, with one view of each picture and one rate for all stages, as plain Keras has them.
What plain Keras does, and what is the same in both, stands in benchmarks/both_ways.py; thaw solves for the head instead
of training it for five epochs. The aim is at least 3 times faster.
"""

import dataclasses

from both_ways import both_ways

from thaw import Plan

PLAN = Plan([dataclasses.replace(phase, views=1, layer_decay=1.0) for phase in Plan.named("gradual")])

if __name__ == "__main__":
    both_ways(__file__, PLAN, aim=3)
