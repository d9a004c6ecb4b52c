"""The lecture notes on a blackboard: every line of their derivations with its number, and what the kernels give."""

from __future__ import annotations

import inspect
import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from scipy.special import expit, softmax

from valueapprox import SGD, History, Network, fit, risk_gradient
from valueapprox.cli.board import BY_HAND, COMPILED, NUMERIC, Board, Numbers, written
from valueapprox.cli.terminal import announce_compile, command_line, errors_in_one_line
from valueapprox.nn import twolayer
from valueapprox.supervised import linear, losses, regularizers


@dataclass(frozen=True)
class Walkthrough:
    """Walk through the lecture notes: each formula, the number that it gives, and the compiled kernel's number.

    000  stochastic gradient descent with loss, regularizer and alpha; softmax and the negative log-likelihood
    001  backpropagation by hand: the exercise with three weight matrices, the dead ReLU, the parameter vector
    002  the derivation for s -A-> x -B-> y, line by line next to twolayer.py; where the slides are loose
    003  linear regression by the per-example and the batch rule; the Delta notation; L1 and L2 on an irrelevant input
    004  theta as blocks, the layout of its gradient, names of entries, 1000 iterations of gradient descent

    Every number is computed when it is printed. If two ways to a number disagree, that is said, and the exit code is 1.

    For example walkthrough.py 001, or walkthrough.py all | less
    """

    note: tyro.conf.Positional[Literal["000", "001", "002", "003", "004", "all"]] = "all"
    """Which of the notes."""


# --- numbers and names ----------------------------------------------------------------------------------------------


