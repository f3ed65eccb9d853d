"""What the meter of chapter 3 counts."""

import doctest

import pytest
import torch
from torch.nn import functional as F

import katlib
from katlib.book import meter as module
from katlib.book.meter import Meter, keep_freed_memory, medians, meter
from katlib.spline import bspline_basis

X = torch.empty(1000, device="meta")


def test_the_examples_give_what_they_say():
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


def test_a_spline_basis_is_31_kernels_and_moves_1762_bytes_for_each_input():
    layer = katlib.SplineKAN(128, 128).to("meta")
    x = torch.empty(512, 128, device="meta")
    m = meter(bspline_basis, x, layer.knots, 3)
    counts = [round(total / x.numel()) for total in (m.operations, m.made, m.moved)]
    assert (len(m.kernels), counts) == (31, [233, 833, 1762])


@pytest.mark.parametrize("function", [torch.Tensor.relu_, lambda x: x.mul_(2)])
def test_a_change_in_place_is_a_kernel_and_allocates_nothing(function):
    m = meter(function, X.clone())
    assert [(k.operations, k.read, k.written) for k in m.kernels] == [(1000, 4000, 4000)]
    assert m.made == 0


def test_a_view_is_free():
    assert meter(lambda x: x.view(10, 100).t()[2:], X).kernels == []


def test_an_expanded_tensor_is_read_once():
    (kernel,) = meter(torch.clone, torch.empty(1, device="meta").expand(1000)).kernels
    assert (kernel.read, kernel.written) == (4, 4000)


def test_a_matrix_product_counts_two_for_each_pair():
    a, b = torch.empty(3, 5, device="meta"), torch.empty(7, 5, device="meta")
    assert meter(F.linear, a, b).operations == 2 * 3 * 5 * 7


def test_what_is_freed_is_no_longer_alive():
    with Meter() as m:
        y = X + 1
        y = y + 1
    assert (m.made, m.alive, m.peak) == (8000, 4000, 8000)


def test_every_way_is_timed():
    assert list(medians({"one": lambda: None, "two": lambda: None}, turns=1)) == ["one", "two"]


def test_freed_memory_can_be_kept_on_every_system(monkeypatch):
    keep_freed_memory()
    monkeypatch.setattr(module.sys, "platform", "win32")
    keep_freed_memory()
