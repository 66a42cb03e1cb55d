"""Where work is carried out: sums over examples, and independent tasks.

Everything that touches data goes through an engine: `LocalEngine` is this process and, for independent tasks, a pool of
processes; `Ranks` are the processes that torchrun started, which share every pass over the data.
"""

from genmeasure.engine.local import LocalEngine
from genmeasure.engine.protocol import QUIET, Engine, float32_products, get_device, progress

__all__ = ["QUIET", "Engine", "LocalEngine", "float32_products", "get_device", "progress"]
