"""The walk-through of the notes: its numbers by hand, and the script as a teacher starts it."""

import io
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

SCRIPT = Path(__file__).parents[2] / "scripts" / "walkthrough.py"
NAMES = runpy.run_path(str(SCRIPT))
NOTES, Board = NAMES["NOTES"], NAMES["Board"]
BY_HAND, COMPILED, NUMERIC = (NAMES[name] for name in ("BY_HAND", "COMPILED", "NUMERIC"))


@pytest.fixture(scope="module")
def notes():
    """Of each note: the numbers that it returned, and what a terminal of 80 columns shows."""
    seen = {}
    for name, note in NOTES.items():
        board = Board(Console(file=io.StringIO(), width=80, highlight=False, markup=False))
        seen[name] = note(board), board.console.file.getvalue()
        assert board.disagreements() == []
    return seen


def values(kept):
    """All numbers of a note, with where they stand."""
    for title, rows in kept.items():
        for row, cells in rows.items():
            if row != "largest difference":
                yield from (((title, row, column), value) for column, value in cells.items())


@pytest.mark.parametrize("name", NOTES)
def test_every_number_can_be_read_whole_in_80_columns(notes, name):
    kept, text = notes[name]
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("  "))  # code can be copied in one line
    for place, value in values(kept):
        for part in NAMES["written"](value).splitlines():
            assert any(part in line for line in lines), (place, part)


@pytest.mark.parametrize("name", NOTES)
def test_what_is_computed_twice_agrees(notes, name):
    differences = [rows["largest difference"] for rows in notes[name][0].values() if "largest difference" in rows]
    assert len(differences) >= 2
    assert max(differences) < 1e-7
    assert notes[name][1].count("the largest difference is") == len(differences)
    assert "DISAGREE" not in notes[name][1]


def table(notes, name, title, column):
    kept = notes[name][0][title]
    return {row: kept[row][column] for row in kept if row != "largest difference" and column in kept[row]}


def test_note_000_softmax_and_one_step(notes):
    for column in (BY_HAND, COMPILED):
        seen = table(notes, "000", "One example", column)
        # h = (2, 1): a = b + (2 * 1 - 2, 0, -2 + 2) = b = (log 1, log 2, log 5); exp a sums up to 8.
        np.testing.assert_allclose(seen["f(x)"], [1 / 8, 2 / 8, 5 / 8], rtol=1e-14)
        assert seen["l"] == pytest.approx(math.log(8 / 5))
        np.testing.assert_allclose(seen["∇a"], [1 / 8, 2 / 8, 5 / 8 - 1], rtol=1e-14)
        np.testing.assert_allclose(seen["∇W"], [[2 / 8, 4 / 8, -6 / 8], [1 / 8, 2 / 8, -3 / 8]], rtol=1e-14)
        # Delta = -grad l - 0.1 * 2 W, then W + 0.5 Delta: 1 + 0.5 (-0.25 - 0.2) = 0.775, ...
        np.testing.assert_allclose(seen["Δ of W"], [[-0.45, -0.5, 0.95], [0.275, -0.25, -0.025]], rtol=1e-13)
        np.testing.assert_allclose(seen["new W"], [[0.775, -0.25, -0.525], [-1.8625, -0.125, 1.9875]], rtol=1e-13)
        np.testing.assert_allclose(seen["new b"], np.log([1, 2, 5]) - 0.5 * np.array([1, 2, -3]) / 8, rtol=1e-13)
        assert seen["Ω"] == pytest.approx(1 + 1 + 4 + 4)


def test_note_000_an_epoch_is_a_pass_over_all_examples(notes):
    updates = table(notes, "000", "Epochs over 30 examples of three classes", "updates")
    assert updates == {epoch: 30 * int(epoch) for epoch in ("1", "2", "5", "10", "20")}
    losses = list(table(notes, "000", "Epochs over 30 examples of three classes", "loss").values())
    assert losses == sorted(losses, reverse=True)


