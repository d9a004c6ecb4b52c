"""Tables from CSV and npz files, standardising, its folding into weights, and models."""

import io
import re
import zipfile

import numpy as np
import pytest

from valueapprox import CheckpointError, Network, checkpoint
from valueapprox.nn.scaling import Scaling, fold_scaling
from valueapprox.supervised.models import Model, load_model
from valueapprox.supervised.tables import TableError, read_table


@pytest.fixture
def table(tmp_path):
    """`table(content, name)` writes a file and reads it."""

    def read(content, name="t.csv", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path, **options)

    return read


@pytest.fixture
def npz(tmp_path):
    """`npz(S=..., ...)` writes an npz file and reads it."""

    def read(**arrays):
        np.savez(tmp_path / "t.npz", **arrays)
        return read_table(tmp_path / "t.npz")

    return read


# CSV ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "a,b c,y\n1,2,3\n-4,5e1,6\n",
        "a;b c;y\n1;2;3\n-4;50;6\n",
        "a\tb c\ty\n1\t2\t3\n-4\t50\t6\n",
        "\ufeffa,b c,y\r\n1,2,3\r\n-4,50,6\r\n",
        '"a","b c",y\n"1",2,3\n-4,"50",6',
        "\na, b c , y\n\n 1, 2, 3\n  \n-4, 50, 6\n\n",
    ],
    ids=["comma", "semicolon", "tab", "byte order mark and CRLF", "quotes", "blanks"],
)
def test_spellings_of_one_table(table, content):
    read = table(content)
    assert list(read.cells) == ["a", "b c", "y"]
    np.testing.assert_array_equal(read.numbers(["y", "a", "b c"]), [[3, 1, 2], [6, -4, 50]])


def test_the_delimiter_is_guessed_from_the_header_without_what_is_quoted(table):
    read = table('"x, the first, of all";y\n1;2\n')
    assert list(read.cells) == ["x, the first, of all", "y"]


