"""Who fits the heads: scikit-learn in its own grid search, and offshelf, on the same rows and folds.

The rows imitate pooled features: Gaussian clusters in a few hidden directions, seen through a random rectified layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks._process import Watch

Handed = tuple[dict[str, Any], dict[str, np.ndarray]]
Folds = list[tuple[np.ndarray, np.ndarray]]
SOLVER_STEPS = 200  # at most, for scikit-learn and for offshelf
NEIGHBOURS = (1, 3, 5, 10, 20, 50)


def made_rows(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``(n, d)`` float32 and classes ``(n,)``, the same for a seed whatever runs beside."""
    random = np.random.default_rng([seed, d, classes])
    hidden = 32
    centres = random.normal(0, 0.55, (classes, hidden))
    layer = random.normal(0, hidden**-0.5, (hidden, d)).astype(np.float32)
    y = random.integers(0, classes, n)
    latent = (centres[y] + random.normal(0, 1, (n, hidden))).astype(np.float32)
    X = latent @ layer
    X += 0.5 * random.standard_normal((n, d), dtype=np.float32)
    return np.maximum(X, 0.0, out=X), y


def _parts(n: int, n_test: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, their classes, and further rows to predict."""
    X, y = made_rows(n + n_test, d, classes)
    return X[:n], y[:n], X[n:]


def _folds(y: np.ndarray, folds: int) -> Folds:
    from sklearn.model_selection import StratifiedKFold

    return list(StratifiedKFold(folds, shuffle=True, random_state=0).split(y, y))


def sklearn_logistic(
    watch: Watch, n: int, n_test: int, d: int, classes: int, penalties: list[float], folds: int, jobs: int = 1
) -> Handed:
    """Scale inside each fold, LogisticRegression for each penalty, chosen by log loss, fitted again on all rows."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y, test = _parts(n, n_test, d, classes)
    pairs = _folds(y, folds)
    warnings.simplefilter("ignore", ConvergenceWarning)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=SOLVER_STEPS))
    grid = {"logisticregression__C": penalties}
    watch.start()
    search = GridSearchCV(model, grid, cv=pairs, scoring="neg_log_loss", n_jobs=jobs).fit(X, y)
    watch.stop()
    path = -search.cv_results_["mean_test_score"]
    chosen = search.best_params_["logisticregression__C"]
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=chosen, max_iter=SOLVER_STEPS)).fit(X, y)
    loss = objective(X, y, reference[-1].coef_, reference[-1].intercept_, chosen)
    return {"C": chosen, "objective": loss}, {"path": path, "predicted": search.predict(test)}


def offshelf_logistic(
    watch: Watch, n: int, n_test: int, d: int, classes: int, penalties: list[float], folds: int
) -> Handed:
    """`LogisticPath` on the same folds."""
    from offshelf.transfer.logistic_path import LogisticPath

    X, y, test = _parts(n, n_test, d, classes)
    pairs = _folds(y, folds)
    watch.start()
    head = LogisticPath(penalties, cv=pairs, max_iter=SOLVER_STEPS).fit(X, y)
    watch.stop()
    mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    loss = objective(X, y, head.coef_ * scale, head.intercept_ + head.coef_ @ mean, head.C_)
    return {"C": head.C_, "objective": loss}, {"path": head.path_, "predicted": head.predict(test)}


def objective(X: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, C: float) -> float:
    """Mean cross-entropy plus ``||W||^2 / (2 C n)`` in double precision.

    Parameters
    ----------
    X : (n, d), standardised here. y : (n,), class codes. W : (K, d), in units of standardised features. b : (K,).
    C : the penalty.
    """
    mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    logits = ((X - mean) / np.where(scale > 0, scale, 1.0)) @ W.astype(np.float64).T + b
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-log_p[np.arange(len(y)), y].mean() + (W.astype(np.float64) ** 2).sum() / (2 * C * len(y)))


