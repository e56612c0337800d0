"""List every private name of torch-xla that the project uses, and give access to these alone.

torch-xla has no public way to compile a graph once and then only run it, to donate memory, or to
use a collective in a graph of one's own. `private._run_cached_graph` is torch-xla's function of
that name: looked up in `TABLE` on first use, which imports torch-xla, and an ordinary attribute of
this module from then on. A name that is not in the table is an AttributeError. A new release of
torch-xla may drop or change any of them: tests hold the table to what is installed and to who
uses it.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from .environment import xla

BITS, DEVICES = "xla.bits", "xla.devices"
EXECUTABLE, STAGED, TRACING = "xla.executable", "xla.staged", "xla.tracing"
COLLECTIVES, SPMD = "sharding.collectives", "sharding.spmd"
LOWERING, LOOP, NEURON = "graphs.lowering", "kernels.loop", "kernels.neuron"

# Place in torch-xla -> name there -> what it does, then which modules of qwen35 use it.
TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "torch_xla._XLAC": {
        # Compiled graphs
        "_get_graph_hash": ("hash the graph of some outputs; its key from then on", TRACING),
        "_xla_warm_up_cache": ("compile the graph of some outputs without running it", TRACING),
        "_run_cached_graph": ("run the compiled graph of a hash on some inputs", EXECUTABLE),
        "_set_buffer_donation": ("let the next graph reuse a tensor's memory, or not", TRACING),
        "_xla_computation_cache_is_initialized": ("tell if anything was compiled", EXECUTABLE),
        # Graphs that are being traced
        "_get_tensors_xla_device_data_node": ("find the inputs of a graph", LOWERING, TRACING),
        "_get_xla_tensors_text": ("print a graph as torch-xla's own operations", TRACING),
        "_get_xla_tensors_hlo": ("print a graph as HLO", LOWERING, EXECUTABLE, TRACING),
        "_get_xla_tensors_hlo_proto": ("serialise a graph as HloModuleProto", LOWERING),
        "_get_stablehlo": ("serialise a graph as StableHLO", LOWERING),
        "_get_xla_all_numbers_special_scalars": ("tell if numbers become constants", DEVICES),
        "_set_xla_all_numbers_special_scalars": ("make numbers constants, or inputs", DEVICES),
        "_clear_pending_irs": ("forget every pending computation of a device", TRACING),
        # Tensors and their data
        "_get_tensors_handle": ("identify the data of tensors", LOWERING, EXECUTABLE, TRACING),
        "_unique_id_for_ir_and_data": ("identify a tensor's computation or data", TRACING),
        "_check_tensor_need_materialization": ("find pending tensors", DEVICES, TRACING),
        "_check_device_tensor_need_materialization": ("find all that are pending", DEVICES),
        "_is_placecholder": ("tell whether a tensor has no value", DEVICES),
        "_xla_sync_multi": ("run the pending computations of some tensors", DEVICES),
        "_xla_sync_live_tensors": ("run every pending computation of a device", DEVICES),
        "_xla_wait_device_ops": ("wait for the graphs in flight", DEVICES),
        "_xla_metric_data": ("read a counter of torch-xla, such as of downloads", TRACING),
        "_xla_tensors_from_aten": ("upload tensors at once", DEVICES),
        "_from_dlpack": ("let the processor's device use memory of the host", "xla.host_memory"),
        "_xla_get_cpu_tensors": ("download tensors, after one run of what is pending", DEVICES),
        # Random numbers
        "_get_base_seed_as_tensor": ("give the seed as the input that graphs take", DEVICES),
        "_get_seed_info_id": ("identify the seed among a graph's inputs", TRACING),
        "_xla_get_rng_seed": ("read the seed", DEVICES, TRACING),
        "_xla_set_rng_seed": ("set the seed", DEVICES, TRACING),
        # Operations that torch lacks
        "_xla_dot_general": ("multiply bfloat16 tensors to a float32 result", DEVICES),
        "_xla_all_reduce": ("add up over processes", COLLECTIVES),
        "_xla_spmd_all_reduce": ("add up over the devices of a process", COLLECTIVES),
        "_xla_all_gather": ("join over processes or devices", COLLECTIVES),
        "_set_all_reduce_token": ("set what the next collective has to wait for", COLLECTIVES),
        # Tensors on several devices of a process
        "_global_tensor_from_cpu_shards": ("upload a part to each device", SPMD),
        "_get_local_shards": ("download a part from each device", SPMD),
        "_get_xla_sharding_spec": ("tell how a tensor is split over devices", SPMD, EXECUTABLE),
        "_get_xla_op_sharding": ("give the split of a tensor, for another one", SPMD, EXECUTABLE),
        "_get_xla_sharding_specs": ("tell how tensors are split", EXECUTABLE),
        "_xla_mark_sharding": ("split a tensor over devices", SPMD, STAGED),
        "_spmd_full_to_shard_shape": ("give one device's view of a split tensor", SPMD),
        "_spmd_shard_to_full_shape": ("give the split tensor of such a view", SPMD),
        "_mark_manual_sharding": ("declare a tensor to be such a view", SPMD),
        "OpSharding": ("describe how a tensor is split over devices", SPMD),
        "_xla_create_placeholder_tensor": ("make a tensor without data, of any type", LOWERING),
        "_xla_device_kind": ("name the kind of a device", NEURON),
    },
    "torch_xla.core.xla_builder": {
        "Op": ("build an operation out of XLA's", BITS),
        "Type": ("name XLA's types", BITS),
        "create_placeholder_tensor": ("make a tensor without data", LOWERING, "xla.host_memory"),
        "mkshape": ("describe a tensor by XLA's name of its type", LOWERING),
    },
    "torch_xla.core.xla_op_registry": {
        "register": ("make an operation of XLA's one of torch's", BITS),
    },
    "torch_xla.experimental.scan": {
        "_scan_impl_pytree": ("loop over a dimension in one XLA while, forward only", LOOP),
    },
    "torch_xla.utils.buffer_donor_context": {
        "alias_with_buffer_donor_config": ("honour donation while compiling", TRACING),
    },
}


def __getattr__(name: str) -> Any:
    place = next((place for place, names in TABLE.items() if name in names), None)
    if place is None:
        raise AttributeError(
            f"{name} is not in the table of torch-xla's private names, {__name__}.TABLE"
        )
    version = xla().__version__
    try:
        value = pkgutil.resolve_name(f"{place}.{name}")
    except (AttributeError, ImportError) as error:
        raise AttributeError(
            f"torch-xla {version} has no {place}.{name}, which qwen35 needs to "
            f"{TABLE[place][name][0]}: install a version that qwen35 asks for"
        ) from error
    return globals().setdefault(name, value)
