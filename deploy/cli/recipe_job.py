"""A recipe's whole job in one folder, stage by stage; each stage that is done is kept, and not done again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparrow.benchmarks.predict.soc import load_soc
from sparrow.deploy.bundle import is_bundle
from sparrow.deploy.cli.job_folder import JobFiles, fingerprint, open_job
from sparrow.deploy.target import find_target
from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_file
from sparrow.quantize.data import ImageData, load_data
from sparrow.quantize.float_pruning import pruning_path
from sparrow.quantize.processes import is_main_process
from sparrow.quantize.recipe_file import Recipe
from sparrow.quantize.train import resume_path

Tell = Callable[[str], None]


@dataclass(frozen=True)
class RecipeFiles(JobFiles):
    """Where a recipe's job keeps what it makes."""

    @property
    def recipe(self) -> Path:
        """The recipe as it runs, every default written out."""
        return self.folder / "recipe.yaml"

    @property
    def float_checkpoint(self) -> Path:
        """Float weights, where the recipe trains them."""
        return self.folder / "float.pt"

    @property
    def training(self) -> Path:
        """What its training gave."""
        return self.folder / "training.json"

    @property
    def counts(self) -> Path:
        """Instructions and bytes."""
        return self.folder / "counts.json"

    @property
    def prediction(self) -> Path:
        """Predicted latency; missing where the tools for it are."""
        return self.folder / "prediction.json"

    @property
    def report(self) -> Path:
        """All of it as a page."""
        return self.folder / "report.html"

    @property
    def log(self) -> Path:
        """TensorBoard logs."""
        return self.folder / "tensorboard"

    def made(self) -> Iterator[Path]:
        """Everything else that a job may have left, unfinished trainings included."""
        for checkpoint in (self.float_checkpoint, self.checkpoint):
            yield from (checkpoint, resume_path(checkpoint), resume_path(pruning_path(checkpoint)))
        yield from (self.training, self.onnx, self.bundle, self.verification, self.counts, self.prediction)
        yield from (self.report, self.log)


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    data_dir: Path | None = None,
    checkpoint: Path | None = None,
    teacher_checkpoint: Path | None = None,
    tensorboard: bool = False,
    restart: bool = False,
    jobs: int = 1,
    on_stage: Tell = lambda stage: None,
) -> RecipeFiles:
    """Run a recipe, or go on with it where an earlier run stopped.

    Args:
        recipe: What to do.
        folder: Where the results go; made if it is missing.
        data_dir: Where the data set is.
        checkpoint: Trained float weights, in place of the recipe's.
        teacher_checkpoint: The teacher's float weights, in place of the recipe's.
        tensorboard: Whether the trainings are logged for TensorBoard.
        restart: Whether earlier results in the folder are thrown away.
        jobs: Emulators at a time.
        on_stage: Called with the name of each stage as it starts, or as it is found done.

    Returns:
        The files; the verification among them may have failed, which its result says.

    Raises:
        SparrowError: A checkpoint is missing, the folder holds another recipe's results, or a stage failed.
    """
    files = RecipeFiles(folder)
    find_target(recipe.target)
    load_soc(recipe.soc)
    recipe = _complete(recipe, checkpoint, teacher_checkpoint)
    data = load_data(recipe.data, data_dir)
    if is_main_process():
        document = recipe.to_dict() | {"checkpoint": fingerprint(recipe.checkpoint)}
        if recipe.teacher is not None:
            document["teacher"]["checkpoint"] = fingerprint(recipe.teacher.checkpoint)
        open_job(files.recipe, document, files.made(), restart=restart)
    log_dir = files.log if tensorboard else None
    _train(recipe, data, files, log_dir, on_stage)
    if is_main_process():  # the others of torchrun only train
        _deploy(recipe, data, files, jobs, on_stage)
    return files


