//! The real machine leaving and arriving: `migrate`'s traits over `machine`.

use super::admission::Paths;
use super::overrides::Overrides;
use super::volumes;
use crate::machine::{Console, EventSink, Kind, Machine, RunState, Spec, board_kinds, device_kinds};
use crate::memory::ram::{Backing, MAX_RAM, layout, make_writable};
use crate::memory::{GuestRam, Missing, PageSet, Region, SharedRam, missing_is_possible};
use crate::migrate::{
    Builder, Capabilities, Fault, Memory, Offer, OfferedDevice, OfferedSection, Source, Target,
};
use crate::mmds::Service;
use crate::plugin::{Plugin, Probe};
use crate::sandbox;
use crate::state::{self, BOARD_MICROVM, Header};
use crate::virtio::balloon::BalloonConfig;
use crate::virtio::block::image::Image;
use crate::virtio::block::{DriveConfig, OnMigration};
use crate::virtio::net::{MmdsConfig, NetworkInterfaceConfig};
use crate::virtio::rng::EntropyConfig;
use crate::virtio::slots::DevicesConfig;
use crate::virtio::vsock::VsockConfig;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Who wrote a state, and who offers a guest.
pub fn producer() -> String {
    concat!("godwit ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The header of a machine's container.
pub fn header(machine: &Machine) -> Header {
    let shape = machine.shape();
    Header {
        board: BOARD_MICROVM,
        vcpus: shape.vcpus,
        memory_bytes: shape.regions.iter().map(|(_, len)| len).sum(),
        model: shape.model.clone(),
        producer: producer(),
    }
}

/// The machine description in an offer: what the destination builds besides the board.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(default)]
    balloon: Option<BalloonConfig>,
    #[serde(default)]
    drives: Vec<DriveConfig>,
    /// Names and sizes in bytes of the disks that move with the guest, in the order of their regions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    moved: Vec<(String, u64)>,
    /// The same of the others, which must be as large at the destination.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shared: Vec<(String, u64)>,
    #[serde(default)]
    network_interfaces: Vec<NetworkInterfaceConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mmds: Option<MmdsConfig>,
    #[serde(default)]
    vsock: Option<VsockConfig>,
    #[serde(default)]
    entropy: Option<EntropyConfig>,
}

impl From<DevicesConfig> for Description {
    fn from(d: DevicesConfig) -> Self {
        let DevicesConfig { balloon, drives, network_interfaces, mmds, vsock, entropy } = d;
        let (moved, shared) = (Vec::new(), Vec::new());
        Description { balloon, drives, moved, shared, network_interfaces, mmds, vsock, entropy }
    }
}

impl From<Description> for DevicesConfig {
    fn from(d: Description) -> Self {
        let Description { balloon, drives, network_interfaces, mmds, vsock, entropy, .. } = d;
        DevicesConfig { balloon, drives, network_interfaces, mmds, vsock, entropy }
    }
}

/// Devices as an offer and a snapshot describe them: JSON.
///
/// # Errors
/// None that plain data gives.
pub(super) fn describe(devices: &DevicesConfig) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Description::from(devices.clone()))
}

/// The reverse of [`describe`].
///
/// # Errors
/// Not a description.
pub(super) fn described(bytes: &[u8]) -> serde_json::Result<DevicesConfig> {
    serde_json::from_slice::<Description>(bytes).map(DevicesConfig::from)
}

/// Pages that were taken out of the dirty log go back into it.
pub(super) fn put_back(ram: &GuestRam, taken: &PageSet) {
    for region in ram.iter() {
        let (first, len) = (region.start_addr().0, region.len());
        for run in taken.runs(u64::MAX).filter(|r| r.gpa() >= first && r.gpa() - first < len) {
            region.bitmap().mark_dirty((run.gpa() - first) as usize, run.len() as usize);
        }
    }
}