def differences(f: Callable[[np.ndarray], float], w: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences (f(w + h e) - f(w - h e)) / 2h for every entry of w, whatever its shape."""
    numeric = np.zeros_like(w)
    for at in np.ndindex(w.shape):
        change = np.zeros_like(w)
        change[at] = h
        numeric[at] = (f(w + change) - f(w - change)) / (2 * h)
    return numeric


def code_line(function: Callable[..., Any], start: str) -> str:
    """The line of a function that begins so, as it stands in the source."""
    for line in inspect.getsource(function).splitlines():
        if line.strip().startswith(start):
            return line.strip()
    raise LookupError(f"{function.__name__} has no line that begins with {start!r}")


def raised(number: int) -> str:
    """A layer's number as the notes write it: ⁽¹⁾."""
    return f"⁽{'⁰¹²³⁴⁵⁶⁷⁸⁹'[number]}⁾"


def one_update(net: Network, w: np.ndarray, S: Any, Y: Any, **options: Any) -> np.ndarray:
    """The weights after `fit` has made one update from w."""
    moved = w.copy()
    fit(net, moved, S, Y, max_iterations=1, progress=False, **options)
    return moved


# --- the notes ------------------------------------------------------------------------------------------------------


def note_000(board: Board) -> Numbers:
    """SGD with loss, regularizer and alpha; the gradient of the negative log-likelihood behind a softmax."""
    board.title("Note 000: stochastic gradient descent, softmax, negative log-likelihood")
    board.say(
        "θ ≡ {W⁽¹⁾, b⁽¹⁾, …, W⁽ᴸ⁺¹⁾, b⁽ᴸ⁺¹⁾}. Here one layer of three softmax units with the inputs h. In this note "
        "Wᵢⱼ leads to i from j; here, as in notes 001 and 002, W[i, j] leads from i to j: matrices are transposed."
    )
    net = Network((2, 3), output="softmax", dtype="float64")
    h, y, lam, alpha = np.array([2.0, 1.0]), 2, 0.1, 0.5
    W, b = np.array([[1.0, 0.0, -1.0], [-2.0, 0.0, 2.0]]), np.log([1.0, 2.0, 5.0])
    w = net.pack([(W, b)])
    penalty = regularizers.L2(lam)
    board.table("Given", ("", "value"), [("h", h), ("W", W), ("b", b), ("y (from 0)", y), ("λ", lam), ("α", alpha)])

    a = b + h @ W
    f = np.exp(a) / np.exp(a).sum()
    e = np.eye(3)[y]
    grad_a = f - e
    grad_W = np.outer(h, grad_a)
    delta_W, delta_b = -grad_W - lam * 2 * W, -grad_a
    loss, gradient = risk_gradient(net, w, [h], [y], "nll")
    by_W, by_b = net.unpack(gradient)[0]
    pulled = net.unpack(-risk_gradient(net, w, [h], [y], "nll", penalty)[1])[0]
    moved = one_update(net, w, [h], [y], loss="nll", regularizer=penalty, optimizer=SGD(alpha))
    board.compare(
        "One example",
        ("a", "aᵢ = bᵢ + Σⱼ Wᵢⱼ hⱼ", a, net.trace(w, h)["theta"]),
        ("f(x)", "exp(a) / Σ exp(a)", f, net.forward(w, h)),
        ("l", "−log f(x)_y", -math.log(f[y]), loss),
        ("e(y)", "1 for the class y, else 0", e, ""),
        ("∇a", "f(x) − e(y)", grad_a, by_b),
        ("∇W", "∇a hᵀ", grad_W, by_W),
        ("∇b", "∇a", grad_a, by_b),
        ("Ω", "Σ W²; no biases", (W**2).sum(), penalty.value(net, w) / lam),
        ("∇Ω", "2 W", 2 * W, net.unpack(penalty.gradient(net, w) / lam)[0][0]),
        ("Δ of W", "−∇W − λ ∇Ω", delta_W, pulled[0]),
        ("Δ of b", "−∇b", delta_b, pulled[1]),
        ("new W", "W + α Δ", W + alpha * delta_W, net.unpack(moved)[0][0]),
        ("new b", "b + α Δ", b + alpha * delta_b, net.unpack(moved)[0][1]),
    )
    numeric = differences(lambda v: -math.log(softmax(v)[y]), a)
    title = "Why f(x) − e(y): the slope of −log softmax(a)_y"
    board.compare(title, ("∇a", grad_a, numeric), columns=(BY_HAND, NUMERIC))

    board.say("for N iterations: for each training example. A pass over all examples is a training epoch:")
    board.say('  fit(net, w, S, y, loss="nll", regularizer=L2(0.001), optimizer=SGD(0.5), batch_size=1, epochs=20)')
    rng = np.random.default_rng(0)
    S = rng.normal(size=(30, 2))
    classes = (S @ rng.normal(size=(2, 3))).argmax(axis=1)
    w = net.init(seed=0)
    history = fit(
        *(net, w, S, classes),
        loss="nll", regularizer=regularizers.L2(0.001), optimizer=SGD(alpha), batch_size=1, epochs=20, progress=False,
    )  # fmt: skip
    rows = [
        (str(row["epoch"]), row["updates"], row["loss"], row["penalty"])
        for row in history.rows
        if row["epoch"] in (1, 2, 5, 10, 20)
    ]
    board.table("Epochs over 30 examples of three classes", ("epoch", "updates", "loss", "λ Ω"), rows)
    return board.numbers


def note_001(board: Board) -> Numbers:
    """Backpropagation by hand, a dead ReLU, the parameter vector."""
    board.title("Note 001: backpropagation, layer by layer")
    board.say(
        "The exercise: compute every entry of the gradient of H. All biases are 0. The output unit has the ReLU too; a "
        "linear one would give the same here, where its z is positive."
    )
    net = Network((2, 2, 2, 1), hidden="relu", output="relu", dtype="float64")
    x = np.array([2.0, 1.0])
    given = [[[2.0, -3.0], [2.0, 1.0]], [[2.0, 1.0], [0.0, 1.0]], [[3.0], [-2.0]]]
    W = [np.array(matrix) for matrix in given]
    w = net.pack([(matrix, np.zeros(matrix.shape[1])) for matrix in W])
    board.table("Given", ("", "value"), [("x = a⁽⁰⁾", x), *((f"W{raised(l + 1)}", W[l]) for l in range(3))])
    board.say("  layers = net.backpropagate(w, x)  # [LayerPass(z, a, dH_da, dH_dz, dH_dW, dH_db), ...]")
    layers = net.backpropagate(w, x)

    # The same in NumPy, in the words of the note: forward from the first layer, backward from the last.
    z, a = [], [x]
    for matrix in W:
        z.append(a[-1] @ matrix)
        a.append(np.maximum(z[-1], 0.0))
    forward: list[tuple[Any, ...]] = []
    for l, layer in enumerate(layers):
        n, before = raised(l + 1), raised(l)
        forward += [
            (f"z{n}", f"zⱼ{n} = Σᵢ aᵢ{before} Wᵢⱼ{n} + bⱼ{n}", z[l], layer.z),
            (f"a{n}", f"aⱼ{n} = max(0, zⱼ{n})" + (" = H" if l == 2 else ""), a[l + 1], layer.a),
        ]
    board.compare("1. Forward: z and a of every node", *forward)

    backward: list[tuple[Any, ...]] = []
    dH_da = np.ones(1)
    for l in (2, 1, 0):
        n, before, after = raised(l + 1), raised(l), raised(l + 2)
        dH_dz = dH_da * (z[l] > 0)
        why = "1, since H = a⁽³⁾" if l == 2 else f"Σₖ ∂H/∂zₖ{after} Wⱼₖ{after}"
        backward += [
            (f"∂H/∂a{n}", why, dH_da, layers[l].dH_da),
            (f"∂H/∂z{n}", f"∂H/∂aⱼ{n} g′(zⱼ{n})", dH_dz, layers[l].dH_dz),
            (f"∂H/∂W{n}", f"∂H/∂zⱼ{n} aᵢ{before}", np.outer(a[l], dH_dz), layers[l].dH_dW),
            (f"∂H/∂b{n}", f"∂H/∂zⱼ{n}", dH_dz, layers[l].dH_db),
        ]
        dH_da = W[l] @ dH_dz
    board.compare("2. Backward: from the last layer to the first", *backward)

    board.say(
        "Parameter vectors: all weights in one vector w, and the gradient is a vector of the same size. Its order is "
        "arbitrary; ours is W⁽¹⁾ row by row, b⁽¹⁾, W⁽²⁾, … Names count from 0: W1[0, 1] is the note's W₁₂⁽¹⁾. At the "
        "kink z = 0 differences would be wrong; no z is 0 here."
    )
    board.say("  net.name(1), net.index('W1[0, 1]'), net.gradient(w, x)")
    numeric = differences(lambda v: float(net.forward(v, x)[0]), w)
    gradient = net.gradient(w, x)
    entries = [(net.name(p), str(p), w[p], gradient[p], numeric[p]) for p in range(net.size)]
    board.table(
        f"The parameter vector of {net.n_parameters} entries",
        ("entry", "index", "w", "∂H/∂w", NUMERIC),
        entries,
        ("∂H/∂w", NUMERIC),
    )
    dead_relu(board)
    return board.numbers


def dead_relu(board: Board) -> None:
    """The exercise with W11 = -2, W21 = -5, W31 = 2."""
    net = Network((3, 2, 2, 1), hidden="relu", dtype="float64")
    x, column = np.array([3.0, 2.0, -2.0]), np.array([-2.0, -5.0, 2.0])
    rng = np.random.default_rng(0)
    largest, others = 0.0, 0.0
    for _ in range(1000):
        w = rng.normal(size=net.size)
        W1, b1 = net.block(w, "W1"), net.block(w, "b1")
        W1[:, 0], b1[:] = column, 0.0
        gradient = net.gradient(w, x)
        largest = max(largest, abs(gradient[net.index("W1[0, 0]")]))
        others = max(others, abs(gradient).max())
    z = x @ column
    board.say(
        "Exercise: W₁₁⁽¹⁾ = −2, W₂₁⁽¹⁾ = −5, W₃₁⁽¹⁾ = 2, x = (3, 2, −2), biases 0. The unit's ReLU is off, so nothing "
        "passes back through it, whatever the other weights are: 1000 draws of them."
    )
    board.table(
        "A dead ReLU",
        ("", "formula", "value"),
        [
            ("z₁⁽¹⁾", "Σᵢ xᵢ Wᵢ₁⁽¹⁾", z),
            ("g′(z₁⁽¹⁾)", "1 if z > 0, else 0", float(z > 0)),
            ("∂H/∂W₁₁⁽¹⁾", "∂H/∂a₁⁽¹⁾ g′(z₁⁽¹⁾) x₁; largest of 1000", largest),
            ("any ∂H/∂w", "largest of 1000 and of all entries", others),
        ],
    )


def note_002(board: Board) -> Numbers:
    """The derivation of the gradients of A and B, line by line."""
    board.title("Note 002: s -A→ x -B→ ŷ, and the gradients of B and A")
    s, A, B = np.array([1.0, 2.0]), np.array([[1.0, -3.0], [2.0, 1.0]]), np.array([[2.0, -1.0], [7.0, 3.0]])
    y, alpha_A, alpha_B = np.array([9.0, -2.0]), 0.1, 0.01
    board.table("Given", ("", "value"), [("s", s), ("A", A), ("B", B), ("y", y), ("α_A", alpha_A), ("α_B", alpha_B)])
    board.say("L = Σₖ ½ (ŷₖ − yₖ)²; f_A is the ReLU and f_B linear, as in the slides' examples.")
    # Biases of 0 change nothing, and the kernel's gradient of a bias is the delta of its unit.
    net = Network((2, 2, 2), dtype="float64")
    w = net.pack([(A, np.zeros(2)), (B, np.zeros(2))])
    trace, layers = net.trace(w, s), net.backpropagate(w, s)
    gradient = risk_gradient(net, w, [s], [y], "half_squared")[1]
    moved = one_update(net, w, [s], [y], loss="half_squared", optimizer=SGD({"A": alpha_A, "B": alpha_B}))
    p = twolayer.forward(s, A, B)
    error = p.yhat - y
    g = twolayer.backward(p, B, error)
    new_A, new_B = twolayer.update(A, B, g, alpha_A, alpha_B)
    forward, backward = (lambda name, f=f: code_line(f, f"{name} = ") for f in (twolayer.forward, twolayer.backward))
    step_A, step_B = code_line(twolayer.update, "return ").removeprefix("return ").split(", ")

    columns = ("", "the slides, and below the code", "number", COMPILED)
    board.table(
        "Notation: forward",
        columns,
        [
            ("ψ", f"ψ ≐ s A\n{forward('psi')}", p.psi, trace["psi"]),
            ("x", f"x ≐ f_A(ψ)\n{forward('x')}", p.x, trace["x"]),
            ("θ", f"θ ≐ x B\n{forward('theta')}", p.theta, trace["theta"]),
            ("ŷ", f"ŷ ≐ f_B(θ)\n{forward('yhat')}", p.yhat, trace["yhat"]),
        ],
        ("number", COMPILED),
    )
    f_A, f_B = twolayer.relu_derivative(p.psi), twolayer.linear_derivative(p.theta)
    slope = layers[0].dH_dz / layers[0].dH_da
    board.table(
        "Deriving the gradient: backward, output side first",
        columns,
        [
            ("∂L/∂ŷ", "∂L/∂ŷₖ = ŷₖ − yₖ\nyhat - y", error, losses.HalfSquared().derivative([p.yhat], [y])[0]),
            ("f_B′(θ)", "∂f_B(θₖ)/∂θₖ = 1\nnp.ones_like(theta)", f_B, ""),
            ("δᴮ", f"δᴮₖ = ∂L/∂ŷₖ f_B′(θₖ)\n{backward('delta_B')}", g.delta_B, net.block(gradient, "b_B")),
            ("∂θ/∂B", "∂θₖ/∂Bⱼₖ = xⱼ", p.x, layers[0].a),
            ("∇B", f"∂L/∂Bⱼₖ = δᴮₖ xⱼ\n{backward('grad_B')}", g.grad_B, net.block(gradient, "B")),
            ("∂L/∂x", "Σₖ Bⱼₖ δᴮₖ, used again, not computed anew\nB @ delta_B", B @ g.delta_B, ""),
            ("f_A′(ψ)", "∂f_A(ψⱼ)/∂ψⱼ = 1 if ψⱼ > 0, else 0\npsi > 0.0", f_A, slope),
            ("δᴬ", f"δᴬⱼ = (Σₖ Bⱼₖ δᴮₖ) f_A′(ψⱼ)\n{backward('delta_A')}", g.delta_A, net.block(gradient, "b_A")),
            ("∂ψ/∂A", "∂ψⱼ/∂Aᵢⱼ = sᵢ", s, trace["s"]),
            ("∇A", f"∂L/∂Aᵢⱼ = δᴬⱼ sᵢ\n{backward('grad_A')}", g.grad_A, net.block(gradient, "A")),
        ],
        ("number", COMPILED),
    )
    board.table(
        "The backprop algorithm: for each (s, y) in D",
        columns,
        [
            ("new B", f"B = B − α_B ∇B\n{step_B}", new_B, net.block(moved, "B")),
            ("new A", f"A = A − α_A ∇A\n{step_A}", new_A, net.block(moved, "A")),
        ],
        ("number", COMPILED),
    )

    def loss(A: np.ndarray, B: np.ndarray) -> float:
        return float(0.5 * ((twolayer.forward(s, A, B).yhat - y) ** 2).sum())

    true_A, true_B = differences(lambda A: loss(A, B), A), differences(lambda B: loss(A, B), B)
    board.say(
        "Where the slides are loose, central differences of L at the weights before the update decide. The box writes "
        "δᴬ with one k, after B has changed, and u = ψ; it writes δᴮₖ = (ŷₖ − yₖ) xⱼ, though xⱼ enters in ∇B. And "
        "A − α δᴬ s is short for the outer product of s and δᴬ; the loss (ŷ − y)² without ½ doubles every gradient."
    )
    after_B = (new_B @ g.delta_B) * f_A
    readings = [
        ("∇A: k = 1 alone, no sum", np.outer(s, B[:, 0] * g.delta_B[0] * f_A), true_A),
        ("∇A: B after its update", np.outer(s, after_B), true_A),
        ("∇A: u = ψ where ψ > 0", np.outer(s, (B @ g.delta_B) * p.x), true_A),
        ("∇A: twolayer.py", g.grad_A, true_A),
        ("∇B: xⱼ in δᴮ and again", np.outer(p.x * p.x, error), true_B),
        ("∇B: loss without ½", np.outer(p.x, 2 * error), true_B),
        ("∇B: twolayer.py", g.grad_B, true_B),
    ]
    board.table(
        "Readings of the slides",
        ("reading", "it gives", NUMERIC, "off by"),
        [(name, value, true, float(abs(value - true).max())) for name, value, true in readings],
    )
    return board.numbers


def note_003(board: Board) -> Numbers:
    """Linear regression by the rules, the Delta notation, L1 and L2."""
    board.title("Note 003: linear regression by gradient descent, Δ, L1 and L2")
    x, y, alpha = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 4.0, 8.0]), 0.02
    S = x[:, None]
    board.table("Given", ("", "value"), [("x", x), ("y", y), ("α", alpha)])
    w, one = np.array([0.5, 1.0]), 3
    board.say(f"Univariate linear regression. The slopes of one example's loss, at w = {written(w)}:")
    board.say("  h(x) = w₁ x + w₀        Loss = Σⱼ (yⱼ − h(xⱼ))²")
    error = y[one] - (w[1] * x[one] + w[0])
    numeric = differences(lambda v: float((y[one] - v[1] * x[one] - v[0]) ** 2), w)
    board.compare(
        f"One example, x = {x[one]:g}, y = {y[one]:g}",
        ("∂Loss/∂w₀", "−2 (y − h)", -2 * error, numeric[0]),
        ("∂Loss/∂w₁", "−2 (y − h) x", -2 * error * x[one], numeric[1]),
        columns=("formula", BY_HAND, NUMERIC),
    )

    board.say("The per-example rule takes the factor 2 into α, and the minus turns h − y round. From w = 0:")
    board.say("  w₀ ← w₀ + α (y − h)        w₁ ← w₁ + α (y − h) x")
    w, rows = np.zeros(2), []
    for j in range(len(x)):
        h = w[1] * x[j] + w[0]
        w = w + alpha * (y[j] - h) * np.array([1.0, x[j]])
        rows.append((f"{j + 1}", x[j], y[j], h, y[j] - h, w[0], w[1]))
    board.table("The first pass of the per-example rule", ("j", "x", "y", "h", "y − h", "new w₀", "new w₁"), rows)
    board.say("The batch rule changes w once a pass, by the sum over all examples j.")
    board.say("  w₀ ← w₀ + α Σⱼ (yⱼ − hⱼ)        w₁ ← w₁ + α Σⱼ (yⱼ − hⱼ) xⱼ")
    board.say("  linear.gradient_descent(S, y, alpha, rule='batch'); linear.least_squares(S, y)")
    best, rows = linear.least_squares(S, y), []
    for iterations in (1, 2, 10, 100, 1000):
        batch = linear.gradient_descent(S, y, alpha, "batch", iterations)
        each = linear.gradient_descent(S, y, alpha, "per-example", iterations)
        rows.append((f"{iterations}", *batch.w, batch.losses[-1] * len(x), *each.w, each.losses[-1] * len(x)))
    least = linear.risk(best, S, y) * len(x)
    rows.append(("closed form", *best, least, *best, least))
    rules = ("batch", "per-example")
    columns = ("passes", *(f"{rule}\n{what}" for rule in rules for what in ("w₀", "w₁", "Loss")))
    board.table("Both rules beside the closed form", columns, rows)
    board.say(
        "The per-example rule stops near the best w and not at it: each example pulls its own way, and α is constant. "
        "With α smaller it comes nearer:"
    )
    rows = []
    for size in (alpha, alpha / 2, alpha / 10):
        w = linear.gradient_descent(S, y, size, "per-example", 20_000).w
        rows.append((f"{size:g}", *w, float(np.linalg.norm(w - best))))
    board.table("Per-example rule after 20,000 passes", ("α", "w₀", "w₁", "distance to the best w"), rows)
    delta_notation(board)
    l1_and_l2(board)
    return board.numbers


