"""Which kind an error is: of real exceptions, alone and as Ray brings them from another process."""

import errno

import pytest
import torch
from ray import exceptions
from simulated_ray import died, task_error

from actors.failures import Kind, NoRoom, ObjectsLost, is_disk, is_echo, kind_of
from d1ray.config.errors import RunFailed

MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
KINDS = [
    (died(), Kind.LOST),
    (died(preempted=True), Kind.PREEMPTED),
    (exceptions.ActorUnavailableError("no answer", b"0" * 16), Kind.LOST),
    (exceptions.WorkerCrashedError(), Kind.LOST),
    (exceptions.GetTimeoutError("late"), Kind.LOST),
    (exceptions.OutOfMemoryError("the memory monitor"), Kind.MEMORY),
    (exceptions.OutOfDiskError("full"), Kind.NO_ROOM),
    (exceptions.ObjectStoreFullError("full"), Kind.NO_ROOM),
    (NoRoom("there is no room"), Kind.NO_ROOM),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Kind.MEMORY),
    (RuntimeError(MEMORY), Kind.MEMORY),
    (RuntimeError("CUDA out of memory"), Kind.MEMORY),
    (MemoryError(), Kind.MEMORY),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), Kind.DEVICE),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Kind.DEVICE),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Kind.DEVICE),
    (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), Kind.DEVICE),
    (torch.AcceleratorError("HIP error: unspecified launch failure"), Kind.DEVICE),
    (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), Kind.GROUP),
    (ValueError("CUDA error in a text that somebody wrote"), Kind.GROUP),
    (KeyError("answer"), Kind.GROUP),
    (OSError(errno.ESTALE, "Stale file handle"), Kind.SYSTEM),
    (OSError(errno.EMFILE, "Too many open files"), Kind.SYSTEM),
    (FileNotFoundError("a mount that is late"), Kind.SYSTEM),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), Kind.SYSTEM),  # of a fork
    (RunFailed("the checkpoint cannot be written: CUDA error, out of memory, whatever"), Kind.GROUP),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda value: str(value)[:40])
def test_an_error_is_of_its_kind_here_and_from_another_process(error: Exception, kind: Kind) -> None:
    assert kind_of(error) is kind
    assert kind_of(task_error(error)) is kind


ECHOES = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2131",
    "NCCL communicator was aborted on rank 1.",
    "wait timeout after 600000ms, keys: /default_pg/0//cuda//0",
    "Broken pipe",
]


@pytest.mark.parametrize("said", ECHOES)
def test_an_echo_of_another_rank_s_end_is_one(said: str) -> None:
    assert is_echo(task_error(RuntimeError(said)))
    assert is_echo(task_error(torch.distributed.DistBackendError("whatever")))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("gloo"),
        ObjectsLost("gloo"),
        NoRoom("nccl"),
        RunFailed("runs/nccl-test cannot be written: Connection reset by peer"),
    ],
)
def test_a_rank_s_own_error_is_no_echo(error: Exception) -> None:
    assert not is_echo(task_error(error))


def test_a_file_system_s_errors_are_told_from_others() -> None:
    assert is_disk(task_error(OSError(errno.ENOSPC, "No space left on device")))
    assert is_disk(OSError(errno.EROFS, "Read-only file system"))
    assert not is_disk(ConnectionError("refused")) and not is_disk(ValueError("no space left"))
