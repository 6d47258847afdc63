//! Guest time: TSC, kvmclock and the LAPIC timers, stopped and running.
//!
//! KVM's clocks cannot be stopped. Stopping here means to capture them, for all vCPUs at one instant; while stopped, state is
//! saved from the capture; starting moves KVM's clocks back to it.
//!
//! ```text
//!            stop_clock: capture                    start_clock: offsets, kvmclock, timers set
//!   running ─────────────────────► stopped ─────────────────────► running
//!                                   ▲   │
//!                       load_clock, └───┘ save_clock, vCPU save
//!                       vCPU load
//! ```
//!
//! The kernel's timers go on ticking while the guest is stopped, but what they do then is thrown away when they are set again.
//! One that ran out before the instant and whose interrupt the kernel had not yet requested is found by arithmetic, and its
//! interrupt put into the captured IRR.
//!
//! Some KVMs (those without hardware virtualisation under them) give every guest the host's TSC as it is. There a guest's TSC
//! jumps when the clock starts, its owner is told so in the log, and a TSC deadline is moved by as much as the TSC jumped.

use crate::backend::same_frequency;
use crate::kick::Shared;
use crate::lapic::{Page, TimerMode};
use crate::msrs;
use crate::sys::{self, failed};
use crate::vm::{Inner, lock};
use godwit_sdk::state::{ClockV1, LapicV1};
use godwit_sdk::{Error, Host, LogLevel, Result};
use kvm_bindings::kvm_clock_data;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What of a vCPU's state is time, as of the instant the clock was stopped.
#[derive(Debug, Clone, Copy, Default)]
struct VcpuTime {
    /// Its TSC less the VM's.
    offset: i64,
    /// One-shot or periodic timer, absolute on kvmclock.
    deadline_ns: Option<u64>,
    /// TSC-deadline timer.
    tsc_deadline: u64,
    /// Vector of a timer that ran out before the instant, not yet in the kernel's IRR.
    expired: Option<u8>,
    /// Initial count of a one-shot timer that had run out when it was loaded. KVM can't be given such a timer without
    /// firing it again, so it gets 0, and the guest's own value is kept here.
    spent_initial: u32,
    /// The kernel's LAPIC has been loaded, so its timer must be set at the start.
    loaded: bool,
    /// The one-shot or periodic timer's remaining time when the vCPU last came out of the kernel (or the clock was started).
    left: Option<(Instant, u64)>,
}

/// Guest time of a VM.
#[derive(Debug)]
pub(crate) struct Time {
    /// Set while stopped.
    clock: Option<ClockV1>,
    /// While running: the VM's TSC less the scaled host's.
    base: u64,
    /// What the guest was told.
    guest_khz: u64,
    host_khz: u64,
    scaled: bool,
    allow_mismatch: bool,
    /// The guest has the host's TSC, whatever is set.
    fixed: bool,
    vcpus: BTreeMap<u32, VcpuTime>,
}

/// What the log says of such a KVM.
const FIXED: &str = "this host's KVM cannot set a guest's TSC: the guest has the host's, and sees it jump when it comes here";

/// Whether this KVM gives guests the host's TSC as it is: found out by the first vCPU, since nothing announces it.
fn tsc_is_fixed(vcpu: &Shared) -> Result<bool> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    const FAR: u64 = 1 << 60;
    sys::set_tsc_offset(vcpu.raw(), FAR).map_err(|e| {
        Error::Unusable(format!("this KVM cannot offset a vCPU's TSC ({e}): Linux 5.16 or newer is needed"))
    })?;
    let seen = msrs::get(&vcpu.fd, msrs::TSC)?.unwrap_or(0);
    Ok(*FOUND.get_or_init(|| seen.wrapping_sub(sys::rdtsc()).wrapping_sub(FAR / 2) > FAR))
}

fn utc_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn ns_since(earlier: Instant, later: Instant) -> u64 {
    u64::try_from(later.saturating_duration_since(earlier).as_nanos()).unwrap_or(u64::MAX)
}

fn running() -> Error {
    Error::Invalid("the clock is running: stop it first".into())
}

