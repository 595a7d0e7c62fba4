"""Scenario files: defaults, variants, overrides, and the rules between keys."""

import subprocess
import sys

import pytest

from desim_fl import durations
from desim_fl.errors import ScenarioError
from desim_fl.scenario import Clients, Constant, Lognormal, Run, Scenario, load

SMALL = """\
[clients]
count = 4
[run]
max_updates = 3
"""
QUADRATIC = """\
[data]
name = "quadratic"
[clients]
count = 2
[run]
max_updates = 3
"""


@pytest.fixture
def read(tmp_path):
    """Return a function that loads a text as ``world.toml``."""

    def load_text(text, *overrides, seed=None, unset=()):
        path = tmp_path / "world.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, overrides, seed, unset=unset)

    return load_text


@pytest.fixture
def complaints(read):
    """Return a function giving the message lines of a text that must be refused, without the folder."""

    def refuse(text, *overrides, **more):
        with pytest.raises(ScenarioError) as caught:
            read(text, *overrides, **more)
        lines = str(caught.value).split("\n")
        return [line[line.index("world.toml") :] if "world.toml" in line else line for line in lines]

    return refuse


def test_defaults_are_those_of_the_reference(read):
    """A file with only what is required gets every documented default."""
    scenario = read(SMALL)
    assert scenario.resolved() == {
        "name": "world",
        "description": "",
        "data": {"name": "fashion_mnist_6k", "validation_share": 0.0},
        "clients": {
            "count": 4,
            "partition": "iid",
            "min_samples": 1,
            "seconds_per_step": 0.01,
            "device_factor": 1.0,
            "jitter_factor": 1.0,
        },
        "network": {"latency_s": 0.0, "latency_jitter_factor": 1.0},
        "model": {"name": "mlp", "hidden": [64]},
        "training": {
            "epochs": 1,
            "batch_size": 32,
            "optimizer": "sgd",
            "lr": 0.05,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "buffers": "average",
        },
        "strategy": {
            "name": "fedbuff",
            "staleness": "polynomial",
            "staleness_power": 0.5,
            "staleness_offset": 0,
            "buffer_size": 10,
            "server_lr": 1.0,
            "normalize": "K",
            "flush_at_end": False,
        },
        "run": {
            "seed": 0,
            "concurrency": 10,
            "dispatch": "immediate",
            "selection": "uniform",
            "delay_scale": 1.0,
            "max_updates": 3,
            "non_finite": "skip",
        },
        "executor": {"name": "auto", "device": "cpu", "threads_per_job": 1, "near": False, "reuse_limit_gb": 2.0},
    }


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (
            'name = "fedasync"',
            {
                "name": "fedasync",
                "staleness": "polynomial",
                "staleness_power": 0.5,
                "staleness_offset": 0,
                "alpha": 0.6,
                "mixing": "model",
            },
        ),
        (
            'name = "fedasync"\nstaleness = "hinge"\nmax_staleness = 7',
            {
                "name": "fedasync",
                "staleness": "hinge",
                "hinge_a": 10.0,
                "hinge_b": 4.0,
                "staleness_offset": 0,
                "max_staleness": 7,
                "alpha": 0.6,
                "mixing": "model",
            },
        ),
        (
            'name = "fedavg"\nclients_per_round = 3',
            {
                "name": "fedavg",
                "clients_per_round": 3,
                "server_lr": 1.0,
                "over_selection": 1.0,
                "min_fraction": 0.0,
                "cancel_stragglers": False,
            },
        ),
        (
            'name = "my_pkg.mod:Mine"\nargs = { power = 2, deep = { on = true } }',
            {"name": "my_pkg.mod:Mine", "args": {"deep": {"on": True}, "power": 2}},
        ),
    ],
)
def test_each_strategy_has_its_own_defaults(read, strategy, expected):
    """The resolved strategy holds the keys of the chosen kind that have an effect, and no others."""
    assert read(f"{SMALL}[strategy]\n{strategy}\n").resolved()["strategy"] == expected


def test_a_round_has_no_concurrency_of_its_own(read):
    """With fedavg the resolved file leaves concurrency out, so that it loads again."""
    resolved = read(SMALL, 'strategy={name="fedavg", clients_per_round=2}').resolved()
    assert "concurrency" not in resolved["run"]