def delta_notation(board: Board) -> None:
    """Delta = error * g'(in) with error = target - output, and a plus sign in the update."""
    board.say(
        "Δ notation: the error is target − output, so weights move by plus α a Δ; Δ is minus the δ of note 002. Two "
        "inputs k, two hidden units j, one output i, g the sigmoid, a₀ = 1 for every bias weight w₀."
    )
    a_k, target, alpha = np.array([1.0, 2.0]), 1.0, 0.8
    to_hidden, hidden_bias = np.array([[2.0, 1.0], [-1.0, -0.5]]), np.array([0.0, math.log(3.0)])
    to_output, output_bias = np.array([4.0, -2.0]), -0.5
    in_j = a_k @ to_hidden + hidden_bias
    a_j = expit(in_j)
    in_i = float(a_j @ to_output + output_bias)
    a_i = float(expit(in_i))
    delta_i = (target - a_i) * a_i * (1 - a_i)
    delta_j = a_j * (1 - a_j) * to_output * delta_i
    net = Network((2, 2, 1), hidden="sigmoid", output="sigmoid", dtype="float64")
    w = net.pack([(to_hidden, hidden_bias), (to_output[:, None], [output_bias])])
    trace, gradient = net.trace(w, a_k), risk_gradient(net, w, [a_k], [target], "half_squared")[1]
    moved = one_update(net, w, [a_k], [target], loss="half_squared", optimizer=SGD(alpha))
    given = [("aₖ", a_k), ("wₖⱼ", to_hidden), ("w₀ⱼ", hidden_bias), ("wⱼᵢ", to_output), ("w₀ᵢ", output_bias)]
    board.table("Given for Δ", ("", "value"), [*given, ("target", target), ("α", alpha)])
    board.compare(
        "Δ from the output to the hidden layer",
        ("inⱼ", "Σₖ wₖⱼ aₖ + w₀ⱼ", in_j, trace["psi"]),
        ("aⱼ", "g(inⱼ)", a_j, trace["x"]),
        ("inᵢ", "Σⱼ wⱼᵢ aⱼ + w₀ᵢ", in_i, trace["theta"][0]),
        ("aᵢ", "g(inᵢ)", a_i, trace["yhat"][0]),
        ("Δᵢ", "(target − aᵢ) g′(inᵢ)", delta_i, -net.block(gradient, "b_B")[0]),
        ("Δⱼ", "g′(inⱼ) Σᵢ wⱼᵢ Δᵢ", delta_j, -net.block(gradient, "b_A")),
        ("new wⱼᵢ", "wⱼᵢ + α aⱼ Δᵢ", to_output + alpha * a_j * delta_i, net.block(moved, "B")[:, 0]),
        ("new w₀ᵢ", "w₀ᵢ + α Δᵢ", output_bias + alpha * delta_i, net.block(moved, "b_B")[0]),
        ("new wₖⱼ", "wₖⱼ + α aₖ Δⱼ", to_hidden + alpha * np.outer(a_k, delta_j), net.block(moved, "A")),
        ("new w₀ⱼ", "w₀ⱼ + α Δⱼ", hidden_bias + alpha * delta_j, net.block(moved, "b_A")),
    )


