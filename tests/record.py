"""The last two lines of each goal in docs/records.md, trained anew and in turns, seed by seed.

python tests/record.py [a | b] [--commit]     with nothing else running; then study.py --publish
"""

from typing import Literal

import publish
import study
import tyro

Goals = tyro.conf.Positional[tuple[Literal["a", "b"], ...]]


def main(goals: Goals = ("a", "b"), commit: bool = False) -> None:
    for goal in goals:
        names = [name for name in study.STUDIES if name.startswith(f"record_{goal}")][-2:]
        for task in [study.Task(name, "a4_full", seed) for seed in study.FIVE for name in names]:
            study.perform(task, commit, anew=True)
        print(publish.records(goal).to_string(index=False))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
