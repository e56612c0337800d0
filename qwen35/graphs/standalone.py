"""Runs exported graphs in JAX's own XLA, from their files and a checkpoint's alone.

A program of its own, `python standalone.py JOB.json`, that imports nothing of qwen35: what it
computes is what the files say. JOB.json names, in `calls`, a phase, a safetensors file of what the
caller gives (by path) and one to write the outputs to (by rank and path, as in "0:logits"). What a
call is not given it takes from the outputs before it, as a state is handed on. Each step done is a
line of JSON on standard output, and so is what a step fails with.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import backend, mlir
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.flax import load_file, save_file

Shares = list[jax.Array]  # of each rank, on its device


class Checkpoint:
    """The tensors of a directory's safetensors files, by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = {}
        for path in sorted(directory.glob("*.safetensors")):
            file = safe_open(path, framework="flax")
            self.files |= dict.fromkeys(file.keys(), file)

    def read(self, names: list[str]) -> np.ndarray:
        """Returns the tensor that has one of the names."""
        name = next((name for name in names if name in self.files), None)
        if name is None:
            raise ValueError(f"{self.directory}: no tensor {' or '.join(names)}")
        return np.asarray(self.files[name].get_tensor(name))


def build(entry: Mapping[str, Any], checkpoint: Checkpoint, rank: int) -> np.ndarray:
    """Puts a parameter together as its entry in the manifest says."""
    place = entry["checkpoint"]
    built = np.zeros(entry["shape"], np.dtype(entry["dtype"]))
    for piece in place["pieces"]:
        tensor = checkpoint.read(piece["names"])
        if list(tensor.shape) != piece["shape"]:
            raise ValueError(
                f"{piece['names'][-1]} has shape {list(tensor.shape)}, the manifest says "
                f"{piece['shape']}"
            )
        if place["transposed"]:
            tensor = tensor.reshape(len(tensor), -1).T
        for runs in itertools.product(*piece["ranks"][rank]):
            ours = tuple(slice(start, start + length) for start, _, length in runs)
            theirs = tuple(slice(start, start + length) for _, start, length in runs)
            built[ours] = tensor[theirs]
    return built


class Graphs:
    """Exported graphs that are compiled for as many devices as there are ranks."""

    def __init__(self, directory: Path, checkpoint: Checkpoint, ranks: int) -> None:
        self.directory, self.checkpoint = directory, checkpoint
        self.devices = jax.devices("cpu")[:ranks]
        self.mesh = Mesh(np.array(self.devices), ("rank",))
        self.executables: dict[str, Any] = {}
        self.launches: dict[str, list[tuple[dict[str, Any], list[Shares | None]]]] = {}
        self.weights: dict[str, Shares] = {}  # phases share them

    def compile(self, phase: str, ending: str) -> None:
        """Reads and compiles a phase from PHASE.ENDING: an HLO module, or StableHLO; or the graphs
        that it is cut into, each once."""
        manifest = json.loads((self.directory / f"{phase}.json").read_bytes())
        self.launches[phase] = []
        for launch in manifest.get("launches", [{"graph": phase, **manifest}]):
            name = launch["graph"]
            if name not in self.executables:
                single = len(launch["outputs"]) == 1
                self.executables[name] = self._compiled(self.directory / f"{name}.{ending}", single)
            captured = load_file(self.directory / f"{name}.captured.safetensors")
            fixed = [self._fixed(entry, captured) for entry in launch["parameters"]]
            self.launches[phase].append((launch, fixed))

    def _compiled(self, file: Path, single: bool) -> Any:
        """Compiles a file for the devices; `single`: it has one output."""
        options = backend.get_compile_options(
            num_replicas=len(self.devices),
            num_partitions=1,
            device_assignment=np.arange(len(self.devices)),
        )
        code = _stablehlo(file.read_bytes(), file.name.partition(".")[2], single)
        return backend.get_backend("cpu").compile_and_load(code, self.devices, options)

    def _fixed(self, entry: dict[str, Any], captured: Mapping[str, Any]) -> Shares | None:
        """What a parameter always is; None if that is up to the caller."""
        ranks = range(len(self.devices))
        if entry["path"] in captured:
            return self.put([np.asarray(captured[entry["path"]])] * len(ranks))
        if "by_rank" in entry:
            return self.put([np.array(entry["by_rank"][r], entry["dtype"]) for r in ranks])
        if "checkpoint" not in entry:
            return None
        key = json.dumps(entry | {"index": None})
        if key not in self.weights:
            self.weights[key] = self.put([build(entry, self.checkpoint, r) for r in ranks])
        return self.weights[key]

    def put(self, shares: list[np.ndarray]) -> Shares:
        """Puts each rank's share onto its device."""
        pairs = zip(shares, self.devices, strict=True)
        return [jax.device_put(share, device) for share, device in pairs]

    def run(self, phase: str, given: Mapping[str, Shares]) -> dict[str, Shares]:
        """Runs a phase; returns its outputs by path. Those that are donated are consumed."""
        made: dict[str, Shares] = {}
        for launch, known in self.launches[phase]:
            arguments = []
            for entry, fixed in zip(launch["parameters"], known, strict=True):
                path = entry["path"]
                shares = made.get(path, given.get(path)) if fixed is None else fixed
                if shares is None:
                    raise ValueError(f"{launch['graph']}: nothing gives {path}")
                arguments.append(self._whole(shares))
            results = self.executables[launch["graph"]].execute_sharded(arguments)
            outputs = results.disassemble_into_single_device_arrays()
            made |= {entry["path"]: out
                     for entry, out in zip(launch["outputs"], outputs, strict=True)}  # fmt: skip
        return made

    def _whole(self, shares: Shares) -> jax.Array:
        """One array of the ranks' shares, side by side along its first dimension."""
        shape = shares[0].shape
        whole = (len(shares) * shape[0], *shape[1:]) if shape else ()
        sharding = NamedSharding(self.mesh, PartitionSpec(*("rank",)[: len(shape)]))
        return jax.make_array_from_single_device_arrays(whole, sharding, shares)


