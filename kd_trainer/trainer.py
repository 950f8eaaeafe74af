"""
Knowledge distillation inside a `transformers.Trainer`, with or without adversarial training.

[`DistillationTrainer.batch_loss`] is the whole idea: run the student, mix the loss against the labels with the loss
against the teacher's logits, which `compute_loss` has taken from the batch or from the frozen teacher.
[`AdversarialTrainer.compute_loss`] may ask for the same loss again, on perturbed embeddings. Everything else
(accumulation, mixed precision, DDP, checkpoints, callbacks, search) is the Trainer's own and is left alone.
"""

import inspect
import logging

import torch
from accelerate.utils import find_batch_size

from .adversarial import PerturbedEmbeddings, adversarial_losses, input_embeddings
from .arguments import AdversarialTrainingArguments, DistillationTrainingArguments
from .base_trainer import ClassificationTrainer
from .batches import TEACHER_PREFIX, DistillationCollator
from .errors import InputError
from .loading import named_labels
from .losses import (
    decoupled_distillation_loss,
    kl_distillation_loss,
    logit_mse_loss,
    soft_cross_entropy_loss,
    standardize_logits,
    task_loss,
    token_relation_loss,
)
from .teacher import align_labels

logger = logging.getLogger(__name__)


# The losses of --kd_loss that take a temperature.
KD_LOSSES = {"kl": kl_distillation_loss, "ce": soft_cross_entropy_loss, "dkd": decoupled_distillation_loss}


def first_and_last_states(outputs, what):
    """
    Embeddings and states of the last layer of a model of `transformers`, `tuple[torch.Tensor, torch.Tensor]`.

    Raises:
        `InputError` (a `ValueError`): For the outputs of one that does not return them (`what` it is), as an
            encoder-decoder, which has states of two texts.
    """
    states = outputs.get("hidden_states") if isinstance(outputs, dict) else None
    if not states:
        raise InputError(f"the {what} returns no hidden_states by name: leave its states out of the loss")
    return states[0], states[-1]