impl Time {
    pub(crate) fn new(guest_khz: u64, scaled: bool, host_khz: u64, allow_mismatch: bool) -> Self {
        let clock = ClockV1 { tsc_khz: guest_khz, tsc: 0, kvmclock_ns: 0, realtime_ns: utc_ns() };
        Time {
            clock: Some(clock),
            base: 0,
            guest_khz,
            host_khz,
            scaled,
            allow_mismatch,
            fixed: false,
            vcpus: BTreeMap::new(),
        }
    }

    /// Frequency that CPUID tells the guest.
    pub(crate) fn announced_khz(&self) -> u64 {
        self.guest_khz
    }

    /// The clock, if it is stopped.
    pub(crate) fn stopped(&self) -> Result<ClockV1> {
        self.clock.ok_or_else(running)
    }

    /// Frequency that the guest's TSC really has.
    fn real_khz(&self) -> u64 {
        if self.scaled { self.guest_khz } else { self.host_khz }
    }

    /// The host's TSC as the guest's frequency counts it. Off by the rounding of KVM's own ratio, the same way each time.
    fn scale(&self, host_tsc: u64) -> u64 {
        if !self.scaled {
            return host_tsc;
        }
        (u128::from(host_tsc) * u128::from(self.guest_khz) / u128::from(self.host_khz)) as u64
    }

    fn ticks(&self, ns: u64) -> u64 {
        (u128::from(ns) * u128::from(self.real_khz()) / 1_000_000) as u64
    }

    /// A guest that comes back to the host whose TSC it has had may be a little ahead of it, by how its time was kept elsewhere:
    /// better a moment's wait than a TSC that goes back.
    fn wait_for(&self, target_tsc: u64) {
        const LONGEST: Duration = Duration::from_millis(10);
        let ahead = target_tsc.wrapping_sub(sys::rdtsc());
        if ahead > i64::MAX as u64 {
            return;
        }
        let wait =
            Duration::from_nanos((u128::from(ahead) * 1_000_000 / u128::from(self.real_khz())) as u64);
        if wait <= LONGEST {
            std::thread::sleep(wait);
        }
    }

    /// A vCPU has been made.
    pub(crate) fn add_vcpu(&mut self, vcpu: &Shared, host: &Host) -> Result<()> {
        if tsc_is_fixed(vcpu)? && !self.fixed {
            self.fixed = true;
            host.log(LogLevel::Warn, FIXED);
        }
        if self.scaled {
            vcpu.fd.set_tsc_khz(self.guest_khz as u32).map_err(failed("KVM_SET_TSC_KHZ"))?;
        }
        if self.clock.is_none() && !self.fixed {
            sys::set_tsc_offset(vcpu.raw(), self.base).map_err(failed("KVM_VCPU_TSC_OFFSET"))?;
        }
        self.vcpus.insert(vcpu.id, VcpuTime::default());
        Ok(())
    }

    /// A vCPU is gone.
    pub(crate) fn remove_vcpu(&mut self, id: u32) {
        self.vcpus.remove(&id);
    }

    /// The vCPU came out of the kernel: its LAPIC before and after the kernel last requested interrupts of timers.
    pub(crate) fn left_kernel(&mut self, id: u32, before: &(Page, Instant), after: &(Page, Instant)) {
        let Some(v) = self.vcpus.get_mut(&id) else { return };
        let ran_out = before.0.left_ns().filter(|left| ns_since(before.1, after.1) >= *left);
        let requested = after.0.timer_vector().is_some_and(|vector| after.0.requested_since(&before.0, vector));
        v.left = match ran_out {
            Some(left) if !requested => Some((before.1, left)),
            _ => after.0.left_ns().map(|left| (after.1, left)),
        };
    }

    /// Puts the time-dependent fields into a vCPU's saved LAPIC. Returns its TSC offset.
    pub(crate) fn fill(&self, id: u32, lapic: &mut LapicV1) -> Result<i64> {
        self.stopped()?;
        let v = self.vcpus.get(&id).copied().unwrap_or_default();
        lapic.timer_deadline_ns = v.deadline_ns;
        lapic.tsc_deadline = v.tsc_deadline;
        if lapic.timer_initial == 0 {
            lapic.timer_initial = v.spent_initial;
        }
        if let Some(vector) = v.expired {
            lapic.irr[usize::from(vector / 32)] |= 1 << (vector % 32);
            lapic.tmr[usize::from(vector / 32)] &= !(1 << (vector % 32));
        }
        Ok(v.offset)
    }

