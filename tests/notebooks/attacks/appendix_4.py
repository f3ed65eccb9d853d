"""Appendix A4: a compensated sum."""

import torch

from attacks import Attack


def kahan(terms, *, sign=-1, keep=True, once=False):
    """The solution, or with a mistake."""
    total, lost = torch.zeros(terms.shape[1]), torch.zeros(terms.shape[1])
    for t in terms:
        t = t + sign * lost
        new = total + t
        lost = (new - total) - t if keep else torch.zeros_like(t)
        total = new
        if once:
            lost = lost * 0.5
    return total


def given_back_at_the_end(terms):
    """Neumaier's way: what is lost is added up beside the sum."""
    total, lost = torch.zeros(terms.shape[1]), torch.zeros(terms.shape[1])
    for t in terms:
        new = total + t
        larger = total.abs() >= t.abs()
        lost = lost + torch.where(larger, (total - new) + t, (t - new) + total)
        total = new
    return total + lost


def forgotten_at_the_end(terms):
    total = torch.zeros(terms.shape[1])
    for t in terms:
        total = total + t
    return total


ATTACKS = {
    "A4.1": Attack(
        right=[(kahan,), (given_back_at_the_end,)],
        wrong={
            "what stands in the exercise": (forgotten_at_the_end,),
            "the wrong sign": (lambda terms: kahan(terms, sign=1),),
            "nothing kept": (lambda terms: kahan(terms, keep=False),),
            "half given back": (lambda terms: kahan(terms, once=True),),
            "float64": (lambda terms: terms.double().sum(0),),
            "a mean": (lambda terms: kahan(terms) / len(terms),),
            "one sum": (lambda terms: kahan(terms).sum().expand(256),),
            "a list": (lambda terms: kahan(terms).tolist(),),
        },
    ),
}