class AdversarialTrainer(ClassificationTrainer):
    """
    Adds to a batch's loss the same loss on embeddings that are perturbed to make it worse (see
    [`kd_trainer.adversarial.Attack`]). The sum goes through the Trainer's one backward, so that accumulation, gradient
    scaling, clipping and DDP need nothing special.

    Once it has set in, the logs carry `clean_loss` and `adversarial_loss`, whose sum is `loss`, and
    `adversarial_skipped`: the rows that were left unperturbed at some step because their gradient was not finite.
    Evaluation is never perturbed.

    Args:
        model (`PreTrainedModel`): Any of `transformers` with `get_input_embeddings()`; `model_init` works too.
        args ([`AdversarialTrainingArguments`]): `adversarial`, `adversarial_epsilon`, … and all of `TrainingArguments`.
        kwargs: As `transformers.Trainer`.

    Raises:
        `ValueError`: For arguments of another class, or a mode in which the perturbation cannot work.

    Example:

    ```python
    trainer = AdversarialTrainer(
        model=model, args=AdversarialTrainingArguments("outputs", adversarial="fgm"), train_dataset=dataset
    )
    trainer.train()
    ```
    """

    parts = ("clean_loss", "adversarial_loss", "adversarial_skipped")
    counted_parts = ("adversarial_skipped",)

    def __init__(self, model=None, args=None, **kwargs):
        if not isinstance(args, AdversarialTrainingArguments):
            raise ValueError(f"args is {type(args).__name__}: pass AdversarialTrainingArguments")
        super().__init__(model, args, **kwargs)
        # Not every configuration has one.
        self.pad_token_id = getattr(self.model.config, "pad_token_id", None)
        self.embeddings_known = False
        self.check_attack()

    @property
    def attack(self):
        """What the arguments name now: a search changes them from trial to trial."""
        return self.args.attack()

    def check_attack(self):
        """
        Raises:
            `InputError` (a `ValueError`): Where an embedding hook or a second forward in a step cannot work.
        """
        if self.attack is None:
            return
        args = self.args
        reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        refused = {
            "torch's DataParallel, whose replicas share one perturbation: launch with torchrun": args.n_gpu > 1,
            "--torch_compile, which would not see the perturbation: leave it out": args.torch_compile,
            "reentrant --gradient_checkpointing, which takes no torch.autograd.grad: set use_reentrant to false": (
                args.gradient_checkpointing and reentrant
            ),
            "FSDP, which shards the parameters: use DDP": self.is_fsdp_enabled,
            "--adversarial_scope matrix over several micro-batches, each with a norm of its own: use example": (
                args.adversarial_scope == "matrix" and args.gradient_accumulation_steps * args.world_size > 1
            ),
            "DeepSpeed, which shards or copies the parameters: use DDP": self.is_deepspeed_enabled,
        }
        for what, is_so in refused.items():
            if is_so:
                raise InputError(f"--adversarial {args.adversarial} cannot work with {what}")

    def attack_is_on(self):
        """Whether training has come to the share of its steps from which batches are perturbed."""
        return self.attack is not None and self.state.global_step >= self.args.adversarial_start * self.state.max_steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not (model.training and self.attack_is_on()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.check_attack()
        attack, rows = self.attack, self.count_rows(inputs)
        outputs, parts = None, None

        def forward():
            nonlocal outputs, parts
            loss, *rest = self.batch_loss(model, inputs)
            if outputs is None:  # the clean pass comes first, and is the one that is reported
                outputs, parts = rest
            return self.scale_loss(model, rows, loss)

        unwrapped = self.accelerator.unwrap_model(model)
        scaler = self.accelerator.scaler
        with PerturbedEmbeddings(
            input_embeddings(unwrapped),
            inputs.get("attention_mask"),
            self.pad_token_id,
            attack.scope,
            # A look at the first batch is enough, and costs a GPU a wait.
            None if self.embeddings_known else inputs.get("input_ids"),
        ) as perturbed:
            clean, adversarial, skipped = adversarial_losses(
                attack,
                perturbed,
                forward,
                [parameter for parameter in unwrapped.parameters() if parameter.requires_grad],
                scale=1.0 if scaler is None else scaler.scale(torch.ones((), device=self.args.device)),
            )
        self.embeddings_known = True
        # Back from a share of the step to a sum over rows.
        to_rows = rows if self.mean_micro_batch is None else self.mean_micro_batch
        parts["clean_loss"] = (clean * to_rows, rows)
        parts["adversarial_loss"] = (adversarial * to_rows, rows)
        parts["adversarial_skipped"] = (skipped.float().mean() * find_batch_size(inputs), rows)
        self.record_parts(model, parts)
        loss = clean + adversarial
        return (loss, outputs) if return_outputs else loss


class DistillationTrainer(AdversarialTrainer):
    """
    Trains a student on the labels and on what a teacher says, `alpha · task loss + (1 − alpha) · distillation loss` for
    every row; a row without a label (−100, or none in the batch) has the second part alone.

    The teacher's logits come from the first of these that is there:

    1. a column `teacher_logits` of the data set, in the student's label order (see [`kd_trainer.cached_logits`]);
    2. `teacher`, run without gradient on the columns `teacher_input_ids`, `teacher_attention_mask`, …;
    3. `teacher`, run on the student's own columns, when both share a tokenizer.

    Evaluation without any of them has the task loss alone. Both parts are logged as `task_loss` and `kd_loss`, with the
    prefix of the evaluation where it has one. With `adversarial`, the perturbed pass has the same loss against the same
    teacher's logits; the two parts are those of the clean pass.

    `hidden_loss_weight` and `embedding_loss_weight` add the distance between both models' states to the second part
    (see [`token_relation_loss`]), logged without these weights as `hidden_loss` and `embedding_loss`. They need the
    third way: states of every token are too large to be kept, and are compared where both models have the same tokens.

    Args:
        model (`PreTrainedModel`): The student; `model_init` works too.
        args ([`DistillationTrainingArguments`]): `alpha`, `temperature`, `kd_loss` and all of `TrainingArguments`.
        teacher (`PreTrainedModel`, *optional*): Frozen. Its labels are matched to the student's by name.
        teacher_order (`list[int]`, *optional*): `teacher_logits[:, teacher_order]` is in the student's order (see
            [`kd_trainer.align_labels`]), where names do not say it. Not applied to a `teacher_logits` column.
        teacher_processing_class (`PreTrainedTokenizerBase`, *optional*): Pads the `teacher_` columns.
        kwargs: As `transformers.Trainer`. The default collator is [`DistillationCollator`].

    Raises:
        `ValueError`: For arguments of another class, a KL loss where labels do not exclude each other, or weights of
            states where the teacher does not run on the student's columns.

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

    parts = (*AdversarialTrainer.parts, "task_loss", "kd_loss", "hidden_loss", "embedding_loss")

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
        self.check_states()
        if teacher is not None and teacher_order is None:
            self.teacher_order = self.match_labels()
        if teacher is not None:
            # Not prepared by the accelerator: without gradients it needs no wrapper, and a second prepared model would
            # be saved and counted with the student.
            teacher.to(self.args.device).eval().requires_grad_(False)
        config = self.model.config
        usual = "regression" if config.num_labels == 1 else "single_label_classification"
        self.problem_type = config.problem_type or usual
        if args.kd_loss in KD_LOSSES and self.problem_type != "single_label_classification":
            raise ValueError(
                f"kd_loss {args.kd_loss!r} compares labels that exclude each other, not {self.problem_type}: use 'mse'"
            )
        if args.standardize_logits and config.num_labels < 3:
            # Of two logits nothing is left but which is the greater one, and that has no gradient.
            raise InputError(
                f"--standardize_logits leaves nothing to learn of {config.num_labels} labels: leave it out"
            )

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

    def check_states(self, inputs=()):
        """
        Raises:
            `InputError` (a `ValueError`): Where states are to be compared and the teacher does not run on the student's
                columns, as far as the columns `inputs` of a batch show.
        """
        refused = {
            "there is no teacher": self.teacher is None,
            "the teacher has a tokenizer of its own": self.teacher_has_own_tokens,
            "the rows have columns of the teacher": any(name.startswith(TEACHER_PREFIX) for name in inputs),
        }
        for name in self.args.state_weights:
            for what, is_so in refused.items():
                if is_so:
                    raise InputError(
                        f"{name}_weight compares both models' states of the same tokens, and {what}: pass a teacher= "
                        "that reads the student's input_ids, and rows without teacher_ columns"
                    )

    def count_rows(self, inputs):
        # A row without a label counts too: it has the teacher's part.
        return find_batch_size(inputs)

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
        The frozen teacher's logits of a batch, and its states where they are to be compared.

        Args:
            inputs (`dict[str, torch.Tensor]`): The student's, used where `teacher_inputs` is empty.
            teacher_inputs (`dict[str, torch.Tensor]`): The teacher's, without their prefix.

        Returns:
            `tuple`: The logits, `torch.Tensor` of shape `(batch_size, num_labels)`, float32, in the student's label
            order; the states of its embeddings and of its last layer, both `(batch_size, sequence_length, width)`, or
            None.
        """
        if not teacher_inputs and self.teacher_has_own_tokens:
            raise ValueError(
                "the teacher has a tokenizer of its own and the rows have no teacher_input_ids: make them with "
                "kd_trainer.tokenize(dataset, tokenizer, max_length, teacher_tokenizer, teacher_max_length)"
            )
        asked = {"output_hidden_states": True} if self.args.state_weights else {}
        with self.accelerator.autocast():
            outputs = self.teacher(**(teacher_inputs or inputs), **asked)
        logits = outputs.logits.float()
        logits = logits if self.teacher_order is None else logits[:, self.teacher_order]
        return logits, first_and_last_states(outputs, "teacher") if asked else None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.check_states(inputs)
        # Once for every batch: a perturbed student is compared with the same teacher, whose input nobody perturbs.
        batch = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
        teacher_inputs = {
            name.removeprefix(TEACHER_PREFIX): value
            for name, value in inputs.items()
            if name.startswith(TEACHER_PREFIX) and name != "teacher_logits"
        }
        teacher_logits, teacher_states = inputs.get("teacher_logits"), None
        if teacher_logits is None and self.teacher is not None:
            unlabelled = {name: value for name, value in batch.items() if name != "labels"}
            teacher_logits, teacher_states = self.run_teacher(unlabelled, teacher_inputs)
        elif teacher_logits is None and model.training:
            raise ValueError("neither a teacher_logits column nor a teacher: pass teacher= or add the column")
        batch["teacher_logits"], batch["teacher_states"] = teacher_logits, teacher_states
        return super().compute_loss(model, batch, return_outputs, num_items_in_batch)

    def batch_loss(self, model, inputs):
        student_inputs = dict(inputs)
        labels, teacher_logits = student_inputs.pop("labels", None), student_inputs.pop("teacher_logits")
        teacher_states = student_inputs.pop("teacher_states", None)
        outputs = model(**student_inputs, **({} if teacher_states is None else {"output_hidden_states": True}))
        student_logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        rows = len(student_logits)

        task, kd = self.row_losses(student_logits, labels, teacher_logits)
        labelled = 0 if labels is None else (labels.reshape(rows, -1) != -100).all(dim=-1).sum()
        parts = {"task_loss": (task.sum(), labelled)}
        if kd is not None:
            parts["kd_loss"] = (kd.sum(), rows)
        if teacher_states is not None:
            for name, values in self.state_losses(outputs, teacher_states, student_inputs).items():
                parts[name] = (values.sum(), rows)
                kd = kd + self.args.state_weights[name] * values
            # Evaluation would collect them.
            outputs = type(outputs)(**{name: value for name, value in outputs.items() if name != "hidden_states"})
        loss = self.mix(task, kd).mean()
        # A student with n-grams is also taught by what these say alone, see StudentConfig.ngram_loss_weight.
        ngram_logits = outputs.get("ngram_logits") if isinstance(outputs, dict) else None
        if ngram_logits is not None:
            weight = self.accelerator.unwrap_model(model).config.ngram_loss_weight
            loss = loss + weight * self.mix(*self.row_losses(ngram_logits, labels, teacher_logits)).mean()
        return loss, outputs if isinstance(outputs, dict) else (loss, *outputs), parts

    def row_losses(self, student_logits, labels, teacher_logits):
        """Cross-entropy with the labels and distance from the teacher, `(batch_size,)` each; None without a teacher."""
        task, kd = student_logits.new_zeros(len(student_logits), dtype=torch.float32), None
        if labels is not None:
            task = task_loss(student_logits, labels, self.problem_type, self.args.label_smoothing_factor)
        if teacher_logits is not None:
            kd = self.distillation_loss(student_logits, teacher_logits)
        return task, kd

    def state_losses(self, outputs, teacher_states, inputs):
        """What `state_weights` names, `(batch_size,)` each: how far the student's states are from the teacher's."""
        mask = inputs.get("attention_mask")
        if mask is None:  # as students do; without a pad_token_id every token is real
            mask = inputs["input_ids"] != (-1 if self.pad_token_id is None else self.pad_token_id)
        student_states = first_and_last_states(outputs, "student")
        places = {"embedding_loss": 0, "hidden_loss": 1}
        return {
            name: token_relation_loss(student_states[places[name]], teacher_states[places[name]], mask)
            for name in self.args.state_weights
        }

    def mix(self, task, kd):
        """`alpha` · task + (1 − `alpha`) · kd, or the task alone where there is no teacher."""
        alpha = self.scheduled(self.args.alpha, self.args.final_alpha)
        return task if kd is None else alpha * task + (1 - alpha) * kd

    def distillation_loss(self, student_logits, teacher_logits):
        """The loss that `--kd_loss` names: two `(batch_size, num_labels)` logits to `(batch_size,)` values."""
        if self.args.standardize_logits:
            student_logits, teacher_logits = standardize_logits(student_logits), standardize_logits(teacher_logits)
        if self.args.kd_loss == "mse":
            return logit_mse_loss(student_logits, teacher_logits)
        temperature = self.scheduled(self.args.temperature, self.args.final_temperature)
        return KD_LOSSES[self.args.kd_loss](student_logits, teacher_logits, temperature)

    def scheduled(self, first, final):
        """A number that goes from `first` to `final` in a straight line over the training; None for one that stays."""
        if final is None or self.state.max_steps <= 0:
            return first
        return first + (final - first) * min(1.0, self.state.global_step / self.state.max_steps)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if inputs.get("labels") is None:
            # Without labels the Trainer calls the model itself, which knows no teacher columns.
            inputs = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
