"""The pieces of C of which a header is put together: networks layer by layer, learning, and the step of each optimizer.

In them @ stands for the header's name, $ for the same in capitals, and § for the suffix of float's constants and
functions, f or nothing. x, d, e and y are arrays; a formula is in the comment of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from valueapprox.nn.activations import LEAK
from valueapprox.nn.backprop import EPSILON
from valueapprox.optim import (
    SGD,
    Adam,
    AdaptiveObGD,
    DecayedMax,
    Intentional,
    Momentum,
    ObGD,
    Optimizer,
    RMSProp,
    VarianceAdjusted,
)

__all__ = [
    "ACCUMULATE", "ACTIVATE", "ACTIVATE_BACK", "ACTIVATIONS", "AFFINE", "ARGMAX", "LEARN", "NORMALISE",
    "NORMALISE_BACK", "RULES", "SOFTMAX", "STATE", "TRANSPOSE", "Rule",
]  # fmt: skip

# --- pieces of networks -----------------------------------------------------------------------------------------------

AFFINE = """
/* y = x W + b: W (n, m) lies at w row by row, and b (m,) behind it. */
static inline void @_affine(const @_real *w, const @_real *x, int n, int m, int bias, @_real *y)
{
    for (int j = 0; j < m; j++) y[j] = bias ? w[n * m + j] : 0.0§;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) y[j] += x[i] * w[i * m + j];
}
"""
NORMALISE = f"""
/* LayerNorm: x <- hat = (x - mean) / sigma, sigma = sqrt(variance + {EPSILON:g}); returns 1 / sigma. */
static inline @_real @_normalise(@_real *x, int m, @_real *hat)
{{
    @_real mean = 0.0§, variance = 0.0§;
    for (int j = 0; j < m; j++) mean += x[j];
    mean /= (@_real)m;
    for (int j = 0; j < m; j++) variance += (x[j] - mean) * (x[j] - mean);
    const @_real scale = 1.0§ / sqrt§(variance / (@_real)m + {EPSILON}§);
    for (int j = 0; j < m; j++) x[j] = hat[j] = (x[j] - mean) * scale;
    return scale;
}}
"""
#: f(psi) of an activation, where x holds psi, and d f'(psi), where it holds f(psi) already, entry by entry.
ACTIVATIONS = {
    "relu": ("x[j] > 0.0§ ? x[j] : 0.0§", "x[j] > 0.0§ ? d[j] : 0.0§"),
    "leaky_relu": (f"x[j] > 0.0§ ? x[j] : {LEAK}§ * x[j]", f"x[j] > 0.0§ ? d[j] : {LEAK}§ * d[j]"),
    "elu": ("x[j] > 0.0§ ? x[j] : expm1§(x[j])", "x[j] > 0.0§ ? d[j] : d[j] * (x[j] + 1.0§)"),
    "sigmoid": (
        "x[j] >= 0.0§ ? 1.0§ / (1.0§ + exp§(-x[j])) : exp§(x[j]) / (1.0§ + exp§(x[j]))",
        "d[j] * x[j] * (1.0§ - x[j])",
    ),
    "tanh": ("tanh§(x[j])", "d[j] * (1.0§ - x[j] * x[j])"),
    "softplus": ("(x[j] > 0.0§ ? x[j] : 0.0§) + log1p§(exp§(-fabs§(x[j])))", "-d[j] * expm1§(-x[j])"),
}
ACTIVATE = """
/* {name}: x <- f(x). */
static inline void @_{name}(@_real *x, int m)
{{
    for (int j = 0; j < m; j++) x[j] = {value};
}}
"""
ACTIVATE_BACK = """
/* d <- d f'(psi), where x = f(psi). */
static inline void @_{name}_back(const @_real *x, @_real *d, int m)
{{
    for (int j = 0; j < m; j++) d[j] = {slope};
}}
"""
SOFTMAX = """
/* softmax: x <- exp(x - max x) / sum. */
static inline void @_softmax(@_real *x, int m)
{
    @_real top = x[0], total = 0.0§;
    for (int j = 1; j < m; j++) top = x[j] > top ? x[j] : top;
    for (int j = 0; j < m; j++) total += x[j] = exp§(x[j] - top);
    for (int j = 0; j < m; j++) x[j] /= total;
}
"""
ARGMAX = """
/* The number of the largest entry; of the first such. */
static inline int @_argmax(const @_real *x, int m)
{
    int best = 0;
    for (int j = 1; j < m; j++) best = x[j] > x[best] ? j : best;
    return best;
}
"""

# --- pieces of learning -----------------------------------------------------------------------------------------------

TRANSPOSE = """
/* d_i = sum_j W_ij d_j: from derivatives at a layer's m outputs, e, to those at its n inputs, d. */
static inline void @_transpose(const @_real *w, const @_real *e, int n, int m, @_real *d)
{
    for (int i = 0; i < n; i++) {
        d[i] = 0.0§;
        for (int j = 0; j < m; j++) d[i] += w[i * m + j] * e[j];
    }
}
"""
NORMALISE_BACK = """
/* LayerNorm: d <- (d - mean(d) - hat mean(d hat)) / sigma. */
static inline void @_normalise_back(const @_real *hat, @_real scale, @_real *d, int m)
{
    @_real mean = 0.0§, mean_hat = 0.0§;
    for (int j = 0; j < m; j++) {
        mean += d[j];
        mean_hat += d[j] * hat[j];
    }
    mean /= (@_real)m;
    mean_hat /= (@_real)m;
    for (int j = 0; j < m; j++) d[j] = scale * (d[j] - mean - hat[j] * mean_hat);
}
"""
ACCUMULATE = """
/* z <- decay z + gradient, for a layer with inputs x (n,) and derivatives d (m,): dv/dW_ij = x_i d_j, dv/db_j = d_j. */
static inline void @_accumulate(@_real *z, @_real decay, const @_real *x, const @_real *d, int n, int m, int bias)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) z[i * m + j] = decay * z[i * m + j] + x[i] * d[j];
    for (int j = 0; bias && j < m; j++) z[n * m + j] = decay * z[n * m + j] + d[j];
}
"""
BY_LAYERS = """
static inline void @_step(@_state *v, @_real delta)
{{
    v->n_updates++;
{before}\
    for (int l = 0; l < $_LAYERS; l++) {{
        const @_real step = (@_real)({alpha}){factor};
        for (int p = @_bounds[l]; p < @_bounds[l + 1]; p++) {{
{each}
        }}
    }}
}}
"""
BOUNDED = """
static inline void @_step(@_state *v, @_real delta)
{{
    @_real size = 0.0§;
    v->n_updates++;
{before}\
    for (int p = 0; p < $_PARAMETERS; p++) size += {size};
    const double error = fabs((double)delta), alpha = v->alpha[0];
    const double bound = alpha * $_KAPPA * (error > 1.0 ? error : 1.0) * (double)size;
    const @_real scale = (@_real)(alpha / (bound > 1.0 ? bound : 1.0)) * delta;
    for (int p = 0; p < $_PARAMETERS; p++) v->w[p] += scale * {direction};
}}
"""


SHARE = """
/* (1 - decay) / (1 - decay^t): the newest of t numbers in their mean that forgets by decay. */
static inline double @_share(double decay, double t)
{
    return decay <= 0.0 ? 1.0 : decay >= 1.0 ? 1.0 / t : (1.0 - decay) / -expm1(t * log(decay));
}
"""


@dataclass(frozen=True)
class Rule:
    """How an optimizer moves the weights: its formula and the code.

    moments
        Names of what it remembers for each weight, in its own order. `g` is the newest gradient, for those that look at
        it beside the trace.
    scalars
        Names of what it remembers beside that, in its own order.
    """

    formula: str
    code: str
    moments: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()


def _by_layers(
    formula: str, each: str, moments: tuple[str, ...] = (), *, before: str = "", alpha: str = "v->alpha[l]",
    factor: str = "",
) -> Rule:  # fmt: skip
    lines = "".join(f"    {line}\n" for line in before.splitlines())
    body = "\n".join(f"            {line}" for line in each.splitlines())
    return Rule(formula, BY_LAYERS.format(before=lines, alpha=alpha, factor=factor, each=body), moments)


#: Optimizers whose step is written down here. Their own settings are macros: BETA1 of Adam is $_BETA1.
RULES: dict[type[Optimizer], Rule] = {
    SGD: _by_layers("w <- w + alpha delta z", "v->w[p] += step * v->z[p];", factor=" * delta"),
    Momentum: _by_layers(
        "m <- beta m + delta z, w <- w + alpha m",
        "v->m[p] = (@_real)$_BETA * v->m[p] + delta * v->z[p];\nv->w[p] += step * v->m[p];",
        ("m",),
    ),
    RMSProp: _by_layers(
        "n <- beta n + (1 - beta) u^2, w <- w + alpha u / (sqrt(n) + epsilon), u = delta z",
        "const @_real u = delta * v->z[p];\n"
        "v->n[p] = (@_real)$_BETA * v->n[p] + (@_real)(1.0 - $_BETA) * u * u;\n"
        "v->w[p] += step * u / (sqrt§(v->n[p]) + (@_real)$_EPSILON);",
        ("n",),
    ),
    Adam: _by_layers(
        "m <- beta1 m + (1 - beta1) u, n <- beta2 n + (1 - beta2) u^2, w <- w + alpha (m / (1 - beta1^t)) / "
        "(sqrt(n / (1 - beta2^t)) + epsilon), u = delta z",
        "const @_real u = delta * v->z[p];\n"
        "v->m[p] = (@_real)$_BETA1 * v->m[p] + (@_real)(1.0 - $_BETA1) * u;\n"
        "v->n[p] = (@_real)$_BETA2 * v->n[p] + (@_real)(1.0 - $_BETA2) * u * u;\n"
        "v->w[p] += step * v->m[p] / (sqrt§(v->n[p]) * root + (@_real)$_EPSILON);",
        ("m", "n"),
        before="const double t = (double)v->n_updates;\n"
        "const @_real root = (@_real)(1.0 / sqrt(1.0 - pow($_BETA2, t)));",
        alpha="v->alpha[l] / (1.0 - pow($_BETA1, t))",
    ),
    DecayedMax: _by_layers(
        "n <- max(beta n, |u|), w <- w + alpha u / (n + epsilon), u = delta z",
        "const @_real u = delta * v->z[p];\n"
        "v->n[p] *= (@_real)$_BETA;\n"
        "if (v->n[p] < fabs§(u)) v->n[p] = fabs§(u);\n"
        "v->w[p] += step * u / (v->n[p] + (@_real)$_EPSILON);",
        ("n",),
    ),
    ObGD: Rule(
        "w <- w + alpha / max(1, alpha kappa max(|delta|, 1) ||z||_1) delta z",
        BOUNDED.format(before="", size="fabs§(v->z[p])", direction="v->z[p]"),
    ),
    AdaptiveObGD: Rule(
        "n <- beta2 n + (1 - beta2) (delta z)^2, y = z / sqrt(n / (1 - beta2^t) + epsilon), "
        "w <- w + alpha / max(1, alpha kappa max(|delta|, 1) ||y||_1) delta y",
        BOUNDED.format(
            before="""\
    const @_real correction = (@_real)(1.0 / (1.0 - pow($_BETA2, (double)v->n_updates)));
    for (int p = 0; p < $_PARAMETERS; p++) {
        const @_real u = delta * v->z[p];
        v->n[p] = (@_real)$_BETA2 * v->n[p] + (@_real)(1.0 - $_BETA2) * u * u;
    }
