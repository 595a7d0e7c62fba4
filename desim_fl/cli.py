"""The command line: ``desim-fl run | plan | resume | study | verify | report | schema | bench``.

Exit codes: 0 all is well, 1 a run failed or a check found a difference, 2 what was asked cannot be done (with the
place and the way out), 130 interrupted. Messages go to stderr; with ``--json`` stdout holds one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from desim_fl import __version__, cli_parameters
from desim_fl.cli_bench import bench
from desim_fl.cli_compare import compare, read_target
from desim_fl.cli_data import data
from desim_fl.cli_export import export
from desim_fl.cli_study import study
from desim_fl.errors import BudgetSpent, DesimError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desim_fl.advice import Advisor
    from desim_fl.scenario import Scenario

app = typer.Typer(
    name="desim-fl",
    help="Discrete-event simulation of asynchronous federated learning in virtual time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file (TOML).", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="Run directory.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override one key; repeatable.")
]
Unset = Annotated[
    list[str] | None, typer.Option("--unset", metavar="TABLE.KEY", help="Leave out one key of the file; repeatable.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Override run.seed.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory to write; must be new or empty.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch the data that is missing.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved scenario and stop.")]

app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.command()(study)
app.command()(compare)
app.command()(export)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"desim-fl {__version__}")
        raise typer.Exit
    del context


@app.command()
def run(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    unset: Unset = None,
    seed: Seed = None,
    out: Out = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Override executor.workers.")] = None,
    executor: Annotated[str | None, typer.Option("--executor", help="Override executor.name.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Override executor.device.")] = None,
    no_reuse: Annotated[bool, typer.Option("--no-reuse", help="Train every job, known or not.")] = False,  # noqa: FBT002
    download: Download = False,  # noqa: FBT002
    num_clients: cli_parameters.NumClients = None,
    num_rounds: cli_parameters.NumRounds = None,
    local_epochs: cli_parameters.LocalEpochs = None,
    clients_per_round: cli_parameters.ClientsPerRound = None,
    batch_size: cli_parameters.BatchSize = None,
    alpha: cli_parameters.Alpha = None,
    gamma_0: cli_parameters.Gamma0 = None,
    alpha_lr: cli_parameters.AlphaLr = None,
    delay_t: cli_parameters.DelayT = None,
    early_stopping: cli_parameters.EarlyStopping = None,
    as_json: AsJson = False,  # noqa: FBT002
    print_config: PrintConfig = False,  # noqa: FBT002
) -> None:
    """Train in virtual time and write a run directory with its report."""
    parameters = cli_parameters.given(locals())
    given = _given({"executor.workers": workers, "executor.name": executor, "executor.device": device})
    given += _given({"data.download": download or None})
    given += ["executor.reuse=false"] * no_reuse
    loaded = _load(scenario, [*(overrides or []), *given], seed, parameters, unset)
    if print_config:
        typer.echo(loaded.to_toml(), nl=False)
        return
    from desim_fl.progress import progress_bar  # noqa: PLC0415  (rich is not needed to print help)
    from desim_fl.run import execute  # noqa: PLC0415

    folder = out or _default_folder(loaded)
    with (
        _naming(scenario),
        progress_bar(loaded.name, quiet=as_json) as show,
        contextlib.redirect_stdout(sys.stderr),
        _gently(show) as watch,
    ):
        manifest = execute(loaded, folder, watch=watch)
    if as_json:
        _print_json(folder, manifest)
    else:
        from desim_fl.progress import say_result  # noqa: PLC0415

        say_result(folder, manifest)


@app.command()
def plan(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    unset: Unset = None,
    seed: Seed = None,
    out: Out = None,
    download: Download = False,  # noqa: FBT002
    assume_full_work: Annotated[  # noqa: FBT002
        bool, typer.Option("--assume-full-work", help="Play on where trained values would be read, as if none were.")
    ] = False,
    num_clients: cli_parameters.NumClients = None,
    num_rounds: cli_parameters.NumRounds = None,
    local_epochs: cli_parameters.LocalEpochs = None,
    clients_per_round: cli_parameters.ClientsPerRound = None,
    batch_size: cli_parameters.BatchSize = None,
    alpha: cli_parameters.Alpha = None,
    gamma_0: cli_parameters.Gamma0 = None,
    alpha_lr: cli_parameters.AlphaLr = None,
    delay_t: cli_parameters.DelayT = None,
    early_stopping: cli_parameters.EarlyStopping = None,
    advice: Annotated[  # noqa: FBT002
        bool, typer.Option(help="Tell what it means, and what half and twice each setting would do.")
    ] = True,
    as_json: AsJson = False,  # noqa: FBT002
    print_config: PrintConfig = False,  # noqa: FBT002
) -> None:
    """Play the same timeline without training: staleness, participation, utilisation, bytes."""
    parameters = cli_parameters.given(locals())
    given = _given({"data.download": download or None})
    loaded = _load(scenario, [*(overrides or []), *given], seed, parameters, unset)
    if print_config:
        typer.echo(loaded.to_toml(), nl=False)
        return
    from desim_fl.advice import Advisor  # noqa: PLC0415  (numpy is not needed to print help)
    from desim_fl.run import execute  # noqa: PLC0415

    advisor = Advisor(listening=advice)
    with _naming(scenario), contextlib.redirect_stdout(sys.stderr), _gently(None) as watch:
        manifest = execute(
            loaded, out, timing_only=True, assume_full_work=assume_full_work, watch=watch, observe=advisor.attach
        )
    _say_plan(out, manifest, advisor, as_json=as_json)


def _say_plan(out: Path | None, manifest: dict[str, Any], advisor: Advisor, *, as_json: bool) -> None:
    """Print the timeline's summary, and then, where it is asked for, the advice, which takes a little longer."""
    from desim_fl.advice import advice as give  # noqa: PLC0415
    from desim_fl.effort import effort  # noqa: PLC0415

    training = effort(advisor.played)
    if as_json:
        told = {"advice": give(advisor)} if advisor.listening else {}
        whole = {**result(out, manifest), "training": None if training is None else training._asdict(), **told}
        typer.echo(json.dumps(whole, allow_nan=False))
        return
    from desim_fl.progress import say_advice, say_plan  # noqa: PLC0415

    say_plan(out, manifest, training)
    if advisor.listening:
        say_advice(give(advisor))


