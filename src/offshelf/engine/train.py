"""The training loop's door: one call, on one device or many, that can be killed and gone on with.

A training that was killed goes on from its last checkpoint to the same bytes, with any number of data workers.
Lightning Fabric gives devices, precision and processes; what is trained knows nothing of it. The order of a step is in
`offshelf.engine.loop`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offshelf.engine.checkpoint import Checkpoints
from offshelf.engine.launch import Launch
from offshelf.engine.loop import Loop
from offshelf.engine.training import Record, Trained, Training, Watch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Trained", "Training", "Watch", "train"]

FORMAT = 1  # of a checkpoint's content


def train(
    module: nn.Module,
    data: Any,
    training: Training,
    *,
    launch: Launch | None = None,
    watch: Watch | None = None,
    workers: int = 0,
    checkpoints: Path | None = None,
    identity: dict[str, Any] | None = None,
    save_seconds: float = 60.0,
    minutes: float | None = None,
    log: Callable[[Record], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Trained:
    """Train ``module`` in place.

    Parameters
    ----------
    module : nn.Module
        ``module(batch) -> {"loss": scalar, ...}``, ``parameter_groups(lr, weight_decay)`` and, where it has one,
        ``after_step(step, total)``.
    data : Dataset
        ``data.__getitems__([(epoch, row), ...]) -> batch``; see `offshelf.data.picture_views.PictureViews`.
    checkpoints : Path, optional
        Folder from which it goes on when it holds any, and into which it saves every ``save_seconds``.
    identity : dict
        What the checkpoints belong to beside the training itself; another is refused.
    minutes : stop after so long, at a full step and with a checkpoint.

    Raises
    ------
    OffshelfError
        When the loss stops being a number before the first checkpoint, or the memory runs out.
    RunError
        For checkpoints of another training.
    """
    from offshelf.engine.optimise import unpacked, without_running_out

    launch = replace(launch or Launch(accelerator="cpu"), bf16=training.bf16)
    watch = watch or Watch(log or Watch.log, advance or Watch.advance)
    keeper = None
    if checkpoints is not None:
        facts = asdict(training) | {"world": launch.world, "samples": len(data), "format": FORMAT}
        keeper = Checkpoints(checkpoints, _plain((identity or {}) | facts))
    loop = Loop(module, data, training, watch, workers, keeper, save_seconds, minutes)
    trained: Trained = without_running_out(launch.run, loop.run)
    if trained.packed is not None:  # the processes were children of this one
        weights, trained.average = unpacked(trained.packed)
        module.load_state_dict(weights)
        trained.packed = None
    module.eval()
    return trained


def _plain(value: Any) -> Any:
    """Plain numbers, texts, lists and dictionaries, as a checkpoint may hold them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
