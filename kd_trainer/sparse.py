"""AdamW and clipping for a table of which a step touches a few rows, at the cost of those rows."""

import torch


def sparse_names(model):
    """Names (`set[str]`) of the weights whose gradient is sparse: those of `nn.Embedding(sparse=True)`."""
    tables = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, tables) and module.sparse
    }


class LazyAdamW(torch.optim.AdamW):
    """
    `torch.optim.AdamW` that also takes sparse gradients. Of a weight that has one, a step moves the rows in the
    gradient alone, and their moments, as `torch.optim.SparseAdam` does; weight decay, too, touches those rows alone.

    Args:
        params (iterable): As `torch.optim.AdamW`.
        row_rates (`dict[torch.Tensor, float]`, *optional*): By weight, the learning rate of those rows as a multiple of
            `lr`, 1 where nothing is said: a row that is met seldom must learn from each time.
        kwargs: As `torch.optim.AdamW`, without `amsgrad` and `maximize`.
    """

    def __init__(self, params, row_rates=None, **kwargs):
        super().__init__(params, **kwargs)
        self.row_rates = row_rates or {}

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = []
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.grad.is_sparse:
                    held.append((param, param.grad))
                    self.step_rows(group, param, param.grad.coalesce())
                    param.grad = None  # AdamW passes over a weight without a gradient
        super().step()
        for param, grad in held:
            param.grad = grad
        return loss

    def step_rows(self, group, param, grad):
        """
        Adam with bias correction on the rows of one weight.

        Args:
            group (`dict`): With `lr`, `betas`, `eps` and `weight_decay`.
            param (`torch.Tensor` of shape `(num_rows, width)`): The weight.
            grad (`torch.Tensor`): Sparse, coalesced.
        """
        state = self.state[param]
        if not state:
            # The names and kinds of AdamW's own state, so that a checkpoint is saved and loaded as any other.
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        state["step"] += 1
        rows, values = grad.indices()[0], grad.values().to(param.dtype)
        if len(rows) == 0:
            return
        beta1, beta2 = group["betas"]
        steps, rate = state["step"].item(), self.row_rates.get(param, 1.0) * float(group["lr"])
        mean = state["exp_avg"][rows].lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        scale = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        moved = param[rows].mul_(1 - rate * group["weight_decay"])
        param[rows] = moved.addcdiv_(mean, scale, value=-rate / (1 - beta1**steps))


def clip_grad_norm(parameters, max_norm):
    """
    `torch.nn.utils.clip_grad_norm_` (norm 2) that also takes sparse gradients, which it coalesces: a row that stands in
    one several times counts by its sum.

    Args:
        parameters (iterable of `torch.Tensor`): Those without a gradient do not count.
        max_norm (`float`): Largest norm of all gradients as one vector.

    Returns:
        `torch.Tensor`: The norm before.
    """
    values = []
    for param in parameters:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            param.grad = param.grad.coalesce()
        values.append(param.grad.values() if param.grad.is_sparse else param.grad)
    norm = torch.nn.utils.get_total_norm(values)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.device))
    return norm
