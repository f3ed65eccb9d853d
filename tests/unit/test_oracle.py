"""The float64 oracle of the CUDA backend."""

from oracle import data, expected, magnitudes


def test_the_oracle_computes_on_the_device_of_the_tensors():
    """On a GPU the suite would otherwise wait for the CPU most of the time."""
    tensors = [t.to("meta") for t in data(3, 2, 5)]
    for results in (expected(*tensors), magnitudes(*tensors)):
        assert {t.device.type for t in results} == {"meta"}
