"""One pre-training run: pictures in memory, an objective around a backbone, the loop, probes, the product."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from offshelf.backbones.card import BackboneCard, card_of, weights_hash
from offshelf.backbones.choose import default_backbones
from offshelf.backbones.export import save_backbone
from offshelf.backbones.input_size import set_input_size
from offshelf.backbones.load import load_backbone
from offshelf.backbones.names import resolve
from offshelf.backbones.route import has_bf16
from offshelf.data.columns import class_names, label_array
from offshelf.data.picture_views import PictureViews
from offshelf.data.pixels import load_pixels
from offshelf.data.samples import as_samples
from offshelf.data.summary import content_keys, summarise
from offshelf.engine.collapse import collapsed
from offshelf.engine.console import Console
from offshelf.engine.draws import Draws
from offshelf.engine.launch import Launch, first_process
from offshelf.engine.metrics_log import MetricsLog
from offshelf.engine.train import Trained, Training, Watch, train
from offshelf.errors import DataError, UsageError, near
from offshelf.evaluate.live_probe import LiveProbe
from offshelf.evaluate.mistakes import data_uri
from offshelf.evaluate.pretraining_verdict import pretraining_sentences
from offshelf.evaluate.rows import text_column
from offshelf.methods import METHODS, get
from offshelf.pretrain.objective import Objective
from offshelf.pretrain.settings import Words, all_settings, settings_of

RECORDS = 200  # of the loss, at most
SHOWN_PICTURES = 6


def objective_class(method: str, settings: Words) -> tuple[type[Objective], dict[str, Any]]:
    """The class of a pre-training method and the settings asked for, checked.

    Raises
    ------
    UsageError
        For a method that is none or does not pre-train, or a setting it does not have.
    """
    known = [slug for slug, entry in METHODS.items() if entry.part == "pretrain"]
    if method not in known:
        what = f"belongs to `{get(method).command}`" if method in METHODS else f"is no method{near(method, known)}"
        raise UsageError(f"--method {method}: {what} Pre-training methods: {', '.join(known)}.")
    kind = get(method).load()
    return kind, settings_of(kind, settings)


@dataclass
class Pretraining:
    """What was asked of a pre-training run; `run` does it. The fields are those of ``offshelf pretrain``."""

    dataset: Dataset
    source: str
    console: Console
    method: str
    settings: Words = ()
    backbone: str | None = None
    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None
    image_size: int | None = None
    store_size: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    warm_head: float = 0.0
    accumulate: int = 1
    precision: str = "auto"
    compile: bool = False
    launch: Launch = Launch()
    workers: int = 0
    probes: int = 5
    save_seconds: float = 60.0
    tensorboard: bool = False
    strict: bool = False
    seed: int = 0

    def run(self, folder: Path) -> dict[str, Any]:
        """Train, write ``model/`` and ``metrics.jsonl``, and return the results the report shows."""
        kind, asked = objective_class(self.method, self.settings)
        objective, card = self._objective(kind, asked)
        started = time.perf_counter()
        table, rows, about = self._pictures(objective)
        decoded = time.perf_counter() - started
        training = self._training(objective, len(table))
        probe = self._probe(objective, table, rows)
        if probe is not None and card.weights != "random":
            probe.remember(objective.backbone)  # drift is measured from the weights that came in
        chosen = all_settings(kind, asked)
        self.console.say(
            f"{self.method}: {len(table):,} pictures, {training.steps:,} steps of {training.batch_size} "
            f"({training.steps * training.batch_size / len(table):.1f} passes), {'bf16' if training.bf16 else 'fp32'}"
        )
        clock = time.perf_counter()
        views = PictureViews(table, objective.views(), self.seed)
        facts = {
            "method": self.method,
            "settings": chosen,
            "backbone": card.name,
            "weights": card.weights_hash,
            "image_size": objective.image_size,
            "store_size": table.shape[-1],
            "data": about["fingerprint"],
        }
        trained = self._train(objective, views, training, probe, folder, facts)
        if not first_process():
            return {"status": trained.status, "verdict": []}  # the first one writes for all
        seconds = time.perf_counter() - clock
        for note in trained.notes:
            self.console.say(note)
        after = self._save(objective, card, folder, len(table))
        return self._results(objective, chosen, training, trained, about, after, table, decoded, seconds)

    # -- before ------------------------------------------------------------------------------------------------------

    def _objective(self, kind: type[Objective], asked: dict[str, Any]) -> tuple[Objective, BackboneCard]:
        name = self.backbone or getattr(kind, "default_backbone", None) or default_backbones()[0][0]
        resolve(name)
        if not self.backbone:
            self.console.say(f"Backbone: {name} (none was named)")
        model = load_backbone(name, num_classes=0)
        card = card_of(model)
        size = self.image_size or card.input_size[0]
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        fits = size >= max(patch)  # else the method names sizes that do
        if fits and (size, size) != tuple(card.input_size):
            set_input_size(model, size, size)
        model.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):  # new parts hang on the seed, and nothing outside moves
            torch.manual_seed(self.seed)
            objective = kind(model, size, **asked)
        self.console.say(f"{card.label}, {card.parameters:,} parameters, {size} px")
        return objective, card

    def _pictures(self, objective: Objective) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """The table of readable pictures that may be learnt from, their rows in the data set, and what it holds."""
        samples = as_samples(self.dataset)
        if not len(samples):
            raise DataError(f"{self.source}: no pictures; pre-training needs at least two.")
        size = self.store_size or round(objective.image_size * 8 / 7)
        with self.console.progress("decode", len(samples)) as advance:
            table, errors = load_pixels(samples, size, advance)
        if errors and self.strict:
            raise DataError(
                f"{len(errors)} pictures cannot be read, and --strict was asked for: {next(iter(errors.values()))}."
            )
        for error in list(errors.values())[:5]:
            self.console.warn(f"left out: {error}")
        splits = text_column(self.dataset, "split")
        held_out = np.zeros(len(samples), bool) if splits is None else splits == "test"
        rows = np.array([i for i in range(len(samples)) if i not in errors and not held_out[i]], dtype=int)
        if len(rows) < 2:
            first = f"; first unreadable: {next(iter(errors.values()))}" if errors else ""
            raise DataError(f"{self.source}: {len(rows)} usable pictures; pre-training needs at least two{first}.")
        if held_out.any():
            self.console.say(f"{held_out.sum():,} pictures of the test split are left out")
        keys, _ = content_keys(self.dataset)
        kept = self.dataset.select(rows)
        about = summarise(kept, [keys[i] or b"" for i in rows]).to_dict() | {
            "source": self.source,
            "n": len(samples),
            "n_used": len(rows),
            "bad_files": [{"path": error.path, "error": error.reason} for error in errors.values()],
        }
        whole = len(rows) == len(table)
        return (table if whole else table[rows]), rows, about

    def _training(self, objective: Objective, n: int) -> Training:
        recipe = objective.recipe
        parts = self.launch.world * self.accumulate
        bf16 = has_bf16() if self.precision == "auto" else self.precision == "bf16"
        training = Training.of(
            recipe,
            n,
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            parts=parts,
            seed=self.seed,
            accumulate=self.accumulate,
            bf16=bf16,
            compile=self.compile,
        )
        changed = replace(
            training.recipe,
            learning_rate=self.learning_rate or training.recipe.learning_rate,
            weight_decay=training.recipe.weight_decay if self.weight_decay is None else self.weight_decay,
        )
        every = max(1, math.ceil(training.steps / RECORDS))
        return replace(training, recipe=changed, log_every=every, freeze_trunk=round(self.warm_head * training.steps))

    def _probe(self, objective: Objective, table: np.ndarray, rows: np.ndarray) -> LiveProbe | None:
        if self.probes < 1:
            return None
        kept = self.dataset.select(rows)
        labels = label_array(kept) if class_names(kept) and "label" in kept.column_names else None
        if labels is not None and len(np.unique(labels[labels >= 0])) < 2:
            labels = None
        groups = text_column(kept, "group")
        return LiveProbe(
            table,
            labels,
            groups,
            mean=objective.mean,
            std=objective.std,
            image_size=objective.image_size,
            seed=self.seed,
        )

    # -- meanwhile ---------------------------------------------------------------------------------------------------

    def _train(
        self,
        objective: Objective,
        views: PictureViews,
        training: Training,
        probe: LiveProbe | None,
        folder: Path,
        facts: dict[str, Any],
    ) -> Trained:
        metrics = MetricsLog(folder, self.tensorboard)
        said = max(1, training.steps // 20)

        def told(record: dict[str, Any]) -> None:
            metrics.log(record)
            if record["step"] // said > (record["step"] - training.log_every) // said:
                self.console.say(
                    f"step {record['step']:,} of {training.steps:,}: loss {record['loss']:.4f}, "
                    f"{record['samples_per_second']:,.0f} images/s"
                )

        started_flat: list[int] = []

        def probed(step: int, module: Any) -> dict[str, Any]:
            assert probe is not None
            found = probe(module.export())
            reason = collapsed(found)
            if reason and step and not started_flat:  # a network may well start with nearly equal features
                found["stop"] = reason
            if reason and not step:
                started_flat.append(step)
            numbers = ", ".join(f"{key} {value:.3f}" for key, value in found.items() if isinstance(value, float))
            self.console.say(f"probe at step {step}: {numbers}")
            return found

        with self.console.progress("pre-train", training.steps, unit="steps") as advance:
            watch = Watch(
                log=told,
                advance=advance,
                probe=probed if probe is not None else None,
                probe_every=max(1, math.ceil(training.steps / max(1, self.probes))),
                restarted=metrics.restart,
            )
            return train(
                objective,
                views,
                training,
                launch=self.launch,
                watch=watch,
                workers=self.workers,
                checkpoints=folder / "checkpoints",
                identity=facts,
                save_seconds=self.save_seconds,
                minutes=self.minutes,
            )

    # -- after -------------------------------------------------------------------------------------------------------

    def _save(self, objective: Objective, card: BackboneCard, folder: Path, n: int) -> BackboneCard:
        backbone = objective.export()
        began = "random weights" if card.weights == "random" else card.name
        after = replace(
            card,
            weights="run",
            weights_hash=weights_hash(backbone),
            input_size=(objective.image_size, objective.image_size),
            crop_pct=1.0,
            note=f"pre-trained by {self.method} from {began} on {n} pictures, without labels",
        )
        save_backbone(backbone, folder / "model", card=after)
        return after

    def _results(
        self,
        objective: Objective,
        settings: dict[str, Any],
        training: Training,
        trained: Trained,
        about: dict[str, Any],
        card: BackboneCard,
        table: np.ndarray,
        decoded: float,
        seconds: float,
    ) -> dict[str, Any]:
        entry = get(self.method)
        recipe = training.recipe
        rates = [record["samples_per_second"] for record in trained.history]
        results: dict[str, Any] = {
            "title": f"{Path(self.source).name or self.source}: {self.method}",
            "verb": "pretrain",
            "status": trained.status,
            "method": {"slug": entry.slug, "title": entry.title, "paper": entry.paper},
            "settings": settings,
            "data": about,
            "backbone": card.to_dict(),
            "training": {
                "steps": trained.step,
                "of_steps": training.steps,
                "batch_size": training.batch_size,
                "epochs": trained.step * training.batch_size / len(table),
                "seed": self.seed,
                "precision": "bf16" if training.bf16 else "fp32",
                "world": self.launch.world,
                "accumulate": training.accumulate,
                "optimiser": recipe.optimiser,
                "learning_rate": recipe.learning_rate,
                "weight_decay": recipe.weight_decay,
                "warm_up": recipe.warmup,
                "frozen_trunk_steps": training.freeze_trunk,
                "image_size": objective.image_size,
            },
            "history": trained.history,
            "probes": trained.probes,
            "pictures": illustrations(objective, table, self.seed),
            "notes": trained.notes,
            "cost": {
                "decode_seconds": round(decoded, 2),
                "train_seconds": round(seconds, 2),
                "samples_per_second": float(np.median(rates)) if rates else None,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
        }
        results["verdict"] = pretraining_sentences(results)
        return results


def illustrations(objective: Objective, table: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """What the method has to show of some pictures: ``[{"name", "images": [data URI, ...]}, ...]``."""
    rows = np.linspace(0, len(table) - 1, min(SHOWN_PICTURES, len(table))).astype(int)
    batch = objective.views()(torch.from_numpy(np.ascontiguousarray(table[rows])), Draws(seed, 0, rows))
    objective.eval()
    with torch.no_grad():
        shown = objective.illustrate(batch)
    return [{"name": name, "images": [data_uri(one) for one in images]} for name, images in shown.items()]
