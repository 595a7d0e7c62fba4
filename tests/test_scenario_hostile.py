"""Files that were not written to be read: each is a named error, never a traceback of something else."""

import os
import time

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from desim_fl.errors import ScenarioError
from desim_fl.scenario import LAWS, Scenario, load, schema
from desim_fl.scenario.places import lines

GOOD = b"[clients]\ncount = 4\n[run]\nmax_updates = 1\n"


def refused(tmp_path, raw, *overrides):
    """Return the message for these bytes, without the folder."""
    path = tmp_path / "bad.toml"
    path.write_bytes(raw)
    with pytest.raises(ScenarioError) as caught:
        load(path, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_files_that_are_none(tmp_path):
    """A missing file, a folder and an impossible name are errors that name the path."""
    for path, why in [
        (tmp_path / "none.toml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        ("a\0b", "embedded null byte"),
    ]:
        with pytest.raises(ScenarioError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: cannot be read: {why}"


def test_an_endless_file_is_refused(tmp_path):
    """Nothing beyond 1 MiB is read, from a device either."""
    assert refused(tmp_path, b"#" * (1 << 20) + b"\n") == "bad.toml: is larger than 1 MiB; a scenario file is not"
    if os.path.exists("/dev/zero"):  # noqa: PTH110
        with pytest.raises(ScenarioError, match="larger than 1 MiB"):
            load("/dev/zero")


def test_a_file_of_exactly_the_limit_is_read(tmp_path):
    """1 MiB itself is still fine."""
    path = tmp_path / "full.toml"
    path.write_bytes(GOOD + b"#" * ((1 << 20) - len(GOOD)))
    assert load(path).clients.count == 4


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\xef\xbb\xbf" + GOOD, "bad.toml:1: starts with a byte order mark; save it as UTF-8 without one"),
        (GOOD + b"# caf\xe9\n", "bad.toml:5: is not UTF-8 text (byte 0xe9)"),
        ("[clients]".encode("utf-16"), "bad.toml:1: is not UTF-8 text (byte 0xff)"),
        (b"[clients]\ncount 4\n", "bad.toml:2: is not TOML: Expected '=' after a key in a key/value pair (column 7)"),
        (b"[clients]\ncount = 4\ncount = 5\n", "bad.toml:3: is not TOML: Cannot overwrite a value (column 10)"),
        (b"[clients]\ncount = [1,\n", "bad.toml:2: is not TOML: Invalid value"),
        (
            b"[clients]\ncount = 1e-3 0\n",
            "bad.toml:2: is not TOML: Expected newline or end of document after a statement (column 14)",
        ),
        (b"x = 1\0\n", "bad.toml:1: is not TOML: Expected newline or end of document after a statement (column 6)"),
        (GOOD + b"seed = " + b"9" * 5000, "bad.toml:5: is not TOML: a number is too long"),
        (b"x = " + b"[" * 100_000, "bad.toml:1: is nested too deep to be read"),
        (b"x = " + b"{a=" * 50_000, "bad.toml:1: is nested too deep to be read"),
    ],
)
def test_what_is_not_toml_names_its_line(tmp_path, raw, expected):
    """Encodings, syntax errors, endless numbers and nesting: one line with the place."""
    assert refused(tmp_path, raw) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed = 18446744073709551616", "seed must be at most 18446744073709551615, not 18446744073709551616"),
        ("seed = 1" + "0" * 400, "seed must be at most 18446744073709551615, not a whole number of 1329 bits"),
        ("seed = 0x" + "f" * 6000, "seed must be at most 18446744073709551615, not a whole number of 24000 bits"),
        ("max_time_s = 1" + "0" * 400, "max_time_s is too large: a whole number of 1329 bits"),
        ("max_time_s = 1e400", "max_time_s must be a finite number, not inf"),
        ("max_time_s = -inf", "max_time_s must be a finite number, not -inf"),
        ("delay_scale = nan", "delay_scale must be a finite number, not nan"),
        ("concurrency = nan", "concurrency must be a whole number, not nan"),
        ("max_time_s = 1e13", "max_time_s must be at most 1000000000000, not 10000000000000.0"),
        ("max_versions = 9007199254740993", "max_versions must be at most 9007199254740992, not 9007199254740993"),
        ("order = [0, 1" + "0" * 400 + "]", "order[1] must be less than 4294967296, not a whole number of 1329 bits"),
    ],
)
def test_numbers_out_of_this_world_are_refused(tmp_path, line, expected):
    """Integers without bound, infinities and NaN are range errors with their place; CASES EV-08."""
    assert refused(tmp_path, GOOD + line.encode()) == f"bad.toml:5: [run] {expected}"


def test_deep_tables_and_lists_are_refused_with_their_line(tmp_path):
    """What the parser accepts but nobody can mean ends at 32 levels, in a file and in an override."""
    deep = "[" * 60 + "]" * 60
    expected = "model is nested deeper than 32 levels"
    assert refused(tmp_path, GOOD + f"[model]\nname = 'a:b'\nargs.x = {deep}".encode()) == f"bad.toml:5: {expected}"
    assert refused(tmp_path, GOOD + b"[" + b".".join([b"model"] * 40) + b"]") == f"bad.toml:5: {expected}"
    assert refused(tmp_path, GOOD, "model.name=a:b", f"model.args.x={deep}").endswith(f": {expected}")
    assert " is not a key; " in refused(tmp_path, GOOD, ".".join(["model"] * 40) + "=1")
    assert refused(tmp_path, GOOD, "model.args=" + "[" * 90_000).endswith("is not a TOML value: nested too deep")


