"""Tables about devices: classes of them with shares, and profiles with a name that stand for classes and laws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from desim_fl.scenario.laws import Bandwidth, Duration, Factor
from desim_fl.scenario.table import Amount, Positive, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

UNITS = ("seconds_per_step", "seconds_per_sample", "seconds_per_job", "device_flops")
WATTS = ("watts_compute", "watts_send", "watts_receive", "watts_idle")
PRICES = ("price_per_hour", "price_per_gb")


class DeviceClass(Table):
    """A class of devices; what it says goes before what [clients] and [network] say for all."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="Its name, for tables and reports.")
    share: Positive = Field(description="How many clients belong to it, in proportion to the other shares.")
    seconds_per_step: Amount | None = Field(default=None, description="As in [clients].")
    seconds_per_sample: Amount | None = Field(default=None, description="As in [clients].")
    seconds_per_job: Amount | None = Field(default=None, description="As in [clients].")
    device_flops: Factor | None = Field(default=None, description="As in [clients].")
    device_factor: Factor | None = Field(default=None, description="As in [clients].")
    jitter_factor: Factor | None = Field(default=None, description="As in [clients].")
    wait_s: Duration | None = Field(default=None, description="As in [clients].")
    epoch_idle_s: Duration | None = Field(default=None, description="As in [clients].")
    down_mbps: Bandwidth | None = Field(default=None, description="As in [network].")
    up_mbps: Bandwidth | None = Field(default=None, description="As in [network].")
    latency_s: Duration | None = Field(default=None, description="As in [network].")
    watts_compute: Amount | None = Field(default=None, description="As in [clients].")
    watts_send: Amount | None = Field(default=None, description="As in [clients].")
    watts_receive: Amount | None = Field(default=None, description="As in [clients].")
    watts_idle: Amount | None = Field(default=None, description="As in [clients].")
    price_per_hour: Amount | None = Field(default=None, description="As in [clients].")
    price_per_gb: Amount | None = Field(default=None, description="As in [clients].")

    @property
    def unit(self) -> str | None:
        """The key that says how long work takes; ``None`` = as for all."""
        return next((key for key in UNITS if getattr(self, key) is not None), None)


def _fadas(slow_high: float, slow_low: float) -> list[dict[str, Any]]:
    """Classes by argmax of Dirichlet(3, 2, 1); a job takes U(1, 2), U(3, 5), or what a slow device takes."""
    ranges = {"fast": (0.638, 1.0, 2.0), "mid": (0.285, 3.0, 5.0), "slow": (0.078, slow_low, slow_high)}
    return [
        {
            "name": name,
            "share": share,
            "seconds_per_job": 1.0,
            "jitter_factor": {"law": "uniform", "low": low, "high": high},
        }
        for name, (share, low, high) in ranges.items()
    ]


def _wireless() -> dict[str, Any]:
    """Links of 19 mobile users: lognormal through the users' mean rates (mean and sd of their logarithms)."""
    return {
        "down_mbps": {"law": "lognormal", "median": 41.4, "sigma": 0.484},
        "up_mbps": {"law": "lognormal", "median": 24.8, "sigma": 0.701},
    }


# Each stands for tables whose keys a scenario may still override. Sources in docs/devices.md.
PROFILES: Mapping[str, Mapping[str, Any]] = {
    "fadas_mild": {"clients": {"classes": _fadas(8.0, 5.0)}},
    "fadas_large": {"clients": {"classes": _fadas(80.0, 50.0)}},
    "quafl": {
        "clients": {
            "classes": [
                {"name": "fast", "share": 0.7, "seconds_per_step": 2.0},
                {"name": "slow", "share": 0.3, "seconds_per_step": 8.0},
            ],
            "jitter_factor": {"law": "erlang", "stages": 5, "mean": 1.0},
        }
    },
    "port": {"clients": {"epoch_idle_s": {"law": "zipf", "exponent": 1.7, "cap": 60}}},
    "fedscale_lognormal": {
        "clients": {"seconds_per_sample": 0.005, "jitter_factor": {"law": "lognormal", "median": 2.718281828459045, "sigma": 0.6}}
    },
    "safa": {
        "clients": {"seconds_per_step": 1.0, "device_factor": {"law": "frechet", "shape": 1.0, "scale": 1.0, "cap": 1000.0}},
        "network": {"down_mbps": 1.4, "up_mbps": 1.4},
    },
    "boards": {
        "clients": {
            "classes": [
                {
                    "name": "tx2",
                    "share": 1,
                    "device_factor": 1.0,
                    "down_mbps": {"law": "uniform", "low": 150.0, "high": 600.0},
                    "up_mbps": {"law": "uniform", "low": 150.0, "high": 600.0},
                },
                {
                    "name": "nano",
                    "share": 1,
                    "device_factor": 1.8125,
                    "down_mbps": {"law": "uniform", "low": 20.0, "high": 100.0},
                    "up_mbps": {"law": "uniform", "low": 20.0, "high": 100.0},
                },
                {
                    "name": "rpi",
                    "share": 1,
                    "device_factor": 11.625,
                    "down_mbps": {"law": "uniform", "low": 50.0, "high": 1000.0},
                    "up_mbps": {"law": "uniform", "low": 50.0, "high": 1000.0},
                },
            ],
            "wait_s": {"law": "quantiles", "values": [0.0, 0.0, 100.0], "probabilities": [0.0, 0.9, 1.0]},
        }
    },
    "phones": {
        "clients": {"device_factor": {"law": "lognormal", "median": 1.0, "sigma": 0.72}},
        "network": _wireless(),
    },
}  # fmt: skip


def with_profile(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with what its profile says in the places of keys that it does not give."""
    clients = document.get("clients")
    name = clients.get("profile") if isinstance(clients, dict) else None
    if not isinstance(name, str) or name not in PROFILES:
        return document
    made = dict(document)
    for section, keys in PROFILES[name].items():
        given = document.get(section, {})
        if isinstance(given, dict):
            made[section] = {**_left(keys, given), **given}
    return made


def _left(keys: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a profile says that the scenario does not say otherwise: one unit of work replaces another."""
    other_unit = any(key in given for key in UNITS)
    return {key: value for key, value in keys.items() if not (other_unit and key in UNITS)}
