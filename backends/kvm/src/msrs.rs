//! The MSRs of "x86.msrs" by index and name, apart from IA32_APIC_BASE, which goes with the segments.

use godwit_sdk::state::{MsrsV1, MtrrVarV1};
use godwit_sdk::{Error, Result};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

pub(crate) const TSC: u32 = 0x10;
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
const TSC_AUX: u32 = 0xc000_0103;
const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;

const COUNT: usize = 41;

/// In the order of [`values`].
const NAMES: [(u32, &str); COUNT] = [
    (0x174, "IA32_SYSENTER_CS"),
    (0x175, "IA32_SYSENTER_ESP"),
    (0x176, "IA32_SYSENTER_EIP"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0083, "CSTAR"),
    (0xc000_0084, "SFMASK"),
    (0xc000_0102, "KERNEL_GS_BASE"),
    (TSC_AUX, "TSC_AUX"),
    (0x277, "IA32_PAT"),
    (0x1a0, "IA32_MISC_ENABLE"),
    (0x250, "IA32_MTRR_FIX64K_00000"),
    (0x258, "IA32_MTRR_FIX16K_80000"),
    (0x259, "IA32_MTRR_FIX16K_A0000"),
    (0x268, "IA32_MTRR_FIX4K_C0000"),
    (0x269, "IA32_MTRR_FIX4K_C8000"),
    (0x26a, "IA32_MTRR_FIX4K_D0000"),
    (0x26b, "IA32_MTRR_FIX4K_D8000"),
    (0x26c, "IA32_MTRR_FIX4K_E0000"),
    (0x26d, "IA32_MTRR_FIX4K_E8000"),
    (0x26e, "IA32_MTRR_FIX4K_F0000"),
    (0x26f, "IA32_MTRR_FIX4K_F8000"),
    (0x200, "IA32_MTRR_PHYSBASE0"),
    (0x201, "IA32_MTRR_PHYSMASK0"),
    (0x202, "IA32_MTRR_PHYSBASE1"),
    (0x203, "IA32_MTRR_PHYSMASK1"),
    (0x204, "IA32_MTRR_PHYSBASE2"),
    (0x205, "IA32_MTRR_PHYSMASK2"),
    (0x206, "IA32_MTRR_PHYSBASE3"),
    (0x207, "IA32_MTRR_PHYSMASK3"),
    (0x208, "IA32_MTRR_PHYSBASE4"),
    (0x209, "IA32_MTRR_PHYSMASK4"),
    (0x20a, "IA32_MTRR_PHYSBASE5"),
    (0x20b, "IA32_MTRR_PHYSMASK5"),
    (0x20c, "IA32_MTRR_PHYSBASE6"),
    (0x20d, "IA32_MTRR_PHYSMASK6"),
    (0x20e, "IA32_MTRR_PHYSBASE7"),
    (0x20f, "IA32_MTRR_PHYSMASK7"),
    (0x2ff, "IA32_MTRR_DEF_TYPE"),
    (KVM_WALL_CLOCK, "MSR_KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "MSR_KVM_SYSTEM_TIME_NEW"),
];

fn values(m: &MsrsV1) -> [u64; COUNT] {
    let mut out = [0; COUNT];
    out[..11].copy_from_slice(&[
        m.sysenter_cs,
        m.sysenter_esp,
        m.sysenter_eip,
        m.star,
        m.lstar,
        m.cstar,
        m.sfmask,
        m.kernel_gs_base,
        m.tsc_aux,
        m.pat,
        m.misc_enable,
    ]);
    out[11..22].copy_from_slice(&m.mtrr_fixed);
    for (pair, v) in out[22..38].chunks_exact_mut(2).zip(m.mtrr_var) {
        pair.copy_from_slice(&[v.base, v.mask]);
    }
    out[38..].copy_from_slice(&[m.mtrr_def_type, m.kvm_wall_clock, m.kvm_system_time]);
    out
}

fn state(apic_base: u64, v: &[u64; COUNT]) -> MsrsV1 {
    MsrsV1 {
        apic_base,
        sysenter_cs: v[0],
        sysenter_esp: v[1],
        sysenter_eip: v[2],
        star: v[3],
        lstar: v[4],
        cstar: v[5],
        sfmask: v[6],
        kernel_gs_base: v[7],
        tsc_aux: v[8],
        pat: v[9],
        misc_enable: v[10],
        mtrr_fixed: std::array::from_fn(|i| v[11 + i]),
        mtrr_var: std::array::from_fn(|i| MtrrVarV1 { base: v[22 + 2 * i], mask: v[23 + 2 * i] }),
        mtrr_def_type: v[38],
        kvm_wall_clock: v[39],
        kvm_system_time: v[40],
    }
}

/// Calls KVM with `entries` until each was taken or found missing; gives the indices into `entries` of those missing.
/// KVM stops at the first MSR it refuses and says how many it did before.
fn piecewise(
    entries: &mut [kvm_msr_entry],
    mut call: impl FnMut(&mut Msrs) -> std::result::Result<usize, String>,
) -> Result<Vec<usize>> {
    let mut refused = Vec::new();
    let mut start = 0;
    while start < entries.len() {
        let mut msrs =
            Msrs::from_entries(&entries[start..]).map_err(|e| Error::Host(format!("MSR list: {e:?}")))?;
        let done = call(&mut msrs).map_err(Error::Host)?.min(entries.len() - start);
        entries[start..start + done].copy_from_slice(&msrs.as_slice()[..done]);
        start += done;
        if start < entries.len() {
            refused.push(start);
            start += 1;
        }
    }
    Ok(refused)
}

/// The MSRs of a vCPU. One that the model or this KVM lacks has its reset value.
pub(crate) fn save(fd: &VcpuFd, apic_base: u64, tsc_aux: bool) -> Result<MsrsV1> {
    let mut entries = NAMES.map(|(index, _)| kvm_msr_entry { index, ..Default::default() });
    let refused = piecewise(&mut entries, |m| fd.get_msrs(m).map_err(|e| format!("KVM_GET_MSRS: {e}")))?;
    let mut v = entries.map(|e| e.data);
    let reset = values(&MsrsV1::reset(true));
    for i in refused {
        v[i] = reset[i];
    }
    let mut out = state(apic_base, &v);
    if !tsc_aux {
        out.tsc_aux = 0;
    }
    Ok(out)
}

/// Sets the MSRs of a vCPU.
///
/// KVM_SYSTEM_TIME makes the kernel write the time page into guest memory from the next entry on, and WALL_CLOCK writes the
/// guest's wall clock at once, so the VM's clock must have been loaded before.
pub(crate) fn load(fd: &VcpuFd, msrs: &MsrsV1, tsc_aux: bool) -> Result<()> {
    if !tsc_aux && msrs.tsc_aux != 0 {
        return Err(Error::State("section x86.msrs: TSC_AUX is set, which the CPU model lacks".into()));
    }
    let wanted = values(msrs);
    let reset = values(&MsrsV1::reset(true));
    // The wall clock is the VM's, not the vCPU's: writing a zero for one vCPU would undo another's.
    let chosen: Vec<usize> = (0..COUNT)
        .filter(|i| match NAMES[*i].0 {
            KVM_WALL_CLOCK => wanted[*i] != 0,
            TSC_AUX => tsc_aux,
            _ => true,
        })
        .collect();
    let mut entries: Vec<_> = chosen
        .iter()
        .map(|i| kvm_msr_entry { index: NAMES[*i].0, data: wanted[*i], ..Default::default() })
        .collect();
    let refused = piecewise(&mut entries, |m| fd.set_msrs(m).map_err(|e| format!("KVM_SET_MSRS: {e}")))?;
    for i in refused.into_iter().map(|i| chosen[i]) {
        if wanted[i] != reset[i] {
            let (index, name) = NAMES[i];
            return Err(Error::State(format!(
                "section x86.msrs: this KVM refuses {name} ({index:#x}) = {:#x}",
                wanted[i]
            )));
        }
    }
    Ok(())
}

/// Reads one MSR; `None` if this KVM lacks it.
pub(crate) fn get(fd: &VcpuFd, index: u32) -> Result<Option<u64>> {
    let mut entry = [kvm_msr_entry { index, ..Default::default() }];
    let refused = piecewise(&mut entry, |m| fd.get_msrs(m).map_err(|e| format!("KVM_GET_MSRS: {e}")))?;
    Ok(refused.is_empty().then_some(entry[0].data))
}

/// Writes one MSR.
pub(crate) fn set(fd: &VcpuFd, index: u32, data: u64, name: &str) -> Result<()> {
    let mut entry = [kvm_msr_entry { index, data, ..Default::default() }];
    let refused = piecewise(&mut entry, |m| fd.set_msrs(m).map_err(|e| format!("KVM_SET_MSRS: {e}")))?;
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::State(format!("this KVM refuses {name} ({index:#x}) = {data:#x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_the_same_both_ways() {
        let mut m = MsrsV1::reset(true);
        m.mtrr_var[7].mask = 5;
        m.mtrr_fixed[10] = 6;
        m.kvm_system_time = 7;
        m.star = 8;
        assert_eq!(state(m.apic_base, &values(&m)), m);
        assert_eq!(NAMES[37], (0x20f, "IA32_MTRR_PHYSMASK7"));
        assert_eq!(values(&m)[37], 5);
    }
}