/// Devices by kind and name, for preflight and its messages.
fn offered(devices: &DevicesConfig) -> Vec<OfferedDevice> {
    let device = |kind: &str, id: &str| OfferedDevice { kind: kind.into(), id: id.into() };
    let mut out = Vec::new();
    out.extend(devices.balloon.iter().map(|_| device("virtio.balloon", "balloon")));
    out.extend(devices.drives.iter().map(|d| device("virtio.block", &d.drive_id)));
    out.extend(devices.network_interfaces.iter().map(|n| device("virtio.net", &n.iface_id)));
    out.extend(devices.vsock.iter().map(|_| device("virtio.vsock", "vsock")));
    out.extend(devices.entropy.iter().map(|_| device("virtio.rng", "entropy")));
    out
}

/// How long network interfaces may take to come up; Linux looks at new links once a second.
const LINKS_COME_UP: Duration = Duration::from_millis(1500);

/// Kinds of devices that can be built here.
pub(super) const DEVICES: [&str; 5] =
    ["virtio.balloon", "virtio.block", "virtio.net", "virtio.vsock", "virtio.rng"];

fn lock<T: ?Sized>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// A way to have the thread that owns the machine do something with it.
pub trait Door: Send {
    /// What is left after the guest was given away.
    type Gone: Send;
    /// Has `f` done and waits for it. `None`: the machine has ended.
    fn with<R: Send + 'static>(&self, f: impl FnOnce(&mut Machine) -> R + Send + 'static) -> Option<R>;
    /// The guest is the destination's: from here on nobody may resume it.
    fn give_away(self) -> Self::Gone;
}

/// The plainest door: a machine behind a lock, for tests and tools.
impl Door for Arc<Mutex<Machine>> {
    type Gone = ();
    fn with<R: Send + 'static>(&self, f: impl FnOnce(&mut Machine) -> R + Send + 'static) -> Option<R> {
        Some(f(&mut self.lock().unwrap_or_else(|e| e.into_inner())))
    }
    fn give_away(self) {}
}

/// A machine about to leave.
pub struct Leaving<D> {
    door: D,
    ram: GuestRam,
    disks: volumes::Leaving,
    offer: Offer,
    /// Diff snapshots keep the dirty log on all the time.
    keep_log: bool,
    paused_by_us: bool,
}

impl<D: Door> Leaving<D> {
    /// Prepares to send the machine behind `door`, which was built with these devices.
    ///
    /// # Errors
    /// The machine has ended, or cannot be described.
    pub fn new(
        door: D,
        devices: &DevicesConfig,
        allow_tsc_mismatch: bool,
        keep_log: bool,
    ) -> Result<Self, Fault> {
        let named = |what| devices.drives.iter().filter(move |d| d.on_migration == what);
        let names = |what| -> Vec<String> { named(what).map(|d| d.drive_id.clone()).collect() };
        let (moved, shared) = (names(OnMigration::Moved), names(OnMigration::Shared));
        let both = [moved.clone(), shared.clone()];
        let looked = door.with(move |m| {
            let image = |id: &String| Some(lock(m.slots().drive(id)?).device_mut().image());
            let images = both.map(|ids| ids.iter().map(image).collect::<Option<Vec<_>>>());
            (m.ram().clone(), m.shape().clone(), m.section_kinds(), header(m), images)
        });
        let (ram, shape, kinds, header, images) =
            looked.ok_or("there is no machine to send: start it first")?;
        let [Some(moving), Some(staying)] = images else { return Err("a drive is not there".into()) };
        let disks = volumes::Leaving::new(moving);
        let mut description = Description::from(devices.clone());
        description.moved = moved.into_iter().zip(disks.bytes()).collect();
        description.shared = shared.into_iter().zip(staying.iter().map(Image::bytes)).collect();
        let section = |(kind, version): Kind| OfferedSection { kind, version, optional: false };
        let features = shape.features.ok_or("the backend does not say what its model \"host\" has")?;
        let offer = Offer {
            producer: header.producer,
            board: header.board,
            vcpus: shape.vcpus,
            regions: shape.regions.iter().map(|(gpa, len)| Region { gpa: *gpa, len: *len }).collect(),
            model: shape.model,
            features,
            tsc_khz: shape.tsc_khz,
            allow_tsc_mismatch,
            sections: kinds.into_iter().map(section).collect(),
            devices: offered(devices),
            description: serde_json::to_vec(&description)?,
        };
        Ok(Leaving { door, ram, disks, offer, keep_log, paused_by_us: false })
    }

