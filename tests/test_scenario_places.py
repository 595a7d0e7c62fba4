"""Where a scenario's mistakes are shown, and what the messages say."""

import pytest

from desim_fl.errors import ScenarioError
from desim_fl.scenario import load
from desim_fl.scenario.messages import listed
from desim_fl.scenario.places import lines
from desim_fl.scenario.strategies import STRATEGIES

AWKWARD = '''\
# [clients] in a comment, a = 1
name = "not = a [key]" # tail
"quoted key" = 1
a.b."c.d" = { x = 1, y = { z = "}" }, 'lit "eral' = 2 }
text = """
count = 3
[fake]
""" # three "quotes"
raw = \'\'\'
it\'s # [fake2]
x = 1\'\'\'
odd = """ends in two"""""
list = [ # [in]
  1, "]", [2,
  { deep = 3 }],
]
[ clients ]
count = 4
device_factor.law = "uniform"
device_factor.low = 1
[clients . "jitter_factor"]
law = 'constant'
[[many]]
k = 1
[[many]]
k = 2
[many.sub]
j = 3
"\\u0061bc" = 1
time = 1979-05-27 07:32:00.999
last = 1.5e3'''


def test_lines_of_an_awkward_file():
    """Every key and table has its line: comments, strings, dotted and quoted keys, inline tables, arrays of tables."""
    assert lines(AWKWARD) == {
        ("name",): 2,
        ("quoted key",): 3,
        ("a",): 4,
        ("a", "b"): 4,
        ("a", "b", "c.d"): 4,
        ("a", "b", "c.d", "x"): 4,
        ("a", "b", "c.d", "y"): 4,
        ("a", "b", "c.d", "y", "z"): 4,
        ("a", "b", "c.d", 'lit "eral'): 4,
        ("text",): 5,
        ("raw",): 9,
        ("odd",): 12,
        ("list",): 13,
        ("clients",): 17,
        ("clients", "count"): 18,
        ("clients", "device_factor"): 19,
        ("clients", "device_factor", "law"): 19,
        ("clients", "device_factor", "low"): 20,
        ("clients", "jitter_factor"): 21,
        ("clients", "jitter_factor", "law"): 22,
        ("many",): 23,
        ("many", 0): 23,
        ("many", 0, "k"): 24,
        ("many", 1): 25,
        ("many", 1, "k"): 26,
        ("many", 1, "sub"): 27,
        ("many", 1, "sub", "j"): 28,
        ("many", 1, "sub", "abc"): 29,
        ("many", 1, "sub", "time"): 30,
        ("many", 1, "sub", "last"): 31,
    }


def test_windows_line_ends_count_once():
    """CRLF files have the same lines."""
    assert lines(AWKWARD.replace("\n", "\r\n")) == lines(AWKWARD)


def test_a_header_after_its_subtable_is_the_tables_line():
    """A table opened by a deeper header is placed at its own header where it has one."""
    assert lines("[run.deep]\nx = 1\n[run]\n") == {
        ("run",): 3,
        ("run", "deep"): 1,
        ("run", "deep", "x"): 2,
    }


def refused(tmp_path, text):
    """Return the message lines for a text, without the folder."""
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ScenarioError) as caught:
        load(path)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


def test_cf_01_a_misspelt_key_is_refused_with_the_nearest_name(tmp_path):
    """The message names file, line, table, key and the nearest valid key; the exit code is 2."""
    path = tmp_path / "x.toml"
    path.write_text("[clients]\ncount = 4\n[run]\nmax_updates = 1\n[strategy]\nstalness_exponent = 0.5\n")
    with pytest.raises(ScenarioError) as caught:
        load(path)
    assert str(caught.value) == (
        f'{path}:6: [strategy] has no key "stalness_exponent"; did you mean "staleness_power"?'
    )
    assert caught.value.exit_code == 2