# Note 001, x = (2, 1):
# z1 = (2*2 + 1*2, 2*-3 + 1*1) = (6, -5), a1 = (6, 0);  z2 = (6*2 + 0*0, 6*1 + 0*1) = (12, 6) = a2;
# z3 = 12*3 + 6*-2 = 24.
FORWARD = {"z⁽¹⁾": [6, -5], "a⁽¹⁾": [6, 0], "z⁽²⁾": [12, 6], "a⁽²⁾": [12, 6], "z⁽³⁾": [24], "a⁽³⁾": [24]}
# dH/dz3 = 1, dW3 = a2. da2 = W3 * 1 = (3, -2) = dz2, dW2 = a1 dz2 = (6*3, 6*-2 / 0, 0).
# da1 = (3*2 + -2*1, 3*0 + -2*1) = (4, -2); unit 2 is off: dz1 = (4, 0), dW1 = x dz1 = (2*4, 0 / 1*4, 0).
BACKWARD = {
    "∂H/∂a⁽³⁾": [1], "∂H/∂z⁽³⁾": [1], "∂H/∂W⁽³⁾": [[12], [6]], "∂H/∂b⁽³⁾": [1],
    "∂H/∂a⁽²⁾": [3, -2], "∂H/∂z⁽²⁾": [3, -2], "∂H/∂W⁽²⁾": [[18, -12], [0, 0]], "∂H/∂b⁽²⁾": [3, -2],
    "∂H/∂a⁽¹⁾": [4, -2], "∂H/∂z⁽¹⁾": [4, 0], "∂H/∂W⁽¹⁾": [[8, 0], [4, 0]], "∂H/∂b⁽¹⁾": [4, 0],
}  # fmt: skip


@pytest.mark.parametrize("column", [BY_HAND, COMPILED])
def test_note_001_every_value_of_the_exercise(notes, column):
    for title, expected in (
        ("1. Forward: z and a of every node", FORWARD),
        ("2. Backward: from the last layer to the first", BACKWARD),
    ):
        seen = table(notes, "001", title, column)
        assert {name: value.tolist() for name, value in seen.items()} == expected


def test_note_001_the_parameter_vector(notes):
    seen = table(notes, "001", "The parameter vector of 15 entries", "∂H/∂w")
    assert list(seen) == [
        *("W1[0, 0]", "W1[0, 1]", "W1[1, 0]", "W1[1, 1]", "b1[0]", "b1[1]"),
        *("W2[0, 0]", "W2[0, 1]", "W2[1, 0]", "W2[1, 1]", "b2[0]", "b2[1]", "W3[0, 0]", "W3[1, 0]", "b3[0]"),
    ]
    assert list(seen.values()) == [8, 0, 4, 0, 4, 0, 18, -12, 0, 0, 3, -2, 12, 6, 1]
    numeric = table(notes, "001", "The parameter vector of 15 entries", NUMERIC)
    np.testing.assert_allclose(list(numeric.values()), list(seen.values()), atol=1e-7)


def test_note_001_the_dead_relu(notes):
    # z = 3 * -2 + 2 * -5 + -2 * 2 = -20 < 0.
    seen = table(notes, "001", "A dead ReLU", "value")
    assert (seen["z₁⁽¹⁾"], seen["g′(z₁⁽¹⁾)"], seen["∂H/∂W₁₁⁽¹⁾"]) == (-20, 0, 0)
    assert seen["any ∂H/∂w"] > 1


@pytest.mark.parametrize("column", ["number", COMPILED])
def test_note_002_line_by_line(notes, column):
    titles = ("Notation: forward", "Deriving the gradient: backward, output side first")
    tables = [table(notes, "002", title, column) for title in (*titles, "The backprop algorithm: for each (s, y) in D")]
    seen = {row: value.tolist() for rows in tables for row, value in rows.items()}
    # s A = (1*1 + 2*2, 1*-3 + 2*1); x B = (5*2, 5*-1); yhat - y = (10 - 9, -5 + 2).
    assert seen["ψ"] == [5, -1]
    assert seen["x"] == [5, 0]
    assert seen["θ"] == seen["ŷ"] == [10, -5]
    assert seen["∂L/∂ŷ"] == seen["δᴮ"] == [1, -3]
    assert seen["∇B"] == [[5, -15], [0, 0]]
    # B delta_B = (2*1 + -1*-3, 7*1 + 3*-3) = (5, -2), and the second unit is off.
    assert seen["f_A′(ψ)"] == [1, 0]
    assert seen["δᴬ"] == [5, 0]
    assert seen["∇A"] == [[5, 0], [10, 0]]
    np.testing.assert_allclose(seen["new A"], [[0.5, -3], [1, 1]], rtol=1e-14)
    np.testing.assert_allclose(seen["new B"], [[1.95, -0.85], [7, 3]], rtol=1e-14)