    fn with<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Machine) -> Result<R, Fault> + Send + 'static,
    ) -> Result<R, Fault> {
        self.door.with(f).unwrap_or_else(|| Err("the machine has ended".into()))
    }

    /// The way back to the machine.
    pub fn into_door(self) -> D {
        self.door
    }
}

impl<D: Door> Source for Leaving<D> {
    type Gone = D::Gone;

    fn offer(&self) -> Result<Offer, Fault> {
        Ok(self.offer.clone())
    }

    fn start_logging(&mut self) -> Result<(), Fault> {
        self.disks.start_log();
        if self.keep_log { Ok(()) } else { self.with(|m| Ok(m.start_dirty_log()?)) }
    }

    fn take_dirty(&mut self, pages: &mut PageSet) -> Result<(), Fault> {
        let (bitmaps, result) = self.with(|m| {
            let mut bitmaps = m.clean_bitmaps();
            let result = m.take_dirty_log(&mut bitmaps);
            Ok((bitmaps, result))
        })?;
        // Also what came before a failure: those bits are gone from the log.
        for ((_, words), taken) in pages.bitmaps().zip(bitmaps) {
            words.iter_mut().zip(taken).for_each(|(into, from)| *into |= from);
        }
        self.disks.take_dirty(pages);
        Ok(result?)
    }

    fn volumes(&self) -> Vec<Region> {
        self.disks.regions()
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::new(volumes::Both { ram: self.ram.clone(), disks: self.disks.clone() })
    }

    fn hand_over(&self) -> Result<SharedRam, Fault> {
        if !self.disks.is_empty() {
            return Err("disks are copied, so memory is too".into());
        }
        Ok(SharedRam::of(&self.ram)?)
    }

    fn untouched(&self, pages: &mut PageSet, zero: &mut PageSet) {
        crate::memory::untouched(&self.ram, pages, zero);
        self.disks.holes(pages, zero);
    }

    fn throttle(&mut self, permille: u16) -> Result<(), Fault> {
        self.with(move |m| {
            m.throttle(permille);
            Ok(())
        })
    }

    fn pause(&mut self) -> Result<(), Fault> {
        let (running, paused) = self.with(|m| {
            let running = m.run_state() == RunState::Running;
            m.throttle(0);
            Ok((running, m.pause()))
        })?;
        // Whatever came of it: a pause that fails half-way is taken back too.
        self.paused_by_us = running;
        Ok(paused?)
    }

    fn save(&mut self) -> Result<Vec<u8>, Fault> {
        self.with(|m| {
            let sections = m.save()?;
            Ok(state::write(&header(m), &sections)?)
        })
    }

    fn abandon(&mut self, taken: &PageSet) -> Result<(), Fault> {
        self.disks.stop_log();
        let resume = std::mem::take(&mut self.paused_by_us);
        let keep_log = self.keep_log;
        self.with(move |m| {
            m.throttle(0);
            // No time has passed for a guest that was not given away: its clock goes on where it stopped.
            if resume {
                m.resume(0)?;
            }
            if !keep_log {
                m.stop_dirty_log();
            }
            Ok(())
        })?;
        if keep_log {
            put_back(&self.ram, taken);
        }
        Ok(())
    }

    fn commit(self) -> D::Gone {
        self.disks.stop_log();
        self.door.give_away()
    }
}

/// What the receiver allows.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Most guest memory in bytes; 0: as much as any machine may have.
    pub memory_bytes: u64,
    /// Most vCPUs; 0: as many as the backend runs.
    pub vcpus: u32,
    /// Another TSC frequency is accepted.
    pub allow_tsc_mismatch: bool,
    /// Most bytes of disks that come with the guest, together; 0: as much as there is room for.
    pub disk_bytes: u64,
    /// Kinds of devices that are taken; none named: all that can be built here.
    pub devices: Vec<String>,
    /// Where the sender may name files and sockets.
    pub paths: Paths,
    /// What devices get here in the place of the sender's paths and names.
    pub overrides: Overrides,
}