def _complete(recipe: Recipe, checkpoint: Path | None, teacher_checkpoint: Path | None) -> Recipe:
    """Put in the checkpoints that were named beside the recipe, and see that none is missing."""
    if checkpoint is not None:
        recipe = replace(recipe, checkpoint=checkpoint)
    if teacher_checkpoint is not None:
        if recipe.teacher is None:
            raise SparrowError("a teacher's checkpoint was given, and the recipe has no teacher",
                               next_step="leave it out, or add a teacher to the recipe")  # fmt: skip
        recipe = replace(recipe, teacher=replace(recipe.teacher, checkpoint=teacher_checkpoint))
    if recipe.checkpoint is None and recipe.float_training is None:
        raise SparrowError(f"the recipe names no trained weights of {recipe.model}", expected="a float checkpoint",
                           next_step="give it with --checkpoint")  # fmt: skip
    if recipe.teacher is not None and recipe.teacher.checkpoint is None:
        raise SparrowError(f"the recipe names no trained weights of the teacher, {recipe.teacher.model}",
                           expected="a float checkpoint",
                           next_step="give it with --teacher-checkpoint")  # fmt: skip
    return recipe


def _train(recipe: Recipe, data: ImageData, files: RecipeFiles, log_dir: Path | None, on_stage: Tell) -> None:
    from sparrow.quantize.checkpoint import load_checkpoint
    from sparrow.quantize.recipes import quantize_network, train_network

    start = recipe.checkpoint or files.float_checkpoint
    if recipe.checkpoint is None and not _done(files.float_checkpoint, "float training", on_stage):
        assert recipe.float_training is not None  # _complete saw to it
        train_network(recipe.model, data, recipe.float_training, files.float_checkpoint,
                      log_dir=log_dir / "float" if log_dir else None)  # fmt: skip
    if not _done(files.checkpoint, "quantization", on_stage):
        teacher = recipe.teacher
        quantize_network(
            recipe.model, data, start, recipe.quantization, recipe.training, files.checkpoint,
            teacher=(teacher.model, teacher.checkpoint) if teacher and teacher.checkpoint else None,
            distill_config=teacher.distillation if teacher else None, seed=recipe.seed,
            calibration_images=recipe.calibration_images, removed_channels=recipe.removed_channels or 0.0,
            low_rank=recipe.low_rank, pruning=recipe.pruning, log_dir=log_dir / "quantized" if log_dir else None,
        )  # fmt: skip
    if is_main_process() and not files.training.exists():
        with atomic_file(files.training) as temporary:
            report = json.loads(load_checkpoint(files.checkpoint)["report"])
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _deploy(recipe: Recipe, data: ImageData, files: RecipeFiles, jobs: int, on_stage: Tell) -> None:
    from sparrow.benchmarks.harness import bench, verify
    from sparrow.benchmarks.reports.results import write_results_report
    from sparrow.benchmarks.result_files import write_result
    from sparrow.deploy.compiler import compile_model
    from sparrow.quantize.recipes import export_checkpoint

    if not _done(files.onnx, "export", on_stage):
        export_checkpoint(files.checkpoint, files.onnx, model_name=recipe.model)
    if is_bundle(files.bundle):
        on_stage("compilation: done before")
    else:
        on_stage("compilation")
        compile_model(files.onnx, files.bundle, target=recipe.target)
    if not _done(files.verification, "verification", on_stage):
        images, labels = data.split("test")
        chosen = slice(recipe.verify_images)
        result = verify(files.bundle, data.normalize(images[chosen]), labels[chosen], cpu=recipe.target, jobs=jobs)
        write_result(result, files.verification)
    if not _done(files.counts, "counting", on_stage):
        write_result(bench(files.bundle, cpu=recipe.target, repeat=1), files.counts)
    if not _done(files.prediction, f"prediction for {recipe.soc}", on_stage):
        _predict(recipe, files, on_stage)
    on_stage("report")
    results = [path for path in (files.verification, files.counts, files.prediction) if path.exists()]
    write_results_report(results, files.report)


def _predict(recipe: Recipe, files: RecipeFiles, on_stage: Tell) -> None:
    from sparrow.benchmarks.predicting import check_can_predict, predict_bundle
    from sparrow.benchmarks.result_files import write_result

    try:
        check_can_predict()
    except SparrowError as error:
        on_stage(f"no prediction: {error.got}")
        return
    write_result(predict_bundle(files.bundle, recipe.soc, threads=(1, 2, 4)), files.prediction)


def _done(path: Path, stage: str, on_stage: Tell) -> bool:
    """Tell which stage begins, or that its result is there: it was written as a whole or not at all."""
    on_stage(f"{stage}: done before" if path.exists() else stage)
    return path.exists()