    /// Takes them from a vCPU's loaded state.
    pub(crate) fn load(&mut self, id: u32, lapic: &LapicV1, offset: i64) -> Result<()> {
        self.stopped()?;
        let v = VcpuTime {
            offset,
            deadline_ns: lapic.timer_deadline_ns,
            tsc_deadline: lapic.tsc_deadline,
            loaded: true,
            ..VcpuTime::default()
        };
        self.vcpus.insert(id, v);
        Ok(())
    }
}

/// What a vCPU's timer was, read a little before the instant.
struct Reading {
    page: Page,
    at: Instant,
    tsc_offset: u64,
    tsc_deadline: u64,
}

fn read(vcpu: &Shared, fixed: bool) -> Result<Reading> {
    let page = Page(vcpu.fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?);
    let at = Instant::now();
    let tsc_deadline = match page.timer_mode() {
        TimerMode::TscDeadline => msrs::get(&vcpu.fd, msrs::TSC_DEADLINE)?.unwrap_or(0),
        _ => 0,
    };
    let tsc_offset = match fixed {
        true => 0,
        false => sys::tsc_offset(vcpu.raw()).map_err(failed("KVM_VCPU_TSC_OFFSET"))?,
    };
    Ok(Reading { page, at, tsc_offset, tsc_deadline })
}

/// Carries a reading on to the instant.
fn capture(old: &VcpuTime, r: &Reading, base: u64, clock: &ClockV1, now: Instant) -> VcpuTime {
    let offset = r.tsc_offset.wrapping_sub(base) as i64;
    let mut v = VcpuTime { offset, ..VcpuTime::default() };
    let mut expired = false;
    match r.page.timer_mode() {
        TimerMode::TscDeadline => {
            let reached = clock.tsc.wrapping_add(offset as u64) >= r.tsc_deadline;
            // KVM zeroes the MSR when it requests the interrupt, so one in the past is still to be requested.
            expired = r.tsc_deadline != 0 && reached;
            v.tsc_deadline = if reached { 0 } else { r.tsc_deadline };
        }
        mode => {
            let period = u64::from(r.page.initial()) * r.page.tick_ns();
            if let Some((then, left)) = old.left {
                // It ran out while the vCPU was outside the kernel, where nobody requests the interrupt.
                expired = period != 0 && ns_since(then, r.at) >= left;
            }
            let passed = ns_since(r.at, now);
            match (r.page.left_ns(), mode) {
                (Some(left), _) if left > passed => v.deadline_ns = Some(clock.kvmclock_ns + (left - passed)),
                (Some(left), TimerMode::Periodic) => {
                    expired = true;
                    v.deadline_ns = Some(clock.kvmclock_ns + period - (passed - left) % period);
                }
                (Some(_), _) => expired = true,
                // The count reads 0 in the tick in which a periodic timer starts again.
                (None, TimerMode::Periodic) if period != 0 => {
                    v.deadline_ns = Some(clock.kvmclock_ns + period - passed % period);
                }
                (None, _) => {}
            }
            if v.deadline_ns.is_none() && r.page.initial() == 0 && mode == TimerMode::OneShot {
                v.spent_initial = old.spent_initial;
            }
        }
    }
    v.expired = r.page.timer_vector().filter(|_| expired);
    v
}

impl Inner {
    fn all_vcpus(&self) -> Vec<Arc<Shared>> {
        lock(&self.vcpus).values().cloned().collect()
    }

    /// kvmclock with the host's TSC at the same instant.
    fn read_clock(&self) -> Result<(u64, u64)> {
        let before = sys::rdtsc();
        let clock = self.fd.get_clock().map_err(failed("KVM_GET_CLOCK"))?;
        let after = sys::rdtsc();
        // Not every KVM gives the pair (only while all vCPUs share one clock does it); else the middle is good to a microsecond.
        let given = clock.flags & kvm_bindings::KVM_CLOCK_HOST_TSC != 0;
        Ok((clock.clock, if given { clock.host_tsc } else { before + after.wrapping_sub(before) / 2 }))
    }

