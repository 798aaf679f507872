"""Verbs around the networks: demo, targets, doctor, env."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nirdeploy.commands.shared import Json, app, env_app, print_json, print_table, progress_lines, say

if TYPE_CHECKING:
    from nirdeploy.demonstration import Demo

__all__ = ["demo", "doctor", "env_create", "env_list", "print_demo", "targets"]


@app.command(epilog="Example: `nirdeploy demo --output out/demo`")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it writes.")] = Path("out/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 16,
    as_json: Json = False,
) -> None:
    """Train on handwritten digits, put the network on two chips, compare the states."""
    from nirdeploy.demonstration import demo as run_demo

    result = run_demo(output, epochs=epochs, show_progress=not as_json)
    if as_json:
        print_json(result.summary)
    else:
        print_demo(result)


def print_demo(result: Demo) -> None:
    """The table of a demonstration, and where its page is."""
    found = result.summary["targets"]
    nodes = list(dict.fromkeys(n for target in found.values() for n in target["spike_agreement"]))
    title = (
        f"{result.summary['test_images']} held-out images, reference accuracy {result.reference_accuracy:.3f}\n"
        f"{', '.join(nodes)}: share of spikes at the same neuron in the same step as in the reference"
    )
    rows = []
    for name, target in found.items():
        first = target["first_divergence"]
        where = "none" if first is None else f"{first['node']} {tuple(first['neuron'])} step {first['step']}"
        agree = [f"{target['spike_agreement'].get(n, float('nan')):.3f}" for n in nodes]
        cores = ", ".join(f"{n}: {' '.join(map(str, on))}" for n, on in target["cores"].items())
        rows.append((name, f"{target['accuracy']:.3f}", *agree, where, cores, f"{target['seconds']:.1f}"))
    print_table(title, ("target", "accuracy", *nodes, "first divergence", "cores", "seconds"), rows)
    say(f"{result.summary['seconds']:.0f} s; read {result.folder / 'report.html'}")


@app.command(epilog="Example: `nirdeploy targets --matrix`")
def targets(
    ask: Annotated[
        bool, typer.Option("--matrix", help="Ask every target which primitives, options and conventions it takes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the chips, what each was verified against, and backends that do not load."""
    from nirdeploy.backend import listed_backends
    from nirdeploy.backend import targets as known

    if ask:
        _print_matrix(list(known()), as_json)
        return
    broken = {name: reason for name, reason in listed_backends().items() if reason}
    found = known()
    if as_json:
        listed = [
            {
                "name": t.name,
                "title": t.title,
                "backend": t.backend,
                "verified": dict(t.verified),
                "on_chip": t.on_chip,
            }
            for t in found.values()
        ]
        print_json({"targets": listed, "broken_backends": broken})
        return
    rows = [
        (t.name, t.title, "\n".join(f"{stage}: {what}" for stage, what in t.verified.items()), t.on_chip)
        for t in found.values()
    ]
    print_table(f"{len(found)} targets", ("name", "chip", "verified against", "on chip"), rows)
    for name, reason in broken.items():
        say(f"backend {name}: {reason}")


def _print_matrix(names: list[str], as_json: bool) -> None:
    from nirdeploy.matrix import always, matrix, sections

    answers = matrix(names)
    of_all = {name: sorted(always(name)) for name in names}
    if as_json:
        print_json({"answers": [answer.to_dict() for answer in answers], "always": of_all})
        return
    for title, questions in sections(answers).items():
        rows = [(name, *(found[target] for target in names)) for name, found in questions.items()]
        print_table(title, ("", *names), rows)
    for name, codes in of_all.items():
        if codes:
            say(f"{name} warns of every network: {', '.join(codes)}")


@app.command(epilog="Example: `nirdeploy doctor --json`")
def doctor(as_json: Json = False) -> None:
    """Print versions, which vendor SDKs are really there, and what is missing."""
    from nirdeploy.environments import doctor as examine

    found = examine()
    if as_json:
        print_json(found)
        return
    rows = [(name, version or "missing", "") for name, version in found["packages"].items()]
    rows.append(("CUDA device", found["cuda"] or "none", "training and reference runs on a GPU"))
    rows += [(name, e["version"] or "not installed", e["for"]) for name, e in found["optional"].items()]
    rows += [(name, e["state"], e["for"]) for name, e in found["vendors"].items()]
    rows += [(f"environment {name}", e["state"], e["python"] or "") for name, e in found["environments"].items()]
    rows += [(f"backend {name}", state, "") for name, state in found["backends"].items()]
    print_table(f"nirdeploy {found['nirdeploy']}, Python {found['python']}", ("what", "state", "for"), rows)
    if any(state != "ok" for state in found["backends"].values()):
        raise typer.Exit(2)


@env_app.command("list", epilog="Example: `nirdeploy env list --json`")
def env_list(as_json: Json = False) -> None:
    """List the environments: what each is for, whether it is built, and where."""
    from nirdeploy.environments import environments

    found = environments().values()
    if as_json:
        print_json([_environment_as_data(environment) for environment in found])
        return
    rows = [(e.name, e.state, e.purpose, e.folder, "\n".join(e.holds)) for e in found]
    print_table(f"{len(rows)} environments", ("name", "state", "for", "folder", "holds"), rows)


@env_app.command("create", epilog="Example: `nirdeploy env create speck`")
def env_create(
    name: Annotated[str, typer.Argument(help="A name from `nirdeploy env list`.")],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again although it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Build an environment, unless this very one is there. Needs a package index; installs nothing elsewhere."""
    from nirdeploy.environments import create

    with progress_lines(as_json) as progress:
        found = create(name, progress=progress, rebuild=rebuild)
    if as_json:
        print_json(_environment_as_data(found))
    else:
        say(f"{found.name}: {found.state}, {found.python}")


def _environment_as_data(environment: Any) -> dict[str, Any]:
    return {
        "name": environment.name,
        "state": environment.state,
        "for": environment.purpose,
        "folder": str(environment.folder),
        "python": None if environment.python is None else str(environment.python),
        "holds": list(environment.holds),
    }