@pytest.mark.parametrize("key", ["a.", '"a" . ', "'' .", "a1-b_\t.\t"])
@pytest.mark.parametrize("around", ["[{}b]", "{}b = 1", "x = {{ {}b = 1 }}"])
def test_a_key_without_end_is_refused_before_it_is_parsed(tmp_path, key, around):
    """Dotted keys of any spelling that fill the file are answered within seconds."""
    endless = around.format(key * (900_000 // len(key)))
    start = time.perf_counter()
    assert refused(tmp_path, GOOD + endless.encode()) == "bad.toml:5: a dotted key is nested too deep"
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "filler", ["a" * 1_000_000, "'" * 100_000, '"' * 100_000, "a . " * 60 + " " * 900_000, "a.b " * 200_000]
)
def test_looking_for_endless_keys_is_quick(tmp_path, filler):
    """Text that only looks like the beginning of such keys is not slow to read."""
    path = tmp_path / "comment.toml"
    path.write_text(f"# {filler}\n{GOOD.decode()}", encoding="utf-8")
    start = time.perf_counter()
    assert load(path).clients.count == 4
    assert time.perf_counter() - start < 10


def test_arguments_of_custom_parts_end_at_sixteen_levels(tmp_path):
    """Arguments may nest, but not without end."""
    raw = GOOD + b"[model]\nname = 'a:b'\nargs.x = " + b"[" * 20 + b"]" * 20
    assert refused(tmp_path, raw) == "bad.toml:7: [model] args is nested deeper than 16 levels"


def test_names_with_line_ends_and_controls_stay_on_one_line(tmp_path):
    """Keys and values cannot forge message lines or steer a terminal."""
    raw = GOOD + b'"a\\nb.toml:1: [run] fine\\u001b[2J" = 1\n[strategy]\nname = "x\\u2028y\\r\\nz"\n'
    message = refused(tmp_path, raw)
    assert len(message.splitlines()) == 2
    assert message.replace("\n", "").isprintable()


def test_keys_of_any_spelling_are_escaped_in_every_place(tmp_path):
    """A strange key inside arguments is shown in quotes, its table too."""
    raw = GOOD + b'[model]\nname = "a:b"\n[model.args."x\\ny"]\n"k\\n" = nan\n'
    assert refused(tmp_path, raw) == 'bad.toml:8: [model.args."x\\ny"] "k\\n" must be a finite number'


def test_thousands_of_mistakes_end_after_a_hundred(tmp_path):
    """A file full of unknown keys is answered quickly, with the first hundred and a last line that says so."""
    raw = GOOD + b"".join(b"k%d = 1\n" % number for number in range(20_000))
    start = time.perf_counter()
    found = refused(tmp_path, raw).split("\n")
    assert time.perf_counter() - start < 20
    assert len(found) == 101
    assert found[-1] == "bad.toml: there are more problems; these are the first 100"


@pytest.mark.parametrize("section", ["data", "clients", "network", "model", "training", "strategy", "run", "executor"])
@pytest.mark.parametrize("value", ["3", "true", '"x"', "[]", "[{}]", "1979-05-27", "nan"])
def test_a_section_that_is_no_table_is_refused(tmp_path, section, value):
    """Every section must be a table, whatever stands there instead."""
    message = refused(tmp_path, f"{section} = {value}\n".encode() + GOOD.replace(f"[{section}]".encode(), b"[other]"))
    assert f"bad.toml:1: [{section}] must be a table, not " in message


KEYS = sorted({key for table in schema()["$defs"].values() for key in table["properties"]} | {"", "a.b", "nmae"})
WORDS = ["fedavg", "fedasync", "mlp", "scalar", "quadratic", "blobs", "a:b", "order", "dirichlet", "hinge", *LAWS, "\n"]
values = st.recursive(
    st.sampled_from([*WORDS, 0, 1, 4, -1, 0.5, 1e300, float("nan"), float("inf"), True, 10**40]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=5,
)
SECTIONS = ["data", "clients", "network", "model", "training", "strategy", "run", "executor", "other"]
documents = st.dictionaries(
    st.sampled_from([*SECTIONS, *KEYS]),
    values | st.dictionaries(st.sampled_from(KEYS), values, max_size=5),
    max_size=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents)
def test_any_toml_is_a_scenario_or_a_named_error(tmp_path_factory, document):
    """Whatever valid keys and values are thrown together, the answer is a scenario or lines that name file and line."""
    path = tmp_path_factory.mktemp("any") / "any.toml"
    path.write_text(tomli_w.dumps(document), encoding="utf-8", newline="")
    try:
        assert isinstance(load(path), Scenario)
    except ScenarioError as error:
        for line in str(error).split("\n"):
            place, _, text = line.removeprefix(f"{path}:").partition(": ")
            assert place.isdigit(), line
            assert text


def every_key(table, base=()):
    """Yield the path of each key of nested tables."""
    for key, value in table.items():
        yield (*base, key)
        if isinstance(value, dict):
            yield from every_key(value, (*base, key))


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.integers() | st.text(max_size=5), lambda inner: st.dictionaries(st.text(max_size=5), inner)))
def test_every_key_of_any_file_has_a_line_that_holds_it(document):
    """The scanner finds each key of generated files, on a line on which the key is written."""
    text = tomli_w.dumps(document if isinstance(document, dict) else {"x": document})
    found, rows = lines(text), text.split("\n")
    for path in every_key(document if isinstance(document, dict) else {}):
        written = tomli_w.dumps({path[-1]: 0}).removesuffix(" = 0\n")
        assert written in rows[found[path] - 1]