def test_quadratic_data_brings_its_model_and_no_partition(read):
    """Quadratic data without [model] trains the scalar, and nothing is dealt out."""
    resolved = read(QUADRATIC).resolved()
    assert resolved["model"] == {"name": "scalar", "start": 0.0}
    assert resolved["data"] == {"name": "quadratic", "curvature": 1.0, "optimum": 0.0, "examples_per_client": 1}
    assert "partition" not in resolved["clients"]
    assert "min_samples" not in resolved["clients"]


def test_delay_aware_replaces_lr(read):
    """The resolved file has no lr beside the delay-aware rule, and steps replace epochs."""
    text = SMALL + "[training]\nsteps = 5\ndelay_aware = { gamma_0 = 1, alpha_lr = 0.01 }\n"
    training = read(text, "clients.wait_s=2").resolved()["training"]
    assert training["delay_aware"] == {"meaning": "drawn", "gamma_0": 1.0, "alpha_lr": 0.01, "combine": False}
    assert "lr" not in training
    assert "epochs" not in training


def test_a_bare_number_is_a_constant_law(read):
    """A number, an integer too, reads as the constant law, and equals its long form."""
    short = read(SMALL, "clients.wait_s=3")
    long = read(SMALL, 'clients.wait_s={law="constant", value=3.0}')
    assert short.clients.wait_s == Constant(value=3.0)
    assert short == long
    assert short.sha256() == long.sha256()


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("2", {"law": "constant", "value": 2.0}),
        ('{law="constant", value=2, cap=3}', {"law": "constant", "value": 2.0}),
        ('{law="zipf", exponent=1.7, cap=60}', {"law": "zipf", "exponent": 1.7, "scale": 1.0, "cap": 60}),
        ('{law="half_normal", sd=1}', {"law": "half_normal", "sd": 1.0, "min": 0.0}),
        (
            '{law="pareto", alpha=1, scale=2, cap=30}',
            {"law": "pareto", "alpha": 1.0, "scale": 2.0, "cap": 30.0},
        ),
    ],
)
def test_a_law_hands_on_its_parameters(read, law, expected):
    """Name and parameters, defaults included, are what the sampler of that name is made from."""
    wait = read(SMALL, f"clients.wait_s={law}").clients.wait_s
    assert wait.parameters() == expected
    sampler = durations.build(**wait.parameters())
    assert 0 <= sampler.at(0.5) < float("inf")


@pytest.mark.parametrize("u", [0.5 / 2**32, 1 - 0.5 / 2**32])
@pytest.mark.parametrize(
    "law",
    [
        '{law="lognormal", median=1e12, sigma=50}',
        '{law="pareto", alpha=0.05, scale=1e12, cap=1e12}',
        '{law="lomax", alpha=0.05, scale=1e12, cap=1e12}',
        '{law="exponential", mean=1e12}',
        '{law="half_normal", sd=1e12, min=1e12}',
        '{law="zipf", exponent=1.0001, scale=1e12, cap=10}',
        '{law="zipf", exponent=100, cap=10}',
    ],
)
def test_the_most_extreme_laws_still_draw_finite_numbers(read, law, u):
    """At the ends of the parameter ranges, the smallest and largest draws are finite and not negative."""
    wait = read(SMALL, f"clients.wait_s={law}").clients.wait_s
    assert 0 <= durations.build(**wait.parameters()).at(u) < float("inf")


def test_a_whole_number_serves_where_a_float_is_wanted(read):
    """`lr = 1` is 1.0, a float."""
    lr = read(SMALL, "training.lr=1").training.lr
    assert lr == 1.0
    assert type(lr) is float