def test_note_002_quotes_twolayer_as_it_stands(notes):
    source = (SCRIPT.parents[1] / "valueapprox" / "nn" / "twolayer.py").read_text()
    for line in (
        *("psi = s @ A", "x = f_A(psi)", "theta = x @ B", "yhat = f_B(theta)", "delta_B = dL_dyhat * df_B(p.theta)"),
        *("grad_B = np.outer(p.x, delta_B)", "delta_A = (B @ delta_B) * df_A(p.psi)"),
        *("grad_A = np.outer(p.s, delta_A)", "A - alpha_A * g.grad_A", "B - alpha_B * g.grad_B"),
    ):
        assert line in notes["002"][1]
        assert line in source
    with pytest.raises(LookupError, match="no line that begins with 'delta_C = '"):
        NAMES["code_line"](NAMES["twolayer"].backward, "delta_C = ")


def test_note_002_only_one_reading_of_the_slides_is_the_gradient(notes):
    # delta_A_1 for k = 1 alone: 2 * 1; with the new B: 1.95 * 1 + -0.85 * -3 = 4.5; with u = psi: 5 * 5.
    seen = table(notes, "002", "Readings of the slides", "it gives")
    np.testing.assert_allclose(seen["∇A: k = 1 alone, no sum"], [[2, 0], [4, 0]])
    np.testing.assert_allclose(seen["∇A: B after its update"], [[4.5, 0], [9, 0]])
    np.testing.assert_allclose(seen["∇A: u = ψ where ψ > 0"], [[25, 0], [50, 0]])
    np.testing.assert_allclose(seen["∇B: xⱼ in δᴮ and again"], [[25, -75], [0, 0]])
    off = table(notes, "002", "Readings of the slides", "off by")
    assert {name for name, distance in off.items() if distance < 1e-7} == {"∇A: twolayer.py", "∇B: twolayer.py"}


def test_note_003_linear_regression(notes):
    # At w = (0.5, 1), x = 3, y = 8: y - h = 8 - 3.5 = 4.5.
    seen = table(notes, "003", "One example, x = 3, y = 8", BY_HAND)
    assert list(seen.values()) == [-9, -27]
    # From w = 0 with alpha = 0.02: (0.02, 0); h(1) = 0.02, error 2.98: (0.0796, 0.0596); h(2) = 0.1988, error 3.8012:
    # (0.155624, 0.211648); h(3) = 0.790568, error 7.209432: (0.29981264, 0.64421392).
    kept = notes["003"][0]["The first pass of the per-example rule"]
    assert kept["4"]["new w₀"] == pytest.approx(0.29981264)
    assert kept["4"]["new w₁"] == pytest.approx(0.64421392)
    rules = notes["003"][0]["Both rules beside the closed form"]
    # One batch step: 0.02 (1 + 3 + 4 + 8), 0.02 (0 + 3 + 8 + 24).
    assert [rules["1"]["batch\nw₀"], rules["1"]["batch\nw₁"]] == pytest.approx([0.32, 0.7])
    assert [rules["1"]["per-example\nw₀"], rules["1"]["per-example\nw₁"]] == pytest.approx([0.29981264, 0.64421392])
    # w_1 = 11 / 5, w_0 = 4 - 1.5 w_1 (see test_linear.py); errors 0.3, 0.1, -1.1, 0.7.
    assert list(rules["closed form"].values()) == pytest.approx([0.7, 2.2, 1.8] * 2)
    assert [rules["1000"]["batch\nw₀"], rules["1000"]["batch\nw₁"]] == pytest.approx([0.7, 2.2], abs=1e-9)
    distances = list(table(notes, "003", "Per-example rule after 20,000 passes", "distance to the best w").values())
    assert 0.1 > distances[0] > distances[1] > distances[2] > 1e-3


@pytest.mark.parametrize("column", [BY_HAND, COMPILED])
def test_note_003_the_delta_notation(notes, column):
    seen = table(notes, "003", "Δ from the output to the hidden layer", column)
    # in_j = (2 - 2 + 0, 1 - 1 + log 3), g = (1/2, 3/4), g' = (1/4, 3/16); in_i = 4/2 - 2 * 3/4 - 1/2 = 0, g' = 1/4.
    # Delta_i = (1 - 1/2) / 4 = 1/8; Delta_j = (1/4 * 4 / 8, 3/16 * -2 / 8) = (1/8, -3/64); alpha = 0.8.
    np.testing.assert_allclose(seen["aⱼ"], [1 / 2, 3 / 4], rtol=1e-14)
    assert seen["Δᵢ"] == pytest.approx(1 / 8, rel=1e-14)
    np.testing.assert_allclose(seen["Δⱼ"], [1 / 8, -3 / 64], rtol=1e-14)
    np.testing.assert_allclose(seen["new wⱼᵢ"], [4 + 0.05, -2 + 0.075], rtol=1e-14)
    assert seen["new w₀ᵢ"] == pytest.approx(-0.5 + 0.1)
    np.testing.assert_allclose(seen["new wₖⱼ"], [[2 + 0.1, 1 - 0.0375], [-1 + 0.2, -0.5 - 0.075]], rtol=1e-14)
    np.testing.assert_allclose(seen["new w₀ⱼ"], [0.1, math.log(3) - 0.0375], rtol=1e-14)


