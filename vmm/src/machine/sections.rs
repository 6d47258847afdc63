//! A paused machine's state as sections, and back.

use super::devices::lock;
use super::{Machine, MachineError, RunState};
use crate::board::clock::BoardClockV1;
use crate::board::generation::GenerationV1;
use crate::plugin::BackendVm;
use crate::state::MachineSection;
use crate::virtio::slots::Slots;
use godwit_state::{ClockV1, RawSection, Section, StateError, decode_section};

/// What the backend's clock runs at.
pub(super) fn tsc_khz(vm: &BackendVm) -> Result<u64, MachineError> {
    let sections = vm.save()?;
    let clock = sections.iter().find(|s| s.kind == ClockV1::KIND);
    let clock = clock.ok_or_else(|| StateError::Missing { kind: ClockV1::KIND.into() })?;
    Ok(decode_section::<ClockV1>(clock)?.tsc_khz)
}

fn is_cpu(kind: &str) -> bool {
    kind.starts_with("x86.")
}

/// Takes the one section of kind `S` out of `board`.
fn take<S: Section>(board: &mut Vec<RawSection>) -> Result<S, StateError> {
    take_if(board)?.ok_or_else(|| StateError::Missing { kind: S::KIND.into() })
}

/// Takes the section of kind `S`, if there is one.
fn take_if<S: Section>(board: &mut Vec<RawSection>) -> Result<Option<S>, StateError> {
    let Some(at) = board.iter().position(|s| s.kind == S::KIND) else { return Ok(None) };
    let raw = board.remove(at);
    if board.iter().any(|s| s.kind == S::KIND) {
        return Err(StateError::Twice { kind: S::KIND.into() });
    }
    decode_section(&raw).map(Some)
}

impl Machine {
    /// All sections, in the order in which they are to be restored: time, CPUs, interrupt controllers, devices.
    ///
    /// # Errors
    /// It runs, or the backend cannot say something.
    pub fn save(&mut self) -> Result<Vec<MachineSection>, MachineError> {
        if self.state == RunState::Running {
            return Err(MachineError::Running);
        }
        let mut out = Vec::new();
        let mut one = |instance, section| out.push(MachineSection { instance, section });
        one(0, RawSection::mandatory(&self.clock.save()));
        self.vm.save()?.into_iter().for_each(|s| one(0, s));
        for id in 0..self.cpus.len() {
            self.cpus.lock(id).save()?.into_iter().for_each(|s| one(id as u32, s));
        }
        let (pic, ioapic) = self.devices.chipset.save();
        one(0, RawSection::mandatory(&pic));
        one(0, RawSection::mandatory(&ioapic));
        one(0, RawSection::mandatory(&lock(&self.devices.pit).save()));
        one(0, RawSection::mandatory(&lock(&self.devices.rtc).save()));
        one(0, RawSection::mandatory(&lock(&self.devices.i8042).save()));
        one(0, RawSection::mandatory(&lock(&self.devices.serial).save()));
        if let Some(generation) = lock(&self.devices.generation).save() {
            one(0, RawSection::optional(&generation));
        }
        out.extend(self.devices.slots().save());
        Ok(out)
    }

    /// Tells the guest that it goes on from a snapshot, so that what it took for random is drawn anew. Not for a live
    /// move: there is one guest before and after.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn forked(&mut self) -> Result<(), MachineError> {
        lock(&self.devices.generation).renew(&self.ram).map_err(MachineError::host("VM generation ID"))
    }

    /// Takes the sections of [`Self::save`], from any backend, into a machine that has not run.
    ///
    /// # Errors
    /// A section is missing, unknown, twice, damaged or not this machine's; the machine must not be run then.
    pub fn restore(&mut self, sections: &[MachineSection]) -> Result<(), MachineError> {
        if self.state == RunState::Running {
            return Err(MachineError::Running);
        }
        let vcpus = self.shape.vcpus;
        let mut clock = Vec::new();
        let mut cpus: Vec<Vec<RawSection>> = vec![Vec::new(); vcpus as usize];
        let (mut board, mut virtio) = (Vec::new(), Vec::new());
        for s in sections {
            let kind = &s.section.kind;
            if kind == ClockV1::KIND {
                clock.push(s.section.clone());
            } else if is_cpu(kind) {
                let (kind, instance) = (kind.clone(), s.instance);
                let cpu = cpus.get_mut(instance as usize);
                cpu.ok_or(MachineError::Instance { kind, instance, vcpus })?.push(s.section.clone());
            } else if Slots::owns(kind) {
                virtio.push(s.clone());
            } else {
                board.push(s.section.clone());
            }
        }
        // Everything of the board is decoded before anything is changed.
        let time: BoardClockV1 = take(&mut board)?;
        let (pic, ioapic) = (take(&mut board)?, take(&mut board)?);
        let (pit, rtc) = (take(&mut board)?, take(&mut board)?);
        let (i8042, serial) = (take(&mut board)?, take(&mut board)?);
        let generation: Option<GenerationV1> = take_if(&mut board)?;
        if let Some(s) = board.iter().find(|s| !s.optional) {
            return Err(StateError::Unknown { kind: s.kind.clone(), version: s.version }.into());
        }
        self.clock.restore(time);
        self.vm.load(&clock)?;
        for (id, sections) in cpus.iter().enumerate() {
            self.cpus.lock(id).load(sections)?;
        }
        self.devices.chipset.restore(pic, ioapic);
        lock(&self.devices.pit).restore(pit);
        lock(&self.devices.rtc).restore(rtc);
        lock(&self.devices.i8042).restore(i8042);
        lock(&self.devices.serial).restore(serial);
        lock(&self.devices.generation).restore(generation);
        self.devices.slots().restore(&virtio)?;
        Ok(())
    }
}