def sklearn_svm(
    watch: Watch, n: int, n_test: int, d: int, classes: int, penalties: list[float], folds: int, jobs: int = 1
) -> Handed:
    """SVC with its Gaussian kernel for each C, chosen by balanced accuracy, fitted again on all rows."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    X, y, test = _parts(n, n_test, d, classes)
    pairs = _folds(y, folds)
    watch.start()
    search = GridSearchCV(SVC(), {"C": penalties}, cv=pairs, scoring="balanced_accuracy", n_jobs=jobs).fit(X, y)
    watch.stop()
    path = search.cv_results_["mean_test_score"]
    return {"C": search.best_params_["C"]}, {"path": path, "predicted": search.predict(test)}


def offshelf_svm(watch: Watch, n: int, n_test: int, d: int, classes: int, penalties: list[float], folds: int) -> Handed:
    """`KernelSVM` over the same values of C on the same folds, without the calibration that SVC does not do either."""
    from offshelf.transfer.kernel_svm import KernelSVM

    X, y, test = _parts(n, n_test, d, classes)
    pairs = _folds(y, folds)
    watch.start()
    head = KernelSVM("rbf", C=penalties, gamma_factors=(1.0,), cv=pairs, probability=False).fit(X, y)
    watch.stop()
    return {"C": head.C_}, {"path": head.path_[:, 0], "predicted": head.predict(test)}


def sklearn_knn(watch: Watch, n: int, n_test: int, d: int, classes: int, k: int) -> Handed:
    """Brute-force cosine neighbours of the further rows."""
    from sklearn.neighbors import KNeighborsClassifier

    X, y, test = _parts(n, n_test, d, classes)
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(X, y)
    watch.start()
    shares = model.predict_proba(test)
    watch.stop()
    return {}, {"votes": np.rint(shares * k)}


def offshelf_knn(watch: Watch, n: int, n_test: int, d: int, classes: int, k: int) -> Handed:
    """`NearestNeighbours` with its k given; its smoothing is taken off again to compare votes."""
    from offshelf.transfer.nearest_neighbours import NearestNeighbours

    X, y, test = _parts(n, n_test, d, classes)
    few = np.arange(min(n, 20 * k))  # one small inner fold: k is given, and nothing is to be chosen
    head = NearestNeighbours((k,), cv=[(few[::2], few[1::2])]).fit(X, y)
    watch.start()
    shares = head.predict_proba(test)
    watch.stop()
    return {}, {"votes": np.rint(shares * (k + 1) - head.prior_)}


def sklearn_knn_choice(watch: Watch, n: int, n_test: int, d: int, classes: int, folds: int, jobs: int = 1) -> Handed:
    """The number of neighbours chosen by balanced accuracy."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    X, y, test = _parts(n, n_test, d, classes)
    model, grid = KNeighborsClassifier(metric="cosine", algorithm="brute"), {"n_neighbors": list(NEIGHBOURS)}
    pairs = _folds(y, folds)
    watch.start()
    search = GridSearchCV(model, grid, cv=pairs, scoring="balanced_accuracy", n_jobs=jobs).fit(X, y)
    watch.stop()
    path = search.cv_results_["mean_test_score"]
    return {"C": search.best_params_["n_neighbors"]}, {"path": path, "predicted": search.predict(test)}


def offshelf_knn_choice(watch: Watch, n: int, n_test: int, d: int, classes: int, folds: int) -> Handed:
    """`NearestNeighbours` over the same numbers of neighbours on the same folds."""
    from offshelf.transfer.nearest_neighbours import NearestNeighbours

    X, y, test = _parts(n, n_test, d, classes)
    pairs = _folds(y, folds)
    watch.start()
    head = NearestNeighbours(NEIGHBOURS, cv=pairs).fit(X, y)
    watch.stop()
    path = np.array([head.path_[k] for k in NEIGHBOURS])
    return {"C": head.k_}, {"path": path, "predicted": head.predict(test)}