@app.command()
def resume(
    folder: RunFolder,
    workers: Annotated[int | None, typer.Option("--workers", help="Override executor.workers.")] = None,
    executor: Annotated[str | None, typer.Option("--executor", help="Override executor.name.")] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Go on with a run that was killed, interrupted or failed; the result is the one it would have had."""
    from desim_fl.progress import progress_bar, say_result  # noqa: PLC0415  (rich is not needed to print help)
    from desim_fl.run import resume as go_on  # noqa: PLC0415

    parameters = cli_parameters.given(locals())
    given = _given({"executor.workers": workers, "executor.name": executor})
    with (
        _naming(folder),
        progress_bar(folder.name, quiet=as_json) as show,
        contextlib.redirect_stdout(sys.stderr),
        _gently(show) as watch,
    ):
        manifest, notes = go_on(folder, given, watch=watch)
    for note in notes:
        typer.echo(note, err=True)
    if as_json:
        _print_json(folder, manifest)
    else:
        say_result(folder, manifest)


def _given(flags: dict[str, Any]) -> list[str]:
    """Options that were given, as overrides."""
    return [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]


@app.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(help="Run directory.", show_default=False)] = None,
    *,
    rerun: Annotated[bool, typer.Option("--rerun", help="Train again, too, and compare every hash and table.")] = False,
    oracles: Annotated[
        bool, typer.Option("--oracles", help="Compare the simulator with closed forms instead of checking a run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a run directory whole, and play its timeline again without training; or the simulator against theory."""
    if oracles == (folder is not None) or (oracles and rerun):
        raise ScenarioError("verify takes a run directory, or --oracles alone; one of the two")
    if folder is None:
        _verify_oracles(as_json=as_json)
        return
    from desim_fl.verify import inspected  # noqa: PLC0415  (polars is not needed to print help)

    with contextlib.redirect_stdout(sys.stderr):  # a user's model may print
        problems, notes = inspected(folder, rerun=rerun)
    if as_json:
        typer.echo(json.dumps({"run_dir": str(folder), "ok": not problems, "problems": problems, "notes": notes}))
    elif problems or notes:
        _complain("\n".join([*problems, *(f"note: {note}" for note in notes)]))
    if not problems and not as_json:
        typer.echo(f"{folder}: laws, staleness and hashes hold" + ("; the rerun is identical" if rerun else ""))
    if problems:
        raise typer.Exit(1)


def _verify_oracles(*, as_json: bool) -> None:
    """Print every oracle's lines; exit code 1 if one does not hold."""
    from desim_fl import oracles  # noqa: PLC0415  (simpy is not needed to print help)

    found = list(oracles.checked())
    sound = all(line.holds for _, line in found)
    typer.echo(json.dumps({"ok": sound, "lines": oracles.result(found)}) if as_json else oracles.table(found))
    if not sound:
        raise typer.Exit(1)


@app.command()
def report(
    folder: RunFolder,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="METRIC=VALUE", help="Critical path to accuracy=0.8, or to loss=0.5."),
    ] = None,
) -> None:
    """Write report.html of a run directory anew from its tables."""
    from desim_fl import damage  # noqa: PLC0415
    from desim_fl import report as page  # noqa: PLC0415  (altair is not needed to print help)
    from desim_fl.rundir import rehash  # noqa: PLC0415

    aim = None if target is None else read_target(target)
    with damage.named([folder]):
        written = page.write(folder, None if aim is None else page.Goal(aim.metric, aim.value))
        rehash(folder, written.name)
    typer.echo(str(written))


