"""Serve a value function over HTTP: it predicts values, learns from what arrives, survives crashes."""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from valueapprox import Network, checkpoint
from valueapprox.cli.terminal import announce_compile, command, command_line, console, errors_in_one_line, plain, typed
from valueapprox.nn.scaling import Scaling, fold_scaling
from valueapprox.optim import OPTIMIZERS, STREAM_ADAM, Adam
from valueapprox.service import JournalError, Service, ServiceError, ServiceSettings

if TYPE_CHECKING:
    from valueapprox.agents.base import ControlAgent
    from valueapprox.agents.batched import BatchAgent
    from valueapprox.service.ray_actor import RemoteService

    OptimizerName: TypeAlias = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]

EXTRA = "serving over HTTP needs FastAPI and uvicorn: pip install 'valueapprox[serve]'"
CHECKPOINT_FILE = "checkpoint.npz"  # in a run's folder, and in a service's
ACTING_RUNS = ("control run", "batch run")  # kinds of their checkpoints: naming their classes would load Ray
LOG_FOLDER = "log"  # in the data folder


@dataclass(frozen=True)
class Serve:
    """Serve a value function over HTTP: it predicts the values of states, and learns from the transitions it is sent.

    What a run has learned, read-only; or with --data, learning on from there:
      serve.py --checkpoint runs/NAME
      serve.py --checkpoint runs/NAME --data service/

    A new one, which learns from what arrives; and the same one again after it was stopped or has crashed:
      serve.py --new --inputs 4 --hidden 64 --gamma 0.99 --lam 0.9 --data service/
      serve.py --data service/

    Three predictions from one network: the same signal over one, ten and a hundred steps:
      serve.py --new --inputs 8 --gamma 0 0.9 0.99 --names now soon later --data service/

    Its address, an example to paste, and where to read on are printed when it is ready. Ctrl-C or SIGTERM ends it:
    requests that have arrived are answered, a checkpoint is written. Other machines can reach it with --host and
    --token-file.
    """

    checkpoint: Path | None = None
    """A run's folder, its checkpoint file, or a file of ValueFunction.save; of a control run, its critic or q."""
    new: bool = False
    """Start with a new network, unless --data holds a service already."""
    data: Path | None = None
    """Folder of journal, checkpoint and log; a service that is in it is continued. Without it nothing is kept."""

    inputs: int | None = None
    """New: number of inputs, the length of a state."""
    hidden: tuple[int, ...] = (64,)
    """New: sizes of the hidden layers; none for a linear function."""
    activation: str = "relu"
    """New: activation of the hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus."""
    layer_norm: bool = False
    """New: normalise the pre-activations of hidden layers."""
    dtype: Literal["float32", "float64"] = "float32"
    """New: dtype of weights and arithmetic."""
    gamma: tuple[float, ...] = (0.99,)
    """New: discount of each prediction, in [0, 1]."""
    lam: tuple[float, ...] = (0.9,)
    """New: trace decay of each prediction, or one for all, in [0, 1]."""
    names: tuple[str, ...] = ()
    """New: names of the predictions."""
    separate: bool = False
    """New: a network for each prediction instead of one for all."""
    optimizer: OptimizerName = "adam"
    """New: optimizer, which turns delta times the trace into an update."""
    alpha: float | None = None
    """New: step size; by default the optimizer's own."""
    seed: int = 0
    """New: seed of the initial weights."""

    durability: Literal["batch", "every", "none"] | None = None
    """What is forced to disk before an answer: one write for all that wait (batch, the default), one each, or none."""
    on_gap: Literal["reject", "cut"] | None = None
    """When numbers are missing in a stream: reject the transition (the default), or cut the trace and learn it."""
    max_streams: int | None = None
    """Maximum number of streams with a trace, 256 by default; beyond it the least recently used loses its trace."""
    max_known_streams: int | None = None
    """Maximum number of streams that are known, 100,000 by default; beyond it new ones are refused."""
    max_batch: int | None = None
    """Maximum number of transitions in a request; 65,536 by default."""
    max_queue: int | None = None
    """Maximum number of transitions that wait, 262,144 by default; beyond it the answer is 429."""
    checkpoint_seconds: float | None = None
    """Seconds between two checkpoints while something is learned; 60 by default."""
    retain_bytes: int | None = None
    """Bytes of the journal that are kept although the last checkpoint covers them; 0 by default."""

    max_states: int = 65_536
    """Maximum number of states in a request for values."""
    max_body: int = 16 * 2**20
    """Maximum size of a request's body in bytes."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all addresses of this machine, which requires a token."""
    port: int = 8800
    """Port to listen on; 0 takes a free one."""
    token_file: Path | None = None
    """File with a token that requests must carry: authorization: Bearer TOKEN."""
    ray_serve: str | None = None
    """Serve the Ray actor of this name under Ray Serve; --new or --data starts it if there is none."""
    ray_address: str | None = None
    """Ray cluster to join: host:port, or auto. Without it, Ray is started on this machine."""
    replicas: tuple[int, int] = (1, 2)
    """Minimum and maximum number of Ray Serve's replicas, depending on the load."""
    log_every: float = 10.0
    """Seconds between two points of the TensorBoard log in the data folder; 0 turns it off."""
    log_json: bool = False
    """Log in JSON, one object per line."""
    log_requests: bool = False
    """Log every request."""


