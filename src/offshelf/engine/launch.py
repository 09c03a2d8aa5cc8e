"""On how many devices a training runs, and how its processes come to be. Lightning Fabric does the work.

Three ways lead to several processes: ``devices`` > 1 forks them here; ``torchrun`` and SLURM start the same command
once a process and are recognised by the variables they set. Under these two ``devices`` is taken from them: left to
itself, every process would train alone and write to one folder.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from offshelf.errors import UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Strategy = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True)
class Launch:
    """Where and how a training runs.

    accelerator : "auto" (a GPU where there is one), "cpu" or "gpu".
    devices : processes on this machine; under torchrun and SLURM those that they started.
    nodes : machines.
    strategy : "ddp" (every process holds the whole network) or "fsdp" (each holds a shard); "auto" is ddp.
    bf16 : forward passes under bf16 autocast.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "auto"
    bf16: bool = False

    @property
    def world(self) -> int:
        """Processes in all."""
        return int(os.environ["WORLD_SIZE"]) if external() == "torchrun" else self.processes * self.nodes

    @property
    def processes(self) -> int:
        """Processes on this machine."""
        started = external()
        if started == "torchrun":
            return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if started == "slurm":
            return int(os.environ["SLURM_NTASKS_PER_NODE"])
        return self.devices

    def fabric(self) -> Fabric:
        """A Fabric for this; refuses what would train apart without a word.

        Raises
        ------
        UsageError
            For a GPU that is not there, or numbers that contradict torchrun's or SLURM's.
        """
        import torch

        _import_quietly()
        from lightning_fabric import Fabric

        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise UsageError("--accelerator gpu: torch sees no GPU here; leave the option out to train on the CPU.")
        on_gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        several = self.world > 1
        if self.strategy == "fsdp" and not several:
            raise UsageError("--strategy fsdp: one process has nothing to shard; add --devices 2 or more.")
        if self.nodes > 1 and not external() and "NODE_RANK" not in os.environ:
            raise UsageError(
                f"--nodes {self.nodes}: start the command on every machine with torchrun or srun, or set MASTER_ADDR, "
                "MASTER_PORT and NODE_RANK on each."
            )
        return Fabric(
            accelerator="gpu" if on_gpu else "cpu",
            devices=self.processes,
            num_nodes=self.nodes if external() != "torchrun" else max(1, self.world // self.processes),
            strategy=self._strategy() if several else "auto",
            precision="bf16-mixed" if self.bf16 else "32-true",
            plugins=None if several else _alone(),
        )

    def _strategy(self) -> Any:
        from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

        if self.strategy == "fsdp":
            return ModelParallelStrategy(_shard, data_parallel_size=self.world, tensor_parallel_size=1)
        # Buffers are equal in all processes by construction; a broadcast before each forward would hide it if not.
        forked = external() is None and self.nodes == 1
        return DDPStrategy(start_method="fork" if forked else "popen", broadcast_buffers=False)

    def run(self, work: Callable[[Any], Any]) -> Any:
        """Call ``work(fabric)`` in every process; the answer of the first one where it ran here, else None."""
        fabric = self.fabric()
        if self.world > 1 and fabric.world_size != self.world and external():
            raise UsageError(
                f"{self.world} processes were started, but {fabric.world_size} would train together; give --nodes and "
                "--devices as they were started."
            )
        parent = os.getpid()
        with TemporaryDirectory(prefix="offshelf-") as folder:
            answer = Path(folder) / "answer"

            def told(fabric: Any) -> Any:
                """A child answers through a file: Fabric's pipe holds 64 kB, and is read when the child is gone."""
                found = work(fabric)
                if os.getpid() == parent:
                    return found
                if fabric.is_global_zero:
                    answer.write_bytes(pickle.dumps(found))
                return None

            found = fabric.launch(told)
            return pickle.loads(answer.read_bytes()) if answer.is_file() else found  # noqa: S301 (written just now)


def external() -> Literal["torchrun", "slurm"] | None:
    """Who started this process as one of several, if anybody."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    tasks, name = os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_JOB_NAME")
    if tasks and int(tasks) > 1 and name not in ("bash", "interactive"):
        # a login inside an allocation sets SLURM_NTASKS as well; only srun gives each task its number a node
        return "slurm" if "SLURM_NTASKS_PER_NODE" in os.environ and "SLURM_PROCID" in os.environ else None
    return None


def first_process() -> bool:
    """Whether this process is the first of those that torchrun or SLURM started; True when nobody did."""
    started = external()
    number = {"torchrun": "RANK", "slurm": "SLURM_PROCID"}.get(started or "")
    return number is None or int(os.environ.get(number, "0")) == 0


def _alone() -> Any:
    """Fabric takes a SLURM allocation for a launch by srun; a single process says that it is none."""
    from lightning_fabric.plugins.environments import LightningEnvironment

    return LightningEnvironment()


def _shard(module: Any, mesh: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=mesh["data_parallel"])


def _import_quietly() -> None:
    """Import Fabric, then lower its voice: importing it raises it again."""
    import logging
    import warnings

    import lightning_fabric  # noqa: F401

    warnings.filterwarnings("ignore", module=r"lightning_fabric")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # of 1x1 kernels
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
