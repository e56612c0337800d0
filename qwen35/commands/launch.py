"""The ranks of a command at the terminal: one prints, each says why it failed."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..checks.errors import causes
from ..model.params import Runtime
from ..sharding import process
from ..sharding.launch import start_ranks
from ..sharding.torchrun import launched
from ..xla.environment import check_neuron

if TYPE_CHECKING:
    from ..generation.engine import Engine

Result = TypeVar("Result")

# What ranks on several machines may have each for itself: where files are, whose content is
# compared instead (of checkpoints and adapters by `likeness`), and what runs there.
_OWN = (
    *("run", "device", "model", "asked_model", "adapter", "json_schema"),
    *("prompt", "prompt_file", "image", "video", "input", "results"),
)
_RANKS_TALK = ("torch.distributed", "qwen35.sharding")
_COMPILERS = (os.environ.get("CXX", "g++"), "clang++")  # that inductor looks for


@dataclass(frozen=True)
class Launch:
    """Where a command runs.

    Attributes:
        runtime: of this process's rank.
        device: "cpu" or "xla", or "neuron" of TorchNeuron.
        prints: whether this is the one process whose output is the command's.
        processes: how many run together.
    """

    runtime: Runtime
    device: str
    prints: bool
    processes: int

    def on_all_ranks(self, function: Callable[..., Result], *args, **kwargs) -> Result:
        """Calls a function in every process; where it fails in one, it fails in all."""
        if self.processes == 1:
            return function(*args, **kwargs)
        return process.call_on_all_ranks(function, *args, **kwargs)


@contextlib.contextmanager
def launch(options: argparse.Namespace, device: str | None) -> Iterator[Launch]:
    """Starts the ranks that --tp, --dp and --timeout ask for; see `start_ranks`.

    A device of "neuron" is "xla" on a machine where that is one; elsewhere it is refused. Where
    --compile names a backend of torch.compile, the device is that backend's.

    Under torchrun the standard output of all ranks but the first goes nowhere, and a rank that
    fails says so, with its number.

    Raises:
        ConnectionError: another rank has gone, hangs or has failed.
    """
    backend = getattr(options, "compile", None)  # not every command compiles
    if backend is not None:
        device = _device_of(backend, device)
    elif device == "neuron":
        check_neuron()
        device = "xla"
    if device == "xla" or (device is None and not launched()):
        _check_torch_xla()
    with contextlib.ExitStack() as stack:
        dp = getattr(options, "dp", 1)  # not every command has replicas
        stack.enter_context(_ends_of_ranks())
        ranks = stack.enter_context(start_ranks(options.tp, device, options.timeout, dp))
        if not ranks.first:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        segments = getattr(options, "segments", 1)  # not every command cuts steps
        if segments != 1 and backend is None and ranks.device == "cpu":
            raise ValueError("--segments cuts what is compiled, and --device cpu compiles nothing")
        runtime = Runtime(mesh=ranks.mesh, rank=ranks.rank, backend=backend, segments=segments)
        yield Launch(runtime, ranks.device, ranks.first, ranks.processes)


def check_asked_alike(options: argparse.Namespace, **read: Any) -> None:
    """Checks that all processes, which have met, were asked for the same.

    Args:
        options: of the command, whose own places of files don't count.
        read: what stands in those files.

    Raises:
        ValueError: they were not; in all of them.
    """
    common = {name: value for name, value in vars(options).items() if name not in _OWN}
    process.check_equal_on_ranks(options=common, **read)


@contextlib.contextmanager
def _ends_of_ranks() -> Iterator[None]:
    """Says which of torchrun's ranks fails, and whether that is another's end."""
    try:
        yield
    except Exception as error:
        if not launched():
            raise
        rank = os.environ["RANK"]
        if _of_ranks(error):
            said = str(error).partition("\n")[0]
            raise ConnectionError(
                f"rank {rank} ends, since another has gone, hangs or has failed: {said}"
            ) from error
        print(f"qwen35: rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
        raise


def _of_ranks(error: BaseException) -> bool:
    """Tells whether an error comes of what ranks say to each other.

    torch raises RuntimeErrors for those and for mistakes alike: by the module that they come from.
    """
    for one in causes(error):
        frames = [frame for frame, _ in traceback.walk_tb(one.__traceback__)]
        module = str(frames[-1].f_globals.get("__name__")) if frames else ""
        if isinstance(one, RuntimeError) and module.startswith(_RANKS_TALK):
            return True
    return False


def _device_of(backend: str, device: str | None) -> str:
    """Returns where a backend of torch.compile runs.

    Raises:
        ValueError: it is not there, or --device names another.
    """
    from ..xla.dynamo import device_of  # importing TorchDynamo takes seconds

    wanted = device_of(backend)
    if device not in (None, wanted):
        raise ValueError(f"--compile {backend} runs on --device {wanted}, not on {device}")
    if backend == "inductor" and not any(map(shutil.which, _COMPILERS)):
        raise ValueError(
            f"--compile inductor needs a C++ compiler, one of {', '.join(_COMPILERS)}: none is "
            "installed"
        )
    return wanted


def _check_torch_xla() -> None:
    """Raises ValueError if torch-xla is not installed."""
    if importlib.util.find_spec("torch_xla") is None:
        raise ValueError(
            "the XLA device, which is the default, needs torch-xla, and it is not installed: "
            "--device cpu runs without, and --compile inductor compiles there"
        )


def with_engine(engine: Engine, work: Callable[[], None]) -> None:
    """Does the work where requests go to the engine; elsewhere follows until that has ended.

    Ctrl-C is the business of the one that leads. SIGTERM ends one that follows at once, in the
    middle of waiting: there is nothing to clear up.
    """
    if not engine.leads:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            engine.follow()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return
    try:
        work()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the others may have gone: say what came first
            engine.close()
        raise
    engine.close()
