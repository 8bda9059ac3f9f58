"""A record of docs/records.md: its line and the one before, in turns; nothing else may run.

Command   python tests/record.py a      or b: the last two studies record_a1, record_a2, ...
"""

import shutil
import sys

from publish import by_seed
from study import FIVE, STUDIES, Task, save

from kit.files import say


def main() -> None:
    names = [name for name in STUDIES if name.startswith(f"record_{sys.argv[1]}")][-2:]
    for seed in FIVE:
        for task in [Task(name, "a4_full", seed) for name in names]:
            shutil.rmtree(task.folder, ignore_errors=True)
            task.run()
            for table, rows in task.measure().items():
                save(table, rows, task)
    for name in names:
        table = by_seed(name, "a4_full", STUDIES[name].flags.split()[3])
        table = table[["train_seconds", "accuracy", "fd_pixels"]]
        say(f"{STUDIES[name].flags}: medians of five seeds\n{table.median().to_string()}")


if __name__ == "__main__":
    main()
