"""What a notebook says about the machine that it runs on."""

import torch


def say_device(with_gpu: str, without: str) -> None:
    """Prints in one line which device was found, and what a notebook does on it.

    Args:
        with_gpu: what it does on a GPU.
        without: what it does on a processor.
    """
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}: {with_gpu}.")
        return
    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    print(f"No GPU, {threads} CPU thread{plural}: {without}. With a GPU: {with_gpu}.")
