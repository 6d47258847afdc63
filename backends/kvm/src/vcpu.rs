//! A vCPU: the run loop. Its state in and out is in `state.rs`.
//!
//! ```text
//!   run:  ┌─► take flags ── kicked, nothing half done ──► drain ──► return Kicked
//!         │      │
//!         │   NMI, ExtINT
//!         │      │
//!         │   KVM_RUN ── port or memory access ──► the host; half done until the next KVM_RUN has completed it
//!         └──────┴────── EOI, interrupt window, signal
//! ```

use crate::kick::{KICK, NMI, Shared};
use crate::lapic::Page;
use crate::page::RunExit;
use crate::sys::{self, Blocked, failed};
use crate::vm::{Counters, Inner, lock};
use godwit_sdk::state::CpuState;
use godwit_sdk::{Error, Exit, Kick, Result, Vcpu};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A vCPU of this backend.
pub struct KvmVcpu {
    pub(crate) vm: Arc<Inner>,
    pub(crate) shared: Arc<Shared>,
    /// KVM's reset state is not quite the contract's; it is replaced before first use.
    pub(crate) fresh: bool,
    /// STI and SS shadow as loaded, while nothing has run since.
    pub(crate) shadow: Option<(bool, bool)>,
    /// A device access was answered and KVM has not completed the instruction.
    half_done: bool,
    /// `ready_for_interrupt` is of the state that the vCPU is in.
    window_known: bool,
}

impl std::fmt::Debug for KvmVcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmVcpu").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl KvmVcpu {
    pub(crate) fn new(vm: Arc<Inner>, shared: Arc<Shared>) -> Self {
        KvmVcpu { vm, shared, fresh: true, shadow: None, half_done: false, window_known: false }
    }

    /// Forgets what is known of the state that has been replaced.
    pub(crate) fn replaced(&mut self) {
        self.fresh = false;
        self.half_done = false;
        self.window_known = false;
    }

    fn run_loop(&mut self) -> Result<Exit> {
        loop {
            let flags = self.shared.take();
            if flags & NMI != 0 {
                self.shared.fd.nmi().map_err(failed("KVM_NMI"))?;
            }
            if flags & KICK != 0 && !self.half_done {
                self.drain()?;
                Counters::add(&self.vm.counters.kicked);
                return Ok(Exit::Kicked);
            }
            if flags & KICK != 0 {
                // Completes the access and comes back at once.
                self.shared.put_back(KICK);
                self.shared.page.set_immediate_exit(true);
            } else if self.shared.id == 0 {
                self.offer_extint()?;
            }
            if let Some(exit) = self.enter()? {
                return Ok(exit);
            }
        }
    }

    /// KVM_RUN once, and whatever it wants.
    fn enter(&mut self) -> Result<Option<Exit>> {
        let result = sys::run(self.shared.raw());
        self.half_done = false;
        self.window_known = true;
        if let Err(e) = result {
            return match e.raw_os_error() {
                Some(libc::EINTR) => {
                    Counters::add(&self.vm.counters.signal);
                    Ok(None)
                }
                // A vCPU that waited for INIT has had it.
                Some(libc::EAGAIN) => Ok(None),
                _ => Err(self.cannot_run(&e)),
            };
        }
        self.handle(self.shared.page.exit())
    }

    fn cannot_run(&self, e: &io::Error) -> Error {
        if e.raw_os_error() == Some(libc::EFAULT) {
            return self.guest_error("KVM_RUN: the guest used memory that the host cannot give it (EFAULT)");
        }
        Error::Host(format!("KVM_RUN: {e}"))
    }

    fn handle(&mut self, exit: RunExit) -> Result<Option<Exit>> {
        let (host, page, id) = (&self.vm.host, &self.shared.page, self.shared.id);
        let counters = &self.vm.counters;
        match exit {
            RunExit::Pio { input, port, width, count, offset } => {
                Counters::add(&counters.pio);
                for i in 0..u64::from(count) {
                    let at = offset + i * u64::from(width);
                    if input {
                        page.pio_put(at, width, host.pio_read(id, port, u32::from(width)));
                    } else {
                        host.pio_write(id, port, u32::from(width), page.pio_get(at, width));
                    }
                }
                self.half_done = true;
            }
            RunExit::Mmio { gpa, len, write, data } => {
                Counters::add(&counters.mmio);
                if write {
                    let value = u64::from_le_bytes(data) & (u64::MAX >> (64 - 8 * u32::from(len.max(1))));
                    host.mmio_write(id, gpa, u32::from(len), value);
                } else {
                    page.mmio_put(host.mmio_read(id, gpa, u32::from(len)));
                }
                self.half_done = true;
            }
            RunExit::InterruptWindow => Counters::add(&counters.interrupt_window),
            RunExit::Eoi(vector) => {
                Counters::add(&counters.eoi);
                host.eoi(vector);
            }
            RunExit::Shutdown => return Ok(Some(Exit::Shutdown)),
            RunExit::Internal { suberror, data, len } => {
                return Err(self.guest_error(&internal_error(suberror, &data[..len as usize])));
            }
            RunExit::FailEntry { reason, cpu } => {
                return Err(self.guest_error(&format!(
                    "the processor refused to enter the guest: hardware reason {reason:#x} on host CPU {cpu}"
                )));
            }
            RunExit::Nothing => Counters::add(&counters.other),
            RunExit::Other(reason) => {
                return Err(self.guest_error(&format!("KVM exit reason {reason} is not expected here")));
            }
        }
        Ok(None)
    }

    /// An error of the guest's making, with where it is.
    fn guest_error(&self, what: &str) -> Error {
        let at = match (self.shared.fd.get_regs(), self.shared.fd.get_sregs()) {
            (Ok(r), Ok(s)) => {
                format!(
                    " at rip {:#x} (cs {:#x}, cr0 {:#x}, rflags {:#x})",
                    r.rip, s.cs.selector, s.cr0, r.rflags
                )
            }
            _ => String::new(),
        };
        Error::Guest(format!("vCPU {}: {what}{at}", self.shared.id))
    }

    /// Takes the 8259s' interrupt if they have one and the vCPU can take it, else asks to be told when it can.
    ///
    /// The vector goes in as an event whose delivery has begun, not by KVM_INTERRUPT: what that call leaves waiting in the
    /// kernel can't be read back, so a vCPU saved just then would lose an interrupt that the 8259 holds for serviced.
    fn offer_extint(&mut self) -> Result<()> {
        let page = &self.shared.page;
        if !self.vm.extint.load(Ordering::SeqCst) {
            page.request_interrupt_window(false);
            return Ok(());
        }
        if !self.window_known {
            // A vCPU that is in HLT would not come out to tell: only look.
            page.set_immediate_exit(true);
            return Ok(());
        }
        if !page.ready_for_interrupt() {
            page.request_interrupt_window(true);
            return Ok(());
        }
        let fd = &self.shared.fd;
        let mut events = fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        if events.interrupt.injected != 0 || events.exception.injected != 0 || events.nmi.injected != 0 {
            page.request_interrupt_window(true);
            return Ok(());
        }
        page.request_interrupt_window(false);
        let Some(vector) = self.vm.host.extint_ack() else { return Ok(()) };
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        events.interrupt.soft = 0;
        // Only the interrupt: an NMI may have come since.
        events.flags = 0;
        fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        let state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        if state.mp_state == KVM_MP_STATE_HALTED {
            fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
                .map_err(failed("KVM_SET_MP_STATE"))?;
        }
        Ok(())
    }

    /// Lets KVM finish what it only does on its way into the guest: request the interrupt of a timer that has run out, report
    /// an EOI. A KVM_RUN with a signal waiting does that and comes back without executing anything.
    fn drain(&mut self) -> Result<()> {
        let before = self.lapic()?;
        let signal = self.shared.signal;
        let blocked = Blocked::new(signal).map_err(failed("rt_sigprocmask"))?;
        let raw = self.shared.raw();
        sys::set_signal_mask(raw, Some(blocked.before & !(1u64 << (signal - 1))))
            .map_err(failed("KVM_SET_SIGNAL_MASK"))?;
        sys::tgkill(sys::gettid(), signal);
        self.shared.page.request_interrupt_window(false);
        let mut result = Ok(None);
        // Each exit that is not the signal is one finished request; there are few kinds.
        for _ in 0..16 {
            self.shared.page.set_immediate_exit(self.half_done);
            let interrupted = matches!(sys::run(raw), Err(e) if e.raw_os_error() != Some(libc::EAGAIN));
            self.window_known = true;
            // The byte may also have been set by another kick, which made KVM skip what is wanted.
            if interrupted && !self.shared.page.immediate_exit_is_set() {
                break;
            }
            self.half_done = false;
            if !interrupted {
                result = self.handle(self.shared.page.exit());
                if !matches!(result, Ok(None)) {
                    break;
                }
            }
        }
        sys::set_signal_mask(raw, None).map_err(failed("KVM_SET_SIGNAL_MASK"))?;
        drop(blocked);
        result?;
        if before.0.runs() {
            let after = self.lapic()?;
            lock(&self.vm.time).left_kernel(self.shared.id, &before, &after);
        }
        Ok(())
    }

    fn lapic(&self) -> Result<(Page, Instant)> {
        let page = self.shared.fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        Ok((Page(page), Instant::now()))
    }
}