@pytest.mark.parametrize("name", ['"price\n(EUR)"', '"a\r\nb, c, d"', '"5"" pipe\n,,"', '5" pipe', "'it"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n", "\ufeff\n"])
def test_the_delimiter_is_guessed_from_the_whole_first_record(table, name, delimiter, end, start):
    rows = [(name, "area", "rooms"), ("1", "2", "3"), ("4", '"5\n"', "6")]
    read = table(start + end.join(delimiter.join(row) for row in rows) + end)
    assert len(read.cells) == 3
    assert list(read.cells)[1:] == ["area", "rooms"]
    np.testing.assert_array_equal(read.numbers(["rooms"]), [[3], [6]])


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_first_line_of_spreadsheets_names_the_delimiter(table, first, end):
    read = table(end.join([first, "price;a,b,c", "100;5", "110;x", ""]))
    assert list(read.cells) == ["price", "a,b,c"]
    assert read.lines == [3, 4]  # as an editor shows them
    assert table(end.join([first, "a|b;c", "1|2", ""]), delimiter="|").cells["b;c"] == ("2",)


@pytest.mark.parametrize(("given", "character"), [("|", "|"), ("tab", "\t"), ("\\t", "\t"), (";", ";")])
def test_a_delimiter_can_be_given(table, given, character):
    read = table(f"a,b{character}y\n1{character}2\n", delimiter=given)
    assert list(read.cells) == ["a,b", "y"]


def test_lines_are_those_of_the_file_also_after_quoted_newlines(table):
    read = table('name,x\n"two\nlines",1\n\nb,oops\n')
    assert read.lines == [2, 5]
    with pytest.raises(TableError, match=r"t\.csv, line 5, column 'x': 'oops' is no number"):
        read.numbers(["x"])


def test_columns_without_a_name_are_counted_and_left_out(table):
    # pandas writes its index so
    read = table(",a,y\n0,5,1\n1,6,2\n")
    assert (list(read.cells), read.n_nameless) == (["a", "y"], 1)
    assert read.roles(["y"]) == (["a"], ["y"])


#: name: (content, what is wrong); the path goes before it
BAD_FILES = {
    "empty": ("", " is empty"),
    "blank": ("\n  \n", " is empty"),
    "header only": ("a,b\n\n", " has a header line and no rows"),
    "ragged, short": ("a,b\n1,2\n3\n", ", line 3 has 1 cell; the header has 2"),
    "ragged, long": ("a,b\n1,2,3\n", ", line 2 has 3 cells; the header has 2"),
    "duplicate": ("a,b,a\n1,2,3\n", " has two columns called 'a'; each name can stand for one"),
    "open quote": ('a,b\n1,"2\n3,4\n', ", line 2 is not CSV: unexpected end of data"),
    "Latin-1": ("a,b\n1,2\nä,3\n".encode("latin-1"), ", line 3 is not UTF-8 text; save it as CSV in UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_table(table, tmp_path, name):
    content, wrong = BAD_FILES[name]
    with pytest.raises(TableError) as error:
        table(content)
    assert str(error.value) == f"{tmp_path / 't.csv'}{wrong}"


#: What a cell is. Blanks around it do not belong to it.
NUMBERS = {
    "12": 12,
    "-4": -4,
    "+5": 5,
    "5e1": 50,
    ".5": 0.5,
    "5.": 5,
    "-1.25E-2": -0.0125,
    " 7 ": 7,
    "\t8": 8,
    "007": 7,
}
MISSING = ("", " ", "NA", "na", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "-nan", " NA ")
TEXT = (
    "1_2", "1_000.5", "\u0661\u0662", "\uff11", "1\u00a0000", "0x10", "1e5_0", "inf", "-Infinity", "1e999",
    "1e", ".", "+",
    "--1", "1 2", "3,5", "1'000", "True", "null", "None", "\u22125", "1f", "\u00b2", "N A", "nano",
)  # fmt: skip


def test_a_number_is_sign_digits_point_exponent_and_nothing_else(table):
    cells = {**NUMBERS, **dict.fromkeys(MISSING), **dict.fromkeys(TEXT)}
    read = table("x;y\n" + "".join(f'"{cell}";1\n' for cell in cells)).parse("x")
    assert [cell for cell, number in zip(cells, read.numbers, strict=True) if np.isfinite(number)] == list(NUMBERS)
    assert read.numbers[: len(NUMBERS)].tolist() == list(NUMBERS.values())
    assert [cell for cell, missing in zip(cells, read.missing, strict=True) if missing] == list(MISSING)
    assert [cell for cell, other in zip(cells, read.other, strict=True) if other] == list(TEXT)


def test_more_words_can_mean_a_missing_cell(table):
    read = table("x,y\n?,1\nNULL,2\n-,3\n5,4\n").parse("x", ("?", "null"))
    assert read.missing.tolist() == [True, True, False, False]
    assert read.other.tolist() == [False, False, True, False]


#: name: (cell, what is wrong with it)
BAD_CELLS = {
    "text": (
        "Paris",
        "'Paris' is no number; expected a number (1 of 2 cells is text: --ignore b leaves the column out)",
    ),
    "underscore": ("1_2", "'1_2' is no number; expected a number"),
    "digits": ("\u0661\u0662", "'\u0661\u0662' is no number; expected a number"),
    "decimal comma": ('"3,5"', "'3,5' is no number; expected a number with a decimal point"),
    "long": ("x" * 99, f"'{'x' * 40}...' is no number"),
    "empty": ("", "the cell is empty; expected a number (1 of 2 cells is missing)"),
    "blank": ('"  "', "the cell is empty; expected a number"),
    "NaN": ("nan", "the cell is 'nan', which is missing; expected a number"),
    "infinite": ("-inf", "'-inf' is no number; expected a number"),
    "too large": ("1e999", "'1e999' is no number; expected a number (1 of 2 cells is infinite"),
    "date": ("2024-03-31", "'2024-03-31' is no number; expected a number (1 of 2 cells is a date"),
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_a_cell_that_is_no_number(table, tmp_path, name):
    cell, wrong = BAD_CELLS[name]
    read = table(f"a,b\n1,2\n3,{cell}\n")
    np.testing.assert_array_equal(read.numbers(["a"]), [[1], [3]])  # what is not used is not looked at
    with pytest.raises(TableError) as error:
        read.numbers(["a", "b"])
    assert str(error.value).startswith(f"{tmp_path / 't.csv'}, line 3, column 'b': {wrong}")


def test_all_that_is_wrong_is_said_at_once(table, tmp_path):
    read = table("n,t,d,m,gone,ok\n1,a,,1,,5\n,b,2024-01-02,?,NA,6\n3,a,2024-02-03,2,nan,7\n")
    with pytest.raises(TableError) as error:
        read.numbers(list(read.cells), ("--missing", "--missing-words", "--one-hot", "--dates", "--ignore"))
    first, *lines, last = str(error.value).split("\n")
    assert first == f"{tmp_path / 't.csv'} has 5 columns that cannot be used as they are:"
    for line, starts in zip(
        lines,
        (
            "  line 3, column 'n': the cell is empty; expected a number (1 of 3 cells is missing: --mi",
            "  line 2, column 't': 'a' is no number; expected a number (3 of 3 cells are text, 2 different ones: --o",
            "  line 3, column 'd': '2024-01-02' is no number; expected a number (2 of 3 cells are dates and 1 is",
            "  line 3, column 'm': '?' is no number; expected a number (1 of 3 cells is text: --missing-words '?'",
            "  line 2, column 'gone': the cell is empty; expected a number (3 of 3 cells are missing: --ignore gone",
        ),
        strict=True,
    ):
        assert line.startswith(starts)
    assert last == "For instance, add: --missing median --one-hot t --dates d --missing-words '?' --ignore gone"
    assert error.value.place == "\n".join([*lines, last])


def test_a_missing_file_suggests_the_nearest(table, tmp_path):
    table("a,b\n1,2\n", "houses.csv")
    with pytest.raises(TableError, match=r"there is no file \S*house\.csv; did you mean 'houses\.csv'\?$"):
        read_table(tmp_path / "house.csv")
    with pytest.raises(TableError, match=r"there is no file \S*nowhere/x\.csv$"):
        read_table(tmp_path / "nowhere" / "x.csv")
    with pytest.raises(TableError, match="cannot be read: is a directory"):
        read_table(tmp_path)


@pytest.mark.parametrize("delimiter", ["", "ab", '"'])
def test_a_delimiter_that_is_none(table, delimiter):
    with pytest.raises(TableError, match=f"the delimiter is '{delimiter}'; expected one character, or tab"):
        table("a,b\n1,2\n", delimiter=delimiter)


# Which columns --------------------------------------------------------------------------------------------------------


def test_features_are_all_other_columns(table):
    read = table("id,x1,x2,y,z\n1,2,3,4,5\n")
    assert read.roles(["y"], ignore=["id"]) == (["x1", "x2", "z"], ["y"])
    assert read.roles(["z", "y"], ["x2"]) == (["x2"], ["z", "y"])


#: name: (content, arguments of roles, what is wrong); the path goes before it
BAD_ROLES = {
    "no target": ("x,y\n1,2\n", {"target": []}, "--target is missing: which column of {} to predict; there are x, y"),
    "near": ("x,Price\n1,2\n", {"target": ["pirce"]}, "{} has no column 'pirce' (--target); did you mean 'Price'?"),
    "far": ("x,y\n1,2\n", {"target": ["price"]}, "{} has no column 'price' (--target); there are x, y"),
    "header": ("1,2\n3,4\n", {"target": ["y"]}, "{} has no column 'y' (--target); there are 1, 2; is line 1 a header?"),
    "feature": (
        "x,y\n1,2\n",
        {"target": ["y"], "features": ["xx"]},
        "{} has no column 'xx' (--features); did you mean",
    ),
    "ignored": ("x,y\n1,2\n", {"target": ["y"], "ignore": ["z"]}, "{} has no column 'z' (--ignore); "),
    "both": ("x,y\n1,2\n", {"target": ["y"], "features": ["y"]}, "column 'y' of {} is a feature and a target"),
    "nothing left": ("x,y\n1,2\n", {"target": ["y"], "ignore": ["x"]}, "{} has no column left to learn from"),
    "one column": ("x|y\n1|2\n", {"target": ["x|y"]}, "{} has the one column 'x|y' (is the delimiter right?)"),
}


@pytest.mark.parametrize("name", BAD_ROLES)
def test_columns_that_cannot_be_used(table, tmp_path, name):
    content, arguments, wrong = BAD_ROLES[name]
    with pytest.raises(TableError) as error:
        table(content).roles(**arguments)
    assert str(error.value).startswith(wrong.format(tmp_path / "t.csv"))


# Classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["2", "0", "10"], [2, 0, 10]),
        (["007", "042", "007"], ["007", "042", "007"]),
        (["007", "7", "+7"], ["007", "7", "+7"]),
        (["3_1", "31", "31"], ["3_1", "31", "31"]),
        (["1.0", "-3", "2e0"], ["1.0", "-3", "2e0"]),
        (["-0", "0", "0"], ["-0", "0", "0"]),
        (["\u0661", "1", "1"], ["\u0661", "1", "1"]),
        (["1.5", "1.5", "2", "2"], ["1.5", "1.5", "2", "2"]),
        (["12345678901234567890123", "1", "1"], [12345678901234567890123, 1, 1]),
        (["red", " blue ", "red"], ["red", "blue", "red"]),
        (["1", "2", "many"], ["1", "2", "many"]),
        (["True", "false", "true"], ["True", "false", "true"]),
        (["inf", "null", "0x1"], ["inf", "null", "0x1"]),
    ],
)
def test_a_class_is_given_back_as_it_is_written(table, cells, labels):
    read = table("x,y\n" + "".join(f"0,{cell}\n" for cell in cells)).labels("y")
    assert read.tolist() == labels
    assert list(map(type, read.tolist())) == list(map(type, labels))


def test_numbers_that_do_not_repeat_are_no_classes(table):
    with pytest.raises(TableError, match=r"t\.csv, line 3, column 'y': 1\.5 is no class; expected classes that repeat"):
        table("x,y\n0,1\n0,1.5\n").labels("y")


# npz ------------------------------------------------------------------------------------------------------------------


def test_arrays_are_columns(npz):
    S, t = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([7, 8, 9], np.int8)
    read = npz(S=S, t=t, Y=S[:, :1])
    assert read.roles([]) == (["S[0]", "S[1]"], ["Y[0]"])
    assert read.roles(["t"], ["Y", "S[1]"]) == (["Y[0]", "S[1]"], ["t"])
    np.testing.assert_array_equal(read.numbers(["S[1]", "t"]), [[2, 7], [4, 8], [6, 9]])


def test_without_an_s_all_other_arrays_are_features(npz):
    assert npz(a=np.zeros(2), b=np.zeros((2, 2)), Y=np.zeros(2)).roles([]) == (["a", "b[0]", "b[1]"], ["Y"])


@pytest.mark.parametrize(
    ("labels", "read"),
    [
        (np.array(["b", " a", "007", "7"]), ["b", " a", "007", "7"]),
        (np.array([b"b", b"a\xc3\xa4"]), ["b", "aä"]),
        (np.array([True, False]), [True, False]),
        (np.array([3.0, 1.0]), [3.0, 1.0]),
        (np.array([0.1, 0.1, 0.5, 0.5], np.float32), [0.1, 0.1, 0.5, 0.5]),
        (np.array([2**64 - 1, 7], np.uint64), [2**64 - 1, 7]),
        (np.array([-5, 7], np.int8), [-5, 7]),
    ],
)
def test_classes_in_arrays(npz, labels, read):
    found = npz(Y=labels).labels("Y").tolist()
    assert found == read
    assert list(map(type, found)) == list(map(type, read))


S, Y = np.zeros((3, 2)), np.zeros(3)
WITH_NAN = np.array([[0.0, 1.0], [0.0, np.nan], [0.0, 1.0]])
#: name: (arrays, what is wrong); the path goes before it
BAD_ARRAYS = {
    "no target": ({"S": S, "y": Y}, " has no array Y, and no --target is named; there are S, y"),
    "object target": ({"S": S, "Y": np.array([None, 1, 2])}, ": array Y holds object; expected numbers"),
    "object feature": ({"a": Y, "b": np.array([{}, 1, 2]), "Y": Y}, ": array b holds object; expected numbers"),
    "3-D": ({"S": np.zeros((3, 2, 2)), "Y": Y}, ": array S has shape (3, 2, 2); expected (n,) or (n, d)"),
    "lengths": ({"S": S, "Y": np.zeros(4)}, ": S[0] has 3 rows and Y has 4; expected equally many"),
    "no rows": ({"S": S[:0], "Y": Y[:0]}, " has no rows"),
    "NaN": ({"S": WITH_NAN, "Y": Y}, ", S[1, 1]: the cell is 'nan', which is missing; expected a number"),
    "infinite": ({"S": S, "Y": Y - np.inf}, ", Y[0]: '-inf' is no number; expected a number (3 of 3"),
    "complex": ({"S": S * 1j, "Y": Y}, " has 2 columns that cannot be used as they are:\n  S[0, 0]: '0j' is no number"),
    "text": ({"S": S, "Y": np.array(["a", "b", "c"])}, ", Y[0]: 'a' is no number; expected a number (3 of 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_cannot_be_used(npz, tmp_path, name):
    arrays, wrong = BAD_ARRAYS[name]

    def use():
        read = npz(**arrays)
        return [read.numbers(names) for names in read.roles([])]

    with pytest.raises(TableError) as error:
        use()
    assert str(error.value).startswith(f"{tmp_path / 't.npz'}{wrong}")


def test_an_object_array_that_is_ignored_hurts_nobody(npz):
    read = npz(a=Y, b=np.array([{}, 1, 2]), Y=Y)
    assert read.roles([], ignore=["b"]) == (["a"], ["Y"])


def test_a_damaged_file_is_a_clear_error(table):
    file = io.BytesIO()
    np.savez(file, S=np.arange(12.0).reshape(6, 2), Y=np.arange(6.0))
    whole = file.getvalue()
    table(whole, "whole.npz")
    flipped = bytearray(whole)
    flipped[200] ^= 1  # among the numbers of S: only the checksum knows
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b"a shopping list", b"PK\x03\x04"):
        with pytest.raises(TableError, match=r"damaged\.npz is damaged or no npz file"):
            table(damaged, "damaged.npz")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("readme.txt", "nothing")
    with pytest.raises(TableError, match="holds no arrays"):
        table(file.getvalue(), "none.npz")


# Standardising --------------------------------------------------------------------------------------------------------


def test_scaling_by_hand():
    # mean 3, deviations -2, 0, 2: variance 8/3; a constant column, whatever its rounding, has scale 1
    columns = np.array([[1.0, 0.1], [3.0, 0.1], [5.0, 0.1]])
    scaling = Scaling.of(columns)
    np.testing.assert_allclose(scaling.mean, [3.0, 0.1], rtol=1e-15)
    np.testing.assert_allclose(scaling.scale, [np.sqrt(8 / 3), 1.0], rtol=1e-15)
    np.testing.assert_allclose(scaling.apply(columns)[:, 1], 0.0, atol=0)


@pytest.mark.parametrize("size", [1e-250, 1.0, 1e250])
def test_scaling_neither_overflows_nor_underflows(size):
    columns = np.random.default_rng(0).normal(3.0, 2.0, (50, 2))
    scaling = Scaling.of(size * columns)
    np.testing.assert_allclose(scaling.mean, size * columns.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaling.scale, size * columns.std(axis=0), rtol=1e-12)


def test_folding_by_hand():
    # net: 3 s + 1.  s = (raw - 10) / 2, prediction = 5 yhat + 7:  5 (3 (raw - 10) / 2 + 1) + 7 = 7.5 raw - 63
    net = Network((1, 1), dtype="float64")
    one = np.ones(1)
    raw, w = fold_scaling(net, np.array([3.0, 1.0]), Scaling(10 * one, 2 * one), Scaling(7 * one, 5 * one))
    np.testing.assert_allclose(w, [7.5, -63.0], rtol=1e-15)
    assert raw == net


NETS = {
    "linear": Network((3, 2), dtype="float64"),
    "one hidden layer": Network((3, 5, 2), hidden="tanh", dtype="float64"),
    "deep": Network((3, 5, 4, 2), dtype="float64"),
    "LayerNorm": Network((3, 5, 4, 2), layer_norm=True, dtype="float64"),
    "batch norm": Network((3, 5, 2), batch_norm=True, dtype="float64"),
    "batch norm, deep": Network((3, 5, 4, 2), hidden="elu", batch_norm=True, dtype="float64"),
    "batch norm, linear": Network((3, 2), batch_norm=True, dtype="float64"),
    "float32": Network((3, 5, 2), batch_norm=True, dtype="float32"),
}


@pytest.mark.parametrize("name", NETS)
def test_the_folded_network_takes_and_gives_raw_numbers(name):
    net, rng = NETS[name], np.random.default_rng(0)
    w = (net.init(seed=0) + rng.uniform(0.1, 0.5, net.size)).astype(net.dtype)  # biases, scales, means: none is 0 or 1
    S = rng.normal(size=(20, 3)) * [1e-3, 1.0, 50.0] + [5.0, 0.0, -1900.0]
    inputs, outputs = Scaling.of(S), Scaling(np.array([1e4, -1.0]), np.array([300.0, 0.01]))
    raw, folded = fold_scaling(net, w, inputs, outputs)
    before = net.forward(w, inputs.apply(S)).astype(float) * outputs.scale + outputs.mean
    assert raw.dtype == "float64"
    assert before.std(axis=0).min() > 1e-3  # it depends on the inputs
    tolerance = 1e-5 if net.dtype == "float32" else 1e-9  # the mean / sd of the first column is 5000
    deviation = np.abs(raw.forward(folded, S) - before) / outputs.scale
    assert deviation.max() < tolerance


def test_what_cannot_be_folded():
    none = Scaling.none(1)
    with pytest.raises(ValueError, match="bias is False; expected a network with biases"):
        fold_scaling(Network((1, 1), bias=False), np.ones(1), none, none)
    net = Network((1, 1), output="sigmoid")
    fold_scaling(net, np.ones(2), none, none)
    with pytest.raises(ValueError, match="output is sigmoid; expected linear"):
        fold_scaling(net, np.ones(2), none, Scaling(np.zeros(1), np.full(1, 2.0)))


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_model_predicts_the_same_after_a_file(tmp_path):
    net = Network((2, 4, 3), output="softmax", dtype="float64")
    model = Model(net, net.init(seed=0), ("a", "b"), ("kind",), "nll", ("x", "y", 3))
    model.save(tmp_path / "model.npz")
    S = [[1.0, 2.0], [-3.0, 0.5]]
    for path in (tmp_path, tmp_path / "model.npz"):
        again = load_model(path)
        assert (again.net, again.features, again.targets) == (net, ("a", "b"), ("kind",))
        assert (again.loss, again.classes) == ("nll", ("x", "y", 3))
        np.testing.assert_array_equal(again.predict(S), net.forward(model.w, S))


def test_classes_are_the_likeliest():
    # softmax of (s, 0): class p where s > 0;  sigmoid(s) > 1/2 where s > 0
    soft = Network((1, 2), output="softmax", dtype="float64")
    model = Model(soft, np.array([1.0, 0.0, 0.0, 0.0]), ("s",), ("y",), "nll", ("p", "n"))
    assert model.classify([[2.0], [-2.0]]).tolist() == ["p", "n"]
    sigmoid = Model(
        Network((1, 1), output="sigmoid", dtype="float64"), np.array([1.0, 0.0]), ("s",), ("y",), "log_loss"
    )
    assert sigmoid.classify([[2.0], [-2.0]]).tolist() == [[1], [0]]
    number = Model(Network((1, 1), dtype="float64"), np.array([1.0, 0.0]), ("s",), ("y",), "mse")
    with pytest.raises(ValueError, match="output is linear; expected probabilities of classes"):
        number.classify([[2.0]])


def test_a_file_that_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(f"there is no checkpoint at {tmp_path / 'model.npz'}")):
        load_model(tmp_path)
    meta = {"kind": "fit", "net": {}}
    checkpoint.save(tmp_path / "model.npz", {"w": np.zeros(2)}, meta)
    with pytest.raises(CheckpointError, match=r"holds no model .*its kind is fit"):
        load_model(tmp_path)
    Model(Network((1, 1), dtype="float64"), np.zeros(3), ("s",), ("y",), "mse").save(tmp_path / "model.npz")
    with pytest.raises(CheckpointError, match=r"holds no model .*w is float64 of shape \(3,\)"):
        load_model(tmp_path)
