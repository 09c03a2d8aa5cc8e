"""One training in one of its processes: the loop, in which the order of a step can be seen.

A step's batch, learning rates and random draws are pure functions of (seed, step, rank); the place of a training is
its step number.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from offshelf.engine.checkpoint import Checkpoints
from offshelf.engine.order import Order
from offshelf.engine.recipe import rate_scale
from offshelf.engine.training import Record, Trained, Training, Watch
from offshelf.errors import OffshelfError, UsageError

if TYPE_CHECKING:
    import torch


class Loop:
    """One training in one of its processes."""

    def __init__(
        self,
        module: Any,
        data: Any,
        training: Training,
        watch: Watch,
        workers: int,
        keeper: Checkpoints | None,
        save_seconds: float,
        minutes: float | None,
    ) -> None:
        self.module = self.given = module
        self.data, self.training, self.watch = data, training, watch
        self.workers, self.keeper, self.save_seconds, self.minutes = workers, keeper, save_seconds, minutes
        self.trained = Trained("complete", 0)
        self.sums: dict[str, float] = {}
        self.average: Any = None
        self.asked_to_stop = False
        self.clock = time.monotonic()

    def run(self, fabric: Any) -> Trained:
        """Train; every process calls it."""
        # without checkpoints there is nothing to save first: SIGTERM then does what it did before
        heeds = self.keeper is not None and threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self._stop_soon) if heeds else None
        try:
            return self._run(fabric)
        finally:
            if heeds:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def _run(self, fabric: Any) -> Trained:
        self._prepare(fabric)
        training, module, optimiser = self.training, self.module, self.optimiser
        recipe, total, parts = training.recipe, training.steps, training.accumulate
        begun = saved = self.clock = time.monotonic()
        module.train()
        batches = self._batches(self.trained.step)
        for step in range(self.trained.step, total):
            # 1. learning rates are written from the step number; there is no scheduler to remember
            scale = rate_scale(step, total, recipe.warmup, recipe.final_rate)
            for group, base in zip(optimiser.param_groups, self.bases):
                group["lr"] = 0.0 if group.get("trunk") and step < training.freeze_trunk else base * scale
            losses = []
            for part in range(parts):
                # 2. the batch first, then the seeds: making an iterator draws from the global generator
                batch = fabric.to_device(next(batches))
                self._seed(step, part)
                # 3. forward (bf16 where asked), backward outside of autocast, gradients averaged in the last part
                with fabric.no_backward_sync(self.wrapped, enabled=part < parts - 1):
                    told = self.wrapped(batch)
                    fabric.backward(told["loss"] / parts)
                losses.append({name: value.detach().float() for name, value in told.items()})
            numbers = self._joined(losses)
            if not self._finite(numbers, step):
                break
            # 4. one optimiser step, then what follows from it: momentum averages, queues
            if recipe.clip is not None:
                fabric.clip_gradients(self.wrapped, optimiser, max_norm=recipe.clip, error_if_nonfinite=False)
            if recipe.adaptive_clip is not None:
                from offshelf.engine.optimise import adaptively_clip

                adaptively_clip(module, recipe.adaptive_clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if hasattr(module, "after_step"):
                module.after_step(step + 1, total)
            if self.average is not None:
                self.average.update(module, step + 1)
            # 5. what is said about it, what is probed, and only then the checkpoint
            self.trained.step = step + 1
            self._tell(step, numbers, scale)
            collapsed = self._probe(step + 1)
            now = time.monotonic()
            stop = self._agree(self.asked_to_stop or (self.minutes is not None and now - begun > self.minutes * 60))
            if step + 1 == total or stop or collapsed or self._agree(now - saved >= self.save_seconds, timed=True):
                self._save()
                saved = time.monotonic()
            if stop or collapsed:
                self.trained.status = "collapsed" if collapsed else "stopped" if step + 1 < total else "complete"
                break
        return self._conclude()

    # -- before the first step -----------------------------------------------------------------------------------------

    def _prepare(self, fabric: Any) -> None:
        import torch

        from offshelf.engine.collective import join_batch_norms
        from offshelf.engine.optimise import Average, freeze_unreached, make_optimiser, restore

        self.fabric, training = fabric, self.training
        self.order = Order(
            len(self.data),
            training.batch_size,
            training.seed,
            rank=fabric.global_rank,
            world=fabric.world_size,
            accumulate=training.accumulate,
        )
        shards = type(fabric.strategy).__name__ == "ModelParallelStrategy"  # which takes contiguous parameters alone
        self.layout = torch.channels_last if training.channels_last and not shards else torch.contiguous_format
        if shards:
            self.module = copy.deepcopy(self.module)  # sharding changes a module for good; the given one gets weights
        self.module.to(device=fabric.device, memory_format=self.layout)
        self.module.train()
        if fabric.world_size > 1:
            join_batch_norms(self.module)
        first = self._batch(self.order.keys(0))
        self._seed(0, 0)
        unreached = freeze_unreached(self.module, fabric.to_device(first))
        if unreached:
            shown = ", ".join(unreached[:4]) + (", ..." if len(unreached) > 4 else "")
            self.trained.notes.append(f"{len(unreached)} parameters are not reached by the loss and stay: {shown}")
        self.wrapped = fabric.setup_module(torch.compile(self.module) if training.compile else self.module)
        self.sharded = _sharded(self.module)
        if self.sharded and training.average is not None:
            raise UsageError("a moving average of sharded weights is not kept; use --strategy ddp with --ema.")
        recipe = training.recipe
        groups = self.module.parameter_groups(recipe.learning_rate, recipe.weight_decay)
        self.optimiser = fabric.setup_optimizers(make_optimiser(recipe, groups))
        self.bases = [group["lr"] for group in self.optimiser.param_groups]
        if training.average is not None:
            self.average = Average(self.module, training.average)
        found, damaged = self.keeper.latest() if self.keeper else (None, [])
        self.trained.notes += damaged
        if found is not None:
            state = found["state"]
            torch.set_num_threads(state["threads"])  # another number rounds sums otherwise
            restore(self.module, self.optimiser, state, self.sharded)
            if self.average is not None:
                self.average.values = state["average"]
            self.trained.step, self.sums = found["step"], state["sums"]
            self.trained.history, self.trained.probes = state["history"], state["probes"]
            self.trained.notes.append(f"went on from step {found['step']}")
            if fabric.is_global_zero:
                self.watch.restarted(self.trained.history)
                self.watch.advance(found["step"])
        elif fabric.is_global_zero:
            self.watch.restarted([])
        if self.watch.probe is not None and not self.trained.step:
            self._probe(0)

    def _stop_soon(self, number: int, frame: Any) -> None:
        self.asked_to_stop = True

    def _batches(self, start: int) -> Iterator[dict[str, torch.Tensor]]:
        import torch

        loader = torch.utils.data.DataLoader(
            self.data,
            batch_sampler=self.order.batches(start, self.training.steps),
            collate_fn=_as_it_is,
            num_workers=self.workers,
            persistent_workers=False,
            generator=torch.Generator(),
        )
        return (self._laid_out(batch) for batch in loader)

    def _batch(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        return self._laid_out(self.data.__getitems__(keys))

    def _laid_out(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: value.contiguous(memory_format=self.layout) if value.ndim == 4 else value
            for name, value in batch.items()
        }

    def _seed(self, step: int, part: int) -> None:
        from offshelf.engine.optimise import seed_step

        seed_step(self.training.seed, step, part, self.fabric.global_rank)

    # -- after a step --------------------------------------------------------------------------------------------------

    def _joined(self, losses: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Means of all named scalars over parts and processes."""
        import torch

        stacked = {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}
        if self.fabric.world_size > 1:
            joined = self.fabric.all_reduce(torch.stack(list(stacked.values())), reduce_op="mean")
            return dict(zip(stacked, joined.tolist()))
        return {name: value.item() for name, value in stacked.items()}

    def _finite(self, numbers: dict[str, float], step: int) -> bool:
        loss = numbers["loss"]
        if loss - loss == 0:  # neither NaN nor infinite
            return True
        self.optimiser.zero_grad(set_to_none=True)
        said = f"the loss became {loss} at step {step + 1} of {self.training.steps}"
        found = self.keeper.latest()[0] if self.keeper else None
        if found is None:
            raise OffshelfError(
                f"{said}. Lower the learning rate (--learning-rate), or look for broken pictures with `offshelf fit`."
            )
        from offshelf.engine.optimise import restore

        restore(self.module, self.optimiser, found["state"], self.sharded)
        if self.average is not None:
            self.average.values = found["state"]["average"]
        self.trained.step, self.trained.status = found["step"], "diverged"
        self.trained.notes.append(f"{said}; the weights are those of step {found['step']}. Lower --learning-rate.")
        return False

    def _tell(self, step: int, numbers: dict[str, float], scale: float) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["steps"] = self.sums.get("steps", 0.0) + 1
        if self.fabric.is_global_zero:
            self.watch.advance(1)
        every = self.training.log_every or self.order.steps_an_epoch
        if (step + 1) % every and step + 1 != self.training.steps:
            return
        count, now = self.sums.pop("steps"), time.monotonic()
        record: Record = {
            "step": step + 1,
            "epoch": (step + 1) / self.order.steps_an_epoch,
            **{name: value / count for name, value in self.sums.items()},
            "learning_rate": max(self.bases) * scale,
            "samples_per_second": count * self.training.batch_size / max(1e-9, now - self.clock),
        }
        self.sums, self.clock = {}, now
        self.trained.history.append(record)
        if self.fabric.is_global_zero:
            self.watch.log(record)

    def _probe(self, step: int) -> bool:
        """Probe on the first process; whether all should stop."""
        watch = self.watch
        if watch.probe is None or self.sharded or (step % watch.probe_every and step != self.training.steps):
            return False
        reason = None
        if self.fabric.is_global_zero:
            before = time.monotonic()
            averaged = watch.probe_average and self.average is not None
            with self.average.inside(self.module) if averaged else nullcontext():
                found = watch.probe(step, self.module)
            reason = found.pop("stop", None)
            self.trained.probes.append({"step": step} | found)
            self.clock += time.monotonic() - before
        reason = self.fabric.broadcast(reason)
        if reason:
            self.trained.notes.append(str(reason))
        return bool(reason)

    def _agree(self, mine: bool, timed: bool = False) -> bool:
        """What the first process says: clocks differ, and one that stops alone leaves the others waiting."""
        if self.fabric.world_size == 1 or (timed and self.keeper is None):
            return mine
        return bool(self.fabric.broadcast(mine))

    def _save(self) -> None:
        if self.keeper is None:
            return
        import torch

        from offshelf.engine.optimise import snapshot

        weights, moments = snapshot(self.module, self.optimiser, self.sharded)
        if self.fabric.is_global_zero:
            state = {
                "module": weights,
                "optimiser": moments,
                "average": self.average.values if self.average else None,
                "threads": torch.get_num_threads(),
                "sums": self.sums,
                "history": self.trained.history,
                "probes": self.trained.probes,
            }
            self.keeper.save(self.trained.step, state)
        self.fabric.barrier()

    def _conclude(self) -> Trained:
        from offshelf.engine.collective import part_batch_norms
        from offshelf.engine.optimise import packed, snapshot

        average = {name: value.cpu() for name, value in self.average.values.items()} if self.average else None
        self.trained.average = average
        if self.sharded:
            weights = snapshot(self.module, self.optimiser, True)[0]  # whole on the first process, empty elsewhere
            if self.fabric.is_global_zero:
                self.given.load_state_dict(weights)
        elif self.fabric.world_size > 1:
            weights = snapshot(self.module, self.optimiser, False)[0]
            self.trained.packed = packed((weights, average))
            self.trained.average = None
            part_batch_norms(self.module)
        else:
            self.module.to("cpu")
        return self.trained


def _sharded(module: Any) -> bool:
    return any(
        type(parameter).__name__ == "DTensor" or hasattr(parameter, "full_tensor") for parameter in module.parameters()
    )


def _as_it_is(batch: Any) -> Any:
    return batch
