"""The command line: `job` has the main job's stages, `ablate` judges a change of the recipe, `tune` searches
its values, `laws` asks laws, `plan` says what a budget buys (`cluster` prints what a cluster buys), `runs`
judges tables of runs, `averages`, `transforms` and `prune` make models of models, `quantize` rounds finished
ones, `engines` exports them, `evals` scores and times them, `verdict` judges them, `improve` searches among
all that, `adapt` fits models to tasks (`sequence` to several in order), `explain` says what they go by,
`trend` tells how the whole industry grows, and `limit` where that ends. `serve` has finished models answer
who has one of `keys`, `deploy` changes them while it runs; `mask` takes personal data out of texts,
`dashboard` writes what watches a server from outside, `manifests` what runs it on Kubernetes, and `feedback`
what its users said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import typer

from isoflop import terminal
from isoflop.cli import (
    ablate,
    adapt,
    averages,
    dashboard,
    deploy,
    engines,
    evals,
    explain,
    feedback,
    improve,
    job,
    keys,
    laws,
    limit,
    manifests,
    mask,
    plan,
    prune,
    quantize,
    runs,
    sequence,
    serve,
    transforms,
    trend,
    tune,
    verdict,
)
from isoflop.errors import IsoflopError
from isoflop.interrupt import INTERRUPTED, TERMINATED, Terminated
from isoflop.launched import by_torchrun
from isoflop.waiting import wait_briefly

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="A compute budget in, the best language model it buys out, with the measured law that says why.\n\n"
    "Example: [bold]isoflop run docs/ --budget 5m[/bold]",
)
app.add_typer(job.app)
app.add_typer(ablate.app)
app.add_typer(tune.app)
app.add_typer(laws.app)
app.add_typer(plan.app)
app.add_typer(runs.app)
app.add_typer(averages.app)
app.add_typer(transforms.app)
app.add_typer(prune.app)
app.add_typer(quantize.app)
app.add_typer(engines.app)
app.add_typer(verdict.app)
app.add_typer(evals.app)
app.add_typer(improve.app)
app.add_typer(adapt.app)
app.add_typer(sequence.app)
app.add_typer(explain.app)
app.add_typer(trend.app, name="trend")
app.add_typer(limit.app)
app.add_typer(serve.app)
app.add_typer(deploy.app)
app.add_typer(keys.app, name="keys")
app.add_typer(mask.app)
app.add_typer(dashboard.app)
app.add_typer(manifests.app)
app.add_typer(feedback.app, name="feedback")


def main() -> None:
    """Run the command line, as torchrun's rank 0 or its helper where torchrun started it.

    A mistake of the user's exits with 2, an interruption with 130, or 143 when it was by SIGTERM.
    """
    wait_briefly()
    if not by_torchrun():
        sys.exit(_code_of(_typed))
    from isoflop.devices import take_part

    sys.exit(_code_of(partial(take_part, partial(_code_of, _typed))))


def _typed() -> int:
    code = int(app(standalone_mode=False) or 0)
    if code == INTERRUPTED:  # typer returns the code of an exit, 130 after Ctrl-C
        raise KeyboardInterrupt
    return code


def _code_of(call: Callable[[], int]) -> int:
    """What `call` returns, or the code of its error, which is shown."""
    try:
        return call()
    except IsoflopError as error:
        terminal.show_error(error)
        return 2
    except typer._click.exceptions.ClickException as error:  # usage errors
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort, Terminated) as error:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
