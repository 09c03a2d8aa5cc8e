"""Few-shot episodes: N classes, K labelled pictures of each, and other pictures of these classes to be named.

Source of the episodes: Vinyals et al., "Matching Networks for One Shot Learning" (2016, arXiv 1606.04080), section 3.2;
of the classifier, the nearest mean of the labelled pictures of a class: Snell et al., "Prototypical Networks for
Few-shot Learning" (2017, arXiv 1703.05175), equations 1 and 2, here over frozen features of unit length.
"""

from __future__ import annotations

import numpy as np

from offshelf.errors import NotApplicable
from offshelf.evaluate.battle.decks import Entry
from offshelf.evaluate.battle.outcome import Outcome, of_rows
from offshelf.evaluate.label_subsets import LabelBudget

QUERIES, EPISODES = 15, 200
AT_ONCE = 2**25  # numbers gathered in one block of episodes


def few_shot(entry: Entry, budget: LabelBudget, seed: int, *, ways: int, shots: int) -> Outcome:
    """Mean accuracy over 200 episodes; the tested pictures are the pool. The interval is over episodes."""
    tested = entry.tested()
    rows = draw_episodes(
        entry.rows.labels[tested],
        entry.units(tested),
        ways=ways,
        pictures=shots + QUERIES,
        episodes=EPISODES,
        seed=seed,
        name=entry.deck.place.name,
    )
    x = entry.values[tested].astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    size = max(1, AT_ONCE // (ways * (shots + QUERIES) * x.shape[1]))
    scores = np.concatenate([_accuracies(x[rows[i : i + size]], shots) for i in range(0, len(rows), size)])
    about = {"ways": ways, "shots": shots, "queries": QUERIES, "episodes": EPISODES}
    return of_rows(scores, np.arange(len(scores)), metric="accuracy", chance=1 / ways, about=about)


def draw_episodes(
    labels: np.ndarray, units: np.ndarray, *, ways: int, pictures: int, episodes: int, seed: int, name: str = "the data"
) -> np.ndarray:
    """Rows ``(episodes, ways, pictures)``: different classes, and in a class pictures of different units.

    Parameters
    ----------
    labels : (n,) class of each row.
    units : (n,) codes of patients or the like; two pictures of one never meet in an episode's class.

    Raises
    ------
    NotApplicable
        When fewer than ``ways`` classes have enough pictures.
    """
    rng = np.random.default_rng([seed, 17])
    members = {c: np.flatnonzero(labels == c) for c in np.unique(labels)}
    enough = [rows for rows in members.values() if len(np.unique(units[rows])) >= pictures]
    if len(enough) < ways:
        raise NotApplicable(
            f"{name}: {len(enough)} of {len(members)} classes have {pictures} independent pictures to draw from; "
            f"{ways} are needed. Ask for fewer with --ways or --shots."
        )
    found = np.empty((episodes, ways, pictures), dtype=np.int64)
    for episode in range(episodes):
        for way, c in enumerate(rng.permutation(len(enough))[:ways]):
            order = rng.permutation(enough[c])
            first = np.unique(units[order], return_index=True)[1]  # one row of each unit, the first in drawn order
            found[episode, way] = order[np.sort(first)[:pictures]]
    return found


def _accuracies(x: np.ndarray, shots: int) -> np.ndarray:
    """Accuracy of each episode ``(E,)`` from unit features ``(E, ways, shots + queries, D)``."""
    prototypes = x[:, :, :shots].mean(axis=2)
    queries = x[:, :, shots:]
    # squared distance to each prototype, without the part that all have in common
    distance = (prototypes**2).sum(axis=-1)[:, None, None, :] - 2 * np.einsum("ewqd,evd->ewqv", queries, prototypes)
    right = distance.argmin(axis=-1) == np.arange(x.shape[1])[:, None]
    return right.mean(axis=(1, 2))
