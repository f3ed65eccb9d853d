"""The diagrams of the chapters: each makes a figure."""

import torch
from matplotlib.figure import Figure

from katlib.book import (
    diagrams_01,
    diagrams_02,
    diagrams_03,
    diagrams_04,
    diagrams_05,
    diagrams_06,
    diagrams_07,
    diagrams_08,
    diagrams_09,
    diagrams_11,
    diagrams_15,
)
from katlib.book.meter import Kernel


def test_chapter_1_draws_what_is_learned_and_what_kat_replaces():
    curve = torch.tensor([0.0, 1.0, 0.5])
    assert isinstance(diagrams_01.two_networks(curve), Figure)
    pieces = {"a": curve, "b": curve}
    networks = {"by hand": (pieces, 2 * curve), "by a search": (pieces, 2 * curve)}
    assert isinstance(diagrams_01.copies(curve, networks, curve), Figure)
    assert isinstance(diagrams_01.block(), Figure)
    lines = {"GELU": ([4, 7], torch.rand(2, 5)), "learned": ([5, 8], torch.rand(2, 5))}
    assert isinstance(diagrams_01.errors_by_parameters({"a": lines, "b": lines}), Figure)


def test_chapter_4_draws_the_complex_plane():
    a, b = torch.tensor([0.0, 0.5, 0.25]).double(), torch.tensor([0.0, 0.1]).double()
    assert isinstance(diagrams_04.disc_of_convergence(), Figure)
    assert isinstance(diagrams_04.pade_equations(5, 4), Figure)
    assert isinstance(diagrams_04.planes_and_line(a, a, b), Figure)
    zeros = {"(2, 2)": [3j, -3j], "(4, 4)": [1j, -1j, 6j, -6j]}
    assert isinstance(diagrams_04.heights_of_zeros(zeros, zeros), Figure)


def test_chapter_2_draws_networks_with_functions_on_their_edges():
    curve = [0.0, 1.0, 0.5]
    assert isinstance(diagrams_02.learned_network((curve, curve), curve), Figure)
    assert isinstance(diagrams_02.mlp_and_kan(), Figure)
    assert isinstance(diagrams_02.theorem_network([curve] * 10, [curve] * 5), Figure)
    assert isinstance(diagrams_02.layer_as_product([[0.1, 0.6], [0.0, 0.6]], [[1.0] * 4]), Figure)


def test_chapter_2_draws_how_bumps_add_up():
    pieces = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 1.0]])
    drawn = diagrams_02.adding_up(torch.tensor([-1.0, 0.0, 1.0]), pieces, at=0.0, lo=-1, hi=1)
    assert isinstance(drawn, Figure)


def test_chapter_5_draws_denominators():
    assert isinstance(diagrams_05.folding(), Figure)
    before, after = [0.0, 0.0, 0.0, 0.01], [0.0, 0.0, 0.0, -0.02]
    assert isinstance(diagrams_05.one_step(before, after, (0.01, 217.0)), Figure)


def test_chapter_9_draws_limits_and_trips_and_the_roof():
    assert isinstance(diagrams_09.two_limits(), Figure)
    assert isinstance(diagrams_09.trips(), Figure)
    points = {"rational, eager": (0.1, 5.0), "rational, fused": (2.0, 70.0), "another": (9.0, 80.0)}
    assert isinstance(diagrams_09.roofline(points, peak=100.0, bandwidth=50.0), Figure)


def test_chapter_9_draws_a_gpu():
    assert isinstance(diagrams_09.issue_slots(132, 1.98e9, 3.35e12), Figure)
    assert isinstance(diagrams_09.shares({"a": (0.4, 0.8), "b": (0.5, 1.2)}), Figure)


def test_chapter_8_draws_what_backward_sums_and_keeps():
    assert isinstance(diagrams_08.shared_coefficient(), Figure)
    assert isinstance(diagrams_08.two_chains(2, [1, 0, 3]), Figure)
    assert isinstance(diagrams_08.what_is_kept(), Figure)


