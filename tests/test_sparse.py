"""A sparse gradient is trained on as the dense one of the same numbers would be, row by row."""

import copy

import pytest
import torch
from torch import nn

from kd_trainer.sparse import LazyAdamW, clip_grad_norm, sparse_names


class Net(nn.Module):
    def __init__(self, sparse=True):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 4, padding_idx=0, sparse=sparse)
        self.out = nn.Linear(4, 2)

    def forward(self, ids):
        return self.out(self.table(ids).sum(dim=1)).square().sum()


def batch(step):
    return torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(step))


def run(model, optimizers, steps=5, max_norm=None):
    for step in range(steps):
        model(batch(step)).backward()
        if max_norm is not None:
            clip_grad_norm(model.parameters(), max_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-7)


def test_names_are_those_of_the_sparse_tables():
    assert sparse_names(Net()) == {"table.weight"}
    assert sparse_names(Net(sparse=False)) == set()
    assert sparse_names(nn.Embedding(3, 2, sparse=True)) == {"weight"}


def test_it_is_adamw_on_dense_gradients():
    one, other = Net(sparse=False), Net(sparse=False)
    settings = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    equal(
        run(one, [LazyAdamW(one.parameters(), **settings)]),
        run(other, [torch.optim.AdamW(other.parameters(), **settings)]),
    )


def test_it_is_sparse_adam_on_sparse_gradients():
    one, other = Net(), Net()
    lazy = LazyAdamW(one.parameters(), lr=0.01, weight_decay=0.0)
    parts = [
        torch.optim.SparseAdam(other.table.parameters(), lr=0.01),
        torch.optim.AdamW(other.out.parameters(), lr=0.01, weight_decay=0.0),
    ]
    equal(run(one, [lazy]), run(other, parts))


def test_rows_outside_the_batch_stay_and_those_in_it_decay():
    model = Net()
    before = copy.deepcopy(model.table.weight.data)
    optimizer = LazyAdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    ids = torch.tensor([[3, 3, 7]])
    for _ in range(2):
        (model(ids) * 0).backward()  # no gradient but the decay
        optimizer.step()
        optimizer.zero_grad()
    expected = before.clone()
    expected[[3, 7]] *= (1 - 0.1 * 0.5) ** 2
    torch.testing.assert_close(model.table.weight.data, expected)


def test_a_weight_has_a_rate_of_its_own():
    slow, fast = Net(), Net()
    run(slow, [LazyAdamW(slow.parameters(), lr=0.05)], steps=1)
    run(fast, [LazyAdamW(fast.parameters(), row_rates={fast.table.weight: 5.0}, lr=0.01)], steps=1)
    torch.testing.assert_close(fast.table.weight, slow.table.weight)
    assert not torch.allclose(fast.out.weight, slow.out.weight)


def test_the_gradient_is_there_after_the_step():
    model = Net()
    optimizer = LazyAdamW(model.parameters(), lr=0.1)
    model(batch(0)).backward()
    gradient = model.table.weight.grad.to_dense().clone()
    optimizer.step()
    assert torch.equal(model.table.weight.grad.to_dense(), gradient)


def test_a_saved_optimizer_goes_on_as_if_nothing_had_been(tmp_path):
    whole, halves = Net(), Net()
    run(whole, [LazyAdamW(whole.parameters(), lr=0.01)], steps=6)
    optimizer = LazyAdamW(halves.parameters(), lr=0.01)
    for step in range(6):
        if step == 3:
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
            optimizer = LazyAdamW(halves.parameters(), lr=0.01)
            optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        halves(batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    equal(whole.state_dict(), halves.state_dict())


@pytest.mark.parametrize("max_norm", [0.01, 1e9, float("inf")])
def test_clipping_is_torchs_on_the_dense_gradient(max_norm):
    sparse, dense = Net(), Net(sparse=False)
    for step in range(2):  # two micro-batches: the sparse gradient holds rows several times
        sparse(batch(step)).backward()
        dense(batch(step)).backward()
    found = clip_grad_norm(sparse.parameters(), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sparse.table.weight.grad.to_dense(), dense.table.weight.grad)
    torch.testing.assert_close(sparse.out.weight.grad, dense.out.weight.grad)


def test_the_work_of_a_step_is_that_of_its_rows():
    model = nn.Embedding(10_000, 4, padding_idx=0, sparse=True)
    model(torch.tensor([[5, 5, 9, 0]])).sum().backward()
    clip_grad_norm(model.parameters(), 1.0)
    assert model.weight.grad.values().shape == (2, 4)  # no padding, no row twice