#: Settings that say how a service operates and nothing about what is learned.
OPERATION = [f.name for f in fields(ServiceSettings) if getattr(Serve, f.name, "") is None]


def main(options: Serve) -> int:
    """Serve until asked to stop; returns the exit code."""
    try:
        return run(options)
    except (ServiceError, JournalError) as error:
        raise ValueError(str(error)) from error


def run(options: Serve) -> int:
    """Serve as the options say."""
    try:
        from valueapprox.service import server
        from valueapprox.service.schemas import Limits
    except ModuleNotFoundError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing)") from None
    announce_compile()
    server.set_up_logs(options.log_json)
    limits = Limits(max_body=options.max_body, max_states=options.max_states)
    token = None if options.token_file is None else server.read_token(options.token_file)
    if token is None and not server.is_loopback(options.host):
        raise ValueError(
            f"--host is {options.host}, which other machines can reach; expected --token-file FILE with it "
            "((umask 077; openssl rand -hex 32 > FILE) makes one)"
        )
    if options.ray_serve is not None:
        return serve_on_ray(options, options.ray_serve, token, limits)
    with ExitStack() as stack:
        listener = server.listen(options.host, options.port)  # before the seconds that loading may take
        stack.callback(listener.close)
        service = make_service(options)
        stack.callback(service.close)
        for notice in service.notices:
            server.log.info(notice)
        if options.data is not None and options.log_every > 0 and not service.settings.read_only:
            log = server.TelemetryLog(service, options.data / LOG_FOLDER, options.log_every)
            stack.callback(log.close)
            stack.callback(service.close)  # first: what it learned last is logged too
        server.serve(
            service,
            listener,
            token=token,
            limits=limits,
            log_requests=options.log_requests,
            on_start=lambda: announce(service, options, listener.getsockname()[1]),
        )
        # What is left is to write the checkpoint: a second signal must not keep it from that.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    if options.data is not None and not service.settings.read_only:
        again = command("serve.py", "--data", options.data)
        console.print(f"Stopped at version {service.version:,}. Continue: {again}", markup=False)
    return 0


def make_service(options: Serve) -> Service:
    """The service that the options describe."""
    if options.new and options.checkpoint is not None:
        raise ValueError("--new and --checkpoint were given; expected one of them")
    operation = chosen(options)
    if options.new:
        return Service(new_settings(options, operation), options.data)
    if options.checkpoint is not None:
        path = options.checkpoint
        if path.is_dir():
            path = path / CHECKPOINT_FILE
        if checkpoint.load(path).meta.get("kind") in ACTING_RUNS:
            return control_service(path, options, operation)
        return Service.from_checkpoint(path, options.data, **operation)
    if options.data is not None:
        return Service.open(options.data, **operation)
    raise ValueError("nothing to serve was given; expected --checkpoint runs/NAME, --new --inputs N, or --data FOLDER")


def chosen(options: Serve) -> dict[str, Any]:
    """How it operates, as far as that was given: the rest stays as it was in a folder that is continued."""
    path = None if options.data is None else options.data / CHECKPOINT_FILE
    before: dict[str, Any] = {} if path is None or not path.exists() else checkpoint.load(path).meta.get("settings", {})
    given = {name: getattr(options, name) for name in OPERATION}
    chosen = {name: before.get(name) if value is None else value for name, value in given.items()}
    return {name: value for name, value in chosen.items() if value is not None}


def new_settings(options: Serve, operation: dict[str, Any]) -> ServiceSettings:
    """What a new service learns."""
    if options.inputs is None:
        raise ValueError("--new was given without --inputs; expected the length of a state")
    k = len(options.gamma)
    lams = options.lam * k if len(options.lam) == 1 else options.lam
    if len(lams) != k or not k:
        raise ValueError(f"--gamma has {k} numbers and --lam {len(lams)}; expected one for each prediction")
    cls = OPTIMIZERS[options.optimizer]
    optimizer = STREAM_ADAM if cls is Adam else cls()
    if options.alpha is not None:
        optimizer = replace(optimizer, alpha=options.alpha)
    sizes = (options.inputs, *options.hidden, 1 if options.separate else k)
    net = Network(sizes, options.activation, layer_norm=options.layer_norm, dtype=options.dtype)
    names = options.names or (("value",) if k == 1 else ())
    return ServiceSettings(net, optimizer, options.gamma, lams, names, options.separate, options.seed, **operation)


# --- Ray Serve --------------------------------------------------------------------------------------------------------