def test_note_003_l1_eliminates_what_l2_only_shrinks(notes):
    # Each weight alone: 1/2 (w - c)^2 + penalty, c = (3, 0.1). L2 of 0.2: c / 1.4. L1 of 0.2: c - 0.2, not below 0.
    learned = table(notes, "003", "L1 and L2 on an irrelevant input", "learned w")
    np.testing.assert_allclose(learned["none"], [3, 0.1], rtol=1e-12)
    np.testing.assert_allclose(learned["L2"], [3 / 1.4, 0.1 / 1.4], rtol=1e-12)
    assert learned["L1, proximal"][1] == 0.0
    assert learned["L1, proximal"][0] == pytest.approx(2.8)
    last = table(notes, "003", "L1 and L2 on an irrelevant input", "w₂ of last 10:\nleast, largest")
    assert last["L1, derivative"][0] < 0 < last["L1, derivative"][1]


def test_note_004_counts_names_and_descent(notes):
    kept, _ = notes["004"]
    counts = kept["(L − 1) n² + n k + (L − 1) n + k parameters"]
    # 2 * 9 + 3 * 2 + 2 * 3 + 2 = 32 and 4 * 16 + 4 * 3 + 4 * 4 + 3 = 95.
    assert counts["n = 3, L = 3, k = 2"] == {BY_HAND: 32, "net": 32}
    assert counts["n = 4, L = 5, k = 3"] == {BY_HAND: 95, "net": 95}
    blocks = {name: cells["value"].shape for name, cells in kept["∇θ"].items()}
    assert blocks == {"∇W1": (3, 3), "∇b1": (3,), "∇W2": (3, 3), "∇b2": (3,), "∇W3": (3, 2), "∇b3": (2,)}
    assert len(kept["Entries"]) == 32 + 1  # and the largest difference
    assert kept["Entries"]["W3[1, 0]"]["backpropagation"] == kept["∇θ"]["∇W3"]["value"][1, 0]
    # W3 begins after 9 + 3 + 9 + 3 entries; its row 1 is 2 further: the slides' W_{3,2,1}.
    assert "W3[1, 0]   26      ∂ℒ/∂W_321" in notes["004"][1]
    for column in ("minimise", "fit"):
        losses = list(table(notes, "004", "ℒ(θₜ) with η = 0.05", column).values())
        assert losses == sorted(losses, reverse=True)


# The script -----------------------------------------------------------------------------------------------------------


def start(*options, **environment):
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, **environment}, check=False)


def test_the_script_prints_what_the_functions_print(notes):
    done = start("all", COLUMNS="80", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().endswith("".join(text for _, text in notes.values()))  # it may compile before
    assert b"\x1b" not in done.stdout  # no colours in a pipe


def test_a_terminal_without_greek_shows_question_marks():
    done = start("001", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"(18" not in done.stdout
    assert b" 18 -12" in done.stdout


def test_help_and_a_note_that_does_not_exist():
    done = start("--help", COLUMNS="120")
    assert done.returncode == 0
    for words in ("000", "004", "the dead ReLU", "exit code is 1"):
        assert words in done.stdout.decode()
    done = start("005")
    assert done.returncode == 2
    assert b"005" in done.stderr


def test_a_disagreement_is_said_and_is_exit_code_1(monkeypatch, capsys):
    def wrong(board):
        board.table("Sum", ("", "a", "b"), [("1 + 1", 2.0, 2.0 + 3e-7), ("1 + 2", 3.0, 3.0)], ("a", "b"))
        board.table("Shapes", ("", "a", "b"), [("x", np.ones(1), np.ones(2))], ("a", "b"))
        board.table("NaN", ("", "a", "b"), [("x", 1.0, 1.0), ("y", np.nan, 1.0)], ("a", "b"))
        board.table("Right", ("", "a", "b"), [("x", 1.0, 1.0 + 1e-12)], ("a", "b"))

    main = NAMES["main"]
    monkeypatch.setitem(main.__globals__, "NOTES", {"001": wrong})
    assert main(NAMES["Walkthrough"]("001")) == 1
    printed = capsys.readouterr().out
    assert printed.count("THEY DISAGREE") == 3
    for title in ("Sum", "Shapes", "NaN"):
        assert f"Two ways to a number disagree in note 001: {title}" in printed
    assert "note 001: Right" not in printed