def l1_and_l2(board: Board) -> None:
    """What each penalty makes of an input that hardly matters."""
    S = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    y, strength, alpha = S @ [3.0, 0.1] + 0.5 * S[:, 0] * S[:, 1], 0.2, 0.1
    best = linear.least_squares(S, y)[1:]
    net = Network((2, 1), bias=False, dtype="float64")

    def learned(regularizer: regularizers.Regularizer | None) -> tuple[np.ndarray, np.ndarray]:
        """The weights after 500 passes, and the second one over the last ten."""
        w, path = net.init(seed=0, init="zeros"), []

        def remember(history: History) -> None:
            path.append(float(history.w[1]))

        fit(
            *(net, w, S, y),
            loss="half_squared", regularizer=regularizer, optimizer=SGD(alpha), batch_size=None, epochs=500,
            callback=remember, progress=False,
        )  # fmt: skip
        return w, np.array(path[-10:])

    board.say(
        f"Regularization: minimise Loss + complexity. s₁ matters, s₂ hardly; the inputs are ±1 and orthogonal, so each "
        f"weight is pulled alone and the minimum is known. Loss is the mean of ½ e², the strength k is {strength:g}. "
        "The derivative of L2 is 2 k w, which fades as w does; that of L1 is k sign(w), which does not, and steps over "
        "0 and back. Its proximal form stops at 0 exactly, and s₂ is eliminated."
    )
    shrunk = np.sign(best) * np.maximum(np.abs(best) - strength, 0.0)
    rows = []
    for name, regularizer, known in (
        ("none", None, best),
        ("L2", regularizers.L2(strength), best / (1 + 2 * strength)),
        ("L1, derivative", regularizers.L1(strength), ""),
        ("L1, proximal", regularizers.L1(strength, proximal=True), shrunk),
    ):
        w, last = learned(regularizer)
        rows.append((name, w, known, np.array([last.min(), last.max()])))
    columns = ("penalty", "learned w", "minimum", "w₂ of last 10:\nleast, largest")
    board.table("L1 and L2 on an irrelevant input", columns, rows, ("learned w", "minimum"))


