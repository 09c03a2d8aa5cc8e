"""`offshelf inspect`: what a network has learnt, told from its weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from offshelf.engine.console import Console
from offshelf.jobs.common import Common, CommonOptions, at_least
from offshelf.jobs.recording import RunResult, conclude, recorded

PAGE_ONLY = ("drawn", "counts")  # of use to the page alone


@dataclass
class Inspected(RunResult):
    """A finished inspection: its folder and its results."""

    def summary(self) -> dict[str, Any]:
        """The numbers, without what only the page needs."""
        return _plain(self.results) | {"run": str(self.folder), "report": str(self.report)}

    def show(self, console: Console) -> None:
        """A line a network, what is degenerate, and the paths."""
        rows = [
            [
                one["label"],
                f"{one['layers']:,}",
                f"{one['filters']:,}",
                f"{one['degenerate']}",
                _number(one["sparsity"]),
                _number(one["relative_entropy"]),
                _number(one["orthogonality"]),
            ]
            for one in self.results["networks"]
        ]
        header = ["network", "layers", "filters", "degenerate", "sparsity", "entropy", "orthogonality"]
        console.table("", header, rows)
        looked = [
            [
                label,
                f"{study['pictures']}",
                f"{study['uniform']:.2f}",
                _range(study["layers"], "non_locality", 2),
                _range(study["layers"], "gate", 3),
            ]
            for label, study in self.results.get("locality", {}).items()
        ]
        if looked:
            header = ["network", "pictures", "all alike", "non-locality, first to last layer", "gate"]
            console.table("Locality of attention", header, looked)
        for sentence in self.results["verdict"]:
            print(f"- {sentence}")
        for one in self.results["left_out"]:
            print(f"- {one['reason']}")
        print(f"\nrun:    {self.folder}\nreport: {self.report}\nlayers: {self.folder / 'layers.csv'}")


def inspect(
    backbones: list[str] | None = None,
    /,
    *,
    data: str | None = None,
    group: list[str] | None = None,
    kernel: int = 3,
    filters: Annotated[bool, Parameter(negative="--no-filters")] = True,
    filters_a_layer: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    common: CommonOptions = Common(),  # noqa: B008
) -> Inspected:
    """Look into networks without a picture: degenerate layers, drawings of filters, how far networks are apart.

    Parameters
    ----------
    backbones
        Timm names, folders, runs of pretrain or finetune, ARCH.random; embedded (those that come with the package, and
        the default); runs (all below runs/); or a table with a column network and others such as task and data.
    data
        Pictures for what is told from pictures, such as the gates of a network that has some.
    group
        What belongs together, as NAME=NETWORK,NETWORK; several groups may be given.
    kernel
        Height and width of the filters.
    filters
        Keep all filters in the run as filters.parquet; --no-filters leaves them out.
    filters_a_layer
        Compare at most so many filters of a layer, drawn at random, so that wide layers do not decide alone.
    seed
        Every random choice hangs on it.
    out
        Folder of the run; runs/inspect-NAME by default.
    overwrite
        Replace a complete run in that folder.
    """
    console = common.console()
    names = list(backbones or ([] if group else ["embedded"]))
    at_least("kernel", kernel, 2)
    if filters_a_layer is not None:
        at_least("filters-a-layer", filters_a_layer, 1)
    arguments = {
        "backbones": names,
        "data": data,
        "group": group,
        "kernel": kernel,
        "filters": filters,
        "filters_a_layer": filters_a_layer,
    }
    from offshelf.interpret.inspection import inspect_networks
    from offshelf.interpret.networks import networks_of

    started = time.perf_counter()
    networks = networks_of(names, group or [])  # a wrong name is answered before any work is done
    pictures = None
    if data is not None:
        from offshelf.data.sources import open_dataset

        pictures = open_dataset(data)
    source = networks[0].label if len(networks) == 1 else "-".join(names) if len(names) == 1 else "networks"
    with recorded("inspect", source, arguments, seed, out, overwrite) as run:
        results = inspect_networks(
            networks,
            run.folder,
            kernel=kernel,
            filters=filters,
            most=filters_a_layer,
            pictures=pictures,
            seed=seed,
            console=console,
        )
        conclude(run, results, started)
    unreadable = any(one["kind"] == "unreadable" for one in results["left_out"])
    return Inspected(run.folder, results, exit_code=3 if unreadable else 0)


def _range(layers: list[dict[str, Any]], key: str, digits: int) -> str:
    """The means of the first and the last layer that have the number."""
    known = [layer[key] for layer in layers if layer[key] is not None]
    return f"{known[0]:.{digits}f} to {known[-1]:.{digits}f}" if known else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key not in PAGE_ONLY}
    return [_plain(one) for one in value] if isinstance(value, list) else value
