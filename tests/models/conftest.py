"""One thread: models here are tiny, and threads that wait for a core slow them down many times."""

import torch

torch.set_num_threads(1)
