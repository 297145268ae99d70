"""The program behind `lt_jax.memory.tool_process`: one text in, one text out, a JSON line each.

    python -I tool_child.py '["/folder/with/packages", ...]' '{"kind": "python", "seconds": 10, "memory": 512, ...}'

It is run as a file, so that it never imports JAX (as the package around it does).

A program of an agent's runs here alone, and only if the tool `python` was asked for. The kernel keeps it in: after
`keep_in` the process can compute, wait, and read and write what is open already, which is its input and output. It
cannot open a file, reach a network, start a process or ask for a file's name; that is seccomp's filter of system calls,
which nothing that runs inside can take back. Where there is none (not Linux, another processor), the tool is refused.
"""

import ctypes
import importlib
import inspect
import io
import json
import os
import platform
import resource
import signal
import struct
import sys

ORPHAN_SECONDS = 2.0  # on top of the limit of a call; who started this process has killed it before, if it still runs
MOST_PRINTED = 1_000_000  # characters
READY = ("array", "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
         "fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re",
         "statistics", "string", "textwrap", "time", "typing", "unicodedata")  # fmt: skip
# read, write, close, lseek, fstat, mmap, mprotect, munmap, brk, mremap, madvise, rt_sigaction, rt_sigprocmask,
# rt_sigreturn, sigaltstack, sched_yield, futex, nanosleep, clock_nanosleep, clock_gettime, gettimeofday, gettid,
# getrusage, getrandom, restart_syscall, setitimer, exit, exit_group
CALLS = {  # by processor: its number for the kernel, and those of the calls
    "x86_64": (0xC000003E, (0, 1, 3, 8, 5, 9, 10, 11, 12, 25, 28, 13, 14, 15, 131, 24, 202, 35, 230, 228, 96, 186, 98,
                            318, 219, 38, 60, 231)),
    "aarch64": (0xC00000B7, (63, 64, 57, 62, 80, 222, 226, 215, 214, 216, 233, 134, 135, 139, 132, 124, 98, 101, 115,
                             113, 169, 178, 165, 278, 128, 103, 93, 94)),
}  # fmt: skip


class Wrong(Exception):
    """The tool cannot be had; the text says why, in one line."""


def keep_in(seconds: float, megabytes: int) -> None:
    """Takes from this process all that it does not need to compute, for good. Raises Wrong if the kernel cannot."""
    kind = CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if kind is None:
        here = f"{sys.platform}, {platform.machine()}"
        raise Wrong(f"programs cannot be kept in on this machine ({here}); that needs Linux on x86_64 or aarch64; "
                    "leave the tool python out")  # fmt: skip
    for what, most in ((resource.RLIMIT_DATA, megabytes << 20), (resource.RLIMIT_CPU, int(seconds) + 2),
                       (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):  # fmt: skip
        resource.setrlimit(what, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    program = filter_of(*kind)
    held = ctypes.create_string_buffer(program)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("at", ctypes.c_void_p)]

    asked = ctypes.byref(Program(len(program) // 8, ctypes.addressof(held)))
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, asked, 0, 0):
        why = os.strerror(ctypes.get_errno())
        raise Wrong(f"the kernel does not let programs be kept in ({why}); leave the tool python out")


def filter_of(processor: int, calls) -> bytes:
    """A seccomp filter, struct sock_filter by struct sock_filter: those calls go through, all others are refused with
    EPERM, and calls in another processor's numbering end the process."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    line = lambda code, value, then=0, otherwise=0: struct.pack("=HBBI", code, then, otherwise, value)
    lines = [line(load, 4), line(equal, processor, 1, 0), line(give, 0x80000000), line(load, 0)]
    for place, call in enumerate(calls):
        lines.append(line(equal, call, len(calls) - place, 0))  # over the rest and the refusal
    return b"".join([*lines, line(give, 0x00050001), line(give, 0x7FFF0000)])


def program_tool(text: str) -> str:
    """Runs a program and gives what it printed."""
    from lt_jax.user_function import told  # main() has imported it: the kernel now keeps this process from files

    printed = io.StringIO()
    own, sys.stdout = sys.stdout, printed
    try:
        # The one place in this library where what a model wrote is run: the tool that a person has turned on.
        exec(compile(text, "<program>", "exec"), {"__name__": "__main__"})
        ending = ""
    except BaseException as error:  # SystemExit too
        lines, trace = [], error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<program>":
                lines.append(trace.tb_lineno)
            trace = trace.tb_next
        ending = told(error) + (f" (line {lines[-1]})" if lines else "")
    finally:
        sys.stdout = own
    said = printed.getvalue()[:MOST_PRINTED].rstrip()
    return "\n".join(filter(None, (said, ending))) or "nothing was printed"


def answer(function, text: str) -> str:
    from lt_jax.user_function import told

    try:
        return str(function(text))
    except BaseException as error:  # SystemExit too
        return told(error)


def main() -> None:
    """Says what the tool is, or why it cannot be had, then answers until its input closes."""
    paths, how = map(json.loads, sys.argv[1:])
    sys.path[:] = list(dict.fromkeys([*paths, *sys.path, *how["more"]]))
    asked, said = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0), os.dup2(nothing, 1)
    from lt_jax.errors import UserError  # ours are found from here on
    from lt_jax.user_function import user_function

    say = lambda value: print(json.dumps(value), file=said, flush=True)
    try:
        if how["kind"] == "python":
            for name in READY:
                importlib.import_module(name)
            keep_in(how["seconds"], how["memory"])
            function = program_tool
            about = "runs a program of Python, which can compute and print, and shows what it prints (python: print(1))"
        else:
            function = user_function(how["kind"], "", takes="one text")
            about = ((inspect.getdoc(function) or "").splitlines() or [""])[0]
    except (Wrong, UserError) as error:
        say({"wrong": str(error)})
        return
    say({"ready": about})
    for line in asked:
        signal.setitimer(signal.ITIMER_REAL, how["seconds"] + ORPHAN_SECONDS)
        found = answer(function, json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(found)


if __name__ == "__main__":
    main()
