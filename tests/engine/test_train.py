"""The training loop: killed and gone on with to the same bytes, over processes, and what stops it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offshelf.data.picture_views import PictureViews
from offshelf.engine.launch import Launch
from offshelf.engine.recipe import Recipe, rate_scale
from offshelf.engine.train import Training, Watch, train
from offshelf.errors import OffshelfError, RunError, UsageError
from tests.engine.toy_training import Contrast, pictures, run, two_views

PROJECT = Path(__file__).resolve().parents[2]


def killed(folder: Path, wait: float, **settings: object) -> None:
    """Start the same training in a process of its own and kill it, no earlier than its first checkpoint."""
    order = ("devices", "accumulate", "bf16", "workers")
    words = [sys.executable, "-m", "tests.engine.toy_training", str(folder), *(str(settings[key]) for key in order)]
    process = subprocess.Popen(
        words, cwd=PROJECT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    before = {path.name for path in folder.glob("*.pt")}
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        if {path.name for path in folder.glob("*.pt")} - before:
            time.sleep(wait)
            break
        time.sleep(0.01)
    import os
    import signal

    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


CASES = {
    "plain": {"devices": 1, "accumulate": 1, "bf16": False, "workers": 0},
    "accumulated, bf16, workers": {"devices": 1, "accumulate": 2, "bf16": True, "workers": 2},
    "two processes": {"devices": 2, "accumulate": 2, "bf16": False, "workers": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_training_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, case: str) -> None:
    settings = CASES[case]
    whole, expected = run(None, **settings)
    waits = random.Random(time.time_ns())
    for _ in range(2):
        killed(tmp_path, waits.uniform(0, 0.15), **settings)
    assert list(tmp_path.glob("step-*.pt")), "no kill came after a checkpoint"
    other = settings | {"workers": 1 if settings["devices"] == 1 else 0}  # another number of data workers
    again, found = run(tmp_path, **other)
    assert any(note.startswith("went on from step") for note in again.notes)
    assert found == expected
    assert [r["loss"].hex() for r in again.history] == [r["loss"].hex() for r in whole.history]


def test_equal_trainings_are_equal_and_a_probe_disturbs_nothing() -> None:
    def probe(step: int, module: nn.Module) -> dict[str, float]:
        torch.rand(3), np.random.rand(), random.random()
        return {"seen": float(step)}

    plain, expected = run(None, steps=12)
    watched, found = run(None, steps=12, watch=Watch(probe=probe, probe_every=5))
    assert found == expected
    assert [record["step"] for record in watched.probes] == [0, 5, 10, 12]
    assert [r["loss"] for r in watched.history] == [r["loss"] for r in plain.history]
    assert plain.step == 12 and plain.status == "complete"
    assert "2 parameters are not reached by the loss and stay: spare.weight, spare.bias" in plain.notes


def test_a_probe_of_the_average_sees_it_and_the_training_does_not() -> None:
    def probe(step: int, module: nn.Module) -> dict[str, float]:
        return {"sum": float(module.net[0].weight.detach().sum())}

    plain, expected = run(None, steps=12, watch=Watch(probe=probe, probe_every=6))
    averaged, found = run(None, steps=12, watch=Watch(probe=probe, probe_every=6, probe_average=True))
    assert found == expected
    assert averaged.average is not None
    assert averaged.probes[-1]["sum"] == float(averaged.average["net.0.weight"].sum()) != plain.probes[-1]["sum"]


def test_the_signal_to_end_means_what_it_meant_after_a_training(tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []
    watch = Watch(probe=lambda step, module: seen.append(signal.getsignal(signal.SIGTERM)) or {}, probe_every=2)
    run(None, steps=2, watch=watch)
    assert seen == [before, before]  # nothing to save first
    run(tmp_path, steps=2, watch=watch)
    assert before not in seen[2:] and signal.getsignal(signal.SIGTERM) == before


def test_two_processes_give_the_losses_of_one() -> None:
    class NoDropout(Contrast):
        def __init__(self) -> None:
            super().__init__()
            self.net[3].p = self.twin[3].p = 0.0

    alone, _ = run(None, steps=10, module=NoDropout())
    several, _ = run(None, steps=10, module=NoDropout(), devices=2)
    for one, two in zip(alone.history, several.history, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def answer_at_length(fabric: object) -> bytes:
    return b"weights" * 100_000


def test_a_child_process_answers_with_more_than_a_pipe_holds() -> None:
    assert Launch(accelerator="cpu", devices=2).run(answer_at_length) == answer_at_length(None)


def test_minutes_stop_at_a_step_and_the_rest_follows(tmp_path: Path) -> None:
    _, expected = run(None, steps=20)
    stopped, _ = run(tmp_path, steps=20, minutes=1e-9)
    assert stopped.status == "stopped" and stopped.step == 1
    done, found = run(tmp_path, steps=20)
    assert done.status == "complete" and found == expected


def test_another_training_does_not_go_on_from_these_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, steps=20, minutes=1e-9)
    with pytest.raises(RunError, match="steps was 20 and is now 30"):
        run(tmp_path, steps=30)
    with pytest.raises(RunError, match="accumulate was 1 and is now 2"):
        run(tmp_path, steps=20, accumulate=2)


class Failing(Contrast):
    """A loss that stops being a number at a given step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.register_buffer("count", torch.zeros(()))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        told = super().forward(batch)
        return {"loss": told["loss"] * float("nan")} if self.count >= self.at else told

    def after_step(self, step: int, total: int) -> None:
        super().after_step(step, total)
        self.count += 1


