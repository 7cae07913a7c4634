"""Runs one Python program apart from everything else; started by `sandbox.run`, as a script, with Python's own library
alone.

The program is the child of an init process in namespaces of its own: no network, no other processes, a file system that
holds Python's library (read-only), three devices, and an empty directory in memory, and a user without rights. Limits
are on CPU seconds, memory, processes, and the size of files. With the init process, everything in the namespaces ends.

Arguments: JSON of `sandbox.Limits`, with `code` (the program), `executable`, `read_only` (directories) and `status`, a
file descriptor to which lines of JSON are written: {"started": true}, then {"exit": code}, or {"error": reason}.
"""

import ctypes
import json
import os
import resource
import signal
import stat
import sys

NEW_NAMESPACES = {
    "mounts": 0x00020000, "host names": 0x04000000, "messages": 0x08000000, "users": 0x10000000,
    "processes": 0x20000000, "network": 0x40000000,
}  # fmt: skip
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_SETATTR, PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
ATTR_RDONLY, ATTR_NOSUID = 1, 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
INSIDE, NOBODY = 1000, 65534  # the program's user: in its namespace; outside, where the caller is root
DEVICES = ("null", "zero", "urandom")
LIBC = ctypes.CDLL(None, use_errno=True)


class SetupError(Exception):
    """The machine does not allow a part of the isolation."""


def report(status: int, **what: object) -> None:
    os.write(status, json.dumps(what).encode() + b"\n")


def check(result: int, what: str) -> None:
    if result != 0:
        raise SetupError(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if value is None else value.encode() for value in (source, target, kind)]
    data = None if options is None else options.encode()
    check(LIBC.mount(*encoded, ctypes.c_ulong(flags), data), f"mount {target}")


class MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64), ("attr_clr", ctypes.c_uint64), ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )  # fmt: skip


def bind(descriptor: int, target: str, *, attributes: int) -> None:
    """Show an opened directory or file at `target`, and change nothing through it."""
    mount(f"/proc/self/fd/{descriptor}", target, None, MS_BIND | MS_REC)
    attr = MountAttr(attributes, 0, 0, 0)
    result = LIBC.syscall(
        MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, ctypes.byref(attr), ctypes.sizeof(attr)
    )
    check(result, f"make {target} read-only")


def map_user(process: int, outside: int, group: int, *, root: bool) -> None:
    with open(f"/proc/{process}/setgroups", "w") as file:
        file.write("deny")
    for name, number in (("uid_map", NOBODY if root else outside), ("gid_map", NOBODY if root else group)):
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(f"{INSIDE} {number} 1")


def build_root(new: str, config: dict, opened: dict[str, int]) -> None:
    """A file system in memory with what the program may see, as this process' root."""
    mount("tmpfs", new, "tmpfs", MS_NOSUID | MS_NODEV, f"size={config['disk_mb']}m,nr_inodes=10000,mode=755")
    for path, descriptor in opened.items():
        target = new + path
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        os.makedirs(target if directory else os.path.dirname(target), exist_ok=True)
        if not directory:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        bind(descriptor, target, attributes=ATTR_RDONLY | ATTR_NOSUID)
    for link in ("/lib", "/lib64"):
        if os.path.islink(link) and not os.path.lexists(new + link):
            os.symlink(os.readlink(link), new + link)
    for name in ("/work", "/code"):
        os.mkdir(new + name)
    with open(f"{new}/code/main.py", "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(config["code"])
    os.chdir(new)
    check(LIBC.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "change the root directory")
    check(LIBC.umount2(b".", MNT_DETACH), "unmount the machine's files")
    os.chdir("/work")


def limit(config: dict) -> None:
    for name, value in (
        ("CPU", config["cpu_s"]), ("AS", config["memory_mb"] << 20), ("NPROC", config["processes"]),
        ("FSIZE", config["file_mb"] << 20), ("CORE", 0), ("NOFILE", 64),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def end_with_parent() -> None:
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "end with the parent")


def isolate(config: dict) -> None:
    """Move this process into the namespaces and the new root; its next child is their init process."""
    root, user, group = os.geteuid() == 0, os.geteuid(), os.getegid()
    if os.uname().machine not in PIVOT_ROOT:
        raise SetupError(f"processors of type {os.uname().machine} are not supported")
    sources = [*config["read_only"], *(f"/dev/{name}" for name in DEVICES)]
    ready, mapped = os.pipe(), os.pipe()
    process = os.getpid()
    mapper = os.fork()
    if mapper == 0:  # only a process outside may map root to another user
        os.close(ready[1])
        os.read(ready[0], 1)
        try:
            map_user(process, user, group, root=root)
            os.write(mapped[1], b"1")
        except OSError as error:
            os.write(mapped[1], f"0{error.strerror}".encode())
        os._exit(0)
    for name, flag in NEW_NAMESPACES.items():
        if name == "users":
            continue
        if name == "mounts":  # first the users, who may then make the others
            check(LIBC.unshare(NEW_NAMESPACES["users"]), "new namespace of users")
        check(LIBC.unshare(flag), f"new namespace of {name}")
    os.write(ready[1], b"1")
    answer = os.read(mapped[0], 200).decode()
    os.waitpid(mapper, 0)
    if answer != "1":
        raise SetupError(f"map the user: {answer[1:] or 'failed'}")
    # Opened in the new namespace of mounts, while this user may: the program's user need not be able to reach them.
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in sources if os.path.exists(path)}
    os.setresgid(INSIDE, INSIDE, INSIDE)
    os.setresuid(INSIDE, INSIDE, INSIDE)  # keeps the rights in the namespace, until the program is executed
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")  # the program shall not get rights in a namespace of its own
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    build_root("/tmp", config, opened)


def main() -> None:
    config = json.loads(sys.argv[1])
    status = config["status"]
    end_with_parent()
    try:
        isolate(config)
        init = os.fork()
        if init:
            _, ended = os.waitpid(init, 0)
            os._exit(0 if ended == 0 else 1)
        end_with_parent()
        report(status, started=True)
        program = os.fork()
    except (SetupError, OSError) as error:
        report(status, error=str(error))
        os._exit(1)
    if program == 0:
        try:
            limit(config)
            check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new rights")
            # one that imports nothing of the machine's but Python's library
            arguments = [config["executable"], "-I", "-B", *([] if config["packages"] else ["-S"]), "/code/main.py"]
            os.set_inheritable(status, False)
            os.execve(config["executable"], arguments, {"HOME": "/work", "TMPDIR": "/work", "LANG": "C.UTF-8"})
        except (SetupError, OSError, ValueError) as error:
            report(status, error=f"start the program: {error}")
        os._exit(1)
    while True:
        ended, code = os.waitpid(-1, 0)  # orphans, too
        if ended == program:
            report(status, exit=os.waitstatus_to_exitcode(code))
            os._exit(0)


if __name__ == "__main__":
    main()
