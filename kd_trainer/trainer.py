"""
Knowledge distillation inside a `transformers.Trainer`.

[`DistillationTrainer.compute_loss`] is the whole idea: run the student, get the teacher's logits from the batch or from
the frozen teacher, mix the loss against the labels with the loss against the teacher. Everything else (accumulation,
mixed precision, DDP, checkpoints, callbacks, search) is the Trainer's own and is left alone.
"""

import inspect
import logging

import torch
from accelerate.utils import find_batch_size
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import has_length

from .arguments import DistillationTrainingArguments
from .batches import TEACHER_PREFIX, DistillationCollator
from .loading import named_labels
from .losses import kl_distillation_loss, logit_mse_loss, task_loss
from .teacher import align_labels

logger = logging.getLogger(__name__)


class ClassificationTrainer(Trainer):
    """
    A `Trainer` whose loss is the mean over the rows of a step, exact for any split of the step into micro-batches, and
    whose predictions come back in the order of the data.

    Args:
        As `transformers.Trainer`.
    """

    # compute_loss returns means of micro-batches: the Trainer divides by their number.
    loss_is_scaled_for_ga = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Releases before loss_is_scaled_for_ga (5.17 among them) ask this instead.
        self.model_accepts_loss_kwargs = False
        self.mean_micro_batch = None

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            rows = torch.as_tensor(sum(self.count_rows(batch) for batch in batches), dtype=torch.float32, device=device)
            # Over all processes: each has as many micro-batches, not as many rows.
            self.mean_micro_batch = self.accelerator.reduce(rows, reduction="mean") / len(batches)
        return batches, num_items

    def count_rows(self, inputs):
        """Rows that a batch's mean loss is over: a model of `transformers` leaves those with label −100 out."""
        labels = inputs.get("labels")
        if labels is None or labels.dim() != 1 or labels.is_floating_point():
            return find_batch_size(inputs)
        return (labels != -100).sum()

    def scale_loss(self, model, rows, loss):
        """A micro-batch's mean, weighted by its share of the step's rows: micro-batches need not be equally large."""
        if not model.training or self.mean_micro_batch is None:
            return loss
        share = torch.as_tensor(rows / self.mean_micro_batch, device=loss.device)
        # The mean over no row is not a number.
        return torch.where(share > 0, loss * share, 0.0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Counted first: label smoothing takes the labels out of the inputs.
        rows = self.count_rows(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = self.scale_loss(model, rows, loss)
        return (loss, outputs) if return_outputs else loss

    def _get_eval_sampler(self, eval_dataset):
        # The Trainer also groups evaluation by length; its predictions would then not pair with the rows.
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)


class DistillationTrainer(ClassificationTrainer):
    """
    Trains a student on the labels and on what a teacher says, `alpha · task loss + (1 − alpha) · distillation loss` for
    every row; a row without a label (−100, or none in the batch) has the second part alone.

    The teacher's logits come from the first of these that is there:

    1. a column `teacher_logits` of the data set, in the student's label order (see [`kd_trainer.cached_logits`]);
    2. `teacher`, run without gradient on the columns `teacher_input_ids`, `teacher_attention_mask`, …;
    3. `teacher`, run on the student's own columns, when both share a tokenizer.

    Evaluation without any of them has the task loss alone. Both parts are logged as `task_loss` and `kd_loss`, with the
    prefix of the evaluation where it has one.

    Args:
        model (`PreTrainedModel`): The student; `model_init` works too.
        args ([`DistillationTrainingArguments`]): `alpha`, `temperature`, `kd_loss` and all of `TrainingArguments`.
        teacher (`PreTrainedModel`, *optional*): Frozen. Its labels are matched to the student's by name.
        teacher_order (`list[int]`, *optional*): `teacher_logits[:, teacher_order]` is in the student's order (see
            [`kd_trainer.align_labels`]), where names do not say it. Not applied to a `teacher_logits` column.
        teacher_processing_class (`PreTrainedTokenizerBase`, *optional*): Pads the `teacher_` columns.
        kwargs: As `transformers.Trainer`. The default collator is [`DistillationCollator`].

    Raises:
        `ValueError`: For arguments of another class, or a KL loss where labels do not exclude each other.

    Example:

    ```python
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=DistillationTrainingArguments("outputs", temperature=4.0),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    ```

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531
    """

    def __init__(
        self, model=None, args=None, *, teacher=None, teacher_order=None, teacher_processing_class=None, **kwargs
    ):
        if not isinstance(args, DistillationTrainingArguments):
            raise ValueError(f"args is {type(args).__name__}: pass DistillationTrainingArguments")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func would be ignored: DistillationTrainer has its own loss")
        if kwargs.get("data_collator") is None and kwargs.get("processing_class") is not None:
            kwargs["data_collator"] = DistillationCollator(kwargs["processing_class"], teacher_processing_class)
        super().__init__(model, args, **kwargs)
        self.teacher = teacher
        self.teacher_order = teacher_order
        # A teacher with a tokenizer of its own cannot read the student's ids.
        self.teacher_has_own_tokens = teacher_processing_class not in (None, kwargs.get("processing_class"))
        if teacher is not None and teacher_order is None:
            self.teacher_order = self.match_labels()
        if teacher is not None:
            # Not prepared by the accelerator: without gradients it needs no wrapper, and a second prepared model would
            # be saved and counted with the student.
            teacher.to(self.args.device).eval().requires_grad_(False)
        config = self.model.config
        usual = "regression" if config.num_labels == 1 else "single_label_classification"
        self.problem_type = config.problem_type or usual
        if args.kd_loss == "kl" and self.problem_type != "single_label_classification":
            raise ValueError(
                f"kd_loss 'kl' compares labels that exclude each other, not {self.problem_type}: use 'mse'"
            )
        self.part_sums = {"train": None, "eval": None}

    def match_labels(self):
        """
        Where the teacher has the student's labels, by name; None when nothing is to be re-ordered.

        Raises:
            `InputError` (a `ValueError`): When both name their labels and the names differ.
        """
        teacher_names, student_names = named_labels(self.teacher.config), named_labels(self.model.config)
        if teacher_names and student_names:
            return align_labels(teacher_names, student_names)
        if teacher_names or student_names:
            logger.warning("only one of teacher and student names its labels: they are matched by position")
        return None

    def count_rows(self, inputs):
        # A row without a label counts too: it has the teacher's part.
        return find_batch_size(inputs)

    def train(self, *args, **kwargs):
        self.part_sums["train"] = None
        return super().train(*args, **kwargs)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns.append("teacher_logits")
            if self.teacher is not None:
                parameters = inspect.signature(self.teacher.forward).parameters
                self._signature_columns += [f"{TEACHER_PREFIX}{name}" for name in parameters]

    @torch.no_grad()
    def run_teacher(self, inputs, teacher_inputs):
        """
        The frozen teacher's logits of a batch.

        Args:
            inputs (`dict[str, torch.Tensor]`): The student's, used where `teacher_inputs` is empty.
            teacher_inputs (`dict[str, torch.Tensor]`): The teacher's, without their prefix.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`, float32, in the student's label order.
        """
        if not teacher_inputs and self.teacher_has_own_tokens:
            raise ValueError(
                "the teacher has a tokenizer of its own and the rows have no teacher_input_ids: make them with "
                "kd_trainer.tokenize(dataset, tokenizer, max_length, teacher_tokenizer, teacher_max_length)"
            )
        with self.accelerator.autocast():
            logits = self.teacher(**(teacher_inputs or inputs)).logits.float()
        return logits if self.teacher_order is None else logits[:, self.teacher_order]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        student_inputs = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
        teacher_inputs = {
            name.removeprefix(TEACHER_PREFIX): value
            for name, value in inputs.items()
            if name.startswith(TEACHER_PREFIX) and name != "teacher_logits"
        }
        labels = student_inputs.pop("labels", None)
        teacher_logits = inputs.get("teacher_logits")
        if teacher_logits is None and self.teacher is not None:
            teacher_logits = self.run_teacher(student_inputs, teacher_inputs)
        elif teacher_logits is None and model.training:
            raise ValueError("neither a teacher_logits column nor a teacher: pass teacher= or add the column")

        outputs = model(**student_inputs)
        student_logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        rows = len(student_logits)

        task, labelled = student_logits.new_zeros(rows, dtype=torch.float32), 0
        if labels is not None:
            task = task_loss(student_logits, labels, self.problem_type, self.args.label_smoothing_factor)
            labelled = (labels.reshape(rows, -1) != -100).all(dim=-1).sum()
        if teacher_logits is None:
            losses, kd = task, None
        else:
            kd = self.distillation_loss(student_logits, teacher_logits)
            losses = self.args.alpha * task + (1 - self.args.alpha) * kd
        self.record_parts("train" if model.training else "eval", task, labelled, kd)

        loss = self.scale_loss(model, rows, losses.mean())
        if not return_outputs:
            return loss
        return loss, outputs if isinstance(outputs, dict) else (loss, *outputs)

    def distillation_loss(self, student_logits, teacher_logits):
        """The loss that `--kd_loss` names: two `(batch_size, num_labels)` logits to `(batch_size,)` values."""
        if self.args.kd_loss == "mse":
            return logit_mse_loss(student_logits, teacher_logits)
        return kl_distillation_loss(student_logits, teacher_logits, self.args.temperature)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if inputs.get("labels") is None:
            # Without labels the Trainer calls the model itself, which knows no teacher columns.
            inputs = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def record_parts(self, mode, task, labelled, kd):
        """Adds a batch to the sums of both parts, on the device: reading them here would make it wait."""
        kd_sum, kd_rows = (0.0, 0) if kd is None else (kd.detach().sum(), len(kd))
        values = [task.detach().sum(), labelled, kd_sum, kd_rows]
        sums = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=task.device) for value in values])
        self.part_sums[mode] = sums if self.part_sums[mode] is None else self.part_sums[mode] + sums

    def take_parts(self, mode, prefix=""):
        """Means of both parts since the last call, over all processes: `dict[str, float]`."""
        sums, self.part_sums[mode] = self.part_sums[mode], None
        if sums is None:
            return {}
        task_sum, task_rows, kd_sum, kd_rows = self.accelerator.reduce(sums, reduction="sum").tolist()
        parts = {}
        if task_rows:
            parts[f"{prefix}task_loss"] = task_sum / task_rows
        if kd_rows:
            parts[f"{prefix}kd_loss"] = kd_sum / kd_rows
        return parts

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs = {**logs, **self.take_parts("train")}
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        self.part_sums["eval"] = None
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(self.take_parts("eval", f"{metric_key_prefix}_"))
        return output