def test_nan_without_a_checkpoint_is_an_error_that_names_the_step() -> None:
    with pytest.raises(OffshelfError, match=r"the loss became nan at step 4 of 9\. Lower the learning rate"):
        run(None, steps=9, module=Failing(3))


def test_nan_keeps_the_last_good_state(tmp_path: Path) -> None:
    module = Failing(3)
    trained, _ = run(tmp_path, steps=9, module=module)
    assert trained.status == "diverged" and trained.step == 3
    assert all(torch.isfinite(value).all() for value in module.state_dict().values() if value.is_floating_point())
    assert "the weights are those of step 3" in trained.notes[-1]


def test_a_probe_that_says_stop_ends_the_training(tmp_path: Path) -> None:
    watch = Watch(probe=lambda step, module: {"stop": "all features are equal"} if step == 4 else {}, probe_every=2)
    trained, _ = run(tmp_path, steps=9, watch=watch)
    assert trained.status == "collapsed" and trained.step == 4 and "all features are equal" in trained.notes
    assert list(tmp_path.glob("step-000000004-*.pt"))


def test_exhausted_memory_says_what_to_lower() -> None:
    class Greedy(Contrast):
        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            torch.empty(2**46)
            return super().forward(batch)

    with pytest.raises(OffshelfError, match="Lower --batch-size"):
        run(None, steps=2, module=Greedy())


def test_the_trunk_waits_and_layers_keep_their_own_rates() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.trunk, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"loss": self.head(self.trunk(batch["one"].mean((2, 3)))).square().mean()}

        def parameter_groups(self, lr: float, wd: float) -> list[dict]:
            return [
                {"params": list(self.trunk.parameters()), "lr": lr, "weight_decay": wd, "trunk": True},
                {"params": list(self.head.parameters()), "lr": lr, "weight_decay": wd, "trunk": False},
            ]

    for steps, moved in ((3, False), (5, True)):
        module = Two()
        before = module.trunk.weight.clone(), module.head.weight.clone()
        training = Training(Recipe(batch_size=8), steps, 8, freeze_trunk=3)
        train(module, PictureViews(pictures(), two_views), training)
        assert torch.equal(module.trunk.weight, before[0]) is not moved
        assert not torch.equal(module.head.weight, before[1])


def test_schedule() -> None:
    assert [rate_scale(s, 100, 0.1) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert rate_scale(10, 100, 0.1) == 1.0 and rate_scale(55, 100, 0.1) == pytest.approx(0.5)
    assert rate_scale(99, 100, 0.1, 0.2) == pytest.approx(0.2, abs=1e-3)


def test_a_training_is_cut_to_the_data_and_the_rate_scaled() -> None:
    recipe = Recipe(learning_rate=1.0, batch_size=100, epochs=3)
    training = Training.of(recipe, 50)
    assert (training.batch_size, training.steps, training.recipe.learning_rate) == (50, 3, 0.5)
    assert Training.of(recipe, 51, parts=4).batch_size == 48
    assert Training.of(recipe, 1000, epochs=0.5).steps == 5
    with pytest.raises(UsageError, match="1 pictures: training needs at least 2"):
        Training.of(recipe, 1)


def test_launch_refuses_what_would_train_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nothing to shard"):
        Launch("cpu", strategy="fsdp").fabric()
    with pytest.raises(UsageError, match="--nodes 2: start the command"):
        Launch("cpu", nodes=2).fabric()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch sees no GPU"):
        Launch("gpu").fabric()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert replace(Launch("cpu", devices=1)).world == 4 and Launch("cpu").processes == 2


def test_a_login_inside_a_slurm_allocation_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Launch("cpu").world == 1
    assert Launch("cpu").fabric().world_size == 1
