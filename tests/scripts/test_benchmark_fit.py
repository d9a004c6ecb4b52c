"""The benchmark of fit compares loss curves before it times anything. No timing is asserted."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

JAX = ("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_CPU_ENABLE_ASYNC_DISPATCH")
SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_fit.py"


@pytest.fixture
def script(monkeypatch):
    # It sets one thread in the environment and pins the process: neither is for the tests that follow.
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS", *JAX):
        monkeypatch.setenv(name, "1")
    names = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(names["main"].__globals__, "pin_to_one_core", lambda: "not pinned")
    yield names
    for module in ("benchmark", "contenders"):
        sys.modules.pop(module, None)


def test_it_runs_and_prints_the_table(script, capsys):
    options = script["Benchmark"](network="3-8-8-1", examples=64, rounds=1, compare=2, dtype="float64")
    assert script["main"](options) == 0
    printed = capsys.readouterr().out
    assert "us per minibatch" in printed
    for package, name in (("torch", "PyTorch"), ("sklearn", "scikit-learn")):
        assert (f"differ from {name}'s" in printed) == (find_spec(package) is not None)


def test_the_problem_has_the_order_that_fit_uses(script):
    # One epoch of single examples with a step size of next to nothing: each example's loss is that of the first
    # weights, whatever the order; with a large one the order matters, and only the true one gives fit's loss.
    options = script["Benchmark"](network="2-1", examples=5, batch_size=1, dtype="float64")
    problem = script["Problem"].random(options)
    order = problem.order(0)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert list(order) != sorted(order)
    from valueapprox import SGD, fit

    history = fit(problem.net, problem.w.copy(), problem.states, problem.targets, optimizer=SGD(0.5), epochs=1,
                  batch_size=1, seed=problem.seed)  # fmt: skip
    w, losses = problem.w.copy(), []
    for i in order:
        s, y = problem.states[i], problem.targets[i, 0]
        error = w[:2] @ s + w[2] - y
        losses.append(0.5 * error**2)
        w -= 0.5 * error * np.append(s, 1.0)
    assert history["loss"][0] == pytest.approx(np.mean(losses), rel=1e-12)


def test_curves_that_differ_stop_the_benchmark(script, monkeypatch, capsys):
    names = script["main"].__globals__
    monkeypatch.setitem(names, "find_spec", lambda package: True)
    monkeypatch.setitem(names, "pytorch", lambda problem, fused: lambda *how: [1.0, 1.0])
    monkeypatch.setitem(names, "sklearn", lambda problem: lambda *how: [1.0, 1.0])
    options = script["Benchmark"](network="3-4-1", examples=64, rounds=1, compare=2, dtype="float64")
    assert script["main"](options) == 1
    printed = capsys.readouterr().out
    assert "rounding explains" in printed
    assert "us per minibatch" not in printed