GOOD = "[clients]\ncount = 4\n[run]\nmax_updates = 1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[stratgy]\nx = 1\n", "bad.toml:5: there is no table [stratgy]; did you mean [strategy]?"),
        ("[delay_aware]\n", "bad.toml:5: there is no table [delay_aware]; it belongs to [training]"),
        (
            "[zzz]\n",
            "bad.toml:5: there is no table [zzz]; tables are data, clients, network, availability, failures, model, training, strategy, server, run, executor, checkpoint, parameters",
        ),
        (
            "[strategy]\nname = 'fedavg'\nclients_per_round = 2\nnormalize = 'K'\n",
            'bad.toml:8: [strategy] has no key "normalize" with name = "fedavg"; it belongs to name = "fedbuff"',
        ),
        (
            "[strategy]\nname = 'fedavg'\nclients_per_round = 2\nstalness = 'hinge'\n",
            (
                'bad.toml:8: [strategy] has no key "stalness"; '
                'did you mean "staleness", which belongs to name = "fedasync", "fedbuff", "semi_async"?'
            ),
        ),
        (
            "[data]\nclasses = 3\n",
            'bad.toml:6: [data] has no key "classes" with name = "fashion_mnist_6k"; it belongs to name = "blobs"',
        ),
        (
            "[model]\nname = 'a:b'\nhidden = [1]\n",
            'bad.toml:7: [model] has no key "hidden" with name = "package.module:attribute"; it belongs to name = "mlp"',
        ),
        ("[strategy]\nlr = 1\n", 'bad.toml:6: [strategy] has no key "lr"; it belongs to [training]'),
        (
            "[strategy]\nBuffer-Size = 1\n",
            'bad.toml:6: [strategy] has no key "Buffer-Size"; did you mean "buffer_size"?',
        ),
        (
            "[strategy]\nname = 'fedbuf'\n",
            (f'bad.toml:6: [strategy] name must be one of {listed(STRATEGIES)}, not "fedbuf"; did you mean "fedbuff"?'),
        ),
        (
            "[strategy]\nnormalize = 'k'\n",
            'bad.toml:6: [strategy] normalize must be one of "K", "sum_w", "none", not "k"',
        ),
        (
            "[network]\nlatency_s = { law = 'exponential', median = 2, mean = 1 }\n",
            'bad.toml:6: [network.latency_s] has no key "median" with law = "exponential"; it belongs to law = "lognormal", "log_cauchy"',
        ),
        (
            "[network.latency_s]\nlaw = 'gauss'\n",
            (
                'bad.toml:6: [network.latency_s] law must be one of "constant", "uniform", "exponential", "lognormal", '
                '"half_normal", "pareto", "lomax", "zipf", '
                '"lognormal_moments", "gaussian", "erlang", "weibull", "frechet", "log_cauchy", "quantiles", "discrete", not "gauss"; did you mean "gaussian"?'
            ),
        ),
        (
            "[network.latency_s]\nvalue = 1\n",
            (
                'bad.toml:5: [network.latency_s] needs the key "law", one of "constant", "uniform", "exponential", '
                '"lognormal", "half_normal", "pareto", "lomax", "zipf", '
                '"lognormal_moments", "gaussian", "erlang", "weibull", "frechet", "log_cauchy", "quantiles", "discrete"'
            ),
        ),
        (
            "[network]\nlatency_s = 'fast'\n",
            'bad.toml:6: [network] latency_s must be a number or a table with the key law, not "fast"',
        ),
        ("[network]\nlatency_s = -1\n", "bad.toml:6: [network] latency_s must be at least 0, not -1"),
        (
            "[network]\nlatency_s = true\n",
            "bad.toml:6: [network] latency_s must be a number or a table with the key law, not true",
        ),
        ("[training]\nepochs = true\n", "bad.toml:6: [training] epochs must be a whole number, not true"),
        ("[training]\nepochs = 2.0\n", "bad.toml:6: [training] epochs must be a whole number, not 2.0"),
        ("[training]\nepochs = '2'\n", 'bad.toml:6: [training] epochs must be a whole number, not "2"'),
        ("[training]\nlr = false\n", "bad.toml:6: [training] lr must be a number, not false"),
        ("[training]\nlr = '0.1'\n", 'bad.toml:6: [training] lr must be a number, not "0.1"'),
        ("[training]\nlr = 0\n", "bad.toml:6: [training] lr must be greater than 0, not 0"),
        ("[training]\nmomentum = 1\n", "bad.toml:6: [training] momentum must be less than 1, not 1"),
        ("[strategy]\nflush_at_end = 1\n", "bad.toml:6: [strategy] flush_at_end must be true or false, not 1"),
        (
            "[strategy]\nstaleness_offset = true\n",
            "bad.toml:6: [strategy] staleness_offset must be a whole number, not true",
        ),
        ("[model]\nhidden = 64\n", "bad.toml:6: [model] hidden must be a list, not 64"),
        ("[model]\nhidden = [\n  64,\n  0,\n]\n", "bad.toml:6: [model] hidden[1] must be at least 1, not 0"),
        ("[model]\nname = 'cnn'\nchannels = []\n", "bad.toml:7: [model] channels must have at least 1 entries, not 0"),
        (
            "[executor]\nname = ''\n",
            'bad.toml:6: [executor] name must be one of "auto", "inline", "threads", "pool", "ray", "vmap", not ""',
        ),
        (
            "[data]\nname = 3\n",
            (
                'bad.toml:6: [data] name must be one of "fashion_mnist_6k", "blobs", "quadratic", "least_squares", "file", '
                '"ImageFolder", a class of torchvision.datasets ("MNIST", say), "package.module:attribute", not 3'
            ),
        ),
        ("[[data]]\n", "bad.toml:5: [data] must be a table, not a list"),
        (
            "[training]\nlr = 2026-01-01\n",
            "bad.toml:6: [training] lr must be a number, not 2026-01-01 (a date or time)",
        ),
        (
            "[training.delay_aware]\ngama_0 = 1\nalpha_lr = 0\nmeaning = 'staleness'\n",
            'bad.toml:6: [training.delay_aware] has no key "gama_0"; did you mean "gamma_0"?',
        ),
    ],
)
def test_one_mistake_is_one_line_with_its_place(tmp_path, text, expected):
    """Each kind of mistake gives exactly one line: place, table, key, value, and the way out."""
    assert refused(tmp_path, GOOD + text) == [expected]


