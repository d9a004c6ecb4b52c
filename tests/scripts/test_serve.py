"""scripts/serve.py as a person starts it: real processes, real sockets, real signals."""

import contextlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tyro
from gymnasium import spaces

from valueapprox import CheckpointError, ValueFunction, checkpoint
from valueapprox.agents import StreamQ
from valueapprox.agents import layout as kernels
from valueapprox.agents.batch_run import BatchSettings
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.service import Client, ReadOnlyError, Service, Transitions, store
from valueapprox.telemetry import read_metrics

SERVE = Path(__file__).parents[2] / "scripts" / "serve.py"
NEW = ("--new", "--inputs", "2", "--hidden", "4", "--gamma", "0.9")
ONE = {"stream": "a", "state": [1.0, 0.0], "cumulants": 1.0, "next_state": [0.0, 1.0]}


spec = importlib.util.spec_from_file_location("serve", SERVE)
script = sys.modules["serve"] = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
spec.loader.exec_module(script)


class Served:
    """A process of serve.py, on a free port."""

    start = None  # `Scripts.start`, of fork_server.py

    def __init__(self, *options):
        self.process = Served.start("serve.py", *options, "--port", 0)
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if "Read on" in line:
                break
        else:
            raise AssertionError(self.process.stderr.read())
        self.url = re.search(r"http://\S+", self.said)[0]
        self.client = Client(self.url, retries=0)

    def end(self, number=signal.SIGTERM):
        """Send a signal; returns exit code, stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, self.said + out, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def starting(start_script):
    Served.start = start_script.start
    yield
    Served.start = None


def printed(said, label):
    return re.search(rf"^{label} +(.*)$", said, re.MULTILINE)[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_that_are_printed_work_as_they_are(tmp_path):
    token = tmp_path / "a token"
    token.write_text("0123456789abcdef\n")

    def run(said, label):
        command = printed(said, label)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=20, check=True)
        return json.loads(done.stdout)

    with Served(*NEW, "--token-file", token) as served:
        before = run(served.said, "Ask it")
        assert run(served.said, "Teach it")["status"] == "learned"
        assert run(served.said, "Teach it")["status"] == "duplicate"
        after = run(served.said, "Ask it")
        assert (before["version"], after["version"]) == (0, 1)
        assert before["values"] != after["values"]
        code, out, err = served.end()
        assert code == 0, err
        assert "keeps nothing" in out
    with Served("--new", "--inputs", 2, "--gamma", 0, 0.9, "--names", "now", "later", "--separate") as served:
        assert printed(served.said, "Predicts") == "now (gamma 0, lambda 0.9), later (gamma 0.9, lambda 0.9)"
        assert len(run(served.said, "Ask it")["values"][0]) == 2
        assert len(run(served.said, "Teach it")["td_errors"]) == 2


def test_sigterm_ends_it_in_order_and_it_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "service"
    with Served(*NEW, "--data", folder, "--log-every", "0.2") as served:
        for i in range(20):
            assert served.client.learn(**ONE, sequence=i).learned == 1
        weights = served.client.weights()
        time.sleep(0.5)
        served.client.learn(**ONE, sequence=20)
        code, out, err = served.end()
        assert code == 0, err
        assert re.search(rf"Continue: \S*python\S* \S*serve.py --data {re.escape(str(folder))}\n", out)
    meta = checkpoint.load(folder / "checkpoint.npz").meta
    assert (meta["kind"], meta["version"]) == ("service", 21)
    logged = read_metrics(folder / "log")
    assert logged[-1]["step"] == 21
    # A second line of the same step holds what the log did not know yet when it wrote the first.
    last = {tag for line in logged if line["step"] == 21 for tag in line}
    assert {"value/td_error/rms", "value/grad_norm/A", "value/weight_norm/B", "service/queued"} <= last
    assert list((folder / "log").glob("events.out.tfevents.*"))
    with Served("--data", folder) as served:
        assert served.client.learn(**ONE, sequence=20).duplicates == 1
        assert served.client.version == 21
        assert served.client.learn(**ONE, sequence=21).learned == 1
        assert served.client.weights().w.tobytes() != weights.w.tobytes()
        assert served.end()[0] == 0
    steps = [line["step"] for line in read_metrics(folder / "log")]
    assert steps == sorted(steps)


def test_a_request_that_has_come_is_answered_before_the_end(tmp_path):
    with Served(*NEW, "--data", tmp_path / "service", "--log-json", "--log-every", 0) as served:
        results, began = [], threading.Event()

        def feed(name):
            client = Client(served.url, retries=0)
            with contextlib.suppress(ConnectionError):
                for i in range(10_000):
                    results.append(client.learn(**{**ONE, "stream": name}, sequence=i).learned)
                    began.set()

        threads = [threading.Thread(target=feed, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        assert began.wait(30)
        code, _, err = served.end(signal.SIGINT)
        assert code == 0
        assert [json.loads(line)["event"] for line in err.splitlines()] == ["serving", "stopped"]
        for thread in threads:
            thread.join(30)
    with Service.open(tmp_path / "service") as service:
        # Every acknowledged one is there; of each client at most one more, whose answer did not reach it.
        assert len(results) <= service.version <= len(results) + 4


def test_after_a_kill_nothing_that_was_acknowledged_is_missing(tmp_path):
    folder = tmp_path / "service"
    with Served(*NEW, "--data", folder) as served:
        acknowledged = {}

        def feed(name):
            client = Client(served.url, retries=0)
            with contextlib.suppress(ConnectionError):
                for i in range(100_000):
                    client.learn(**{**ONE, "stream": name}, sequence=i)
                    acknowledged[name] = i

        threads = [threading.Thread(target=feed, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 3 or sum(acknowledged.values()) < 100:
            time.sleep(0.01)
        assert served.end(signal.SIGKILL)[0] == -signal.SIGKILL
        for thread in threads:
            thread.join(30)
    with Served("--data", folder) as served:
        health = served.client.health()
        last = {}
        for name, number in acknowledged.items():
            assert served.client.learn(**{**ONE, "stream": name}, sequence=number).duplicates == 1
            result = served.client.learn(**{**ONE, "stream": name}, sequence=number + 1)  # in flight, or not
            last[name] = number + 1 if result.duplicates else number
        assert health["version"] == sum(number + 1 for number in last.values())  # each once


def test_a_prediction_run_is_served_and_not_changed(tmp_path):
    folder = tmp_path / "run"
    world = {"env": "valueapprox/RandomWalk-v0", "steps": 500, "envs": 2, "block": 50, "gamma": 0.9}
    PredictionRun(PredictionSettings(**world, hidden=(4,), dtype="float64"), folder).train(0)
    learned = ValueFunction.load(folder / "checkpoint.npz")
    states = np.eye(learned.net.n_inputs)
    one = {"stream": "a", "sequence": 0, "state": states[0], "cumulants": 1.0, "next_state": states[1]}
    with Served("--checkpoint", folder, "--log-json", "--log-requests") as served:
        values = served.client.values(states)
        assert values.values[:, 0].tolist() == pytest.approx(learned.predict(states).tolist(), abs=1e-14)
        assert values.version == 500
        with pytest.raises(ReadOnlyError):
            served.client.learn(**one)
        code, out, err = served.end()
    assert code == 0
    assert "read-only" in out
    events = [json.loads(line) for line in err.splitlines()]
    assert [event["event"] for event in events] == ["serving", "request", "request", "stopped"]
    assert [event.get("status") for event in events] == [None, 200, 403, None]
    with script.make_service(script.Serve(checkpoint=folder, data=tmp_path / "service")) as service:
        result = service.learn(Transitions.of(**one))
        assert (result.learned, result.version) == (1, 501)


@pytest.mark.parametrize(("agent", "outputs"), [("stream-ac", 1), ("sarsa", 2)])
def test_a_control_run_is_served_in_the_environment_s_own_units(tmp_path, agent, outputs):
    folder = tmp_path / "run"
    ControlRun(ControlSettings("CartPole-v1", agent=agent, steps=300, hidden=(4,)), folder).train()
    learned, _ = ControlRun.load_agent(folder / "checkpoint.npz")
    observations = np.random.default_rng(0).normal(size=(5, 4))
    # The agent's own arithmetic: normalise, forward, and values times the scale of rewards.
    memory = learned.memory
    n, mean, spread = memory[kernels.OBSERVATIONS_SEEN], *memory[kernels.STATISTICS :].reshape(2, 4)
    x = (observations - mean) / np.sqrt(spread / (n - 1) + 1e-8)
    scale = np.sqrt(memory[kernels.REWARD_SPREAD] / (memory[kernels.REWARDS_SEEN] - 1) + 1e-8)
    wanted = learned.first.net.forward(learned.first.w, x.astype(np.float32)) * scale
    assert scale > 1.5  # so that forgetting it shows
    with script.make_service(script.Serve(checkpoint=folder)) as service:
        found = service.values(observations).values
        assert found.shape == (5, outputs)
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4 * np.abs(wanted).max())
        assert service.names == (("value",) if outputs == 1 else ("action 0", "action 1"))
        assert service.settings.read_only
    with pytest.raises(ValueError, match="expected --checkpoint alone"):
        script.make_service(script.Serve(checkpoint=folder, data=tmp_path / "service"))


def test_values_of_rewards_that_are_all_equal_are_served_as_they_are():
    agent = StreamQ(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2), hidden=(3,), gamma=0.0, seed=1)
    agent.start([0.5, 0.5])
    for _ in range(5):
        agent.step(1.0, [0.5, 0.5])
    net, w = script.folded(agent)
    x = np.zeros((1, 2), np.float32)  # the observation, normalised: it has been the same all along
    assert net.forward(w, [[0.5, 0.5]]) == pytest.approx(agent.first.net.forward(agent.first.w, x), rel=1e-5)


def test_what_a_person_can_mend_is_said(tmp_path):
    weak = tmp_path / "weak"
    weak.write_text("secret")
    strong = tmp_path / "strong"
    strong.write_text("0123456789abcdef")
    wrong = [
        ((), "nothing to serve was given; expected --checkpoint"),
        (("--new",), "--new was given without --inputs"),
        (("--new", "--inputs", "2", "--checkpoint", "x"), "expected one of them"),
        ((*NEW, "--gamma", "1.5"), r"\[0, 1\]"),
        ((*NEW, "--gamma", "0.5", "0.9", "--lam", "0.1", "0.2", "0.3"), "--lam 3; expected one for each"),
        ((*NEW, "--host", "0.0.0.0"), "expected --token-file FILE"),
        ((*NEW, "--token-file", str(weak)), "is not valid; expected one line"),
        ((*NEW, "--token-file", str(tmp_path / "none")), "the token file .* does not exist"),
        ((*NEW, "--max-body", "0"), "max_body is 0"),
        ((*NEW, "--token-file", str(strong), "--host", "no.such.host.invalid"), "expected one of this machine"),
        (("--checkpoint", str(tmp_path / "none.npz")), "there is no checkpoint at"),
        (("--data", str(tmp_path / "none")), "there is no checkpoint at"),
    ]
    for options, words in wrong:
        with pytest.raises((ValueError, ConnectionError, FileNotFoundError, CheckpointError), match=words):
            script.main(tyro.cli(script.Serve, args=[*options, "--port", "0"]))


@pytest.mark.parametrize("port", ["65536", "-1"])
def test_a_port_that_does_not_exist_is_not_another_one(port):
    with pytest.raises(ConnectionError, match=f"port is {port}; expected 0 to 65535"):
        script.main(tyro.cli(script.Serve, args=[*NEW, "--port", port]))


def test_a_token_file_that_others_may_open_is_said(tmp_path, capfd):
    from valueapprox.service import server

    server.set_up_logs(as_json=False)
    for mode, said in ((0o600, False), (0o640, True), (0o604, True)):
        path = tmp_path / f"{mode:o}"
        path.write_text("0123456789abcdef\n")
        path.chmod(mode)
        assert server.read_token(path) == "0123456789abcdef"
        assert (f"chmod 600 {path}" in capfd.readouterr().err) == said


def test_it_starts_without_ray_and_gymnasium():
    # They take two thirds of the time until it can say what its options are.
    show = "print({'ray', 'gymnasium', 'fastapi'} & set(sys.modules))"
    words = f"import runpy, sys; runpy.run_path({str(SERVE)!r}); {show}"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert (ControlSettings.kind, BatchSettings.kind) == script.ACTING_RUNS
    assert script.CHECKPOINT_FILE == CHECKPOINT_FILE == store.CHECKPOINT


def test_a_folder_that_goes_on_operates_as_before_unless_told_otherwise(tmp_path):
    options = tyro.cli(script.Serve, args=[*NEW, "--data", str(tmp_path), "--durability", "every", "--on-gap", "cut"])
    script.make_service(options).close()
    for args in ((*NEW,), ()):
        options = tyro.cli(script.Serve, args=[*args, "--data", str(tmp_path), "--max-known-streams", "256"])
        with script.make_service(options) as again:
            settings = again.settings
            assert (settings.durability, settings.on_gap, settings.max_known_streams) == ("every", "cut", 256)


def test_a_port_or_a_folder_that_is_taken_is_said_in_one_line(start_script, tmp_path):
    with Served(*NEW, "--data", tmp_path / "service") as served:
        port = served.url.rpartition(":")[2]
        result = start_script("serve.py", *NEW, "--port", port)
        assert (result.returncode, "another --port" in result.stderr) == (2, True)
        result = start_script("serve.py", "--data", tmp_path / "service", "--port", 0)
        assert result.returncode == 2
        assert "another" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
