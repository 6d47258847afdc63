//! The most that a plugin can ask for.
//!
//! Called by the loader and by `Policy`. A backend says in its descriptor which system calls and ioctl requests its
//! threads make; what is not here is refused before the plugin makes a VM.

use super::Kind;
use super::bpf::{Answer, Check, Rule};
use super::names;
use super::table;

/// A wish that no plugin is granted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CeilingError {
    /// A system call that is not in the ceiling.
    #[error("the backend asks for the system call {0}, which no plugin may make")]
    Call(String),
    /// An ioctl request that is not in the ceiling.
    #[error("the backend asks for the ioctl request {0:#x}, which no plugin may make")]
    Ioctl(u64),
    /// A request without the call that carries it.
    #[error("the backend names ioctl requests but not the system call ioctl")]
    IoctlsWithoutCall,
    /// The call that carries any request, without any.
    #[error("the backend asks for the system call ioctl but names no requests")]
    CallWithoutIoctls,
}

/// What a backend's threads do once its VM runs, checked against the ceiling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendNeeds {
    rules: Vec<Rule>,
    vcpu: Vec<Rule>,
    device: Vec<Rule>,
}

const NO_EXEC: &[Check] = &[Check::Masked { index: 2, mask: libc::PROT_EXEC as u32, value: 0 }];

/// Calls that a plugin may ask for, with the conditions that then hold. `ioctl` is apart.
const CALLS: &[(&str, &[Check])] = &[
    ("read", &[]),
    ("write", &[]),
    ("close", &[]),
    ("fcntl", &[Check::Eq { index: 1, value: libc::F_GETFD as u32 }]),
    ("eventfd2", &[]),
    ("timerfd_create", &[]),
    ("timerfd_settime", &[]),
    ("ppoll", &[]),
    ("poll", &[]),
    ("futex", &[]),
    ("mmap", NO_EXEC),
    ("munmap", &[]),
    ("mremap", &[]),
    ("mprotect", NO_EXEC),
    ("madvise", &[]),
    ("brk", &[]),
    ("membarrier", &[]),
    ("sched_yield", &[]),
    ("nanosleep", &[]),
    ("clock_nanosleep", &[]),
    ("clock_gettime", &[]),
    ("gettid", &[]),
    ("getpid", &[]),
    ("tgkill", &[]),
    ("rt_sigprocmask", &[]),
    ("rt_sigtimedwait", &[]),
    ("rt_sigpending", &[]),
    ("rt_sigreturn", &[]),
    ("sigaltstack", &[]),
    ("getrandom", &[]),
    ("exit", &[]),
];

/// Type byte of KVM's requests.
const KVM: u64 = 0xae;

/// Numbers of KVM's requests on a VM or a vCPU that exists: run it, read and set its state, memory, routes and clock. Not
/// there: making VMs, vCPUs and devices, which is over before the filters come. A number may stand for two requests
/// that differ in direction.
const KVM_REQUESTS: &[u8] = &[
    0x42, // GET_DIRTY_LOG
    0x46, // SET_USER_MEMORY_REGION
    0x6a, // SET_GSI_ROUTING
    0x76, // IRQFD
    0x79, // IOEVENTFD
    0x7b, // SET_CLOCK
    0x7c, // GET_CLOCK
    0x80, // RUN
    0x81, 0x82, // GET_REGS, SET_REGS
    0x83, 0x84, // GET_SREGS, SET_SREGS
    0x86, // INTERRUPT
    0x88, 0x89, // GET_MSRS, SET_MSRS
    0x8b, // SET_SIGNAL_MASK
    0x8e, 0x8f, // GET_LAPIC, SET_LAPIC
    0x98, 0x99, // GET_MP_STATE, SET_MP_STATE
    0x9a, // NMI
    0x9f, 0xa0, // GET_VCPU_EVENTS, SET_VCPU_EVENTS
    0xa1, 0xa2, // GET_DEBUGREGS, SET_DEBUGREGS, SET_TSC_KHZ
    0xa3, // GET_TSC_KHZ
    0xa4, 0xa5, // GET_XSAVE, SET_XSAVE, SIGNAL_MSI
    0xa6, 0xa7, // GET_XCRS, SET_XCRS
    0xad, // KVMCLOCK_CTRL
    0xc0, // CLEAR_DIRTY_LOG
    0xc7, // RESET_DIRTY_RINGS
    0xcc, 0xcd, // GET_SREGS2, SET_SREGS2
    0xcf, // GET_XSAVE2
    0xe1, 0xe2, // SET_DEVICE_ATTR, GET_DEVICE_ATTR
];

