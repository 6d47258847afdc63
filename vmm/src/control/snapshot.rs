//! Writing the machine to a snapshot, and making one out of it: `snapshot`'s files, with the configuration of the
//! devices in a section of their own, since paths of this host are no part of a guest's state.

use super::moving::{describe, described, header, put_back};
use super::overrides::Overrides;
use super::{Control, Denied, spec, unconfined};
use crate::config::{MachineSpec, MemBackendType, SnapshotCreate, SnapshotLoad, SnapshotType};
use crate::machine::Machine;
use crate::memory::ram::{Backing, layout};
use crate::memory::{PageSet, Region};
pub(super) use crate::snapshot::Served;
use crate::snapshot::{self, Image, Paths};
use crate::state::{self, MachineSection};
use godwit_state::{ClockV1, Model, RawSection, Section, StateError, decode_section};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Section "snapshot.devices": what the machine was built with. JSON, since its fields come and go with the API's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDevicesV1 {
    /// `drives`, `network-interfaces` and so on, as in a config file.
    pub json: Vec<u8>,
}

impl std::fmt::Debug for SnapshotDevicesV1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotDevicesV1").field("json", &String::from_utf8_lossy(&self.json)).finish()
    }
}

impl Section for SnapshotDevicesV1 {
    const KIND: &'static str = "snapshot.devices";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        described(&self.json).map(drop).map_err(|e| StateError::invalid::<Self>(e.to_string()))
    }
}

fn failed(e: impl std::fmt::Display) -> Denied {
    Denied::Failed(e.to_string())
}

/// Writes the paused machine.
pub(super) fn create(
    machine: &mut Machine,
    config: &MachineSpec,
    request: &SnapshotCreate,
) -> Result<(), Denied> {
    let tracked = config.machine.track_dirty_pages;
    if request.snapshot_type == SnapshotType::Diff && !tracked {
        let why = "snapshot_type: Diff needs track_dirty_pages (in machine-config before the start, or in \
                   /snapshot/load)";
        return Err(failed(why));
    }
    let mut sections = machine.save().map_err(failed)?;
    let devices = SnapshotDevicesV1 { json: describe(&config.devices).map_err(failed)? };
    sections.push(MachineSection { instance: 0, section: RawSection::mandatory(&devices) });
    let container = state::write(&header(machine), &sections).map_err(failed)?;
    let regions: Vec<Region> =
        machine.shape().regions.iter().map(|(gpa, len)| Region { gpa: *gpa, len: *len }).collect();
    let mut dirty = PageSet::empty(&regions);
    if tracked {
        let mut bitmaps = machine.clean_bitmaps();
        let taken = machine.take_dirty_log(&mut bitmaps);
        dirty.bitmaps().zip(bitmaps).for_each(|((_, words), bits)| *words = bits);
        if let Err(e) = taken {
            put_back(machine.ram(), &dirty);
            return Err(failed(e));
        }
    }
    let diff = request.snapshot_type == SnapshotType::Diff;
    let image = Image { container: &container, ram: machine.ram(), dirty: diff.then_some(&dirty) };
    let paths = Paths { state: request.snapshot_path.clone(), memory: request.mem_file_path.clone() };
    let written = snapshot::write(&paths, image).map_err(|e| {
        put_back(machine.ram(), &dirty);
        failed(e)
    })?;
    tracing::info!("snapshot: {} bytes of state, {} of memory", written.state_bytes, written.data_bytes);
    Ok(())
}

/// Takes the only section of kind `S` out.
fn take<S: Section>(sections: &mut Vec<MachineSection>) -> Result<S, Denied> {
    let missing = || StateError::Missing { kind: S::KIND.into() };
    let at = sections.iter().position(|s| s.section.kind == S::KIND).ok_or_else(missing).map_err(failed)?;
    decode_section(&sections.remove(at).section).map_err(failed)
}

impl Control {
    /// Makes a machine out of a snapshot; paused unless `resume_vm`.
    pub(super) fn load(&mut self, request: &SnapshotLoad) -> Result<(), Denied> {
        unconfined()?;
        if self.config != MachineSpec::default() {
            return Err(failed(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources: \
                 load it into a fresh instance",
            ));
        }
        let (served_by, memory) = request.memory().map_err(failed)?;
        let mut loaded = snapshot::read_state(&request.snapshot_path).map_err(failed)?;
        let devices: SnapshotDevicesV1 = take(&mut loaded.sections)?;
        let clock = loaded.sections.iter().find(|s| s.section.kind == ClockV1::KIND);
        let clock = clock.ok_or_else(|| failed("the snapshot has no clock"))?;
        let clock: ClockV1 = decode_section(&clock.section).map_err(failed)?;

        let mut config =
            MachineSpec { devices: described(&devices.json).map_err(failed)?, ..MachineSpec::default() };
        config.machine.vcpu_count = u8::try_from(loaded.header.vcpus).map_err(failed)?;
        config.machine.mem_size_mib = loaded.header.memory_bytes >> 20;
        config.machine.cpu_model = Model::from_name(&loaded.header.model);
        config.machine.tsc_khz = Some(clock.tsc_khz);
        config.machine.track_dirty_pages = request.track_dirty_pages || request.enable_diff_snapshots;
        config.machine.validate().map_err(failed)?;
        let (drives, taps) = (&request.drive_overrides, &request.network_overrides);
        let overrides = Overrides::of(drives, taps, &[], request.vsock_override.as_ref());
        overrides.apply(&mut config.devices).map_err(Denied::Failed)?;

        let regions: Vec<Region> = layout(loaded.header.memory_bytes)
            .map_err(failed)?
            .into_iter()
            .map(|(gpa, len)| Region { gpa, len })
            .collect();
        let (ram, served) = match served_by {
            MemBackendType::File => (snapshot::map_memory(&loaded, memory, &regions).map_err(failed)?, None),
            MemBackendType::Uffd => {
                let (ram, served) = snapshot::serve_memory(&loaded, memory, &regions).map_err(failed)?;
                (ram, Some(served))
            }
        };
        let mut spec = spec(&config);
        spec.model = Some(loaded.header.model.clone());
        spec.backing = Backing::Mapped(ram);
        spec.allow_tsc_mismatch = request.allow_tsc_mismatch;
        let console = self.console();
        let mut machine =
            Machine::build(&spec, &self.plugin, console, self.handle.event_sink()).map_err(failed)?;
        super::metadata::attach(&self.metadata, &config.devices, machine.slots()).map_err(Denied::Failed)?;
        machine.restore(&loaded.sections).map_err(failed)?;
        machine.forked().map_err(failed)?;
        if config.machine.track_dirty_pages {
            machine.start_dirty_log().map_err(failed)?;
        }
        self.confine()?;
        if request.resume_vm {
            let advance_ns = if request.clock_realtime { since(clock.realtime_ns) } else { 0 };
            machine.resume(advance_ns).map_err(failed)?;
        } else if request.clock_realtime {
            return Err(failed("clock_realtime: only together with resume_vm"));
        }
        self.adopt(machine, config);
        self.served = served;
        Ok(())
    }
}

/// Nanoseconds from a point of UTC to now; 0 if it lies ahead.
fn since(realtime_ns: u64) -> u64 {
    let then = UNIX_EPOCH + Duration::from_nanos(realtime_ns);
    SystemTime::now().duration_since(then).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