def _stablehlo(data: bytes, ending: str, single: bool) -> bytes:
    """StableHLO that JAX compiles, from an exported file; `single`: it has one output."""
    context = ir.Context()
    stablehlo.register_dialect(context)
    context.load_all_available_dialects()
    with context:
        if ending != "hlo.pb":
            return _written(mlir.deserialize_portable_artifact(data))
        converted = mlir.hlo_to_stablehlo(data)
        if not single:
            return converted
        # Of a tuple of one JAX makes that one, and an alias of the tuple's part is none of it.
        version = stablehlo.get_current_version()
        artifact = mlir.serialize_portable_artifact(converted, version)
        module = mlir.deserialize_portable_artifact(artifact)
        del module.operation.attributes["mhlo.input_output_alias"]
        return _written(module)


def _written(module: ir.Module) -> bytes:
    written = io.BytesIO()
    module.operation.write_bytecode(written)
    return written.getvalue()


def main(file: str) -> None:
    """Runs the calls of a job."""
    job = json.loads(Path(file).read_bytes())
    jax.config.update("jax_num_cpu_devices", job["ranks"])
    jax.config.update("jax_enable_x64", True)  # some indices are int64

    checkpoint = Checkpoint(Path(job["checkpoint"]))
    graphs = Graphs(Path(job["directory"]), checkpoint, job["ranks"])
    values: dict[str, Shares] = {}
    calls = job["calls"]
    steps = [("compile", phase, None) for phase in dict.fromkeys(call["phase"] for call in calls)]
    steps += [("run", call["phase"], call) for call in calls]
    for done, phase, call in steps:
        try:
            if call is None:
                graphs.compile(phase, job["ending"])
            else:
                _call(graphs, call, values)
        except Exception as error:
            why = str(error).strip().partition("\n")[0]
            print(json.dumps({"phase": phase, "why": why or repr(error)}), flush=True)
            sys.exit(1)
        print(json.dumps({"phase": phase, "done": done}), flush=True)


def _call(graphs: Graphs, call: Mapping[str, str], values: dict[str, Shares]) -> None:
    """Runs a call, and puts its outputs into its file and among the values."""
    for path, value in load_file(call["inputs"]).items():
        values[path] = graphs.put([np.asarray(value)] * len(graphs.devices))
    outputs = graphs.run(call["phase"], values)
    values |= outputs
    named = {
        f"{rank}:{path}": jax.numpy.asarray(np.asarray(share))
        for path, shares in outputs.items()
        for rank, share in enumerate(shares)
    }
    save_file(named, call["outputs"])


if __name__ == "__main__":
    main(*sys.argv[1:])