    pub(crate) fn stop_clock(&self) -> Result<()> {
        let vcpus = self.all_vcpus();
        let mut time = lock(&self.time);
        if time.clock.is_some() {
            return Err(Error::Invalid("the clock is stopped already".into()));
        }
        // Timers before the clock: one that runs out between the two has run out at the instant.
        let readings = vcpus.iter().map(|v| Ok((v.id, read(v, time.fixed)?))).collect::<Result<Vec<_>>>()?;
        let (kvmclock_ns, host_tsc) = self.read_clock()?;
        let now = Instant::now();
        let clock = ClockV1 {
            tsc_khz: time.guest_khz,
            tsc: time.scale(host_tsc).wrapping_add(time.base),
            kvmclock_ns,
            realtime_ns: utc_ns(),
        };
        for (id, reading) in readings {
            let old = time.vcpus.get(&id).copied().unwrap_or_default();
            let new = capture(&old, &reading, time.base, &clock, now);
            time.vcpus.insert(id, new);
        }
        time.clock = Some(clock);
        Ok(())
    }

    pub(crate) fn load_clock(&self, clock: &ClockV1) -> Result<()> {
        let mut time = lock(&self.time);
        time.stopped()?;
        if !same_frequency(clock.tsc_khz, time.real_khz()) && !time.allow_mismatch {
            return Err(Error::Unsupported(format!(
                "section x86.clock: the guest's TSC runs at {} kHz and this VM's at {} kHz: \
                 make the VM with that tsc_khz, or set allow_tsc_mismatch",
                clock.tsc_khz,
                time.real_khz()
            )));
        }
        // KVM writes the guest's wall clock from this one when its MSR is loaded.
        self.set_kvmclock(clock.kvmclock_ns)?;
        time.clock = Some(*clock);
        Ok(())
    }

    fn set_kvmclock(&self, ns: u64) -> Result<()> {
        let data = kvm_clock_data { clock: ns, ..Default::default() };
        self.fd.set_clock(&data).map_err(failed("KVM_SET_CLOCK"))
    }

    pub(crate) fn start_clock(&self, advance_ns: u64) -> Result<()> {
        let vcpus = self.all_vcpus();
        let mut time = lock(&self.time);
        let clock = time
            .clock
            .ok_or_else(|| Error::Invalid("the clock is running already: stop it first".into()))?;
        let target_ns = clock.kvmclock_ns.saturating_add(advance_ns);
        let target_tsc = clock.tsc.wrapping_add(time.ticks(advance_ns));
        if time.fixed {
            time.wait_for(target_tsc);
        }
        let then = Instant::now();
        let behind = target_tsc.wrapping_sub(time.scale(sys::rdtsc()));
        let (base, jump) = if time.fixed { (0, behind.wrapping_neg()) } else { (behind, 0) };
        // TSC before kvmclock, which KVM computes from it; both before the timers, which are set as deadlines on them.
        for v in vcpus.iter().filter(|_| !time.fixed) {
            let offset = time.vcpus.get(&v.id).map_or(0, |t| t.offset);
            sys::set_tsc_offset(v.raw(), base.wrapping_add(offset as u64))
                .map_err(failed("KVM_VCPU_TSC_OFFSET"))?;
        }
        self.set_kvmclock(target_ns + ns_since(then, Instant::now()))?;
        for v in &vcpus {
            let Some(t) = time.vcpus.get_mut(&v.id) else { continue };
            if t.tsc_deadline != 0 {
                t.tsc_deadline = t.tsc_deadline.wrapping_add(jump);
            }
            start_timer(v, t, target_ns, then)?;
        }
        time.base = base;
        time.clock = None;
        Ok(())
    }
}

