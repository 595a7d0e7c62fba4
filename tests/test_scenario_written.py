"""The written form of a scenario and its JSON Schema, over generated scenarios."""

import hashlib
import tomllib

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from desim_fl.scenario import LAWS, Scenario, load, schema
from desim_fl.scenario.data import DATA
from desim_fl.scenario.models import MODELS
from desim_fl.scenario.strategies import STRATEGIES

SCHEMA = schema()
CHECKER = jsonschema.Draft202012Validator(SCHEMA)

positive = st.floats(min_value=1e-3, max_value=1e6)
amount = st.floats(min_value=0, max_value=1e6)
count = st.integers(1, 50)
text = st.text(max_size=20)


def table(required=None, **optional):
    """Return a strategy for a TOML table; optional keys may be absent."""
    return st.fixed_dictionaries(required or {}, optional=optional)


def law(**keys):
    """Return a strategy for one law's table, with or without a cap that is large enough."""
    return st.fixed_dictionaries(keys, optional={"cap": st.floats(min_value=1e7, max_value=1e9)})


laws = st.one_of(
    positive,
    count,
    law(law=st.just("constant"), value=positive),
    law(law=st.just("uniform"), low=st.floats(0.001, 1), high=st.floats(1, 9)),
    law(law=st.just("exponential"), mean=positive),
    law(law=st.just("lognormal"), median=positive, sigma=st.floats(0, 3)),
    law(law=st.just("half_normal"), sd=positive, min=st.just(0) | positive),
    law(law=st.just("pareto"), alpha=st.floats(1.001, 5), scale=positive),
    law(law=st.just("lomax"), alpha=st.floats(1.001, 5), scale=positive),
    table({"law": st.just("zipf"), "exponent": st.floats(1.01, 4), "cap": count}, scale=positive),
)
arguments = st.dictionaries(
    text,
    st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
custom = table({"name": st.sampled_from(["a:b", "my_pkg.mod:Thing"])}, args=arguments)
staleness = st.one_of(
    table(staleness=st.just("polynomial"), staleness_power=st.floats(0, 3)),
    table({"staleness": st.just("hinge")}, hinge_a=amount, hinge_b=amount),
    st.just({"staleness": "constant"}),
)
stale = st.builds(dict.__or__, staleness, table(staleness_offset=st.integers(0, 1), max_staleness=st.integers(0, 9)))
fedasync = table({"name": st.just("fedasync")}, alpha=st.floats(0.01, 1), mixing=st.sampled_from(["model", "delta"]))
fedbuff = table(
    name=st.just("fedbuff"),
    buffer_size=count,
    server_lr=positive,
    normalize=st.sampled_from(["K", "sum_w", "none"]),
    flush_at_end=st.booleans(),
)
fedavg = table(
    {"name": st.just("fedavg"), "clients_per_round": st.just(1)},
    over_selection=st.just(1),
    deadline_s=positive,
    min_fraction=st.floats(0, 1),
    cancel_stragglers=st.booleans(),
)
strategies = st.one_of(st.builds(dict.__or__, fedasync | fedbuff, stale), fedavg, custom)
images = st.one_of(
    table(name=st.just("fashion_mnist_6k"), examples=st.integers(1, 6000), validation_share=st.floats(0, 0.9)),
    table({"name": st.just("blobs")}, examples=count, classes=count, spread=amount),
)
networks = table(down_mbps=laws, up_mbps=laws, latency_s=laws, latency_jitter_factor=laws)
local = st.one_of(
    table(epochs=count, batch_size=count, lr=positive, momentum=st.floats(0, 0.99)),
    table({"steps": count}, optimizer=st.just("adam"), weight_decay=amount, buffers=st.just("local")),
    table(
        delay_aware=table(
            {"gamma_0": positive, "alpha_lr": amount, "meaning": st.just("staleness")}, combine=st.booleans()
        )
    ),
)
executors = table(
    name=st.sampled_from(["auto", "inline", "threads", "pool"]), device=st.sampled_from(["cpu", "cuda", "auto"])
)


@st.composite
def documents(draw):
    """Draw a valid scenario as the tables that a file would hold."""
    size = draw(st.integers(1, 5))
    quadratic = draw(st.booleans())
    clients = draw(
        table(
            {"count": st.just(size)},
            seconds_per_step=amount,
            device_factor=laws,
            jitter_factor=laws,
            wait_s=laws,
            keys=st.lists(st.integers(0, 2**32 - 1), min_size=size, max_size=size, unique=True),
            names=st.lists(st.text(min_size=1, max_size=9), min_size=size, max_size=size),
        )
    )
    each = st.floats(-9, 9) | st.lists(st.floats(-9, 9), min_size=size, max_size=size)
    if quadratic:
        data = draw(table({"name": st.just("quadratic")}, curvature=each, optimum=each))
        model = draw(table(name=st.just("scalar"), start=st.floats(-9, 9)))
    else:
        data = draw(images)
        model = draw(custom | table(hidden=st.lists(count, max_size=3)))
        clients |= draw(st.sampled_from([{}, {"partition": "dirichlet", "alpha": 0.5}, {"min_samples": 3}]))
    run = draw(
        table({"max_versions": count}, seed=st.integers(0, 2**64 - 1), max_time_s=positive, eval_every_s=positive)
    )
    run |= draw(st.sampled_from([{}, {"selection": "order", "order": [size - 1, 0]}]))
    training = draw(local)
    if quadratic:  # plain descent only
        training = {
            key: value for key, value in training.items() if key not in {"optimizer", "momentum", "weight_decay"}
        }
    parts = {"data": data, "clients": clients, "network": draw(networks), "model": model, "training": training}
    parts |= {"strategy": draw(strategies), "run": run, "executor": draw(executors), "description": draw(text)}
    return parts


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents())
def test_the_resolved_file_reads_back_as_an_equal_scenario(tmp_path_factory, document):
    """Written out and loaded again, a scenario is equal, with the same text, hash and validity under the schema."""
    scenario = Scenario.model_validate(document)
    path = tmp_path_factory.mktemp("written") / "again.toml"
    path.write_text(scenario.to_toml(), encoding="utf-8", newline="")
    again = load(path)
    assert again == scenario
    assert again.to_toml() == scenario.to_toml()
    assert again.sha256() == scenario.sha256()
    assert tomllib.loads(scenario.to_toml()) == scenario.resolved()
    CHECKER.validate(scenario.resolved())
    CHECKER.validate(document)


