//! The backend on hosts that cannot have it: it loads, and says why it is of no use.

use godwit_sdk::state::{ClockV1, CpuState, Model};
use godwit_sdk::{
    Backend, Descriptor, Error, Exit, Host, Kick, MemorySlot, MsiRoute, Probe, Result, Vcpu, Vm, VmConfig,
};
use std::sync::Arc;

/// The KVM backend.
#[derive(Debug)]
pub struct KvmBackend;

/// There is never a VM here.
#[derive(Debug)]
pub enum Never {}

fn unusable() -> Error {
    Error::Unusable(
        "the KVM backend runs x86-64 guests on x86-64 Linux only: use the interpreter on this host".into(),
    )
}

impl Backend for KvmBackend {
    type Vm = Never;
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "kvm",
        summary: "Linux KVM with split irqchip (not on this host)",
        version: env!("CARGO_PKG_VERSION"),
        models: &[Model::X86_64, Model::V2, Model::V3, Model::Host],
        system_calls: &[],
        ioctls: &[],
        vcpu_calls: &[],
        vcpu_ioctls: &[],
        device_calls: &[],
        device_ioctls: &[],
        device_nodes: &["/dev/kvm"],
        rank: 100,
    };
    fn probe() -> Result<Probe> {
        Err(unusable())
    }
    fn create_vm(_: &VmConfig, _: Host) -> Result<Never> {
        Err(unusable())
    }
}

impl Vm for Never {
    type Vcpu = Never;
    fn map_memory(&self, _: MemorySlot) -> Result<()> {
        match *self {}
    }
    fn unmap_memory(&self, _: u32) -> Result<()> {
        match *self {}
    }
    fn set_dirty_log(&self, _: u32, _: bool) -> Result<()> {
        match *self {}
    }
    fn take_dirty_log(&self, _: u32, _: &mut [u64]) -> Result<()> {
        match *self {}
    }
    fn memory_written(&self, _: u64, _: u64) {
        match *self {}
    }
    fn signal_msi(&self, _: u64, _: u32) -> Result<()> {
        match *self {}
    }
    fn set_routes(&self, _: &[MsiRoute]) -> Result<()> {
        match *self {}
    }
    fn set_extint(&self, _: bool) {
        match *self {}
    }
    fn inject_nmi(&self, _: u32) -> Result<()> {
        match *self {}
    }
    fn stop_clock(&self) -> Result<()> {
        match *self {}
    }
    fn start_clock(&self, _: u64) -> Result<()> {
        match *self {}
    }
    fn save_clock(&self) -> Result<ClockV1> {
        match *self {}
    }
    fn load_clock(&self, _: &ClockV1) -> Result<()> {
        match *self {}
    }
    fn create_vcpu(&self, _: u32) -> Result<Never> {
        match *self {}
    }
}

impl Vcpu for Never {
    fn run(&mut self) -> Result<Exit> {
        match *self {}
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        match *self {}
    }
    fn save(&mut self) -> Result<CpuState> {
        match *self {}
    }
    fn load(&mut self, _: &CpuState) -> Result<()> {
        match *self {}
    }
}
