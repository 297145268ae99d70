"""An H100 that need not be there, for XLA's GPU compiler: what compiles for it, how much memory it takes, what it runs.

The compiler needs the CUDA plugin of JAX and a ptxas, no driver. Matrix products are not tuned there, since that means
timing them: nothing about speed can be read from such a program but the bytes and operations that it must move.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# The strings inside `gpu_device_info` too are needed: without them XLA does not capture loops into CUDA graphs.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.7.0"
  name: "NVIDIA H100 80GB HBM3"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def h100s(count: int) -> list[jax.Device]:
    """H100s of one process, to make a mesh of."""
    return topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}").devices


def h100() -> SingleDeviceSharding:
    """The sharding of one H100, for the shapes that a program is lowered with."""
    return SingleDeviceSharding(h100s(1)[0])


def ptxas() -> Path:
    """The assembler that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"


def tools(folder: Path) -> dict[str, str]:
    """Environment in which XLA finds the ptxas that comes with Triton: a link in `folder`, of the name it wants."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "ptxas"
    if not link.exists():  # nor one that points to a Triton of before
        link.unlink(missing_ok=True)
        link.symlink_to(ptxas())
    return {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
