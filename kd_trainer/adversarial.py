"""
Perturbations of a model's input embeddings that make its loss worse: FGM, PGD and FreeLB.

Nothing of the model is written to. A forward hook adds `delta` to what the input embeddings return, and the gradient of
the loss with respect to `delta`, by `torch.autograd.grad`, says where to go: it belongs to this batch alone, whatever
gradients are being accumulated.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from .errors import InputError

METHODS = ("fgm", "pgd", "freelb")


@dataclass(frozen=True)
class Attack:
    """
    How a perturbation is looked for. Its norm is the L2 norm, of everything that is added to one text
    (`scope="example"`) or of the change of the whole embedding matrix that a batch is embedded with (`scope="matrix"`).

    | method | ascents from δ = 0 | size of one | which losses count |
    | --- | --- | --- | --- |
    | `"fgm"` | 1 | epsilon | of the perturbed embeddings |
    | `"pgd"` | steps | alpha, then into the ball of radius epsilon | of the last δ |
    | `"freelb"` | steps − 1 | as PGD | mean of every δ but 0 |

    FreeLB's `steps` are its passes, the first of them over clean embeddings (δ₀ = 0, which the paper draws at random);
    the clean loss keeps the weight that it has with the other methods.

    Args:
        method (`str`): `"fgm"`, `"pgd"` or `"freelb"`.
        epsilon (`float`, *optional*, defaults to 1.0): Largest norm, in units of the embeddings.
        alpha (`float`, *optional*, defaults to 0.3): Size of a step of PGD and FreeLB, in the same units.
        steps (`int`, *optional*, defaults to 3): Of PGD and FreeLB; FreeLB needs 2.
        scope (`str`, *optional*, defaults to `"example"`): `"example"`, or `"matrix"`: every occurrence of a token in
            the batch is moved alike, as if the embedding matrix were.

    Raises:
        `ValueError`: For a method or scope that does not exist, or a number out of range.

    Sources: Miyato et al. 2017, https://arxiv.org/abs/1605.07725 (FGM); Madry et al. 2018,
    https://arxiv.org/abs/1706.06083 (PGD); Zhu et al. 2020, https://arxiv.org/abs/1909.11764 (FreeLB)
    """

    method: Literal["fgm", "pgd", "freelb"]
    epsilon: float = 1.0
    alpha: float = 0.3
    steps: int = 3
    scope: Literal["example", "matrix"] = "example"

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"adversarial is {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.scope not in ("example", "matrix"):
            raise ValueError(f"adversarial_scope is {self.scope!r}: choose 'example' or 'matrix'")
        for name in ("epsilon", "alpha"):
            # Beyond these, squares leave the range of float32.
            if not 1e-12 <= getattr(self, name) <= 1e12:
                raise ValueError(f"adversarial_{name} is {getattr(self, name)}: it must be between 1e-12 and 1e12")
        least = 2 if self.method == "freelb" else 1
        if self.steps < least:
            raise ValueError(f"adversarial_steps is {self.steps}: {self.method} needs at least {least}")

    @property
    def ascents(self):
        """How often a gradient is followed."""
        return {"fgm": 1, "pgd": self.steps, "freelb": self.steps - 1}[self.method]

    def ascend(self, delta, gradient, unit=1.0):
        """
        One step up, back into the ball.

        Args:
            delta (`torch.Tensor`): `(batch_size, sequence_length, width)` by example, `(num_tokens, width)` by matrix.
            gradient (`torch.Tensor`): Of the loss, of the same shape. Its scale does not matter.
            unit (`float` or `torch.Tensor` of shape `(batch_size, 1, 1)`, *optional*, defaults to 1.0): What epsilon
                and alpha are multiples of.

        Returns:
            `tuple`: The new delta, detached, and what was skipped (`torch.BoolTensor`, one value per example or one):
            where the gradient is not finite, delta stays as it is.
        """
        dims = tuple(range(1, delta.dim())) if self.scope == "example" else tuple(range(delta.dim()))
        epsilon = self.epsilon * unit
        step = epsilon if self.method == "fgm" else self.alpha * unit
        largest = gradient.abs().amax(dims, keepdim=True)
        finite = largest.isfinite()
        # Divided by the largest entry first: the squares of a small gradient would vanish in float32.
        direction = torch.where(finite, gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny), 0.0)
        direction = direction / torch.linalg.vector_norm(direction, dim=dims, keepdim=True).clamp_min(1.0)
        delta = delta.detach() + step * direction
        norm = torch.linalg.vector_norm(delta, dim=dims, keepdim=True)
        return delta * (epsilon / norm.clamp_min(1e-30)).clamp_max(1.0), ~finite.flatten()


def input_embeddings(model):
    """The module that looks a model's `input_ids` up."""
    # In an encoder-decoder the matrix that both sides share is a module that nobody calls.
    return (model.get_encoder() if model.config.is_encoder_decoder else model).get_input_embeddings()


