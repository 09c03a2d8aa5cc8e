"""`offshelf audit`: is the data sound? Duplicates, leaks, short cuts and label errors, before any training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offshelf.engine.console import Console
from offshelf.jobs.common import Common, CommonOptions
from offshelf.jobs.recording import RunResult, conclude, recorded

LEFT_OUT = ("shown", "thumbnail")  # pictures, which are in the report


@dataclass
class Audited(RunResult):
    """A finished audit: its folder, its results, and where the report is."""

    def summary(self) -> dict[str, Any]:
        """The findings without the pictures."""
        parts = "title level counts verdict todo data backbone classes checks cost"
        found = {key: _without_pictures(self.results[key]) for key in parts.split()}
        return found | {"run": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """The verdict, each check in a line, what to do first, and the paths."""
        print(self.results["verdict"][0] + "\n")
        for check in self.results["checks"]:
            print(f"{check['level'].upper():<11} {check['title']}: {check['sentence']}")
        if self.results["todo"]:
            print("\nTo do first:")
        for number, one in enumerate(self.results["todo"], start=1):
            print(f"{number}. {one['text']}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}")


def audit(
    data: Any,
    /,
    *,
    backbone: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    source_column: str | None = None,
    allow_outside: bool = False,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    name: str | None = None,
    common: CommonOptions = Common(),  # noqa: B008
) -> Audited:
    """Check a data set before anything is trained on it, and say what to mend first.

    Parameters
    ----------
    data
        As for fit; labels, groups and splits are used where there are any.
    backbone
        Network whose features are looked at; a small one that comes with the package by default.
    path_column
        Column of a manifest that names the files.
    label_column
        Column of a manifest that holds the class.
    group_column
        Column of what must stay together, such as the patient.
    source_column
        Column that says where a picture comes from, such as the hospital; a column named source by default.
    allow_outside
        Accept files outside the manifest's folder.
    seed
        Every random choice hangs on it.
    out
        Folder of the run; runs/audit-NAME by default.
    overwrite
        Replace a complete run in that folder.
    name
        What to call the data in the report; its path by default.
    """
    console = common.console()
    source = name or str(data if isinstance(data, (str, Path)) else "dataset")
    arguments = {key: value for key, value in locals().items() if key not in ("common", "console", "data")}
    from offshelf.backbones.embedded import EMBEDDED
    from offshelf.backbones.names import resolve
    from offshelf.data.sources import open_dataset
    from offshelf.evaluate.audit.study import audit_results

    started = time.perf_counter()
    chosen = backbone or EMBEDDED[0]
    resolve(chosen)  # a wrong name is answered before any work is done
    console.say(f"Reading {source}")
    dataset = open_dataset(
        data,
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        allow_outside=allow_outside,
    )
    with recorded("audit", source, arguments | {"backbone": chosen}, seed, out, overwrite) as run:
        results = audit_results(dataset, source, chosen, seed=seed, source_column=source_column, console=console)
        conclude(run, results, started)
    return Audited(run.folder, results)


def _without_pictures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pictures(one) for key, one in value.items() if key not in LEFT_OUT}
    return [_without_pictures(one) for one in value] if isinstance(value, list) else value