""",
            size="fabs§(v->z[p]) / sqrt§(v->n[p] * correction + (@_real)$_EPSILON)",
            direction="v->z[p] / sqrt§(v->n[p] * correction + (@_real)$_EPSILON)",
        ),
        ("n",),
    ),
    VarianceAdjusted: Rule(
        "n <- n + k (g^2 - n), w <- w + alpha clip(delta) z / (sqrt(n) + epsilon), g = grad v(s), "
        "k = (1 - gamma lambda) / (1 - (gamma lambda)^t)",
        SHARE
        + """
static inline void @_step(@_state *v, @_real delta)
{
    const @_real rest = (@_real)@_share((double)(@_real)(v->gamma * v->lambda), (double)++v->n_updates);
    const double bound = $_CLIP > 0.0 ? $_CLIP : HUGE_VAL;
    const double error = (double)delta > bound ? bound : (double)delta < -bound ? -bound : (double)delta;
    const @_real step = (@_real)(v->alpha[0] * error);
    for (int p = 0; p < $_PARAMETERS; p++) {
        v->n[p] = (1.0§ - rest) * v->n[p] + rest * v->g[p] * v->g[p];
        v->w[p] += step * v->z[p] / (sqrt§(v->n[p]) + (@_real)$_EPSILON);
    }
}
""",
        ("g", "n"),
    ),
    Intentional: Rule(
        "n <- beta2 n + (1 - beta2) g^2, D = 1 / (sqrt(n / (1 - beta2^t)) + epsilon), S <- S + k (sum g^2 D - S), "
        "w <- w + alpha / sqrt(S sum z^2 D) delta D z, g = grad v(s), k = (1 - gamma lambda) / (1 - (gamma lambda)^t)",
        SHARE
        + """