def serve_on_ray(options: Serve, name: str, token: str | None, limits: Any) -> int:
    """The same under Ray Serve, until asked to stop; returns the exit code."""
    from valueapprox.cluster import cluster
    from valueapprox.service import ray_actor, ray_serve, server

    if options.checkpoint is not None:
        raise ValueError("--checkpoint was given with --ray-serve; expected --new or --data")
    if options.new and options.inputs is None:
        new_settings(options, {})  # says what is missing, before Ray starts
    server.listen(options.host, options.port).close()  # a port that is taken is said at once
    operation = chosen(options)
    asked = threading.Event()
    with cluster(options.ray_address, max(options.replicas)), ExitStack() as stack:
        try:
            learner = ray_actor.connect(name)
        except LookupError:
            if options.new:
                settings = new_settings(options, operation)
            elif options.data is not None:
                stored = checkpoint.load(options.data / CHECKPOINT_FILE).meta["settings"]
                settings = replace(ServiceSettings.from_dict(stored), **operation)
            else:
                raise
            learner = ray_actor.start(name, settings, options.data)
            stack.callback(learner.stop)
        ray_serve.deploy(
            name, host=options.host, port=options.port, replicas=options.replicas, token=token, limits=limits
        )
        stack.callback(ray_serve.withdraw, name)
        announce(learner, options, options.port)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: asked.set())
        asked.wait()
    return 0


# --- control runs -----------------------------------------------------------------------------------------------------


def control_service(path: Path, options: Serve, operation: dict[str, Any]) -> Service:
    """The critic of an agent's run, or the values of its actions; read-only."""
    if options.data is not None:
        raise ValueError(
            f"--data was given with {path}, a control run; expected --checkpoint alone, since its values are those of "
            "a policy that was learning too"
        )
    from valueapprox.agents.trained import load  # and Ray and Gymnasium with it, which others need not wait for

    trained = load(path)
    agent, settings = trained.learned, trained.settings
    net, w = folded(agent)
    k = net.n_outputs
    names = ("value",) if k == 1 else tuple(f"action {i}" for i in range(k))
    gammas, lams = (settings.gamma,) * k, (getattr(settings, "lam", 0.0),) * k
    described = ServiceSettings(net, discounts=gammas, lams=lams, names=names, read_only=True, **operation)
    return Service(described, None, weights=w)


def folded(agent: ControlAgent | BatchAgent) -> tuple[Network, np.ndarray]:
    """The agent's value network with its normalisers built in: states and values in the environment's own units.

    x = (s - mean) / sd, and values are of rewards r / c. In float64, since mean / sd may be large. A time feature stays
    as it is. Observations more than 10 sd from the mean, which an agent of many environments cuts off, are not here.
    """
    from valueapprox.agents.batched import BatchAgent
    from valueapprox.agents.export import normalisation, scaling_of, value_network

    if isinstance(agent, BatchAgent):
        net, w = value_network(agent)
        scale = Scaling(np.zeros(net.n_outputs), np.full(net.n_outputs, agent.reward_scale))
        return fold_scaling(net, w, scaling_of(agent), scale)
    net, d = agent.first.net, agent.encode.size
    inputs, unit = normalisation(agent)
    inputs.mean[d:], inputs.scale[d:] = 0.0, 1.0
    outputs = Scaling(np.zeros(net.n_outputs), np.full(net.n_outputs, unit))
    return fold_scaling(net, agent.first.w, inputs, outputs)


# --- user output ------------------------------------------------------------------------------------------------------


def announce(service: Service | RemoteService, options: Serve, port: int) -> None:
    """Say where it is, what it serves, and what to type."""
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    settings, d, k = service.settings, service.n_inputs, service.n_predictions
    about = ", ".join(
        f"{name} (gamma {gamma:g}, lambda {lam:g})"
        for name, gamma, lam in zip(service.names, settings.discounts, settings.lams, strict=True)
    )
    state = [round(0.1 * (i + 1), 1) for i in range(d)]
    key = "" if options.token_file is None else f'-H "authorization: Bearer $(cat {typed(options.token_file)})" '
    console.print(f"Serving     {url}  version {service.version:,}")
    console.print(f"Network     {settings.net}{' for each prediction' * settings.separate}", markup=False)
    console.print(f"Predicts    {about}", markup=False)
    if settings.read_only:
        console.print("Learns      nothing: read-only")
    elif options.data is None:
        console.print("Learns      from /v1/transitions, and keeps nothing; with --data FOLDER it would")
    else:
        kept = f"kept in {plain(options.data)}, durability {settings.durability}"
        console.print(f"Learns      from /v1/transitions; {kept}")
        if options.log_every > 0 and options.ray_serve is None:
            look = typed("tensorboard", "--logdir", options.data / LOG_FOLDER)
            console.print(f"Log         {look}", markup=False)
    ask = json.dumps({"states": [state]})
    console.print(f"\nAsk it      curl -s {key}{url}/v1/values -d '{ask}'", markup=False)
    if not settings.read_only:
        signals = {"reward": 1.0} if k == 1 else {"cumulants": [1.0] * k}
        transition = {"stream": "try", "sequence": 0, "state": state, **signals, "next_state": state}
        teach = json.dumps({**transition, "terminated": False})
        console.print(f"Teach it    curl -s {key}{url}/v1/transitions -d '{teach}'", markup=False)
    console.print(f"Look at it  {url}/", markup=False)
    console.print(f"Read on     {url}/docs   (Ctrl-C stops it)\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Serve)))