impl BackendNeeds {
    /// Checks what a descriptor declares, the same for all its threads.
    pub fn new<'a>(calls: impl IntoIterator<Item = &'a str>, ioctls: &[u64]) -> Result<Self, CeilingError> {
        let rules = granted(calls, ioctls)?;
        Ok(Self { vcpu: rules.clone(), device: rules.clone(), rules })
    }

    /// Checks what a loaded plugin declares, for each kind of thread that runs its code.
    pub fn of(backend: &crate::plugin::Descriptor) -> Result<Self, CeilingError> {
        let of = |calls: &[String], ioctls: &[u64]| granted(calls.iter().map(String::as_str), ioctls);
        Ok(Self {
            rules: of(&backend.system_calls, &backend.ioctls)?,
            vcpu: of(&backend.vcpu.system_calls, &backend.vcpu.ioctls)?,
            device: of(&backend.device.system_calls, &backend.device.ioctls)?,
        })
    }

    /// What it may do on a thread of this kind: nothing where its code does not run.
    pub fn rules(&self, kind: Kind) -> &[Rule] {
        match kind {
            Kind::Control | Kind::Receive => &self.rules,
            Kind::Vcpu => &self.vcpu,
            Kind::Device => &self.device,
            Kind::Api | Kind::Migrate | Kind::Signals => &[],
        }
    }
}

fn granted<'a>(calls: impl IntoIterator<Item = &'a str>, ioctls: &[u64]) -> Result<Vec<Rule>, CeilingError> {
    let mut rules = Vec::new();
    let mut may_ioctl = false;
    for call in calls {
        if call == "ioctl" {
            may_ioctl = true;
            continue;
        }
        let (_, checks) = CALLS
            .iter()
            .find(|(name, _)| *name == call)
            .ok_or_else(|| CeilingError::Call(call.to_owned()))?;
        // A host without the call cannot make it.
        if let Some(number) = names::number(call) {
            let checks = if table::ARGUMENTS_IN_MEMORY.contains(&call) { &[] } else { *checks };
            rules.push(Rule { number, checks: checks.to_vec(), answer: Answer::Allow });
        }
    }
    match (may_ioctl, ioctls.is_empty()) {
        (false, false) => return Err(CeilingError::IoctlsWithoutCall),
        (true, true) => return Err(CeilingError::CallWithoutIoctls),
        _ => {}
    }
    let mut requests = Vec::new();
    for &request in ioctls {
        let value = u32::try_from(request).map_err(|_| CeilingError::Ioctl(request))?;
        let [number, kind, ..] = value.to_le_bytes();
        if u64::from(kind) != KVM || !KVM_REQUESTS.contains(&number) {
            return Err(CeilingError::Ioctl(request));
        }
        let checks = vec![Check::Eq { index: 1, value }];
        requests.push(Rule { number: libc::SYS_ioctl, checks, answer: Answer::Allow });
    }
    // First, for they are what a vCPU thread makes most.
    requests.append(&mut rules);
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_ceiling_is_refused_by_name() {
        for call in [
            "execve", "execveat", "ptrace", "open", "openat", "socket", "kill", "clone", "prctl", "", "IOCTL",
        ] {
            assert_eq!(BackendNeeds::new([call], &[]), Err(CeilingError::Call(call.into())));
        }
        // KVM_CREATE_VM, TIOCSTI, a request of 64 bits, KVM_CREATE_DEVICE.
        for request in [0xae01, 0x5412, 0x1_0000_ae80, 0xc00c_aee0] {
            assert_eq!(BackendNeeds::new(["ioctl"], &[request]), Err(CeilingError::Ioctl(request)));
        }
        assert_eq!(BackendNeeds::new(["futex"], &[0xae80]), Err(CeilingError::IoctlsWithoutCall));
        assert_eq!(BackendNeeds::new(["ioctl"], &[]), Err(CeilingError::CallWithoutIoctls));
    }

    #[test]
    fn within_the_ceiling_is_granted() {
        let needs = BackendNeeds::new(["futex", "ioctl", "mmap"], &[0xae80, 0x8090_ae81]).unwrap();
        assert_eq!(needs.rules(Kind::Vcpu).len(), 4);
        assert_eq!(needs.rules(Kind::Vcpu)[0].checks, [Check::Eq { index: 1, value: 0xae80 }]);
        let seen = !table::ARGUMENTS_IN_MEMORY.contains(&"mmap");
        assert_eq!(needs.rules(Kind::Vcpu)[3].checks, if seen { NO_EXEC } else { &[] });
    }
}
