"""L-BFGS on many smooth problems at once: one tensor program instead of one solver call a problem.

Every problem keeps its own history, step length and stopping point; those that are done leave the batch. The two-loop
recursion (Nocedal and Wright, Numerical Optimization, algorithm 7.4) runs on all of them together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# (problem numbers (A,), their parameters (A, N)) -> losses (A,) in float64, gradients (A, N)
Objective = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def minimise(
    objective: Objective, start: torch.Tensor, *, max_iter: int, tol: float, memory: int = 10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Minimise B problems of N parameters each.

    Parameters
    ----------
    objective : callable
        Losses and gradients of the problems still running.
    start : float32 tensor, shape (B, N)
        Where to begin.
    max_iter : int
        Steps at most for each problem.
    tol : float
        A problem stops when the fall that its next step promises is below ``tol`` times ``max(1, loss)``; near a
        minimum half that promise is the distance of the loss from its minimum.
    memory : int
        Number of past steps that shape the curvature.

    Returns
    -------
    parameters (B, N), losses (B,), iterations (B,)
    """
    best, steps = start.clone(), torch.zeros(len(start), dtype=torch.int64)
    alive = torch.arange(len(start))
    x = start.clone()
    loss, gradient = objective(alive, x)
    final = loss.clone()
    moves: list[torch.Tensor] = []  # s, newest last, (A, N)
    turns: list[torch.Tensor] = []  # y
    inverse: list[torch.Tensor] = []  # 1 / s.y, zero where the pair was not usable, (A, 1)
    for iteration in range(max_iter):
        direction = _direction(gradient, moves, turns, inverse)
        slope = _dot(direction, gradient)
        uphill = slope >= 0  # a spoilt history: fall back to steepest descent for these
        if uphill.any():
            direction[uphill] = -gradient[uphill]
            slope = _dot(direction, gradient)
        running = -slope > tol * loss.clamp(min=1.0)
        x_new, loss_new, gradient_new, moved = _step(
            objective, alive, x, loss, gradient, direction, slope, running, first=not moves
        )
        best[alive], final[alive] = x_new, loss_new
        steps[alive[moved]] = iteration + 1
        if not moved.any():
            break
        move, turn = x_new - x, gradient_new - gradient
        curvature = _dot(move, turn)
        good = moved & (curvature > 1e-10 * _dot(turn, turn).clamp(min=1e-30))
        inv = torch.where(good, 1.0 / curvature.clamp(min=1e-30), 0.0).to(x.dtype)[:, None]
        moves, turns, inverse = [*moves, move][-memory:], [*turns, turn][-memory:], [*inverse, inv][-memory:]
        x, loss, gradient = x_new, loss_new, gradient_new
        if not moved.all():
            alive, x, loss, gradient = alive[moved], x[moved], loss[moved], gradient[moved]
            moves, turns, inverse = ([t[moved] for t in kept] for kept in (moves, turns, inverse))
    return best, final, steps


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a, b).double()


def _direction(
    gradient: torch.Tensor, moves: list[torch.Tensor], turns: list[torch.Tensor], inverse: list[torch.Tensor]
) -> torch.Tensor:
    """Two-loop recursion; a pair with ``inverse`` zero takes no part."""
    q = gradient.neg()
    weights = []
    for s, y, rho in zip(reversed(moves), reversed(turns), reversed(inverse)):
        a = rho * torch.linalg.vecdot(s, q)[:, None]
        weights.append(a)
        q.addcmul_(a, y, value=-1.0)
    if moves:
        s, y, rho = moves[-1], turns[-1], inverse[-1]
        size = torch.linalg.vecdot(y, y)[:, None] * rho  # y.y / s.y
        q.mul_(torch.where(size > 0, 1.0 / size.clamp(min=1e-30), 1.0))
    for s, y, rho, a in zip(moves, turns, inverse, reversed(weights)):
        b = rho * torch.linalg.vecdot(y, q)[:, None]
        q.addcmul_(a - b, s)
    return q


def _step(
    objective: Objective,
    alive: torch.Tensor,
    x: torch.Tensor,
    loss: torch.Tensor,
    gradient: torch.Tensor,
    direction: torch.Tensor,
    slope: torch.Tensor,
    running: torch.Tensor,
    *,
    first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Halve each step until its loss has fallen enough (Armijo, 1e-4); a problem that cannot fall stays where it is."""
    length = torch.ones(len(x), dtype=x.dtype)
    if first:  # no curvature known yet: no more than a unit step
        length = (1.0 / gradient.norm(dim=1).clamp(min=1.0)).to(x.dtype)
    x_new, loss_new, gradient_new = x.clone(), loss.clone(), gradient.clone()
    moved = torch.zeros(len(x), dtype=torch.bool)
    trying = torch.nonzero(running).flatten()
    for _ in range(20):
        if not len(trying):
            break
        candidate = x[trying] + length[trying, None] * direction[trying]
        value, slope_there = objective(alive[trying], candidate)
        fell = value <= loss[trying] + 1e-4 * length[trying] * slope[trying]
        fallen = trying[fell]
        x_new[fallen], loss_new[fallen], gradient_new[fallen] = candidate[fell], value[fell], slope_there[fell]
        moved[fallen] = True
        trying = trying[~fell]
        length[trying] *= 0.5
    return x_new, loss_new, gradient_new, moved