def test_appendix_4_draws_where_the_bits_go():
    assert isinstance(diagrams_08.lost_bits(), Figure)
    assert isinstance(diagrams_08.orders_of_adding(), Figure)


def test_chapter_3_draws_trips_to_memory():
    kernels = [Kernel("aten::sub", 10, 4, 40), Kernel("aten::mul", 10, 80, 40)]
    stages = {"first": 1, "second": 1}
    assert isinstance(diagrams_03.passes(kernels, 1, stages, fused=(4, 40)), Figure)
    rows = [({"x": 4}, "−", {"x - t": 40}), ({"x - t": 40, "B": 40}, "×", {"next B": 40})]
    rows.append(({"next B": 40, "x - t": 40}, "+", {"sum": 40}))
    assert isinstance(diagrams_03.one_step(rows), Figure)
    assert isinstance(diagrams_03.shares(("a", "b"), {"bytes": 0.1, "time": 0.8}), Figure)
    assert isinstance(diagrams_03.times({"a": 3.0, "b": 0.1}, grey=("b",)), Figure)


def test_chapter_7_draws_a_random_sum_cobwebs_and_an_mlp():
    torch.manual_seed(0)
    assert isinstance(diagrams_07.random_sum(torch.randn(20, 8)), Figure)
    maps = {"stays": lambda q: q, "leaves": lambda q: 2 * q}
    starts = {"stays": (0.5,), "leaves": (0.5, 2.0)}
    assert isinstance(diagrams_07.cobweb(maps, starts, steps=4), Figure)
    assert isinstance(diagrams_07.mlp(("norm", "map"), {"a": (1, 1), "b": (1, 0.1)}), Figure)


def test_chapter_6_draws_who_shares_a_function():
    panels = [("title", "functions", "parameters")] * 3
    assert isinstance(diagrams_06.ways_to_share(panels), Figure)
    assert isinstance(diagrams_06.opening_network(), Figure)
    assert isinstance(diagrams_06.from_one_function(), Figure)
    drawn = diagrams_06.memory(tokens=2, channels=8, groups=2, group_of=lambda i: i // 4)
    assert isinstance(drawn, Figure)


def test_chapter_11_draws_the_data_path_of_a_block():
    path = [("norm", (4, 8)), ("act: GELU", (4, 8)), None]
    drawn = diagrams_11.blocks({"ViT": path, "KAT": [("act1: rational", (4, 8)), *path]})
    written = [text.get_text() for text in drawn.axes[0].texts]
    assert written.count("4 × 8") == 5
    assert {"ViT", "KAT", "act1: rational"} <= set(written)


def test_chapter_11_writes_the_share_of_the_functions():
    drawn = diagrams_11.shares({"operations": {"linear maps": 3, "rational functions": 1}})
    written = [text.get_text() for text in drawn.axes[0].texts]
    assert written == ["linear maps\n75%", "rational functions: 25.00%"]


def test_chapter_15_writes_what_a_conversion_costs_beside_the_bars():
    drawn = diagrams_15.costs({"T": {"FLOPs": 0.025, "parameters": 0.0002}, "S": {"FLOPs": 0.01}})
    written = [[text.get_text() for text in ax.texts] for ax in drawn.axes]
    assert written == [["+2.5%", "+0.02%"], ["+1.0%"]]


def test_chapter_15_draws_a_conversion_and_where_a_fit_is_right():
    assert isinstance(diagrams_15.conversion(torch.relu, torch.relu), Figure)
    fits = {"good": torch.relu, "bad": lambda x: torch.relu(x) + x}
    drawn = diagrams_15.where_inputs_fall(torch.randn(99), torch.relu, fits, limit=0.5)
    errors = [line.get_ydata() for line in drawn.axes[1].lines]
    assert not errors[0].any()
    assert max(abs(y) for y in errors[1] if y == y) <= 0.5
