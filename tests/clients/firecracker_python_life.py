"""A microVM's whole life, driven by the client library `firecracker-python` as its users drive it.

Run by tests/tests/clients.rs, in a network namespace with a default route:

    firecracker_python_life.py PROGRAM KERNEL DISK DIR

PROGRAM is what the library starts in the place of /usr/local/bin/firecracker; DIR takes the place of
/var/lib/firecracker. Nothing else of the library is changed, except that its constructor asks neither Docker nor web
sites for this host's public address, and that rules for NAT go nowhere where Python has no nftables: none of it has
to do with a microVM. Prints one JSON object.
"""

import functools
import json
import os
import signal
import sys
import time
import types

import docker

program, kernel, disk, data = sys.argv[1:5]
docker.from_env = lambda *_, **__: None
try:
    import nftables
except ImportError:
    # Rules for the guest's way to the Internet, which these guests do not take.
    nftables = types.ModuleType("nftables")
    nftables.Nftables = type(
        "Nftables",
        (),
        {
            "set_json_output": lambda *_: None,
            "json_cmd": lambda *_: (0, {"nftables": []}, ""),
            "cmd": lambda *_: (0, "", ""),
        },
    )
    sys.modules["nftables"] = nftables

from firecracker import config, microvm  # noqa: E402

microvm.get_public_ip = lambda *_, **__: "192.0.2.1"
paths = dict(binary_path=program, data_path=data, snapshot_path=os.path.join(data, "snapshots"))
config.MicroVMConfig.__init__ = functools.partialmethod(config.MicroVMConfig.__init__, **paths)
os.makedirs(paths["snapshot_path"], exist_ok=True)

MicroVM = microvm.MicroVM


def new():
    return MicroVM(
        kernel_file=kernel, base_rootfs=disk, vcpu=1, memory=128, ip_addr="172.30.7.2", vsock_enabled=True, verbose=True
    )


def said(vm):
    """What the guest has printed: the library sends the program's standard output there."""
    with open(f"{data}/{vm._microvm_id}/firecracker.log") as log:
        return log.read()


def wait_lines(vm, n):
    for _ in range(1200):
        if said(vm).count("\n") >= n:
            return
        time.sleep(0.05)
    raise SystemExit(f"the guest is silent: {said(vm)!r}")


def stop(vm):
    """The library watches until the process is gone; a child that nobody waits for would stay."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    assert vm._process.stop(vm._microvm_id)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


first = new()
created = first.create()
assert created.endswith("created"), created
wait_lines(first, 5)
assert [v["id"] for v in MicroVM.list()] == [first._microvm_id], MicroVM.list()
whole = first.config()
assert whole["machine-config"]["mem_size_mib"] == 128, whole
assert whole["boot-source"]["kernel_image_path"] == kernel, whole
assert whole["drives"][0]["drive_id"] == "rootfs", whole
assert whole["network-interfaces"][0]["host_dev_name"] == f"tap_{first._microvm_id}", whole
assert whole["vsock"]["guest_cid"] == 3, whole
assert first._vmm.get_vmm_ip_addr(first._microvm_id) == "172.30.7.2"
assert first.pause().endswith("paused successfully")
assert first._vmm.get_vmm_state(first._microvm_id) == "Paused"
time.sleep(0.3)
held = said(first)
time.sleep(0.5)
assert said(first) == held, "a paused guest has spoken"
# Takes the snapshot and resumes.
first.snapshot(action="create")
wait_lines(first, held.count("\n") + 3)
assert first._vmm.get_vmm_state(first._microvm_id) == "Running"
one = said(first)
memory, state = first._mem_file_path, first._snapshot_path
pid = int(open(f"{data}/{first._microvm_id}/firecracker.pid").read())
# The library's delete() wants nftables on the host; stopping is what it does first.
stop(first)
assert not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().split()[2] == "Z"

# create(snapshot=True) would send InstanceStart after the load, which Firecracker refuses too: its steps, without that.
# The saved vsock socket is the first one's directory; it is still there.
second = new()
second._network.setup(
    tap_name=second._host_dev_name, iface_name=second._iface_name, gateway_ip="172.30.8.1"
)
second._run_firecracker()
second.snapshot(action="load", memory_path=memory, snapshot_path=state)
assert second._vmm.get_vmm_state(second._microvm_id) == "Running"
wait_lines(second, 5)
two = said(second)
version = second._api.version.get().json()["firecracker_version"]
stop(second)
print(json.dumps({"held": held, "first": one, "second": two, "version": version}))
