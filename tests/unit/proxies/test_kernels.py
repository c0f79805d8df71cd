"""Each kernel equals its one-line definition, and so do its gradients."""

import pytest
import torch
import torch.nn.functional as F

from mixopt.proxies.kernels import (
    Pairs,
    combine,
    dispatch,
    grouped_matmul,
    rms_norm,
    swiglu,
    thin_matmul,
)  # fmt: skip


def random_tensor(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def _pairs():
    """Tokens 0, 1, 3 with 2, 1, 2 pairs; token 2 has none, group 1 neither."""
    group, token = torch.tensor([2, 0, 2, 0, 3]), torch.tensor([0, 0, 1, 3, 3])
    return Pairs.sort(group, token, torch.tensor([0, 2, 3, 3]), 4), group, token


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("counts", [[2, 0, 5], [0, 7, 0], [0, 0, 0]])
def test_grouped_matmul_and_its_gradients_equal_a_loop(library, counts, monkeypatch):
    if not library:
        monkeypatch.setattr("mixopt.proxies.kernels._GROUPED_MM", None)
    x, weight, grad = (
        random_tensor(*shape, seed=i) for i, shape in enumerate([(sum(counts), 16), (3, 16, 8), (sum(counts), 8)])
    )
    x, weight, grad = (t.detach().float().requires_grad_() for t in (x, weight, grad))
    got = grouped_matmul(x, weight, torch.tensor(counts).cumsum(0).to(torch.int32))
    expected = torch.cat([rows @ matrix for rows, matrix in zip(x.split(counts), weight, strict=True)])
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(y, (x, weight), grad.detach()) for y in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_grouped_matmul_takes_rows_that_the_library_does_not():
    x, weight = random_tensor(5, 3), random_tensor(3, 3, 2, seed=1)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda a, b: grouped_matmul(a, b, ends), (x, weight))


@pytest.mark.parametrize("columns", [3, 9])
def test_thin_matmul_and_its_gradient(columns):
    x, weight = random_tensor(2, 5, 4), random_tensor(2, 4, columns, seed=1)
    torch.testing.assert_close(thin_matmul(x, weight), torch.bmm(x, weight))
    assert torch.autograd.gradcheck(thin_matmul, (x, weight))


def test_pairs_are_sorted_by_group_and_can_be_found_again():
    pairs, group, token = _pairs()
    assert pairs.counts_G.tolist() == [2, 0, 2, 1]
    assert torch.equal(pairs.token_P[pairs.place_P], token)
    assert group[torch.argsort(pairs.place_P)].tolist() == [0, 0, 2, 2, 3]


def test_dispatch_and_combine_are_a_weighted_sum_over_a_tokens_pairs():
    pairs, _, token = _pairs()
    x, gates = random_tensor(4, 3), random_tensor(5, seed=1)
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, token, gates.detach())
    torch.testing.assert_close(combine(dispatch(x, pairs), gates, pairs), x * sums.unsqueeze(1))
    assert torch.autograd.gradcheck(lambda a: dispatch(a, pairs), (x,))
    assert torch.autograd.gradcheck(lambda a, g: combine(a, g, pairs), (random_tensor(5, 3, seed=2), gates))


def test_swiglu_and_its_gradient():
    x = random_tensor(3, 4, 6)
    torch.testing.assert_close(swiglu(x), F.silu(x[..., :3]) * x[..., 3:])
    assert torch.autograd.gradcheck(swiglu, (x,))


def test_norm_and_its_gradient():
    x, gain = random_tensor(2, 5, 6), random_tensor(2, 6, seed=1)
    torch.testing.assert_close(rms_norm(x, gain), F.rms_norm(x, (6,), eps=1e-6) * gain.unsqueeze(1))
    assert torch.autograd.gradcheck(rms_norm, (x, gain))
