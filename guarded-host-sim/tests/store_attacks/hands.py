"""The hands of a host agent: does what a test tells it, with its own user's rights. One JSON object a line, both ways."""

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438


def system(result):
    """Raises what a system call reports by -1."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def connect(path):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(120)
    peer.connect(path)
    return peer


def tpm(ask):
    """Whole commands in turn over one connection."""
    peer = connect(ask["path"])
    answers = []
    for command in ask["commands"]:
        peer.sendall(bytes.fromhex(command))
        answer = b""
        while len(answer) < 10 or len(answer) < int.from_bytes(answer[2:6], "big"):
            part = peer.recv(65536)
            if not part:
                return answers
            answer += part
        answers.append(answer.hex())
    return answers


def store(ask):
    """Any bytes; everything that comes back until the store ends the conversation."""
    peer = connect(ask["path"])
    answer = b""
    try:
        peer.sendall(bytes.fromhex(ask["bytes"]))
        peer.shutdown(socket.SHUT_WR)
        while part := peer.recv(1 << 20):
            answer += part
    except (BrokenPipeError, ConnectionResetError):
        pass  # the store hung up before it had read all
    return answer.hex()


def read(ask):
    with open(ask["path"], "rb", buffering=0) as file:
        return (file.read(1 << 20) or b"").hex()


def write(ask):
    with open(ask["path"], "ab", buffering=0) as file:
        return file.write(b"x")


def ptrace(ask):
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return system(libc.ptrace(PTRACE_SEIZE if ask["seize"] else PTRACE_ATTACH, ask["pid"], None, None))


def peek(ask):
    """process_vm_readv of a page where a program usually has one."""

    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    here = ctypes.create_string_buffer(4096)
    mine, theirs = Piece(ctypes.addressof(here), 4096), Piece(ask["address"], 4096)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    size = system(
        libc.process_vm_readv(
            ctypes.c_int(ask["pid"]), ctypes.byref(mine), ctypes.c_ulong(1), ctypes.byref(theirs), ctypes.c_ulong(1), ctypes.c_ulong(0)
        )
    )
    return here.raw[:size].hex()


def steal(ask):
    """A copy of another process's descriptor."""
    pidfd = system(libc.syscall(ctypes.c_long(SYS_PIDFD_OPEN), ctypes.c_long(ask["pid"]), ctypes.c_long(0)))
    return system(libc.syscall(ctypes.c_long(SYS_PIDFD_GETFD), ctypes.c_long(pidfd), ctypes.c_long(ask["fd"]), ctypes.c_long(0)))


def cores(ask):
    """Allows another process core dumps of any size."""

    class Limit(ctypes.Structure):
        _fields_ = [("soft", ctypes.c_ulonglong), ("hard", ctypes.c_ulonglong)]

    limit = Limit(2**64 - 1, 2**64 - 1)
    return system(libc.prlimit(ctypes.c_int(ask["pid"]), ctypes.c_int(4), ctypes.byref(limit), None))


def run(ask):
    """Starts a program of its own, given as a descriptor that this process inherited, and ends it after its first line."""
    program = subprocess.Popen(
        [f"/proc/self/fd/{ask['fd']}", *ask["arguments"]],
        pass_fds=[ask["fd"]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ask["folder"],
    )
    line = program.stdout.readline()
    program.kill()
    return (line or program.stderr.read()).hex()


DEEDS = {
    "tpm": tpm,
    "store": store,
    "read": read,
    "write": write,
    "list": lambda ask: os.listdir(ask["path"]),
    "connect": lambda ask: connect(ask["path"]).close(),
    "link": lambda ask: os.link(ask["path"], ask["new"]),
    "symlink": lambda ask: os.symlink(ask["path"], ask["new"]),
    "ptrace": ptrace,
    "peek": peek,
    "steal": steal,
    "cores": cores,
    "signal": lambda ask: os.kill(ask["pid"], ask["signal"]),
    "run": run,
}

for line in sys.stdin:
    ask = json.loads(line)
    try:
        reply = {"done": DEEDS[ask["do"]](ask)}
    except OSError as error:
        reply = {"error": errno.errorcode.get(error.errno, str(error))}
    print(json.dumps(reply), flush=True)
