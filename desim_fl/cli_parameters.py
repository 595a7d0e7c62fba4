"""Options of ``run`` and ``plan`` under the names that published scripts use; see :mod:`desim_fl.scenario.parameters`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

PANEL = "Parameters by their usual names"

NumClients = Annotated[
    int | None, typer.Option("--num-clients", "--num_clients", help="clients.count", rich_help_panel=PANEL)
]
NumRounds = Annotated[
    int | None,
    typer.Option(
        "--num-rounds", "--num_rounds", help="Rounds, or as many updates as they have.", rich_help_panel=PANEL
    ),
]
LocalEpochs = Annotated[
    int | None, typer.Option("--local-epochs", "--local_epochs", help="training.epochs", rich_help_panel=PANEL)
]
ClientsPerRound = Annotated[
    int | None,
    typer.Option(
        "--clients-per-round",
        "--clients_per_round",
        help="Clients in a round, or jobs in flight.",
        rich_help_panel=PANEL,
    ),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", "--batch_size", help="training.batch_size", rich_help_panel=PANEL)
]
Alpha = Annotated[
    float | None, typer.Option("--alpha", help="Dirichlet concentration of the classes.", rich_help_panel=PANEL)
]
Gamma0 = Annotated[
    float | None, typer.Option("--gamma-0", "--gamma_0", help="First learning rate.", rich_help_panel=PANEL)
]
AlphaLr = Annotated[
    float | None,
    typer.Option("--alpha-lr", "--alpha_lr", help="How strongly a delay slows learning.", rich_help_panel=PANEL),
]
DelayT = Annotated[
    float | None, typer.Option("--delay-t", "--delay_t", help="Largest delay in seconds.", rich_help_panel=PANEL)
]
EarlyStopping = Annotated[
    int | None, typer.Option("--early-stopping", "--early_stopping", help="Patience in epochs.", rich_help_panel=PANEL)
]
NAMES = (
    "num_clients", "num_rounds", "local_epochs", "clients_per_round", "batch_size", "alpha", "gamma_0", "alpha_lr",
    "delay_t", "early_stopping",
)  # fmt: skip


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Those of the parameters among local variables that were given."""
    return {name: values[name] for name in NAMES if values.get(name) is not None}
