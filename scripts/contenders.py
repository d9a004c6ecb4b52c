"""One TD(lambda) update written for ours, NumPy, C, PyTorch and JAX: what `benchmark.py` checks and times.

Accumulating trace, SGD, inputs-hidden-1 with ReLU, linear output and biases. Each is written as its users would write
it for speed. A function here makes a `Contender` from a problem, or from several that are learned as independent runs.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox import SGD, Network, ValueFunction

GAMMA, LAM, ALPHA = 0.99, 0.9, 1e-4

OURS_LOOP, OURS_CALL, OURS_RUNS = "ours, learn_stream()", "ours, learn()", "ours, many runs in turn"
OURS_NUMPY = "ours, learn() with NumPy's numbers"
C, TORCH, JAX_CALL, JAX_RUNS = "C", "PyTorch, autograd", "JAX, jitted call", "JAX, scan + vmap, many runs"


@dataclass(frozen=True)
class Problem:
    """A network with its first weights w (P,), laid out as in `Network`, and a stream of T transitions."""

    net: Network
    w: np.ndarray  # (P,)
    s: np.ndarray  # (T, d)
    r: np.ndarray  # (T,)
    s_next: np.ndarray  # (T, d)
    terminated: np.ndarray  # (T,) bool
    truncated: np.ndarray  # (T,) bool

    @classmethod
    def random(cls, network: str, dtype: str, n_transitions: int, seed: Sequence[int]) -> Problem:
        """Normal states and rewards; one transition in fifty terminates its episode, one in fifty truncates it."""
        rng = np.random.default_rng(seed)
        net = Network(tuple(int(n) for n in network.split("-")), dtype=dtype)
        s, s_next = rng.standard_normal((2, n_transitions, net.n_inputs)).astype(dtype)
        r = rng.standard_normal(n_transitions).astype(dtype)
        terminated, truncated = rng.random((2, n_transitions)) < 0.02
        return cls(net, net.init(rng), s, r, s_next, terminated, truncated)

    def rows(self, convert: Callable[[np.ndarray], Any]) -> list[tuple[Any, ...]]:
        """(s, r, s', terminated, truncated) one by one, converted beforehand so that no loop is timed for that."""
        r, terminated, truncated = (a.tolist() for a in (self.r, self.terminated, self.truncated))
        return list(zip(map(convert, self.s), r, map(convert, self.s_next), terminated, truncated, strict=True))


@dataclass(frozen=True)
class Contender:
    """A name, `learn` from the whole stream once, and the `weights` now: (P,), or (runs, P) for many runs."""

    name: str
    learn: Callable[[], object]
    weights: Callable[[], np.ndarray]
    n_runs: int = 1

    def run(self, n: int) -> float:
        """Learn from the stream n times; the seconds that it took."""
        start = time.perf_counter()
        for _ in range(n):
            self.learn()
        return time.perf_counter() - start


# --- ours ---------------------------------------------------------------------------------------------------------


def value_function(problem: Problem) -> ValueFunction:
    """Ours, at the problem's first weights."""
    ours = ValueFunction(problem.net, SGD(ALPHA), GAMMA, LAM)
    ours.w[:] = problem.w
    return ours


def ours_loop(problem: Problem, *intervals: int) -> list[Contender]:
    """The whole stream in one compiled call: without the log's norms, and with them at every so many updates.

    One value function serves all, for where its arrays happen to lie in memory can matter more than the norms.
    """
    p, ours, r = problem, value_function(problem), problem.r.astype(np.float64)

    def learn(norms_every: int) -> None:
        ours.norms_every = norms_every
        ours.learn_stream(p.s, r, p.s_next, p.terminated, p.truncated)

    return [
        Contender(f"{OURS_LOOP}, norms every {n}" if n else OURS_LOOP, partial(learn, n), lambda: ours.w)
        for n in (0, *intervals)
    ]


def ours_call(problem: Problem, numpy_scalars: bool = False) -> Contender:
    """One Python call per transition; reward and flags as Python's numbers, or as environments hand them out."""
    ours, rows = value_function(problem), problem.rows(np.array)
    if numpy_scalars:
        rows = [(s, np.float64(r), s_next, np.bool_(end), np.bool_(cut)) for s, r, s_next, end, cut in rows]

    def learn() -> None:
        for s, r, s_next, terminated, truncated in rows:
            ours.learn(s, r, s_next, terminated, truncated)

    return Contender(OURS_NUMPY if numpy_scalars else OURS_CALL, learn, lambda: ours.w)


def ours_runs(problems: Sequence[Problem]) -> Contender:
    """Independent runs, one after another."""
    loops = [ours_loop(p)[0] for p in problems]

    def learn() -> None:
        for loop in loops:
            loop.learn()

    return Contender(OURS_RUNS, learn, lambda: np.stack([loop.weights() for loop in loops]), len(loops))


# --- NumPy --------------------------------------------------------------------------------------------------------


def biased(problem: Problem, vector: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The layers (W, b) as views, both there."""
    return [(W, b) for W, b in problem.net.unpack(vector) if b is not None]


def numpy_loop(problem: Problem) -> Contender:
    """In place: the specification of `valueapprox.nn.twolayer`, with biases and a trace."""
    w, z, g = problem.w.copy(), np.zeros_like(problem.w), np.zeros_like(problem.w)
    (A, b_A), (B, b_B) = biased(problem, w)
    (grad_A, delta_A), (grad_B, delta_B) = biased(problem, g)
    x, B, delta_B[0] = grad_B[:, 0], B[:, 0], 1.0  # the gradient of B is x
    psi, step, rows = np.empty_like(b_A), np.empty_like(w), problem.rows(np.array)

    def value(s: np.ndarray) -> Any:
        np.dot(s, A, out=psi)
        np.add(psi, b_A, out=psi)
        np.maximum(psi, 0.0, out=x)
        return x @ B + b_B[0]

    def learn() -> None:
        for s, r, s_next, terminated, truncated in rows:
            v_next = 0.0 if terminated else value(s_next)
            delta = r + GAMMA * v_next - value(s)
            np.multiply(B, psi > 0.0, out=delta_A)
            np.multiply(s[:, None], delta_A, out=grad_A)
            np.multiply(z, GAMMA * LAM, out=z)
            np.add(z, g, out=z)
            np.multiply(z, ALPHA * delta, out=step)
            np.add(w, step, out=w)
            if terminated or truncated:
                z.fill(0.0)

    return Contender("NumPy", learn, lambda: w)


# --- C ------------------------------------------------------------------------------------------------------------

C_SOURCE = r"""
static real forward(const real *restrict s, const real *restrict A, const real *restrict b_A, const real *restrict B,
                    real b_B, real *restrict psi, real *restrict x, long d, long h) {
  for (long j = 0; j < h; j++) psi[j] = b_A[j];
  for (long i = 0; i < d; i++)
    for (long j = 0; j < h; j++) psi[j] += s[i] * A[i * h + j];
  real v = b_B;
  for (long j = 0; j < h; j++) {
    x[j] = psi[j] > 0 ? psi[j] : 0;
    v += x[j] * B[j];
  }
  return v;
}

static void ascend(real *restrict w, real *restrict z, const real *restrict g, real g_scale, real decay, real step,
                   long n) {
  for (long p = 0; p < n; p++) {
    z[p] = decay * z[p] + g_scale * g[p];
    w[p] += step * z[p];
  }
}

void learn(const real *s, const real *r, const real *s_next, const unsigned char *terminated,
           const unsigned char *truncated, real *w, real *z, real *psi, real *x, real *delta_A, long n, long d, long h,
           double gamma, double lam, double alpha) {
  const real decay = gamma * lam, one = 1;
  const long b_A = d * h, B = b_A + h, b_B = B + h;
  for (long t = 0; t < n; t++) {
    real v_next = 0;
    if (!terminated[t]) v_next = forward(s_next + t * d, w, w + b_A, w + B, w[b_B], psi, x, d, h);
    const real v = forward(s + t * d, w, w + b_A, w + B, w[b_B], psi, x, d, h);
    const real step = (real)alpha * (r[t] + (real)gamma * v_next - v);
    for (long j = 0; j < h; j++) delta_A[j] = psi[j] > 0 ? w[B + j] : 0;
    for (long i = 0; i < d; i++) ascend(w + i * h, z + i * h, delta_A, s[t * d + i], decay, step, h);
    ascend(w + b_A, z + b_A, delta_A, 1, decay, step, h);
    ascend(w + B, z + B, x, 1, decay, step, h);
    ascend(w + b_B, z + b_B, &one, 1, decay, step, 1);
    if (terminated[t] || truncated[t])
      for (long p = 0; p <= b_B; p++) z[p] = 0;
  }
}
"""


def aligned(array: np.ndarray) -> np.ndarray:
    """Copy it to where a cache line starts, as aligned_alloc does; NumPy does not care."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    first = -memory.ctypes.data % 64
    copy = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def c_loop(problem: Problem, compiler: str, flags: Sequence[str], folder: str) -> Contender:
    """Straightforward C, sizes known at run time: how fast the arithmetic itself can be."""
    p, (d, h, _) = problem, problem.net.sizes
    real = {"float32": "float", "float64": "double"}[p.net.dtype]
    library = Path(folder) / f"learn_{real}_{len(flags)}.so"
    if not library.exists():
        command = [compiler, *flags, f"-Dreal={real}", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=C_SOURCE, text=True, check=True, capture_output=True)
    function = ctypes.CDLL(str(library)).learn
    function.argtypes = [ctypes.c_void_p] * 10 + [ctypes.c_long] * 3 + [ctypes.c_double] * 3
    function.restype = None
    w, z, *buffers = aligned(p.w), aligned(np.zeros_like(p.w)), *(aligned(np.zeros(h, p.w.dtype)) for _ in range(3))
    arrays = (p.s, p.r, p.s_next, p.terminated, p.truncated, w, z, *buffers)

    def learn() -> None:
        function(*(a.ctypes.data for a in arrays), len(p.r), d, h, GAMMA, LAM, ALPHA)

    return Contender(f"{C} {' '.join(flags)}", learn, lambda: w)


# --- PyTorch ------------------------------------------------------------------------------------------------------


def torch_call(problem: Problem) -> Contender:
    """Autograd, per transition. backward() adds to .grad, so a .grad that decays is the trace: the fastest way."""
    import torch

    torch.set_num_threads(1)
    d, h, k = problem.net.sizes
    dtype = getattr(torch, problem.net.dtype)
    linear = torch.nn.Linear
    model = torch.nn.Sequential(linear(d, h, dtype=dtype), torch.nn.ReLU(), linear(h, k, dtype=dtype))
    parameters = list(model.parameters())
    for layer, (W, b) in zip((model[0], model[2]), problem.net.unpack(problem.w), strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(W.T.copy()), torch.tensor(b)
    traces = [torch.zeros_like(p) for p in parameters]
    for parameter, z in zip(parameters, traces, strict=True):
        parameter.grad = z
    rows = problem.rows(torch.tensor)

    def learn() -> None:
        for s, r, s_next, terminated, truncated in rows:
            with torch.no_grad():
                v_next = 0.0 if terminated else model(s_next).item()
                torch._foreach_mul_(traces, GAMMA * LAM)
            v = model(s)
            v.backward()
            with torch.no_grad():
                torch._foreach_add_(parameters, traces, alpha=ALPHA * (r + GAMMA * v_next - v.item()))
                if terminated or truncated:
                    torch._foreach_zero_(traces)

    def weights() -> np.ndarray:
        A, b_A, B, b_B = (p.detach().numpy() for p in parameters)
        return problem.net.pack([(A.T, b_A), (B.T, b_B)])

    return Contender(TORCH, learn, weights)


# --- JAX ----------------------------------------------------------------------------------------------------------


def jax_update(w: Any, z: Any, s: Any, r: Any, s_next: Any, terminated: Any, ended: Any) -> tuple[Any, Any]:
    """One update; w and z are trees of the layers' arrays."""
    import jax
    import jax.numpy as jnp

    def value(w: Any, s: Any) -> Any:
        (A, b_A), (B, b_B) = w
        return (jax.nn.relu(s @ A + b_A) @ B + b_B)[0]

    v, g = jax.value_and_grad(value)(w, s)
    step = ALPHA * (r + GAMMA * jnp.where(terminated, 0, value(w, s_next)) - v)
    z = jax.tree.map(lambda z, g: GAMMA * LAM * z + g, z, g)
    w = jax.tree.map(lambda w, z: w + step * z, w, z)
    return w, jax.tree.map(lambda z: jnp.where(ended, 0, z), z)


def jax_columns(problem: Problem) -> tuple[np.ndarray, ...]:
    """The stream as `jax_update` takes it."""
    p = problem
    return p.s, p.r, p.s_next, p.terminated, p.terminated | p.truncated


def jax_call(problem: Problem, flat: bool = False) -> Contender:
    """A jitted update per transition, buffers donated, its arguments on the device already.

    With w as a tree of arrays, or flat, as one vector, which a call hands over faster.
    """
    import jax
    from jax.flatten_util import ravel_pytree

    unpack = problem.net.unpack

    def flat_update(w: Any, z: Any, *transition: Any) -> tuple[Any, Any]:
        w, z = jax_update(unpack(w), unpack(z), *transition)
        return ravel_pytree(w)[0], ravel_pytree(z)[0]

    update = jax.jit(flat_update if flat else jax_update, donate_argnums=(0, 1))
    first = (problem.w, np.zeros_like(problem.w))
    state = jax.device_put(first if flat else tuple(map(unpack, first)), may_alias=False)
    rows = [jax.device_put(row) for row in zip(*jax_columns(problem), strict=True)]

    def learn() -> None:
        nonlocal state
        for row in rows:
            state = update(*state, *row)
        jax.block_until_ready(state)

    def weights() -> np.ndarray:
        return np.asarray(state[0]) if flat else problem.net.pack(state[0])

    return Contender(f"{JAX_CALL}, {'one vector' if flat else 'a tree of arrays'}", learn, weights)


def jax_runs(problems: Sequence[Problem]) -> Contender:
    """All runs and transitions in one call: a scan over time, vmap over runs."""
    import jax

    w = jax.tree.map(lambda *a: np.stack(a), *(p.net.unpack(p.w) for p in problems))
    state = jax.device_put((w, jax.tree.map(np.zeros_like, w)))
    columns = zip(*map(jax_columns, problems), strict=True)
    stream = jax.device_put(tuple(np.stack(c, axis=1) for c in columns))  # (T, runs, ...)

    @jax.jit
    def all_updates(state: Any, stream: Any) -> Any:
        return jax.lax.scan(lambda state, row: (jax.vmap(jax_update)(*state, *row), None), state, stream)[0]

    def learn() -> None:
        nonlocal state
        state = jax.block_until_ready(all_updates(state, stream))

    def weights() -> np.ndarray:
        runs = (jax.tree.map(lambda a, i=i: np.asarray(a[i]), state[0]) for i in range(len(problems)))
        return np.stack([p.net.pack(w) for p, w in zip(problems, runs, strict=True)])

    return Contender(JAX_RUNS, learn, weights, len(problems))