def note_004(board: Board) -> Numbers:
    """Theta as blocks, its gradient's layout and names, and gradient descent."""
    board.title("Note 004: θ = W₁ … W_L, b₁ … b_L, and gradient descent with 1000 iterations")
    rows = []
    for n, L, k in ((3, 3, 2), (4, 5, 3)):
        count = (L - 1) * n * n + n * k + (L - 1) * n + k
        rows.append((f"n = {n}, L = {L}, k = {k}", count, Network((n,) * L + (k,)).n_parameters))
    board.table("(L − 1) n² + n k + (L − 1) n + k parameters", ("", BY_HAND, "net"), rows, (BY_HAND, "net"))

    n, L, k, eta = 3, 3, 2, 0.05
    net = Network((n,) * L + (k,), hidden="tanh", dtype="float64")
    rng = np.random.default_rng(0)
    S = rng.normal(size=(20, n))
    Y = np.column_stack([S[:, 0] * S[:, 1], S[:, 0] - S[:, 2]])
    theta = net.init(seed=0, init="glorot_uniform")

    def loss(theta: np.ndarray) -> float:
        return risk_gradient(net, theta, S, Y)[0]

    def gradient(theta: np.ndarray) -> np.ndarray:
        return risk_gradient(net, theta, S, Y)[1]

    board.say(
        f"The gradient for the first of them (n = {n}, L = {L}, k = {k}; tanh, linear output), of the mean over "
        f"{len(S)} examples of ½ Σₖ (ŷₖ − yₖ)²: the slide's matrix of all partial derivatives, block by block."
    )
    board.say("  value, gradient = risk_gradient(net, theta, S, Y); net.block(gradient, 'W1')")
    slope, numeric = gradient(theta), differences(loss, theta)
    spaces = {(n, n): "ℝⁿˣⁿ", (n, k): "ℝⁿˣᵏ", (n,): "ℝⁿ", (k,): "ℝᵏ"}
    blocks = [
        (f"∇{name}", spaces[shape], f"{start} to {start + math.prod(shape) - 1}", net.block(slope, name))
        for name, (start, shape) in net.blocks.items()
    ]
    board.table("∇θ", ("block", "in", "entries", "value"), blocks)

    named = []
    for p in range(net.size):
        block, indices = net.name(p).removesuffix("]").split("[")
        counted = "".join(str(int(i) + 1) for i in indices.split(", "))
        named.append((net.name(p), str(p), f"∂ℒ/∂{block[0]}_{block[1:]}{counted}", slope[p], numeric[p]))
    board.say("Every entry by its name. The slides count from 1, the library from 0: ∂ℒ/∂W_111 is W1[0, 0].")
    board.table("Entries", ("name", "index", "slides", "backpropagation", NUMERIC), named, ("backpropagation", NUMERIC))

    board.say("Gradient descent, in its concise form:")
    board.say("  t ← 0; max_iterations ← 1000; while t++ < max_iterations do θₜ₊₁ ← θₜ − η ∇θₜ; end")
    board.say("  linear.minimise(gradient, theta, eta, max_iterations=1000, loss=loss)")
    board.say("  fit(net, theta, S, Y, optimizer=SGD(eta), batch_size=None, epochs=None, max_iterations=1000)")
    end = linear.minimise(gradient, theta, eta, max_iterations=1000, loss=loss)
    moved = theta.copy()
    history = fit(
        net, moved, S, Y, optimizer=SGD(eta), batch_size=None, epochs=None, max_iterations=1000, progress=False
    )
    losses_of_fit = [*history["loss"], loss(moved)]  # a row holds the loss before its update
    shown = [(f"{t}", end.losses[t], losses_of_fit[t]) for t in (0, 1, 10, 100, 1000)]
    board.table(f"ℒ(θₜ) with η = {eta:g}", ("t", "minimise", "fit"), shown, ("minimise", "fit"))
    found = [(name, net.block(end.w, name), net.block(moved, name)) for name in net.blocks]
    board.compare("θ after 1000 iterations", *found, columns=("minimise", "fit"))
    return board.numbers


NOTES: dict[str, Callable[[Board], Numbers]] = {
    "000": note_000,
    "001": note_001,
    "002": note_002,
    "003": note_003,
    "004": note_004,
}


def main(options: Walkthrough) -> int:
    """Print the notes; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Greek shows ?, not a traceback
    console = Console(highlight=False, markup=False)
    announce_compile(console)
    wrong: list[str] = []
    for name in NOTES if options.note == "all" else (options.note,):
        board = Board(console)
        NOTES[name](board)
        wrong += [f"note {name}: {title}" for title in board.disagreements()]
    for where in wrong:
        console.print(f"Two ways to a number disagree in {where}", style="bold red")
    return 1 if wrong else 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Walkthrough)))