SMALL = {"clients": {"count": 4}, "run": {"max_updates": 3}}


CANONICAL = (
    '{"clients":{"count":4,"device_factor":1.0,"jitter_factor":1.0,"min_samples":1,"partition":"iid",'
    '"seconds_per_step":0.01},"data":{"name":"fashion_mnist_6k","validation_share":0.0},"description":"",'
    '"executor":{"device":"cpu","name":"auto","near":false,"reuse_limit_gb":2.0,"threads_per_job":1},"model":{"hidden":[64],"name":"mlp"},"name":"é",'
    '"network":{"latency_jitter_factor":1.0,"latency_s":0.0},"run":{"concurrency":10,"delay_scale":1.0,'
    '"dispatch":"immediate","max_updates":3,"non_finite":"skip","seed":0,"selection":"uniform"},'
    '"strategy":{"buffer_size":10,"flush_at_end":false,"name":"fedbuff","normalize":"K","server_lr":1.0,'
    '"staleness":"polynomial","staleness_offset":0,"staleness_power":0.5},"training":{"batch_size":32,'
    '"buffers":"average","epochs":1,"lr":0.05,"momentum":0.0,"optimizer":"sgd","weight_decay":0.0}}'
)


def test_the_hash_is_of_the_canonical_json():
    """It is the SHA-256 of the resolved form as UTF-8 JSON without blanks, keys sorted, written here by hand."""
    expected = hashlib.sha256(CANONICAL.encode("utf-8")).hexdigest()
    assert Scenario.model_validate({"name": "é", **SMALL}).sha256() == expected


def test_the_hash_tells_scenarios_apart_and_equal_ones_together():
    """A changed value changes the hash; the order of arguments and the sign of zero do not."""

    def hashed(**parts):
        return Scenario.model_validate(SMALL | parts).sha256()

    assert hashed(training={"lr": 0.05}) == hashed()
    assert hashed(training={"lr": 0.06}) != hashed()
    left = {"name": "a:b", "args": {"x": 1, "y": 0.0}}
    right = {"name": "a:b", "args": {"y": -0.0, "x": 1}}
    assert hashed(model=left) == hashed(model=right)


def test_the_schema_is_valid_draft_2020_12():
    """The schema obeys its own dialect and says which one."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def tables_of(node):
    """Yield every object schema that lists properties."""
    if isinstance(node, dict):
        if "properties" in node:
            yield node
        for inner in node.values():
            yield from tables_of(inner)
    if isinstance(node, list):
        for inner in node:
            yield from tables_of(inner)


def test_every_table_of_the_schema_is_closed_and_described():
    """No table takes unknown keys, and every key says what it is; null is never offered."""
    found = list(tables_of(SCHEMA))
    assert (
        len(found) >= len(DATA) + len(MODELS) + len(STRATEGIES) + len(LAWS) + 8
    )  # the file, delay_aware, six sections
    for node in found:
        assert node["additionalProperties"] is False
        assert all(entry.get("description") for entry in node["properties"].values()), node["title"]
    assert "null" not in repr(SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": {"stalness_power": 0.5}},
        {"stratgy": {}},
        {"strategy": {"name": "fedavg", "buffer_size": 3}},
        {"training": {"lr": 0}},
        {"training": {"lr": "0.1"}},
        {"clients": {"count": True}},
        {"clients": {}},
        {"clients": {"count": 2, "device_factor": {"law": "lognormal", "median": 1}}},
        {"clients": {"count": 2, "device_factor": {"value": 1}}},
        {"model": {"name": "no colon"}},
        {"model": {"name": "cnn", "hidden": [3]}},
        {"model": {"hiden": [3]}},
        {"executor": {"device": "tpu"}},
    ],
)
def test_the_schema_rejects_what_the_loader_rejects(wrong):
    """Unknown keys and tables, other variants' keys, wrong types, ranges and names fail in the editor too; CASES CF-01."""
    assert CHECKER.is_valid(SMALL)
    assert not CHECKER.is_valid(SMALL | wrong)
    with pytest.raises(ValueError, match="validation error"):
        Scenario.model_validate(SMALL | wrong)
