"""A microVM's whole life, driven by the API client of `bandsox` as its own manager drives it.

Run by tests/tests/clients.rs:

    bandsox_life.py PROGRAM KERNEL DISK DIR

PROGRAM is started with `--api-sock`, as bandsox does with /usr/bin/firecracker. Nothing of the client is changed. Prints one JSON
object.
"""

import json
import os
import subprocess
import sys
import time

from bandsox.firecracker import FirecrackerClient

program, kernel, disk, data = sys.argv[1:5]


class Instance:
    def __init__(self, name):
        self.socket = f"{data}/{name}.sock"
        self.out = f"{data}/{name}.out"
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen([program, "--api-sock", self.socket], stdout=out, stdin=subprocess.DEVNULL)
        self.client = FirecrackerClient(self.socket)
        assert self.client.wait_for_socket()

    def said(self):
        with open(self.out) as out:
            return out.read()

    def says(self, lines):
        wanted = self.said().count("\nn=") + lines
        while self.said().count("\nn=") < wanted:
            assert self.process.poll() is None, "it has ended"
            time.sleep(0.02)

    def settled(self):
        before = None
        while before != self.said():
            before = self.said()
            time.sleep(0.2)
        return before

    def stop(self):
        self.process.terminate()
        return self.process.wait()


first = Instance("first")
vm = first.client
vm.put_boot_source(kernel, "console=ttyS0 reboot=k panic=1 pci=off")
vm.put_drives("rootfs", disk, is_root_device=True, rate_limit_bandwidth_mbps=100, rate_limit_iops=1000)
vm.put_machine_config(1, 128)
vm.put_entropy()
vm.put_vsock("vsock0", 3, f"{data}/first.vsock")
vm.instance_start()
first.says(3)
vm.patch_drive("rootfs", disk)
vm.pause_vm()
state, memory = f"{data}/state", f"{data}/memory"
vm.create_snapshot(state, memory)
held = first.settled()
vm.resume_vm()
first.says(2)
try:
    vm.instance_start()
    refusal = ""
except Exception as e:
    refusal = str(e)
life = first.said()
first_end = first.stop()
os.unlink(f"{data}/first.vsock") if os.path.exists(f"{data}/first.vsock") else None

second = Instance("second")
second.client.load_snapshot(state, memory)
second.client.resume_vm()
second.says(3)
report = {"first": life, "held": held, "second": second.said(), "refusal": refusal, "ends": [first_end, second.stop()]}
print(json.dumps(report))