@app.command()
def schema(
    *, markdown: Annotated[bool, typer.Option("--markdown", help="The same as a page to read, in Markdown.")] = False
) -> None:
    """Print the JSON Schema of scenario files, for completion in editors."""
    from desim_fl.scenario import schema as make  # noqa: PLC0415
    from desim_fl.scenario.reference import reference  # noqa: PLC0415

    typer.echo(reference() if markdown else json.dumps(make(), indent=2), nl=not markdown)


def _load(
    path: Path, overrides: list[str], seed: int | None, parameters: dict[str, Any], unset: list[str] | None
) -> Scenario:
    from desim_fl.scenario import load  # noqa: PLC0415  (pydantic is not needed to print help)

    return load(path, overrides, seed, unset=unset or (), parameters=parameters)


@contextlib.contextmanager
def _gently(show: Callable[[Any], None] | None) -> Iterator[Callable[[Any], None]]:
    """Let Ctrl-C, and SIGTERM, stop a run between two instants, so that it can go on from there; twice = at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)
        sys.stderr.write("\nstopping after the job in hand; once more stops at once\n")

    def watch(session: Any) -> None:
        if show is not None:
            show(session)
        if asked and session.engine.between_instants:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the scenario's path before what only building it could show (samples that do not suffice, say)."""
    try:
        yield
    except ScenarioError as error:
        raise type(error)(f"{path}: {error}") from error


def _default_folder(scenario: Scenario) -> Path:
    from desim_fl.rundir import free_name  # noqa: PLC0415

    return free_name(Path("reports"), scenario.name)


def result(folder: Path | None, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what ``--json`` prints: identity first, then the summary."""
    return {
        "run_dir": None if folder is None else str(folder),
        "status": manifest["status"],
        "timeline_sha256": manifest["timeline_sha256"],
        "model_sha256": manifest["model_sha256"],
        "partition_sha256": manifest["partition_sha256"],
        "seed": manifest["seed"],
        **({"assumed_full_work": True} if manifest["assumed_full_work"] else {}),
        **manifest["summary"],
    }


def _print_json(folder: Path | None, manifest: dict[str, Any]) -> None:
    typer.echo(json.dumps(result(folder, manifest), allow_nan=False))


def _complain(text: str) -> None:
    """Print a message; what it quotes from files and paths cannot steer the terminal."""
    plain = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    typer.echo(plain, err=True)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except ScenarioError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except DesimError as error:
        _complain(f"error: {error}")
        sys.exit(error.exit_code)
    except MemoryError as error:
        _complain(f"error: this machine has too little memory for that ({error or 'no more could be had'})")
        sys.exit(1)
    except BudgetSpent as spent:
        typer.echo(f"interrupted: {spent}; desim-fl resume goes on with the run", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was computed is in the run directory", err=True)
        sys.exit(130)
