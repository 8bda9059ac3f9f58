"""The last two lines of a goal in docs/records.md, trained anew and in turns, seed by seed.

python tests/record.py a [--commit]   with nothing else running; then: tests/study.py --publish
"""

from typing import Literal

import publish
import tyro
from study import FIVE, STUDIES, Task, perform


def main(goal: tyro.conf.Positional[Literal["a", "b"]], commit: bool = False) -> None:
    names = [name for name in STUDIES if name.startswith(f"record_{goal}")][-2:]
    for task in [Task(name, "a4_full", seed) for seed in FIVE for name in names]:
        perform(task, commit, anew=True)
    print(publish.records(goal).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