class PerturbedEmbeddings:
    """
    While it is open, `embedding` returns its output plus `delta`, which starts as zeros that want a gradient. Padding
    is never perturbed.

    Args:
        embedding (`torch.nn.Module`): A model's input embeddings, called once per forward (see [`input_embeddings`]).
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Non-zero for real tokens.
        pad_token_id (`int`, *optional*): Marks the padding where there is no mask.
        scope (`str`, *optional*, defaults to `"example"`): As in [`Attack`].
        input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): What the model is given;
            checked against what it embeds.

    Raises:
        `InputError` (a `ValueError`): In the forward, for a mask of another shape, or a model that embeds anything but
            its `input_ids`, once.
    """

    def __init__(self, embedding, attention_mask=None, pad_token_id=None, scope="example", input_ids=None):
        self.embedding = embedding
        self.attention_mask = attention_mask
        self.pad_token_id = pad_token_id
        self.scope = scope
        self.input_ids = input_ids
        self.delta = self.mask = self.tokens = self.clean = None
        self.calls = 0

    def __enter__(self):
        self.handle = self.embedding.register_forward_hook(self.perturb, with_kwargs=True)
        return self

    def __exit__(self, *exception):
        self.handle.remove()

    def perturb(self, module, args, kwargs, output):
        self.calls += 1
        if self.delta is None:
            self.start(args[0] if args else kwargs["input"], output)
        elif output.shape != self.clean.shape:
            raise InputError("the model embeds other texts besides: adversarial training cannot tell which to perturb")
        # By matrix delta has a row for every different token of the batch.
        added = self.delta if self.tokens is None else F.embedding(self.tokens, self.delta)
        return output + (added * self.mask).to(output.dtype)

    def start(self, embedded_ids, output):
        """Mask and zero perturbation of a batch."""
        if not isinstance(output, torch.Tensor):
            raise InputError(
                f"the input embeddings return a {type(output).__name__}: adversarial training needs a tensor"
            )
        given = self.input_ids
        if given is not None and not torch.equal(embedded_ids[:, : given.shape[1]], given):
            raise InputError(
                "the model embeds something else than its input_ids: adversarial training cannot find them"
            )
        mask = self.attention_mask
        if mask is None and self.pad_token_id is not None:
            mask = embedded_ids != self.pad_token_id
        elif mask is None:
            mask = torch.ones_like(embedded_ids)
        if mask.dim() != 2 or len(mask) != len(output) or mask.shape[1] > output.shape[1]:
            raise InputError(
                f"attention_mask {tuple(mask.shape)} does not fit embeddings {tuple(output.shape)}: adversarial "
                "training needs a mask of (batch_size, sequence_length)"
            )
        # Some models pad on the right by themselves: to whole windows, or texts without any token to one.
        mask = F.pad(mask, (0, output.shape[1] - mask.shape[1]))
        self.mask = (mask != 0)[..., None].to(torch.float32)
        shape = output.shape
        if self.scope == "matrix":
            tokens, self.tokens = embedded_ids.unique(return_inverse=True)
            shape = (len(tokens), shape[-1])
        self.delta = torch.zeros(shape, dtype=torch.float32, device=output.device, requires_grad=True)
        self.clean = output.detach()

    def norms(self):
        """L2 norm of every text's clean embeddings, `(batch_size, 1, 1)`."""
        return torch.linalg.vector_norm(self.clean.float() * self.mask, dim=(1, 2), keepdim=True)

    def check_calls(self, forwards):
        """
        Raises:
            `InputError`: Unless the model has embedded its input once in each of `forwards` forwards.
        """
        if self.calls != forwards:
            often = "does not call" if self.calls == 0 else "calls more than once in a forward"
            raise InputError(f"the model {often} its input embeddings: adversarial training needs one call")


class KnownGradient(torch.autograd.Function):
    """
    A loss whose gradient has been taken already: `backward` hands it on instead of walking the graph a second time.
    """

    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_output):
        return None, None, *(gradient * grad_output for gradient in ctx.gradients)


def adversarial_losses(attack, perturbed, forward, parameters, scale=1.0):
    """
    The loss of a batch, and its loss where the embeddings are perturbed against it. One `backward` of their sum gives
    the gradient of both.

    The gradient that shows where to go is the clean loss's own, so it is taken for the parameters in the same walk and
    kept: a second walk through the graph would cost as much again.

    Args:
        attack ([`Attack`]): What to look for.
        perturbed ([`PerturbedEmbeddings`]): Open, fresh.
        forward (`Callable[[], torch.Tensor]`): The loss of the batch, a scalar; called `attack.ascents + 1` times.
        parameters (`list[torch.nn.Parameter]`): Those that are trained.
        scale (`float` or `torch.Tensor`, *optional*): Of the loss when a gradient is taken, against underflow in half
            precision (a `GradScaler`'s). The result does not depend on it.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: Clean loss, adversarial loss (scalars with gradient), and
        what was skipped, a `bool` for every example (or one for the matrix): its gradient was not finite somewhere.

    Raises:
        `InputError` (a `ValueError`): When the model does not call its input embeddings once in a forward.
    """
    clean = loss = forward()
    perturbed.check_calls(1)
    every_pass_counts = attack.method == "freelb"
    known, skipped, adversarial = [None] * len(parameters), False, 0.0
    for ascent in range(attack.ascents):
        last = ascent == attack.ascents - 1
        weight = 1.0 if ascent == 0 else 1.0 / attack.ascents
        kept = parameters if ascent == 0 or every_pass_counts else []
        gradient, *gradients = torch.autograd.grad(loss * scale, [perturbed.delta, *kept], allow_unused=True)
        if gradient is None:
            raise InputError("the loss does not depend on the input embeddings: there is nothing to perturb")
        for index, value in enumerate(gradients):
            if value is not None:
                value = value * (weight / scale)
                known[index] = value if known[index] is None else known[index] + value
        delta, not_finite = attack.ascend(perturbed.delta, gradient)
        skipped = not_finite | skipped
        perturbed.delta = delta.requires_grad_(not last)
        loss = forward()
        perturbed.check_calls(ascent + 2)
        if every_pass_counts:
            adversarial = adversarial + (loss if last else loss.detach()) / attack.ascents
    if not every_pass_counts:
        adversarial = loss
    # Only parameters that have a gradient: DDP has marked those that the forward leaves out already.
    used = [index for index, gradient in enumerate(known) if gradient is not None]
    gradients, used = [known[index] for index in used], [parameters[index] for index in used]
    return KnownGradient.apply(clean.detach(), gradients, *used), adversarial, skipped