impl Limits {
    fn takes(&self, kind: &str) -> bool {
        self.devices.is_empty() || self.devices.iter().any(|d| d == kind)
    }
}

/// Where a guest will arrive.
pub struct Arriving {
    plugin: Arc<Plugin>,
    probe: Probe,
    limits: Limits,
    console: Console,
    events: EventSink,
    metadata: Service,
    built: Built,
}

/// Hears that a machine is built for a guest, before any of its bytes come.
type Built = Box<dyn FnOnce() -> Result<(), Fault> + Send>;

impl Arriving {
    /// Prepares to receive on `plugin`.
    ///
    /// # Errors
    /// The backend cannot be used here.
    pub fn new(
        plugin: Arc<Plugin>,
        limits: Limits,
        console: Console,
        events: EventSink,
    ) -> Result<Self, Fault> {
        let probe = plugin.probe()?;
        Ok(Arriving {
            plugin,
            probe,
            limits,
            console,
            events,
            metadata: Service::new(""),
            built: Box::new(|| Ok(())),
        })
    }

    /// The metadata service that the guest gets; otherwise one that stays empty.
    #[must_use]
    pub fn with_metadata(mut self, metadata: &Service) -> Self {
        self.metadata = metadata.clone();
        self
    }

    /// Has `built` called when the machine is built and all is open, before any byte becomes the guest's.
    #[must_use]
    pub fn once_built(mut self, built: impl FnOnce() -> Result<(), Fault> + Send + 'static) -> Self {
        self.built = Box::new(built);
        self
    }
}

impl Arriving {
    /// Makes room for disks that come along. Only where the operator here said: a sender must not choose what is written.
    fn receive_disks(&self, moved: &[(String, u64)]) -> Result<volumes::Arriving, Fault> {
        let total = moved.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let most = match self.limits.disk_bytes {
            0 => volumes::MAX_BYTES,
            limit => limit,
        };
        if total > most {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(
                format!("disks of {} MiB, at most {} MiB are allowed here", mib(total), mib(most)).into()
            );
        }
        let mut places = Vec::new();
        for (i, (id, bytes)) in moved.iter().enumerate() {
            if moved[..i].iter().any(|(other, _)| other == id) || !bytes.is_multiple_of(512) {
                return Err(format!("drive {id}: malformed").into());
            }
            let to = self.limits.overrides.drives.iter().find(|r| r.id == *id);
            let to = to.ok_or_else(|| {
                format!(
                    "drive {id} moves with the guest: say where to, with --drive {id}=PATH at the receiver"
                )
            })?;
            places.push((to.with.clone().into(), *bytes));
        }
        volumes::Arriving::create(&places)
    }
}

/// Disks that are as large here as the guest knows them: the state would be refused, but only when the guest stands still.
fn same_sizes(machine: &Machine, shared: &[(String, u64)]) -> Result<(), Fault> {
    for (id, bytes) in shared {
        let disk = machine.slots().drive(id).ok_or_else(|| format!("drive {id}: malformed"))?;
        let (here, there) = (lock(disk).device_mut().image().bytes() / 512, bytes / 512);
        if here != there {
            return Err(format!("drive {id}: {here} sectors here, {there} at the source").into());
        }
    }
    Ok(())
}

/// A machine that is being filled, and its header.
pub struct Filling {
    machine: Machine,
    devices: DevicesConfig,
    disks: Arc<volumes::Arriving>,
}

/// A machine whose guest has just arrived and runs.
pub struct Arrived {
    /// The machine.
    pub machine: Machine,
    /// What it was built with.
    pub devices: DevicesConfig,
}

impl Builder for Arriving {
    type Target = Filling;

