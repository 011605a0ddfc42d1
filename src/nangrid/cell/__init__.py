"""Build and run one cell: one combination of levels and one seed."""

import logging

# On CPUs with AVX512-BF16 its import asks for a kernel from the hub, which would change the arithmetic, and warns.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
