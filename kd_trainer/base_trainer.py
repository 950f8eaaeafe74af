"""A `Trainer` whose loss is exact for rows, whose predictions keep their order, which logs the parts of its loss."""

import datasets
import numpy as np
import torch
from accelerate.data_loader import get_sampler
from accelerate.utils import find_batch_size
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalPrediction, has_length

from .batches import token_lengths
from .errors import InputError
from .hub_trainer import HubTrainer
from .sparse import LazyAdamW, clip_grad_norm, sparse_names

# Learning rate of an n-gram table's rows over that of the rest. THUCNews, validation rows: 1 gives 89.2 %, 5 90.1 %.
ROW_RATE = 5.0


def has_tokens(dataset):
    """Whether the lengths of a data set's rows can be read from a column (see [`token_lengths`])."""
    return isinstance(dataset, datasets.Dataset) and "input_ids" in dataset.column_names


class LengthGrouped(LengthGroupedSampler):
    """
    Rows in random order, those of a batch of similar length: the same order in every process, and again in an epoch
    that is resumed, which the Trainer's own has only by luck of the global random state.

    Args:
        batch_size (`int`): Rows of a whole step, over all processes.
        lengths (`list[int]`): Of every row.
        seed (`int`): Of the first epoch; the next has the next.
        epoch (`Callable[[], int]`): The epoch that begins. Not `set_epoch`: accelerate does not reach a sampler that
            it has sharded and of which it skips the first batches.
    """

    def __init__(self, batch_size, lengths, seed, epoch):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return super().__iter__()


class LongestFirst(Sampler):
    """
    Rows by length, the longest first: little padding, and what does not fit into memory fails at once.

    Args:
        lengths (`list[int]`): Of every row.
    """

    def __init__(self, lengths):
        self.order = np.argsort(-np.asarray(lengths), kind="stable")

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return iter(self.order.tolist())

    def undo(self, values):
        """What was computed in this order, an array or a tuple of such, in the order of the rows."""
        if isinstance(values, (tuple, list)):
            return type(values)(self.undo(value) for value in values)
        if isinstance(values, dict):
            return {name: self.undo(value) for name, value in values.items()}
        if values is None:
            return None
        ordered = np.empty_like(values)
        ordered[self.order] = values
        return ordered


