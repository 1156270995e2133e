"""The command line: `job` has the main job's stages, `ablate` judges a change of the recipe, `tune` searches
its values, `laws` asks laws, `runs` judges tables of runs, `averages` makes one model of several.
"""

from __future__ import annotations

import sys

import typer

from isoflop import terminal
from isoflop.cli import ablate, averages, job, laws, runs, tune
from isoflop.errors import IsoflopError

INTERRUPTED = 130  # 128 + SIGINT

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
app.add_typer(runs.app)
app.add_typer(averages.app)


def main() -> None:
    """Run the command line; a mistake of the user's exits with 2, an interruption with 130."""
    try:
        code = int(app(standalone_mode=False) or 0)  # typer returns the code of an exit, 130 after Ctrl-C
    except IsoflopError as error:
        terminal.show_error(error)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer._click.exceptions.ClickException as error:  # usage errors
        error.show()
        code = error.exit_code
    if code == INTERRUPTED:
        sys.stderr.write("interrupted; the same command goes on from here\n")
    sys.exit(code)
