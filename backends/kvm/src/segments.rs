//! "x86.system" to and from KVM's special registers.

use godwit_sdk::state::{SegmentV1, SystemV1, TableV1, access};
use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs, kvm_sregs2};

fn bit(value: u8, flag: u32) -> u32 {
    if value != 0 { flag } else { 0 }
}

fn segment(s: &kvm_segment) -> SegmentV1 {
    let dpl = u32::from(s.dpl & 3) << access::DPL_SHIFT;
    SegmentV1 {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        access: u32::from(s.type_) & access::TYPE
            | bit(s.s, access::S)
            | dpl
            | bit(s.present, access::PRESENT)
            | bit(s.avl, access::AVL)
            | bit(s.l, access::L)
            | bit(s.db, access::DB)
            | bit(s.g, access::G)
            | bit(s.unusable, access::UNUSABLE),
    }
    .canonical()
}

fn to_segment(s: &SegmentV1) -> kvm_segment {
    let flag = |f: u32| u8::from(s.access & f != 0);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & access::TYPE) as u8,
        present: flag(access::PRESENT),
        dpl: s.dpl(),
        db: flag(access::DB),
        s: flag(access::S),
        l: flag(access::L),
        g: flag(access::G),
        avl: flag(access::AVL),
        unusable: flag(access::UNUSABLE),
        padding: 0,
    }
}

/// Paging is PAE's, with four page-directory pointers held in the processor.
fn pae(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 >> 31 & 1 == 1 && cr4 >> 5 & 1 == 1 && efer >> 10 & 1 == 0
}

/// The canonical form.
pub(crate) fn from_kvm(s: &kvm_sregs2, xcr0: u64) -> SystemV1 {
    let table = |t: &kvm_dtable| TableV1 { base: t.base, limit: t.limit };
    SystemV1 {
        cs: segment(&s.cs),
        ds: segment(&s.ds),
        es: segment(&s.es),
        fs: segment(&s.fs),
        gs: segment(&s.gs),
        ss: segment(&s.ss),
        tr: segment(&s.tr),
        ldtr: segment(&s.ldt),
        gdtr: table(&s.gdt),
        idtr: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        efer: s.efer,
        xcr0,
        pdpte: if pae(s.cr0, s.cr4, s.efer) { s.pdptrs } else { [0; 4] },
    }
}

/// KVM's form.
pub(crate) fn to_kvm(s: &SystemV1, apic_base: u64, tpr: u8) -> kvm_sregs2 {
    let table = |t: &TableV1| kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] };
    let pae = pae(s.cr0, s.cr4, s.efer);
    kvm_sregs2 {
        cs: to_segment(&s.cs),
        ds: to_segment(&s.ds),
        es: to_segment(&s.es),
        fs: to_segment(&s.fs),
        gs: to_segment(&s.gs),
        ss: to_segment(&s.ss),
        tr: to_segment(&s.tr),
        ldt: to_segment(&s.ldtr),
        gdt: table(&s.gdtr),
        idt: table(&s.idtr),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: u64::from(tpr >> 4),
        efer: s.efer,
        apic_base,
        // Else KVM would read them from guest memory, which in a migration is not all there yet.
        flags: if pae { u64::from(kvm_bindings::KVM_SREGS2_FLAGS_PDPTRS_VALID) } else { 0 },
        pdptrs: if pae { s.pdpte } else { [0; 4] },
    }
}

/// The other of KVM's two forms: what both have, and then the fields named.
macro_rules! reform {
    ($from:ident as $form:ident { $($field:ident: $value:expr),* }) => {
        $form {
            cs: $from.cs,
            ds: $from.ds,
            es: $from.es,
            fs: $from.fs,
            gs: $from.gs,
            ss: $from.ss,
            tr: $from.tr,
            ldt: $from.ldt,
            gdt: $from.gdt,
            idt: $from.idt,
            cr0: $from.cr0,
            cr2: $from.cr2,
            cr3: $from.cr3,
            cr4: $from.cr4,
            cr8: $from.cr8,
            efer: $from.efer,
            apic_base: $from.apic_base,
            $($field: $value),*
        }
    };
}

/// From the older form, for a KVM without the newer.
pub(crate) fn widen(s: &kvm_sregs) -> kvm_sregs2 {
    reform!(s as kvm_sregs2 { flags: 0, pdptrs: [0; 4] })
}

/// The older form.
pub(crate) fn narrow(s: &kvm_sregs2) -> kvm_sregs {
    reform!(s as kvm_sregs { interrupt_bitmap: [0; 4] })
}
