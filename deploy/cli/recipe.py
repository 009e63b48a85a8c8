"""``sparrow recipe``: the recipes that ship with Sparrow, and running one."""

import json
import time
from pathlib import Path

import click

from sparrow.deploy.cli.main import verbose_option
from sparrow.deploy.cli.options import echo_json, json_option


@click.group("recipe")
def command() -> None:
    """Whole jobs as YAML files, from a trained network to a verified bundle and a report.

    \b
    Examples:
      sparrow recipe list
      sparrow recipe run digits-dgms4 -o digits/
      sparrow recipe show resnet20-dgms4 > mine.yaml
    """


@command.command("list")
@json_option
def list_recipes(as_json: bool) -> None:
    """List the recipes that ship with Sparrow.

    \b
    Example:
      sparrow recipe list
    """
    from sparrow.quantize.recipe_file import read_recipe, recipe_names

    recipes = {name: read_recipe(name).description for name in recipe_names()}
    if as_json:
        echo_json(recipes)
        return
    for name, description in recipes.items():
        click.echo(f"{name:<24}{description}")


@command.command("show")
@click.argument("recipe", metavar="NAME|FILE.yaml")
def show(recipe: str) -> None:
    """Print the file of a recipe, to read or to start one's own from.

    \b
    Example:
      sparrow recipe show resnet20-dgms4 > mine.yaml
    """
    from sparrow.quantize.recipe_file import find_recipe, read_recipe

    read_recipe(recipe)
    click.echo(find_recipe(recipe).read_text(encoding="utf-8"), nl=False)


@command.command("run")
@click.argument("recipe", metavar="NAME|FILE.yaml")
@click.option("--data-dir", type=click.Path(path_type=Path),
              help="Folder or archive of the data set [default: where it was last found, else a download].")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Trained float weights, in place of the recipe's.")
@click.option("--teacher-checkpoint", type=click.Path(path_type=Path),
              help="The teacher's float weights, in place of the recipe's.")
@click.option("--tensorboard", is_flag=True, help="Log the trainings to the folder tensorboard/ of the results.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Emulators at a time.")
@click.option("--restart", is_flag=True, help="Throw earlier results away instead of going on with them.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Folder for the results.")
@json_option
@verbose_option
def run(
    recipe: str,
    data_dir: Path | None,
    checkpoint: Path | None,
    teacher_checkpoint: Path | None,
    tensorboard: bool,
    jobs: int,
    restart: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Train, quantize, export, compile, verify and predict as a recipe says. Interrupted, the same command goes on.

    \b
    Examples:
      sparrow recipe run digits-dgms4 -o digits/
      sparrow recipe run resnet20-dgms4-block50 --data-dir ~/cifar10 --checkpoint resnet20.th \\
          --teacher-checkpoint resnet56.th -o r20/
      torchrun --nproc-per-node 2 --no-python sparrow recipe run mine.yaml -o mine/
    """
    from sparrow.benchmarks.result_files import read_result
    from sparrow.deploy.cli.recipe_job import run_recipe
    from sparrow.quantize.processes import is_main_process
    from sparrow.quantize.recipe_file import read_recipe

    started, main = time.monotonic(), is_main_process()

    def tell(stage: str) -> None:
        if main:
            click.echo(f"[{time.monotonic() - started:5.1f} s] {stage}", err=True)

    files = run_recipe(read_recipe(recipe), output, data_dir=data_dir, checkpoint=checkpoint,
                       teacher_checkpoint=teacher_checkpoint, tensorboard=tensorboard, restart=restart, jobs=jobs,
                       on_stage=tell)  # fmt: skip
    if not main:
        return
    training = json.loads(files.training.read_text(encoding="utf-8"))
    verified, counted = read_result(files.verification), read_result(files.counts)
    predicted = read_result(files.prediction) if files.prediction.exists() else None
    if as_json:
        echo_json({
            "start_accuracy": training["start_accuracy"], "test_accuracy": training["test_accuracy"],
            "bundle_accuracy": 100 * verified.bundle_top1, "verified": verified.ok, "images": verified.images,
            "weights_bytes": counted.weights_bytes, "instructions": counted.inferences[0].instructions,
            "predicted": {str(entry.threads): entry.milliseconds for entry in predicted.predictions} if predicted
            else None, "report": str(files.report),
        })  # fmt: skip
    else:
        click.echo(f"{output}: {training['model']} on {training['data']}")
        click.echo(f"  float            {training['start_accuracy']:6.2f} % of the test images")
        click.echo(f"  quantized        {training['test_accuracy']:6.2f} %")
        click.echo(f"  bundle           {100 * verified.bundle_top1:6.2f} % of {verified.images} of them, "
                   f"{'ok' if verified.ok else 'WRONG'}")  # fmt: skip
        click.echo(f"  packed weights   {counted.weights_bytes:,} bytes")
        if predicted is not None:
            for entry in predicted.predictions:
                click.echo(f"  predicted        {entry.milliseconds:.3g} ms on {predicted.soc.name}, {entry.threads} "
                           f"thread{'s' * (entry.threads > 1)} (no measurement)")  # fmt: skip
        click.echo(f"  report           {files.report}")
    verified.require_ok()
