"""Defective solar cells, five seeds: accuracy, macro F1, ROC AUC and minutes, beside the published figures.

    python benchmarks/solar_cells.py [SEEDS]

Every seed is a split, an order and an augmentation of its own, run in a process of its own: what a person
gets who types scripts/demo. Finished seeds are kept in runs/ and read, not run again.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PUBLISHED = {"SVM (Deitsch et al. 2019)": 0.8244, "VGG19, GPU (Deitsch et al. 2019)": 0.8842}


def main(seeds):
    rows = []
    for seed in range(seeds):
        folder = Path(f"runs/solar-cells-{seed}")
        minutes = folder.with_suffix(".minutes")
        if not minutes.exists():
            shutil.rmtree(folder, ignore_errors=True)  # cut off before: its time is not known
            begin = time.monotonic()
            subprocess.run([sys.executable, HERE.parent / "examples/solar_cells.py", str(seed), folder], check=True)
            minutes.write_text(str((time.monotonic() - begin) / 60))
        metrics = json.loads((folder / "metrics.json").read_text())
        figures = [metrics[name]["value"] for name in ("accuracy", "macro_f1", "roc_auc")]
        rows.append([*figures, float(minutes.read_text())])
        print(f"seed {seed}:  " + "  ".join(f"{figure:.4f}" for figure in figures) + f"  {rows[-1][3]:.1f} min")
    print(f"\n{'':36}accuracy         macro F1         ROC AUC          minutes")
    columns = list(zip(*rows))
    spread = [statistics.stdev(column) if seeds > 1 else 0.0 for column in columns]
    cells = [f"{statistics.mean(c):.4f} ± {s:.4f}" for c, s in zip(columns[:3], spread)]
    cells.append(f"{statistics.mean(columns[3]):.1f}")
    print(f"{f'thaw, mean of {seeds} seeds ± deviation':36}" + "  ".join(cells))
    for name, accuracy in PUBLISHED.items():
        print(f"{name:36}{accuracy:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