def test_tables_stay_as_they_are(read):
    """A scenario cannot be changed after it was checked."""
    scenario = read(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        scenario.run.seed = 3


def test_a_scenario_built_by_hand_obeys_the_same_rules():
    """The rules between keys hold without a file too."""
    with pytest.raises(ValueError, match="needs a stop rule"):
        Scenario(clients=Clients(count=3), run=Run())


# Overrides


def test_overrides_set_values_of_every_kind(read):
    """TOML values are taken as such, bare words as strings, quoted and nested keys are understood, the last wins."""
    scenario = read(
        SMALL,
        "strategy.name=fedasync",
        "strategy.alpha=0.5",
        "clients.device_factor.law=lognormal",
        'clients."device_factor".median=1',
        "clients.device_factor.sigma = 0.5",
        "model.hidden=[3, 4]",
        "name=what if",
        "run.max_updates=10",
        "run.max_updates=20",
    )
    assert scenario.strategy.alpha == 0.5
    assert scenario.clients.device_factor == Lognormal(median=1.0, sigma=0.5)
    assert scenario.model.hidden == (3, 4)
    assert scenario.name == "what if"
    assert scenario.run.max_updates == 20


def test_the_seed_option_beats_file_and_override(read):
    """A seed of 0 is a seed, and it is the last word."""
    assert read(SMALL + "seed = 5\n").run.seed == 5
    assert read(SMALL + "seed = 5\n", "run.seed=6", seed=0).run.seed == 0
    assert read(SMALL, seed=2**64 - 1).run.seed == 18446744073709551615


def test_problems_of_an_override_name_it(complaints):
    """What came from the command line is named by the option, after the problems of the file; CASES CF-01."""
    found = complaints(
        SMALL + "concurency = 3\n",
        "strategy.stalness_power=0.5",
        "clients.count=0",
        "run.max_updates=many",
        "clients.count.deep=1",
        "nonsense",
        "a b=1",
        "run.order=[1",
        "run.seed=",
        "run.seed=1\nx=2",
        seed=-1,
    )
    form = 'an override has the form table.key=value, for example strategy.buffer_size=5 or "run.max_time_s=3600"'
    assert found == [
        'world.toml:5: [run] has no key "concurency"; did you mean "concurrency"?',
        '--set strategy.stalness_power=0.5: [strategy] has no key "stalness_power"; did you mean "staleness_power"?',
        "--set clients.count=0: [clients] count must be at least 1, not 0",
        '--set run.max_updates=many: [run] max_updates must be a whole number, not "many"',
        "--seed -1: [run] seed must be at least 0, not -1",
        '--set clients.count.deep=1: "clients.count" is a single value, not a table; set it as a whole',
        f"--set nonsense: {form}",
        f'--set a b=1: "a b" is not a key; {form}',
        '--set run.order=[1: "[1" is not a TOML value: Unclosed array',
        '--set run.seed=: has no value; write "" for an empty text',
        '--set "run.seed=1\\nx=2": "1\\nx=2" is more than one TOML value',
    ]


FULLER = SMALL + 'concurrency = 3\n[strategy]\nname = "fedbuff"\nbuffer_size = 3\n'


def test_a_key_that_is_left_out_has_its_default(read):
    """``unset`` takes keys and whole tables out of what stands there, before anything is set; CASES CF-01."""
    rounds = 'strategy={name="fedavg",clients_per_round=2}'
    with pytest.raises(ScenarioError, match="concurrency"):
        read(FULLER, rounds)
    assert read(FULLER, rounds, unset=["run.concurrency"]).strategy.name == "fedavg"
    anew = read(FULLER, "strategy.name=fedasync", unset=["strategy", "run . concurrency"])
    assert anew == read(SMALL, "strategy.name=fedasync")
    assert read(FULLER, "run.concurrency=4", unset=["run.concurrency"]).run.concurrency == 4


def test_problems_of_what_is_left_out_name_it(complaints):
    """What is not there is named, with what was meant or what is there; a key that is needed, by the option that took it; CASES CF-01."""
    asked = [
        "run.concurency",
        "rn.seed",
        "run.order",
        "clients.count.deep",
        "run.concurrency=3",
        "clients.count",
        "clients.count",
    ]
    assert complaints(FULLER, unset=asked) == [
        '--unset clients.count: [clients] needs the key "count"',
        '--unset run.concurency: "run.concurency" is not set here, so that there is nothing to leave out; did you mean "run.concurrency"?',
        '--unset rn.seed: "rn" is not set here, so that there is nothing to leave out; did you mean "run"?',
        '--unset run.order: "run.order" is not set here, so that there is nothing to leave out; set in [run] is max_updates, concurrency',
        '--unset clients.count.deep: "clients.count" is a single value, not a table; leave it out as a whole',
        '--unset run.concurrency=3: "run.concurrency=3" is not a key; what is left out is named without a value, for example run.concurrency',
        '--unset clients.count: "clients.count" is not set here, so that there is nothing to leave out; set in [clients] is nothing',
    ]


# Rules between keys: what is added to SMALL or QUADRATIC, and the one complaint that must come of it

RULES = {
    "alpha_missing": (
        SMALL,
        'clients.partition="dirichlet"',
        '[clients] partition = "dirichlet" needs the key alpha',
    ),
    "alpha_given": (
        SMALL,
        "clients.alpha=0.5",
        '[clients] alpha must not be given with partition = "iid"; it belongs to "dirichlet" or "dirichlet_sizes"',
    ),
    "keys_length": (SMALL, "clients.keys=[5, 6]", "[clients] keys has 2 entries, but count = 4"),
    "keys_distinct": (
        SMALL,
        "clients.keys=[5, 6, 5, 7]",
        "[clients] keys[2] = 5 is also keys[0]; keys must be distinct",
    ),
    "names_length": (SMALL, 'clients.names=["a"]', "[clients] names has 1 entries, but count = 4"),
    "order_missing": (SMALL, "run.selection=order", '[run] selection = "order" needs the key order'),
    "order_given": (
        SMALL,
        "run.order=[1, 2]",
        '[run] order must not be given with selection = "uniform"; it belongs to "order"',
    ),
    "order_unknown_client": (
        SMALL,
        'run={max_updates=1, selection="order", order=[3, 4]}',
        "[run] order[1] = 4 is no client: there are 4, numbered from 0",
    ),
    "no_stop_rule": (
        SMALL,
        "run={}",
        "[run] needs a stop rule: at least one of max_time_s, max_versions, max_updates",
    ),
    "delay_aware_with_lr": (
        SMALL,
        'training={lr=0.1, delay_aware={meaning="staleness", gamma_0=1, alpha_lr=0}}',
        "[training] lr must not be given with delay_aware, whose gamma_0 is the rate",
    ),
    "drawn_without_wait": (
        SMALL,
        "training.delay_aware={gamma_0=1, alpha_lr=0}",
        '[training.delay_aware] meaning = "drawn" needs the key wait_s in [clients], the wait that is drawn',
    ),
    "epochs_and_steps": (
        SMALL,
        "training={epochs=1, steps=1}",
        "[training] steps and epochs must not both be given",
    ),
    "momentum_of_adam": (
        SMALL,
        'training={optimizer="adam", momentum=0.9}',
        '[training] momentum must not be given with optimizer = "adam"; it belongs to "sgd"',
    ),
    "power_of_hinge": (
        SMALL,
        'strategy={staleness="hinge", staleness_power=1}',
        '[strategy] staleness_power must not be given with staleness = "hinge"; it belongs to "polynomial"',
    ),
    "bend_of_polynomial": (
        SMALL,
        "strategy.hinge_b=4",
        '[strategy] hinge_b must not be given with staleness = "polynomial"; it belongs to "hinge"',
    ),
    "scalar_on_images": (
        SMALL,
        "model.name=scalar",
        '[model] name = "scalar" does not go with data fashion_mnist_6k: "scalar" and data quadratic belong together',
    ),
    "mlp_on_quadratic": (
        QUADRATIC,
        "model.name=mlp",
        '[model] name = "mlp" does not go with data quadratic: "scalar" and data quadratic belong together',
    ),
    "cnn_on_blobs": (
        SMALL + '[data]\nname = "blobs"\n',
        "model.name=cnn",
        '[model] name = "cnn" needs images, and data blobs has none; use "mlp"',
    ),
    "partition_of_quadratic": (
        QUADRATIC,
        "clients.partition=iid",
        "[clients] partition must not be given with data quadratic, where every client has its own function",
    ),
    "alpha_of_quadratic": (
        QUADRATIC,
        "clients.alpha=1",
        "[clients] alpha must not be given with data quadratic, where every client has its own function",
    ),
    "quadratic_list": (QUADRATIC, "data.optimum=[1, 2, 3]", "[data] optimum has 3 entries, but [clients] count = 2"),
    "cohort_too_large": (
        SMALL,
        "strategy={name='fedavg', clients_per_round=5}",
        "[strategy] clients_per_round = 5 is more than the 4 clients there are",
    ),
    "over_selected": (
        SMALL,
        "strategy={name='fedavg', clients_per_round=4, over_selection=1.1}",
        "[strategy] over_selection = 1.1 asks for 5 clients a round, there are 4",
    ),
    "concurrency_of_rounds": (
        SMALL + 'concurrency = 2\n[strategy]\nname = "fedavg"\n',
        "strategy.clients_per_round=2",
        "[run] concurrency must not be given with strategy fedavg; it follows from clients_per_round",
    ),
    "workers": (
        SMALL,
        'executor={name="inline",workers=2}',
        "[executor] workers = 2 is refused: the inline executor runs one job at a time",
    ),
    "factor_zero": (
        SMALL,
        "clients.jitter_factor=0",
        "[clients] jitter_factor = 0 is too small: a factor must be above 0",
    ),
    "bandwidth_below_a_bit": (
        SMALL,
        'network.up_mbps={law="uniform", low=0.0000001, high=1}',
        "[network.up_mbps] low = 1e-07 is too small: a bandwidth must be at least 0.000001 (1 bit/s)",
    ),
    "heavy_tail_without_cap": (
        SMALL,
        'clients.wait_s={law="lomax", alpha=1, scale=2}',
        "[clients.wait_s] needs the key cap: with alpha = 1 (1 or less) the mean is infinite",
    ),
    "zipf_without_cap": (
        SMALL,
        'clients.wait_s={law="zipf", exponent=2}',
        '[clients.wait_s] needs the key "cap"',
    ),
    "uniform_reversed": (
        SMALL,
        'network.latency_s={law="uniform", low=2, high=1}',
        "[network.latency_s] high = 1 is below low = 2",
    ),
    "cap_below_least": (
        SMALL,
        'clients.wait_s={law="pareto", alpha=2, scale=3, cap=2}',
        "[clients.wait_s] cap = 2 is below the smallest value, scale = 3",
    ),
    "args_with_a_date": (
        SMALL,
        "model={name='a.b:c', args={x=[1, 2026-01-01]}}",
        "[model.args] x[1] must be a number, a string, true or false, a list or a table",
    ),
    "args_not_finite": (SMALL, "strategy={name='a:b', args={x=nan}}", "[strategy.args] x must be a finite number"),
    "custom_name_malformed": (
        SMALL,
        "model.name=my_pkg.mod:",
        '[model] name must be of the form "package.module:attribute", not "my_pkg.mod:"',
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_between_keys_is_one_complaint(complaints, rule):
    """Each combination that cannot be played is refused once, with its table, its key and what would be right."""
    text, override, expected = RULES[rule]
    found = complaints(text, override)
    assert len(found) == 1
    assert found[0].endswith(f": {expected}")


@pytest.mark.parametrize(
    "override",
    [
        "run.concurrency=50",
        "clients.keys=[9, 3, 4294967295, 0]",
        "strategy={name='fedavg', clients_per_round=2, over_selection=2}",
        'clients={count=4, partition="dirichlet", alpha=0.1}',
        'run={max_updates=1, selection="order", order=[3, 0, 3]}',
        "executor.workers=1",
        'clients.wait_s={law="lomax", alpha=0.5, scale=2, cap=60}',
        'clients.device_factor={law="half_normal", sd=0, min=1}',
        "clients.seconds_per_step=0",
        "model={name='my_pkg.mod:make', args={sizes=[1, 2]}}",
    ],
)
def test_what_the_rules_allow_is_accepted(read, override):
    """The neighbours of what is refused are fine: more places than clients, a full over-selected cohort, a cap."""
    assert read(SMALL, override).resolved() == read(read(SMALL, override).to_toml()).resolved()


def test_the_over_selected_cohort_uses_the_number_as_written(read):
    """1.1 times 10 asks for 11 clients, not the 12 that binary floats give."""
    text = SMALL.replace("4", "11")
    strategy = read(text, "strategy={name='fedavg', clients_per_round=10, over_selection=1.1}").strategy
    assert strategy.cohort == 11


def test_reading_scenarios_needs_neither_numpy_nor_torch():
    """The package imports nothing heavier than pydantic."""
    code = (
        "import sys, desim_fl.scenario; print([m for m in ('numpy', 'torch', 'polars', 'tomli_w') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_quadratic_data_take_plain_sgd_only(tmp_path):
    """Adam, momentum and weight decay beside quadratic data are refused with their place, by plan as by run."""
    path = tmp_path / "q.toml"
    path.write_text(
        '[data]\nname = "quadratic"\n[clients]\ncount = 2\n[training]\noptimizer = "adam"\nweight_decay = 0.1\n'
        "[run]\nmax_updates = 3\n"
    )
    with pytest.raises(ScenarioError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f"{path}:6: [training] optimizer = adam does not go with quadratic data, only plain sgd",
        f"{path}:7: [training] weight_decay = 0.1 does not go with quadratic data, only plain sgd",
    ]