static inline void @_step(@_state *v, @_real delta)
{
    const double t = (double)++v->n_updates, rest = 1.0 - $_CLIP_DECAY, known = 1.0 - pow($_CLIP_DECAY, t);
    const @_real correction = (@_real)(1.0 / (1.0 - pow($_BETA2, t)));
    @_real size = 0.0§, trace_size = 0.0§;
    for (int p = 0; p < $_PARAMETERS; p++) {
        const @_real g = v->g[p];
        @_real scale = 1.0§;
        if ($_RMS != 0.0) {
            v->n[p] = (@_real)$_BETA2 * v->n[p] + (@_real)(1.0 - $_BETA2) * g * g;
            scale = 1.0§ / (sqrt§(v->n[p] * correction) + (@_real)$_EPSILON);
        }
        size += g * g * scale;
        v->g[p] = scale * v->z[p];
        trace_size += v->g[p] * v->z[p];
    }
    v->gradient_size += @_share((double)(@_real)(v->gamma * v->lambda), t) * ((double)size - v->gradient_size);
    const double length = sqrt(v->gradient_size * (double)trace_size);
    double error = (double)delta;
    v->squared_error = $_CLIP_DECAY * v->squared_error + rest * error * error;
    if ($_CLIP > 0.0) {
        const double cap = $_CLIP * sqrt(v->squared_error / known);
        error = error > cap ? cap : error < -cap ? -cap : error;
    }
    if ($_NORMALISE != 0.0) {
        v->error_size = $_CLIP_DECAY * v->error_size + rest * fabs(error);
        error /= v->error_size / known > 1e-12 ? v->error_size / known : 1e-12;
    }
    const @_real along = (@_real)(v->alpha[0] / (length > 1e-8 ? length : 1e-8) * error);
    for (int p = 0; p < $_PARAMETERS; p++) v->w[p] += along * v->g[p];
}
""",
        ("g", "n"),
        ("gradient_size", "squared_error", "error_size"),
    ),
}
LEARN = """
/* Learns from one transition and returns its TD error, delta = r + gamma v(s') - v(s) before the update. A terminal s'
 * (terminated) has the value 0; where an episode is cut (truncated), v(s') counts. Either ends the trace. If delta or
 * an entry of a state is NaN or infinite, nothing is learned, and what is returned is not finite. */
