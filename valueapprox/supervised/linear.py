"""Linear models H(s; w) = w_0 + w_1 s_1 + ... + w_d s_d: closed form, the notes' descent rules, logistic and softmax.

Note 001 (linear least squares, empirical risk) and note 003 (linear regression by gradient descent). Everywhere here
S is (n, d), y is (n,) or (n, k), and w is (d + 1,) or (d + 1, k) with the constant w_0 first; numbers are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, as_numbers, one_of, positive
from valueapprox.nn.network import Network
from valueapprox.optim import SGD
from valueapprox.supervised import losses
from valueapprox.supervised.fitting import FitError, History, fit
from valueapprox.supervised.losses import Loss
from valueapprox.supervised.objective import Data, as_data
from valueapprox.supervised.regularizers import Regularizer, SupportsPenalty

__all__ = [
    "Minimum", "augment", "batch_rule", "gradient_descent", "least_squares", "logistic_regression", "minimise",
    "per_example_rule", "predict", "risk", "risk_gradient", "softmax_regression", "to_network",
]  # fmt: skip

FLOAT = np.dtype(np.float64)
SQUARED = losses.Squared()


class Minimum(NamedTuple):
    """Where a descent ended."""

    w: np.ndarray
    #: The loss at the start and after each iteration.
    losses: np.ndarray
    #: Whether it ended by its tolerance, and not by max_iterations.
    converged: bool


# --- what is given, checked -----------------------------------------------------------------------------------------


def _finite(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(as_numbers(name, value), FLOAT)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {array[~np.isfinite(array)][0]}; expected finite numbers")
    return array


def _states(S: ArrayLike) -> np.ndarray:
    array = as_numbers("S", S)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"S has shape {array.shape}; expected (n, d), a row for each example")
    return array


def _pairs(S: ArrayLike, y: ArrayLike, loss: Loss = SQUARED, k: int = 0) -> Data:
    """The checked pairs, S (n, d) and Y (n, k); k is read off y if it is 0."""
    S = _states(S)
    shape = np.shape(as_numbers("y", y))
    k = k or (shape[1] if len(shape) == 2 else 1)
    return as_data(Network((S.shape[1], k), dtype="float64"), S, y, loss)


def _weights(w: ArrayLike, d: int, k: int | None) -> np.ndarray:
    """The checked weights, (d + 1,), or (d + 1, k) if k outputs are given as columns."""
    return as_floats("w", _finite("w", w), FLOAT, (d + 1,) if k is None else (d + 1, k))


def _not_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; expected a finite number that is not negative")
    return float(value)


def _columns(y: ArrayLike) -> int | None:
    """How many columns w has: None for y (n,), else k."""
    shape = np.shape(y)
    return int(shape[1]) if len(shape) == 2 else None


# --- the model and its risk -----------------------------------------------------------------------------------------


def augment(S: ArrayLike) -> np.ndarray:
    """Aug(s) = (1, s_1, ..., s_d): for one state (d,) gives (d + 1,), for (n, d) gives (n, d + 1).

    It is also the gradient of the linear model, grad_w H(s; w) = Aug(s), at every w. (Note 001.)

    >>> augment([[2.0, 3.0], [4.0, 5.0]])
    array([[1., 2., 3.],
           [1., 4., 5.]])
    """
    array = _finite("S", S)
    if array.ndim not in (1, 2):
        raise ValueError(f"S has shape {array.shape}; expected (n, d), or (d,) for one state")
    return np.concatenate([np.ones((*array.shape[:-1], 1)), array], axis=-1)


def predict(w: ArrayLike, S: ArrayLike) -> np.ndarray:
    """H(s; w) = Aug(s) . w for each state: (n,) for w (d + 1,), (n, k) for w (d + 1, k). (Note 001.)

    >>> predict([1.0, 2.0], [[0.0], [1.0], [5.0]])  # 1 + 2 s
    array([ 1.,  3., 11.])
    """
    A = augment(_states(S))
    return A @ _weights(w, A.shape[1] - 1, _columns(w))


def risk(w: ArrayLike, S: ArrayLike, y: ArrayLike, ridge: float = 0.0) -> float:
    """R(w) = 1/n sum_i (Aug(s_i) . w - y_i)^2 + ridge sum_{i > 0} w_i^2, summed over outputs. (Note 001, R_sq.)

    The loss of note 003 is n times the first term.

    >>> risk([1.0, 2.0], [[0.0], [1.0]], [1.0, 6.0])  # errors 0 and -3
    4.5
    """
    data = _pairs(S, y)
    w = _weights(w, data.states.shape[1], _columns(y)).reshape(-1, data.targets.shape[1])
    return _risk(w, augment(data.states), data.targets) + _not_negative("ridge", ridge) * float((w[1:] ** 2).sum())


def _risk(w: np.ndarray, A: np.ndarray, Y: np.ndarray) -> float:
    return float(((A @ w - Y) ** 2).sum() / len(A))


def risk_gradient(w: ArrayLike, S: ArrayLike, y: ArrayLike, ridge: float = 0.0) -> np.ndarray:
    """The gradient of `risk`, shaped like w: 2/n sum_i (Aug(s_i) . w - y_i) Aug(s_i) + 2 ridge (0, w_1, ..., w_d).

    By the chain rule, 1/n sum_i dl/dH grad_w H with dl/dH = 2 (H - y). (Note 001.)

    >>> risk_gradient([1.0, 2.0], [[0.0], [1.0]], [1.0, 6.0])  # 2/2 (-3) (1, 1)
    array([-3., -3.])
    """
    data = _pairs(S, y)
    A, Y = augment(data.states), data.targets
    weights = _weights(w, data.states.shape[1], _columns(y))
    columns = weights.reshape(-1, Y.shape[1])
    gradient = 2.0 / len(A) * A.T @ (A @ columns - Y)
    gradient[1:] += 2.0 * _not_negative("ridge", ridge) * columns[1:]
    return gradient.reshape(weights.shape)


# --- closed form ----------------------------------------------------------------------------------------------------


def least_squares(S: ArrayLike, y: ArrayLike, ridge: float = 0.0) -> np.ndarray:
    """The weights that minimise `risk`, where its gradient is 0, in closed form: note 001's "set to 0 and solve".

    Solved by singular values of Aug(S), without forming Aug(S)^T Aug(S), whose condition number is the square. With
    ridge, sqrt(ridge) times the identity, but for w_0, is appended to Aug(S) / sqrt(n), and zeros to y / sqrt(n).
    If many w are minimal, because inputs depend on each other or examples are fewer than weights, w is the one of
    least norm, w_0 included. Singular values below 2.2e-16 max(n, d + 1) times the largest count as 0.

    Parameters
    ----------
    S, y
        Examples (n, d) and targets (n,) or (n, k).
    ridge
        Weight of sum_{i > 0} w_i^2; w_0 is never penalised.

    Returns
    -------
    w (d + 1,), or (d + 1, k) for y (n, k).

    Raises
    ------
    ValueError, TypeError
        If there is no example, shapes do not fit, or a number is NaN or infinite.

    Examples
    --------
    >>> least_squares([[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 4.0, 8.0]).round(12)  # y = 0.7 + 2.2 s
    array([0.7, 2.2])
    """
    data = _pairs(S, y)
    A, Y = augment(data.states), data.targets
    if _not_negative("ridge", ridge) > 0:
        n, m = A.shape
        A = np.concatenate([A / math.sqrt(n), math.sqrt(ridge) * np.eye(m)[1:]])
        Y = np.concatenate([Y / math.sqrt(n), np.zeros((m - 1, Y.shape[1]))])
    w = np.linalg.lstsq(A, Y, rcond=None)[0]
    return w if _columns(y) else w[:, 0]


# --- gradient descent -----------------------------------------------------------------------------------------------


def _rule(w: np.ndarray, A: np.ndarray, Y: np.ndarray, alpha: float) -> np.ndarray:
    """w + alpha sum_j (y_j - h_j) Aug(s_j): every rule is this one, over one example or all."""
    return w + alpha * A.T @ (Y - A @ w)


def per_example_rule(w: ArrayLike, s: ArrayLike, y: ArrayLike, alpha: float) -> np.ndarray:
    """w_0 <- w_0 + alpha (y - h);  w_i <- w_i + alpha (y - h) s_i, with h = H(s; w): the weights after one example.

    alpha takes in the factor 2 of the loss (y - h)^2. (Note 003.) s (d,), y a number or (k,).

    >>> per_example_rule([0.0, 0.0], [3.0], 8.0, alpha=0.1)  # y - h = 8
    array([0.8, 2.4])
    """
    y = np.asarray(as_numbers("y", y))
    if y.ndim > 1:
        raise ValueError(f"y has shape {y.shape}; expected a number, or (k,) for w (d + 1, k)")
    state = as_numbers("s", s)
    if state.ndim != 1:
        raise ValueError(f"s has shape {state.shape}; expected (d,), the state of one example")
    return batch_rule(w, state[None], y[None], alpha)


def batch_rule(w: ArrayLike, S: ArrayLike, y: ArrayLike, alpha: float) -> np.ndarray:
    """w_0 <- w_0 + alpha sum_j (y_j - h_j);  w_i <- w_i + alpha sum_j (y_j - h_j) s_ji: the weights after one step.

    A sum and no mean, so alpha is to shrink as examples are added; alpha takes in the factor 2. (Note 003.)

    >>> batch_rule([0.0, 0.0], [[1.0], [3.0]], [3.0, 8.0], alpha=0.1)  # 0.1 (3 + 8), 0.1 (3 * 1 + 8 * 3)
    array([1.1, 2.7])
    """
    data = _pairs(S, y)
    weights = _weights(w, data.states.shape[1], _columns(y))
    columns = weights.reshape(-1, data.targets.shape[1])
    return _rule(columns, augment(data.states), data.targets, _not_negative("alpha", alpha)).reshape(weights.shape)


def gradient_descent(
    S: ArrayLike,
    y: ArrayLike,
    alpha: float,
    rule: str = "batch",
    max_iterations: int = 1000,
    tolerance: float | None = None,
    seed: int = 0,
    start: ArrayLike | None = None,
) -> Minimum:
    """Minimise the squared error of a linear model by a rule of note 003, until convergence or max_iterations.

    An iteration is a pass over all examples. Only "batch" ends at the least squares solution: with a constant alpha
    the other two come as near as alpha is small, unless a w without any error exists.

    Parameters
    ----------
    S, y
        Examples (n, d) and targets (n,) or (n, k).
    alpha
        Step size. "batch" is stable below 2 / sigma^2, sigma the largest singular value of Aug(S); the others surely
        are below 2 / max_j |Aug(s_j)|^2.
    rule
        "batch": one `batch_rule` per iteration. "per-example": `per_example_rule` for each example in the order that
        they have. "stochastic": the same in a new random order every iteration.
    max_iterations
        Maximum number of iterations; note 004's 1000 if not given.
    tolerance
        Converged when no weight changes by more than this in an iteration; None runs to max_iterations.
    seed
        Seed of the random orders.
    start
        Where to begin, "any point in the parameter space"; 0 if not given.

    Returns
    -------
    The weights, the risk 1/n sum_j (y_j - h_j)^2 at the start and after each iteration, and whether it converged.

    Raises
    ------
    ValueError, TypeError
        If data or settings make no sense.
    FitError
        If the weights leave the finite numbers; the message says how small alpha has to be.

    Examples
    --------
    >>> S, y = [[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 4.0, 8.0]
    >>> w, losses, converged = gradient_descent(S, y, alpha=0.1, tolerance=1e-12)
    >>> w.round(6), losses[:2].round(6), converged
    (array([0.7, 2.2]), array([22.5  , 10.685]), True)
    """
    one_of("rule", rule, ("batch", "per-example", "stochastic"))
    data = _pairs(S, y)
    A, Y = augment(data.states), data.targets
    n, k = Y.shape
    shape = (A.shape[1], k) if _columns(y) else (A.shape[1],)
    w = np.zeros(shape) if start is None else _weights(start, A.shape[1] - 1, _columns(y))
    alpha = _not_negative("alpha", alpha)
    rng = np.random.default_rng(positive("seed", seed, at_least=0))

    def step(w: np.ndarray) -> np.ndarray:
        if rule == "batch":
            return _rule(w, A, Y, alpha)
        for j in rng.permutation(n) if rule == "stochastic" else range(n):
            w = _rule(w, A[j : j + 1], Y[j : j + 1], alpha)
        return w

    longest = np.linalg.norm(A, 2) if rule == "batch" else np.linalg.norm(A, axis=1).max()
    advice = f"alpha is {alpha:g}; with these data the {rule} rule is stable below {2 / longest**2:.3g}"
    end = _descend(step, lambda w: _risk(w, A, Y), w.reshape(-1, k), max_iterations, tolerance, advice)
    return end._replace(w=end.w.reshape(shape))


def minimise(
    gradient: Callable[[np.ndarray], ArrayLike],
    theta: ArrayLike,
    eta: float,
    max_iterations: int = 1000,
    tolerance: float | None = None,
    loss: Callable[[np.ndarray], float] | None = None,
) -> Minimum:
    """Note 004's gradient_descent(): theta_{t+1} = theta_t - eta grad(theta_t), for any theta and its gradient.

    Parameters
    ----------
    gradient
        grad(theta), shaped like theta; of any function.
    theta
        Where to begin; it is not changed.
    eta
        Step size.
    max_iterations, tolerance
        As for `gradient_descent`.
    loss
        The function itself, if its values are to be returned; otherwise there are none.

    Raises
    ------
    FitError
        If theta or the loss leaves the finite numbers.

    Examples
    --------
    f = 1/2 theta^2 with gradient theta; each step takes off a half.

    >>> minimise(lambda theta: theta, [8.0], eta=0.5, max_iterations=3, loss=lambda theta: 0.5 * theta @ theta)
    Minimum(w=array([1.]), losses=array([32. ,  8. ,  2. ,  0.5]), converged=False)
    """
    start, eta = _finite("theta", theta), _not_negative("eta", eta)

    def step(theta: np.ndarray) -> np.ndarray:
        return theta - eta * as_floats("the gradient", gradient(theta), FLOAT, theta.shape)

    return _descend(step, loss, start, max_iterations, tolerance, f"eta is {eta:g}; a smaller one helps")


def _descend(
    step: Callable[[np.ndarray], np.ndarray],
    loss: Callable[[np.ndarray], float] | None,
    w: np.ndarray,
    max_iterations: int,
    tolerance: float | None,
    advice: str,
) -> Minimum:
    """Repeat w <- step(w) until no entry changes by more than `tolerance`, or max_iterations."""
    if tolerance is not None:
        _not_negative("tolerance", tolerance)
    w = w.copy()
    values = [] if loss is None else [loss(w)]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is an error below
        for t in range(1, positive("max_iterations", max_iterations) + 1):
            before, w = w, step(w)
            if loss is not None:
                values.append(loss(w))
            if not np.isfinite(w).all() or (values and not math.isfinite(values[-1])):
                raise FitError(f"the weights or the loss are infinite or NaN after iteration {t}: {advice}")
            if tolerance is not None and np.abs(w - before).max(initial=0.0) <= tolerance:
                return Minimum(w, np.array(values), True)
    return Minimum(w, np.array(values), False)


# --- as networks ----------------------------------------------------------------------------------------------------


def to_network(w: ArrayLike, dtype: str = "float64") -> tuple[Network, np.ndarray]:
    """A network without hidden layer, and its weights, that predict what `predict` does: W1 = w[1:], b1 = w[0].

    So a linear fit can start a `ValueFunction`, be saved with it, or be compared with a deeper network.

    >>> net, packed = to_network([0.7, 2.2])
    >>> net.sizes, packed, net.forward(packed, [1.0]).round(12)
    ((1, 1), array([2.2, 0.7]), array([2.9]))
    """
    weights = _finite("w", w)
    if weights.ndim not in (1, 2) or len(weights) < 2 or weights.size == 0:
        raise ValueError(f"w has shape {weights.shape}; expected (d + 1,) or (d + 1, k), w_0 first")
    columns = weights.reshape(len(weights), -1)
    net = Network((len(weights) - 1, columns.shape[1]), dtype=dtype)
    return net, net.pack([(columns[1:], columns[0])])


def logistic_regression(
    S: ArrayLike,
    y: ArrayLike,
    regularizer: Regularizer | SupportsPenalty | None = None,
    **options: Any,
) -> tuple[Network, np.ndarray, History]:
    """P(y = 1 | s) = sigmoid(w_0 + w . s): a network without hidden layer, log loss, fitted until it converges.

    Minimises 1/n sum_i -y_i log yhat_i - (1 - y_i) log(1 - yhat_i) + Omega(w) by batch gradient descent from w = 0,
    until its gradient's norm is at most 1e-6, or for 10,000 iterations. The step size is 1 / L, where L bounds the
    curvature: sigma^2 / (4 n) + 2 l2, with sigma the largest singular value of Aug(S). With inputs of mean 0 and
    variance 1 that takes some hundreds; with inputs of very different sizes 10,000 may not do, and history.reason says
    so: optimizer=Adam(0.03) then converges more often. Classes that a plane separates have no minimum without
    regularizer: w grows until the gradient is small.

    Parameters
    ----------
    S, y
        Examples (n, d) and labels 0 or 1, (n,), or (n, k) for k labels, each on its own; probabilities are labels too.
    regularizer
        `regularizers.L2`, ..., biases left out by default. L1 needs proximal=True: by its derivative it steps over 0
        until all iterations are made. With a regularizer of your own give an optimizer too: L leaves its curvature out.
    options
        Of `fit`, in place of what is said above: optimizer=Adam(0.1), gradient_tolerance, max_iterations, validation,
        batch_size, log, ...

    Returns
    -------
    The network, its weights (float64), and the history, whose `reason` says why it ended.

    Examples
    --------
    Without inputs that matter, yhat is the share of ones, 3/4 here.

    >>> net, w, history = logistic_regression([[-1.0], [1.0], [-1.0], [1.0]] * 2, [1, 1, 1, 0, 1, 1, 0, 1])
    >>> net.forward(w, [0.0]).round(5), history.reason[:9]
    (array([0.75]), 'converged')
    """
    data = _pairs(S, y, losses.LogLoss())
    net = Network((data.states.shape[1], data.targets.shape[1]), output="sigmoid", dtype="float64")
    return _fitted(net, data, losses.LogLoss(), 0.25, regularizer, options)


def softmax_regression(
    S: ArrayLike,
    y: ArrayLike,
    regularizer: Regularizer | SupportsPenalty | None = None,
    *,
    n_classes: int | None = None,
    **options: Any,
) -> tuple[Network, np.ndarray, History]:
    """P(class = c | s) = softmax(w_0 + w . s)_c: a network without hidden layer, negative log-likelihood, fitted.

    Minimises 1/n sum_i -log f(s_i)_{y_i} + Omega(w) as `logistic_regression` does, with L = sigma^2 / (2 n) + 2 l2.
    Adding one vector to the weights of every class changes no probability; from w = 0, the weights of an input add up
    to 0 over the classes.

    Parameters
    ----------
    S, y
        Examples (n, d) and classes 0, ..., k - 1 (n,), or their probabilities (n, k).
    regularizer, options
        As for `logistic_regression`.
    n_classes
        k, if y does not hold every class.

    Examples
    --------
    >>> net, w, history = softmax_regression([[-1.0], [0.0], [1.0]] * 2, [0, 1, 2, 0, 1, 1], n_classes=3)
    >>> net.forward(w, [[-9.0], [9.0]]).argmax(axis=1)
    array([0, 2])
    """
    if n_classes is None:
        labels = _finite("y", y)
        n_classes = labels.shape[1] if labels.ndim == 2 else max(2, len(np.unique(labels)))
        if labels.ndim == 1 and labels.max(initial=0) >= n_classes:
            raise ValueError(
                f"y holds {len(np.unique(labels))} different classes, the largest {labels.max():g}; expected 0, 1, ... "
                "without gaps, or n_classes"
            )
    data = _pairs(S, y, losses.NLL(), positive("n_classes", n_classes, at_least=2))
    net = Network((data.states.shape[1], n_classes), output="softmax", dtype="float64")
    return _fitted(net, data, losses.NLL(), 0.5, regularizer, options)


def _fitted(
    net: Network,
    data: Data,
    loss: Loss,
    curvature: float,
    regularizer: Regularizer | SupportsPenalty | None,
    options: dict[str, Any],
) -> tuple[Network, np.ndarray, History]:
    """Fit from w = 0; `curvature` bounds the second derivative of an example's loss along any direction of theta."""
    L = curvature * float(np.linalg.norm(augment(data.states), 2)) ** 2 / data.n
    if isinstance(regularizer, Regularizer):
        L += 2.0 * max(regularizer.strengths(net.layer_names)[1])
    defaults = {"batch_size": None, "epochs": None, "max_iterations": 10_000, "gradient_tolerance": 1e-6}
    settings = {"optimizer": SGD(1.0 / L), **defaults, **options}
    w = net.init(0, "zeros")
    history = fit(net, w, data.states, data.targets, loss=loss, regularizer=regularizer, **settings)
    return net, w, history