/// Sets a vCPU's timer as it was captured or loaded. `start_ns` is kvmclock at `start`.
fn start_timer(vcpu: &Shared, t: &mut VcpuTime, start_ns: u64, start: Instant) -> Result<()> {
    t.left = None;
    if !t.loaded && t.deadline_ns.is_none() && t.tsc_deadline == 0 && t.expired.is_none() {
        return Ok(());
    }
    // The board may have sent messages meanwhile: IRR, ISR and TMR are the kernel's, only time is ours.
    let mut page = Page(vcpu.fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?);
    let mode = page.timer_mode();
    let mut set = t.expired.is_some();
    if let Some(vector) = t.expired.take() {
        page.request(vector);
    }
    let tick = page.tick_ns();
    let now = Instant::now();
    let now_ns = start_ns.saturating_add(ns_since(start, now));
    if mode != TimerMode::TscDeadline && page.initial() != 0 {
        set = true;
        let period = u64::from(page.initial()) * tick;
        let left = match (t.deadline_ns, mode) {
            (Some(at), _) if at > now_ns => at - now_ns,
            // Its time came while the guest was stopped.
            (Some(_), TimerMode::OneShot) => 0,
            (Some(at), _) => {
                if let Some(vector) = page.timer_vector() {
                    page.request(vector);
                }
                period - (now_ns - at) % period
            }
            // A one-shot timer that has run out would fire again.
            (None, TimerMode::OneShot) => {
                t.spent_initial = page.initial();
                page.set_initial(0);
                0
            }
            (None, _) => period,
        };
        page.set_current(u32::try_from(left / tick).unwrap_or(u32::MAX).max(u32::from(left != 0)));
        t.left = t.deadline_ns.map(|_| (now, left));
    }
    if set {
        // Also forgets what the kernel's timer did meanwhile.
        vcpu.fd.set_lapic(&page.0).map_err(failed("KVM_SET_LAPIC"))?;
    }
    if mode == TimerMode::TscDeadline && t.tsc_deadline != 0 {
        msrs::set(&vcpu.fd, msrs::TSC_DEADLINE, t.tsc_deadline, "IA32_TSC_DEADLINE")?;
    }
    t.loaded = false;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTOR: u8 = 0x40;
    const CLOCK: ClockV1 = ClockV1 { tsc_khz: 1_000_000, tsc: 9_000, kvmclock_ns: 5_000, realtime_ns: 0 };

    /// A timer of 1 ns ticks: its mode, initial and current count.
    fn page(mode: u32, initial: u32, current: u32) -> Page {
        let mut s = LapicV1::reset(0);
        s.svr = 0x1ff;
        s.lvt[0] = mode << 17 | u32::from(VECTOR);
        s.timer_initial = initial;
        s.timer_divide = 0xb;
        let mut page = Page::from_state(&s);
        page.set_current(current);
        page
    }

    fn captured(page: Page, tsc_deadline: u64, left: Option<u64>, passed: u64) -> VcpuTime {
        let at = Instant::now();
        let old = VcpuTime { left: left.map(|ns| (at, ns)), ..VcpuTime::default() };
        let reading = Reading { page, at, tsc_offset: 0, tsc_deadline };
        capture(&old, &reading, 0, &CLOCK, at + Duration::from_nanos(passed))
    }

    #[test]
    fn running_timers_keep_their_deadline() {
        let v = captured(page(0, 1000, 700), 0, Some(800), 100);
        assert_eq!((v.deadline_ns, v.expired), (Some(5_600), None));
        let v = captured(page(1, 1000, 700), 0, Some(800), 100);
        assert_eq!((v.deadline_ns, v.expired), (Some(5_600), None));
        let v = captured(page(2, 0, 0), 9_001, None, 100);
        assert_eq!((v.tsc_deadline, v.expired), (9_001, None));
    }

    #[test]
    fn timers_that_run_out_before_the_instant_have_expired() {
        let v = captured(page(0, 1000, 700), 0, Some(800), 700);
        assert_eq!((v.deadline_ns, v.expired), (None, Some(VECTOR)));
        let v = captured(page(1, 1000, 700), 0, Some(800), 900);
        assert_eq!((v.deadline_ns, v.expired), (Some(5_800), Some(VECTOR)));
        let v = captured(page(2, 0, 0), 9_000, None, 0);
        assert_eq!((v.tsc_deadline, v.expired), (0, Some(VECTOR)));
    }

    #[test]
    fn an_expiry_outside_the_kernel_is_found_and_an_older_one_is_not_repeated() {
        // One-shot: it had nothing left on the way out, and its count has reached 0.
        assert_eq!(captured(page(0, 1000, 0), 0, Some(0), 10).expired, Some(VECTOR));
        assert_eq!(captured(page(0, 1000, 0), 0, None, 10).expired, None);
        // Periodic: on its next round already.
        let v = captured(page(1, 1000, 900), 0, Some(0), 100);
        assert_eq!((v.deadline_ns, v.expired), (Some(5_800), Some(VECTOR)));
    }

    #[test]
    fn masked_timers_expire_silently() {
        let mut s = LapicV1::reset(0);
        s.timer_initial = 1000;
        s.timer_divide = 0xb;
        let v = captured(Page::from_state(&s), 0, Some(0), 10);
        assert_eq!((v.deadline_ns, v.expired), (None, None));
    }
}