def test_a_misspelt_required_key_is_not_also_missing(tmp_path):
    """One slip of the pen is one line, for a key and for a table."""
    assert refused(tmp_path, "[clients]\ncuont = 4\n[run]\nmax_updates = 1\n") == [
        'bad.toml:2: [clients] has no key "cuont"; did you mean "count"?'
    ]
    assert refused(tmp_path, "[client]\ncount = 4\n[run]\nmax_updates = 1\n") == [
        "bad.toml:1: there is no table [client]; did you mean [clients]?"
    ]
    assert refused(tmp_path, "[clients]\ncount = 4\n[run]\nmax_update = 1\n") == [
        'bad.toml:4: [run] has no key "max_update"; did you mean "max_updates"?'
    ]


def test_an_empty_file_says_what_is_needed(tmp_path):
    """Nothing at all lacks the clients and a stop rule."""
    assert refused(tmp_path, "") == [
        'bad.toml:1: [clients] is missing; it needs the key "count"',
        "bad.toml:1: [run] needs a stop rule: at least one of max_time_s, max_versions, max_updates",
    ]


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file(tmp_path):
    """Types, ranges, unknown keys and rules between keys come together, sorted by line."""
    text = """\
sed = 3
[clients]
count = "ten"
partition = "dirichlet"
device_factor = { law = "lognormal", median = 1, sgma = 2 }
jitter_factor = 0
keys = [1, 2,
  true]
[training]
steps = 3
epochs = 2
optimizer = "sdg"
[model]
name = "cnn"
hidden = [3]
[network.latency_s]
law = "uniform"
low = 3
high = 2
[executor]
name = "inline"
workers = 2
threads_per_job = inf
"""
    assert refused(tmp_path, text) == [
        'bad.toml:1: there is no key "sed" outside the tables; did you mean "seed" of [run]?',
        "bad.toml:1: [run] needs a stop rule: at least one of max_time_s, max_versions, max_updates",
        'bad.toml:3: [clients] count must be a whole number, not "ten"',
        'bad.toml:4: [clients] partition = "dirichlet" needs the key alpha',
        'bad.toml:5: [clients.device_factor] has no key "sgma"; did you mean "sigma"?',
        "bad.toml:6: [clients] jitter_factor = 0 is too small: a factor must be above 0",
        "bad.toml:7: [clients] keys[2] must be a whole number, not true",
        "bad.toml:10: [training] steps and epochs must not both be given",
        'bad.toml:12: [training] optimizer must be one of "sgd", "adam", not "sdg"; did you mean "sgd"?',
        'bad.toml:15: [model] has no key "hidden" with name = "cnn"; it belongs to name = "mlp"',
        "bad.toml:19: [network.latency_s] high = 2 is below low = 3",
        "bad.toml:22: [executor] workers = 2 is refused: the inline executor runs one job at a time",
        "bad.toml:23: [executor] threads_per_job must be a whole number, not inf",
    ]