/// What KVM says of its own failure.
fn internal_error(suberror: u32, data: &[u64]) -> String {
    const EMULATION: u32 = 1;
    const HAS_BYTES: u64 = 1;
    let mut text = format!("KVM internal error, suberror {suberror}");
    if suberror != EMULATION {
        let words: Vec<_> = data.iter().map(|w| format!("{w:#x}")).collect();
        return format!("{text} [{}]", words.join(", "));
    }
    text += " (its emulator does not know an instruction)";
    if let [flags, first, second, ..] = data
        && flags & HAS_BYTES != 0
    {
        let bytes: Vec<u8> = first.to_le_bytes().into_iter().chain(second.to_le_bytes()).collect();
        let len = usize::from(bytes[0]).min(15);
        let hex: Vec<_> = bytes[1..=len].iter().map(|b| format!("{b:02x}")).collect();
        text += &format!(", bytes {}", hex.join(" "));
    }
    text
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit> {
        self.ensure_reset()?;
        self.shadow = None;
        let shared = self.shared.clone();
        // A kick that is blocked would leave the vCPU in the guest.
        sys::unblock(shared.signal).map_err(failed("rt_sigprocmask"))?;
        shared.enter();
        let result = self.run_loop();
        shared.leave();
        result
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.shared.clone()
    }

    fn save(&mut self) -> Result<CpuState> {
        self.save_state()
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        self.load_state(state)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        lock(&self.vm.vcpus).remove(&self.shared.id);
        lock(&self.vm.time).remove_vcpu(self.shared.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_failures_show_their_bytes() {
        let text = internal_error(1, &[1, u64::from_le_bytes([3, 0x66, 0x0f, 0xef, 0, 0, 0, 0]), 0]);
        assert!(text.ends_with("bytes 66 0f ef"), "{text}");
        assert!(internal_error(3, &[5]).contains("[0x5]"));
    }
}
