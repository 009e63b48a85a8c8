"""``sparrow completion``."""

import click
from click.shell_completion import get_completion_class

from sparrow.deploy.cli.main import COMPLETION_VARIABLE, group, verbose_option
from sparrow.kernels.errors import SparrowError


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@verbose_option
def command(shell: str) -> None:
    """Print a script that completes commands, options and their values in SHELL.

    \b
    Examples:
      sparrow completion bash > ~/.local/share/bash-completion/completions/sparrow
      sparrow completion zsh > ~/.zfunc/_sparrow     (with fpath+=~/.zfunc before compinit in ~/.zshrc)
      sparrow completion fish > ~/.config/fish/completions/sparrow.fish
    """
    writer = get_completion_class(shell)
    if writer is None:
        raise SparrowError(f"click cannot complete in {shell}", next_step="pip install 'click>=8.1'")
    click.echo(writer(group, {}, "sparrow", COMPLETION_VARIABLE).source())
