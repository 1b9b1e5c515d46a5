"""One word for each thing: the words of docs/design.md, in names, docstrings, comments, messages and documents."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("thaw", "examples", "benchmarks", "scripts") for p in (ROOT / folder).rglob("*.py"))
DOCUMENTS = [
    p for p in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.exists()
]
# Word or phrase, and what to write instead.
INSTEAD = {
    r"st(?:ands?|ood|anding) still|standing part|what moves|moves? the backbone": "frozen / trainable",
    r"shel(?:f|ves)": "feature table",
    r"segments?\b": "shard",
    r"(?:what|all that) is kept|is kept for|kept on disk": "cached",
    r"old answers?|the answers": "soft targets / predictions",
    r"old (?:task|pictures|head|model)|new task": "source / target",
    r"to the bit": "bit-identical",
    r"as (?:it|they) (?:was|were)(?=[.,;:)]|$)|put back|puts back|untouched": "restored",
    r"cannot be meant|can be meant": "invalid",
    r"likewise": "say it again",
    r"for people": "human-readable",
    r"anchor(?:ed|s)?\b(?!\w)": "L2-SP",
    r"rehears(?:e|al|ing)": "replay",
    r"rescued?": "interpolation",
    r"stage_decay|per_stage": "layer_decay",
    r"log_me\b": "logme",
    r"find_learning_rate": "lr_finder",
    r"surprise": "negative log-likelihood",
    r"the pull\b|pulled back": "regularization",
    r"\banew\b": "again / from scratch",
}
# Where an old name has to be known: it is read from files of earlier versions, or accepted as a hidden option.
ALLOWED = {
    "thaw/plan.py": {"stage_decay", "anchor"},
    "thaw/cli/main.py": {"anchor"},
    "CHANGELOG.md": {"*"},
}


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_words_are_those_of_the_field(path):
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), set())
    wrong = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for pattern, instead in INSTEAD.items():
            for match in re.finditer(rf"(?i)\b(?:{pattern})", line):
                if not ({"*", match[0].lower()} & allowed):
                    wrong.append(f'line {number}: "{match[0]}"; write {instead}')
    assert not wrong, "\n".join(wrong[:12]) + (f"\n... {len(wrong) - 12} more" if len(wrong) > 12 else "")