    fn capabilities(&self) -> Capabilities {
        let or = |limit: u64, most: u64| if limit == 0 { most } else { limit.min(most) };
        let mut sections = self.plugin.descriptor().sections.clone();
        sections.extend(board_kinds());
        sections.extend(device_kinds());
        Capabilities {
            backend: self.plugin.descriptor().name.clone(),
            boards: vec![BOARD_MICROVM],
            max_memory_bytes: or(self.limits.memory_bytes, MAX_RAM),
            max_vcpus: or(self.limits.vcpus.into(), self.probe.max_vcpus.into()) as u32,
            models: self.probe.models.clone(),
            host_features: self.probe.host_features,
            sections,
            tsc_khz: self.probe.tsc_khz,
            tsc_scaling: self.probe.tsc_scaling,
            allow_tsc_mismatch: self.limits.allow_tsc_mismatch,
            devices: DEVICES.into_iter().filter(|d| self.limits.takes(d)).map(str::to_owned).collect(),
        }
    }

    fn build(self, offer: &Offer, memory: Option<SharedRam>) -> Result<Filling, Fault> {
        let memory_bytes = offer.memory_bytes();
        let ours = layout(memory_bytes)?;
        if !offer.regions.iter().map(|r| (r.gpa, r.len)).eq(ours) {
            return Err("its memory lies elsewhere than on this board".into());
        }
        let description: Description = serde_json::from_slice(&offer.description)?;
        let (moved, shared) = (description.moved.clone(), description.shared.clone());
        let mut devices = DevicesConfig::from(description);
        self.limits.overrides.apply(&mut devices)?;
        self.limits.paths.check(&devices, &self.limits.overrides)?;
        let disks = Arc::new(self.receive_disks(&moved)?);
        // Until they are whole they have other names.
        let mut built = devices.clone();
        for ((id, _), partial) in moved.iter().zip(disks.partial_paths()) {
            let drive = built.drives.iter_mut().find(|d| d.drive_id == *id);
            drive.ok_or("a moved disk is not among the drives")?.path_on_host = Some(partial);
        }
        let spec = Spec {
            vcpus: offer.vcpus,
            memory_bytes,
            model: Some(offer.model.clone()),
            tsc_khz: Some(offer.tsc_khz),
            allow_tsc_mismatch: self.limits.allow_tsc_mismatch || offer.allow_tsc_mismatch,
            backing: memory.map_or(Backing::Shared, Backing::HandedOver),
            devices: built,
        };
        let machine = Machine::build(&spec, &self.plugin, self.console, self.events)?;
        same_sizes(&machine, &shared)?;
        super::metadata::attach(&self.metadata, &devices, machine.slots())?;
        // While the guest still runs where it is: later this would be silence for its peers.
        machine.slots().await_links(LINKS_COME_UP);
        // All is open and all threads run; from here on the peer's bytes become the guest's.
        (self.built)()?;
        sandbox::enter(sandbox::Kind::Receive, "receive")?;
        Ok(Filling { machine, devices, disks })
    }
}

impl Target for Filling {
    type Running = Arrived;

    fn volumes(&self) -> Vec<Region> {
        self.disks.regions()
    }

    fn memory(&self) -> Arc<dyn Memory> {
        Arc::new(volumes::Both { ram: self.machine.ram().clone(), disks: Arc::clone(&self.disks) })
    }

    fn can_miss(&self) -> Result<(), Fault> {
        Ok(missing_is_possible()?)
    }

    fn miss(&mut self, absent: &PageSet) -> Result<Missing, Fault> {
        Ok(Missing::begin(self.machine.ram(), absent.runs(u64::MAX))?)
    }

    fn load(&mut self, container: &[u8]) -> Result<(), Fault> {
        let (found, sections) = state::read(container)?;
        let own = header(&self.machine);
        if (found.board, found.vcpus, found.memory_bytes, &found.model)
            != (own.board, own.vcpus, own.memory_bytes, &own.model)
        {
            return Err("the state is of another machine than the one that was offered".into());
        }
        self.machine.restore(&sections)?;
        self.machine.bound()?;
        self.disks.finish()
    }

    fn run(mut self, advance_ns: u64) -> Result<Arrived, Fault> {
        // Nothing changes where it was writable already.
        make_writable(self.machine.ram())?;
        self.disks.keep();
        self.machine.resume(advance_ns)?;
        Ok(Arrived { machine: self.machine, devices: self.devices })
    }
}