static inline @_real @_learn(@_state *v, const @_real *s, @_real r, const @_real *s_next, int terminated, int truncated)
{{
    @_{net}_pass p;
    @_real now, next = 0.0§;
{derivatives}
    for (int i = 0; i < $_INPUTS; i++)
        if (!isfinite(s[i]) || !isfinite(s_next[i])) return (@_real)NAN;
    if (!terminated) @_{net}_forward(v->w, s_next, &p, &next);
    @_{net}_forward(v->w, s, &p, &now);
    const @_real delta = r + (@_real)v->gamma * next - now;
    if (!isfinite(delta)) return delta;
    /* Derivatives of v(s) at the pre-activations, from the last layer to the first. */
{backward}
{accumulate}
    @_step(v, delta);
    if (terminated || truncated) @_cut_trace(v);
    return delta;
}}
"""
STATE = """
/* What changes while it learns. */
typedef struct {{
    @_real w[$_PARAMETERS]; /* weights */
    @_real z[$_PARAMETERS]; /* eligibility trace */
{moments}\
{scalars}\
    double alpha[$_LAYERS]; /* step size of each layer */
    double gamma;           /* discount */
    double lambda;          /* trace decay */
    unsigned long n_updates; /* that were made */
}} @_state;

/* Where the weights of each layer start. */
static const int @_bounds[$_LAYERS + 1] = {{{bounds}}};

/* Forgets the past, as at the start of an episode. */
static inline void @_cut_trace(@_state *v)
{{
    for (int p = 0; p < $_PARAMETERS; p++) v->z[p] = 0.0§;
}}

/* As it was exported, but without a trace. */
static inline void @_init(@_state *v)
{{
    static const double alpha[$_LAYERS] = {{{alphas}}};
    for (int p = 0; p < $_PARAMETERS; p++) {{
        v->w[p] = @_{net}_w[p];
        v->z[p] = 0.0§;
{moments_of}    }}
{scalars_of}\
    for (int l = 0; l < $_LAYERS; l++) v->alpha[l] = alpha[l];
    v->gamma = $_GAMMA;
    v->lambda = $_LAMBDA;
    v->n_updates = {n_updates}ul;
}}
"""
