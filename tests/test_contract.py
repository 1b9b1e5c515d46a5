"""Six kinds of models go through the contract; benchmarks/contract.py does the same with all of them."""

import json
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parent.parent / "benchmarks" / "contract.py"
WORKING = (
    *("nested_three_deep", "attention_with_masks", "lora", "table_with_inputs_by_name", "picture_and_numbers_as_tuple"),
)
EXPECTED = {name: {} for name in WORKING} | {
    "lambda_layer": {"open": "refused"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_contract(python, name):
    code = "import sys, runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = python("-c", code, CONTRACT, name, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(done.stdout)[name]
    assert {cell: kind for cell, (kind, _) in cells.items() if kind != "works"} == EXPECTED[name], cells
