"""The answer to the exercise of appendix A6."""

import torch

from attacks import Attack

ATTACKS = {
    "A6.1": Attack(
        right=[
            ([True, False, False, True, False],),
            ([1, 0, 0, 1, 0],),
            (torch.tensor([True, False, False, True, False]),),
        ],
        wrong={
            "the given answer": ([False] * 5,),
            "all": ([True] * 5,),
            "even, whatever the sign": ([True, False, False, True, True],),
            "positive, whether even or not": ([True, False, True, True, False],),
            "the same sign or 0": ([True, True, False, True, False],),
            "only functions that are odd": ([True, False, False, False, False],),
            "only the same family": ([False, False, False, True, False],),
            "too few": ([True, False, False, True],),
            "a half": ([1, 0.5, 0.5, 1, 0.5],),
        },
    ),
}
