"""Whether bfloat16 is fast here: found out by trying, since a processor without it is 200 times slower."""

import time
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def fast_bfloat16() -> bool:
    """Whether a convolution in bfloat16 takes less time here than in float32, on the GPU where there is one."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.Conv3d(16, 16, 3, padding=1).to(dtype, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        image = torch.zeros((1, 16, 4, 32, 32), dtype=dtype).to(memory_format=torch.channels_last_3d)
        with torch.inference_mode():
            layer(image)
            started = time.perf_counter()
            for _ in range(3):
                layer(image)
            times[dtype] = time.perf_counter() - started
    return times[torch.bfloat16] < times[torch.float32]