class ClassificationTrainer(HubTrainer):
    """
    A `Trainer` whose loss is the mean over the rows of a step, exact for any split of the step into micro-batches, and
    whose predictions come back in the order of the data.

    With `train_sampling_strategy="group_by_length"` an epoch has one order for any number of processes. Evaluation goes
    through the rows longest first, also in the loaders that `get_eval_dataloader` returns; `evaluate` and `predict` put
    the answers back into the order of the data.

    A subclass with a loss of its own overrides [`batch_loss`]; parts of it that it returns are in the logs.

    Args:
        As `transformers.Trainer`.
    """

    # compute_loss returns means of micro-batches: the Trainer divides by their number.
    loss_is_scaled_for_ga = False
    # The parts of the loss that are logged, as means over rows; a fixed list, because processes add theirs up in order.
    parts = ()
    # Those of them that are logged as a number of rows instead.
    counted_parts = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Releases before loss_is_scaled_for_ga (5.17 among them) ask this instead.
        self.model_accepts_loss_kwargs = False
        self.mean_micro_batch = None
        self.part_sums = {"train": None, "eval": None}
        self.clip_sparse_gradients()  # of a model that model_init has made by now

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.clip_sparse_gradients()  # a search makes an accelerator for every trial

    def clip_sparse_gradients(self):
        """Puts a clipping that takes sparse gradients in place of accelerate's, where the model has some."""
        if self.model is not None and sparse_names(self.model):
            self.accelerator.clip_grad_norm_ = self.clip_grad_norm

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        optimizer, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if model is None or not sparse_names(model):
            return optimizer, kwargs
        if optimizer is not torch.optim.AdamW:
            raise InputError(
                f"--optim {args.optim.value}: sparse embeddings and n-grams want adamw_torch: leave it out"
            )
        tokens = model.get_input_embeddings().weight if isinstance(model, PreTrainedModel) else None
        tables = [model.get_parameter(name) for name in sparse_names(model)]
        return LazyAdamW, {**kwargs, "row_rates": {table: ROW_RATE for table in tables if table is not tokens}}

    def get_decay_parameter_names(self, model):
        # A row would decay at the steps that touch it alone.
        tables = sparse_names(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in tables]

    def clip_grad_norm(self, parameters, max_norm, norm_type=2):
        """As `Accelerator.clip_grad_norm_`, for gradients of which some are sparse."""
        self.accelerator.unscale_gradients()
        return clip_grad_norm(parameters, max_norm)

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

    def batch_loss(self, model, inputs):
        """
        The mean loss of a batch. It may be called several times on the same batch and leaves `inputs` as they are.

        Args:
            model (`torch.nn.Module`): As the Trainer has wrapped it.
            inputs (`dict[str, torch.Tensor]`): With the labels.

        Returns:
            `tuple`: The loss (a scalar), the model's outputs, and the parts of the loss that are to be logged,
            `dict[str, tuple[torch.Tensor, int]]`: the sum over rows and the number of rows of each name in `parts`.
        """
        # A copy: label smoothing takes the labels out.
        loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
        return loss, outputs, {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs, parts = self.batch_loss(model, inputs)
        self.record_parts(model, parts)
        loss = self.scale_loss(model, self.count_rows(inputs), loss)
        return (loss, outputs) if return_outputs else loss

    def record_parts(self, model, parts):
        """Adds a batch to the sums that are logged, on the device: reading them here would make it wait."""
        if not parts:
            return
        mode = "train" if model.training else "eval"
        device = self.args.device
        rows = [parts.get(name, (0.0, 0)) for name in self.parts]
        values = [torch.as_tensor(value, dtype=torch.float32, device=device).detach() for row in rows for value in row]
        sums = torch.stack(values)
        self.part_sums[mode] = sums if self.part_sums[mode] is None else self.part_sums[mode] + sums

    def take_parts(self, mode, prefix=""):
        """Means (or counts) of the parts since the last call, over all processes: `dict[str, float]`."""
        sums, self.part_sums[mode] = self.part_sums[mode], None
        if sums is None:
            return {}
        sums = self.accelerator.reduce(sums, reduction="sum").reshape(-1, 2).tolist()
        return {
            f"{prefix}{name}": total if name in self.counted_parts else total / rows
            for name, (total, rows) in zip(self.parts, sums, strict=True)
            if rows
        }

    def train(self, *args, **kwargs):
        self.part_sums["train"] = None
        return super().train(*args, **kwargs)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs = {**logs, **self.take_parts("train")}
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        self.part_sums["eval"] = None
        sampler, compute_metrics = get_sampler(dataloader), self.compute_metrics
        sorts = isinstance(sampler, LongestFirst)
        if sorts and compute_metrics is not None:
            # They, too, may go by the order of the data.
            self.compute_metrics = lambda answers: compute_metrics(
                EvalPrediction(sampler.undo(answers.predictions), sampler.undo(answers.label_ids))
            )
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self.compute_metrics = compute_metrics
        output.metrics.update(self.take_parts("eval", f"{metric_key_prefix}_"))
        if not sorts:
            return output
        return output._replace(predictions=sampler.undo(output.predictions), label_ids=sampler.undo(output.label_ids))

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_tokens(dataset):
            return super()._get_train_sampler(train_dataset)
        # The Trainer reads the rows one by one for this: seconds at every start of an epoch.
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # A whole epoch may miss its number by rounding.
        return LengthGrouped(step, token_lengths(dataset), seed, lambda: int((self.state.epoch or 0) + 1e-6))

    def _get_eval_sampler(self, eval_dataset):
        # Several processes: accelerate shards the data set in its own order, and puts the answers together again.
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        args = self.args
        by_batch = args.batch_eval_metrics or args.include_for_metrics or not args.eval_do_concat_batches
        if has_tokens(eval_dataset) and not (by_batch or args.dataloader_drop_last):
            return LongestFirst(token_lengths(eval_dataset))
        return SequentialSampler(eval_dataset)
