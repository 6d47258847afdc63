//! Every instruction of every model has a handler, and none of another: encodings are enumerated, decoded, lowered.

use super::*;
use godwit_state::model::{Model, all_features};
use iced_x86::{Code, EncodingKind};
use std::collections::BTreeSet;

/// Forms that iced knows and v3's features cover, but that no guest of ours may run, and why.
fn excepted(i: &Instruction) -> bool {
    use Mnemonic as M;
    match i.mnemonic() {
        // System management mode and performance counters are not in the model.
        M::Rsm | M::Rdpmc => true,
        // Undefined by the manual, 3DNow! or of processors before the first 64-bit one.
        M::Loadall | M::Umov | M::Femms => true,
        _ => false,
    }
}

fn lowered(i: &Instruction, bits: u32, features: Features) -> bool {
    let mode = mode::FXSR | mode::AVX | mode::PROTECTED | u64::from(bits / 32);
    let op = Op {
        run: Cell::new(ops::undefined as Handler),
        imm: 0,
        disp: 0,
        a: 0,
        b: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: 3,
        off: 0,
        len: i.len() as u8,
        n: 1,
        c: 0,
        asize: 0,
    };
    let mut l = Lower {
        i,
        op,
        bits,
        mode,
        form: Form::Any,
        flags: true,
        locked: false,
        features,
        then: None,
        fused: false,
        end: i.len() as u64,
        far_rip: false,
    };
    l.memory();
    ops::lower(&mut l).is_some()
}

/// Heads of encodings up to the opcode byte.
fn heads() -> Vec<Vec<u8>> {
    let mut heads = Vec::new();
    for prefix in
        [&[][..], &[0x66], &[0x67], &[0xf3], &[0xf2], &[0x48], &[0x66, 0x48], &[0xf3, 0x48], &[0xf2, 0x48]]
    {
        for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
            heads.push([prefix, map].concat());
        }
    }
    for map in 1..=3u8 {
        for last in 0..16u8 {
            // W, L and the prefix; vvvv is register 1 or none.
            let (w, l, pp) = (last >> 3, last >> 2 & 1, last & 3);
            for vvvv in [0x70, 0x78] {
                heads.push(vec![0xc4, 0xe0 | map, w << 7 | vvvv | l << 2 | pp]);
            }
        }
    }
    heads
}

/// Codes that the decoder never gives: they are another's encoding, or only an assembler knows them.
fn never_decoded(code: Code) -> bool {
    use Mnemonic as M;
    match code.mnemonic() {
        // WAIT and the form that does not wait: two instructions to a processor.
        M::Fstenv | M::Fstcw | M::Fclex | M::Finit | M::Fsave | M::Fstsw | M::Feni | M::Fdisi | M::Fsetpm => {
            true
        }
        M::Frstpm | M::Fstdw | M::Fstsg | M::Fnstdw | M::Fnstsg => true,
        M::Db | M::Dw | M::Dd | M::Dq | M::Zero_bytes => true,
        // UD0 without a ModRM byte, POP CS of the 8086, and what AMD's decoder takes 0x66 for.
        _ => matches!(
            code,
            Code::Ud0
                | Code::Popw_CS
                | Code::Jrcxz_rel8_16
                | Code::Loop_rel8_16_RCX
                | Code::Loope_rel8_16_RCX
                | Code::Loopne_rel8_16_RCX
        ),
    }
}

/// The instructions of a model, with those that no handler was found for.
fn enumerate(features: Features) -> (BTreeSet<String>, BTreeSet<String>, BTreeSet<String>) {
    let (mut missing, mut seen, mut codes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut try_one = |code: &[u8]| {
        for bits in [64, 32, 16] {
            let i = Decoder::with_ip(bits, code, 0, DecoderOptions::NONE).decode();
            if i.is_invalid() || !in_model(&i, features) || excepted(&i) {
                continue;
            }
            seen.insert(format!("{:?}", i.mnemonic()));
            codes.insert(format!("{:?}", i.code()));
            if !lowered(&i, bits, features) {
                missing.insert(format!("{:?} in {bits}-bit code", i.code()));
            }
        }
    };
    for head in heads() {
        for opcode in 0..=255u8 {
            // ModRM: registers (all, for x87), and memory at (RAX) and with an index, as gathers need.
            for modrm in (0..=255u8).filter(|m| matches!(m >> 6, 3) || matches!(m & 0xc7, 0x44 | 0x00)) {
                let tail = [modrm, 0x50, 0x21, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
                try_one(&[&head[..], &[opcode], &tail].concat());
            }
        }
    }
    (missing, seen, codes)
}

#[test]
fn every_instruction_of_the_models_has_a_handler() {
    // The interpreter's own "host" model has all that it knows: v3, and SHA, ADX, INVPCID and so on.
    let features = all_features();
    let (missing, seen, codes) = enumerate(features);
    assert!(missing.is_empty(), "no handler for {missing:?}");
    let mut probe = Instruction::default();
    let untried: Vec<String> = Code::values()
        .filter(|c| matches!(c.encoding(), EncodingKind::Legacy | EncodingKind::VEX) && !never_decoded(*c))
        .filter(|c| {
            probe.set_code(*c);
            *c != Code::INVALID && in_model(&probe, features) && !excepted(&probe)
        })
        .map(|c| format!("{c:?}"))
        .filter(|c| !codes.contains(c))
        .collect();
    println!("{} mnemonics, {} codes", seen.len(), codes.len());
    assert!(untried.is_empty(), "of the model and never tried: {untried:?}");
}

#[test]
fn what_is_not_in_a_model_is_undefined() {
    let cases: [(&[u8], &str, Model); 14] = [
        (&[0xf3, 0x0f, 0xb8, 0xc1], "POPCNT", Model::V2),
        (&[0x66, 0x0f, 0x38, 0x00, 0xc1], "PSHUFB", Model::V2),
        (&[0x66, 0x0f, 0x3a, 0x0f, 0xc1, 1], "PALIGNR", Model::V2),
        (&[0xf2, 0x0f, 0x38, 0xf1, 0xc1], "CRC32", Model::V2),
        (&[0x48, 0x0f, 0xc7, 0x08], "CMPXCHG16B", Model::V2),
        (&[0xc5, 0xf4, 0x58, 0xc2], "VADDPS", Model::V3),
        (&[0xc4, 0xe2, 0x70, 0xf2, 0xc2], "ANDN", Model::V3),
        (&[0xc4, 0xe2, 0x71, 0x98, 0xc2], "VFMADD132PS", Model::V3),
        (&[0x0f, 0x38, 0xf0, 0x00], "MOVBE", Model::V3),
        (&[0x66, 0x0f, 0x38, 0xdc, 0xc1], "AESENC", Model::V3),
        (&[0x0f, 0xae, 0x20], "XSAVE", Model::V3),
        (&[0x0f, 0x38, 0xc8, 0xc1], "SHA1NEXTE", Model::Host),
        (&[0x66, 0x0f, 0x38, 0xf6, 0xc1], "ADCX", Model::Host),
        (&[0x66, 0x0f, 0x38, 0x82, 0x00], "INVPCID", Model::Host),
    ];
    let order = [Model::X86_64, Model::V2, Model::V3];
    for (bytes, name, from) in cases {
        let i = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        assert!(!i.is_invalid(), "{name}");
        for model in order {
            let has = in_model(&i, model.features().unwrap());
            assert_eq!(has, model >= from && from != Model::Host, "{name} in {}", model.name());
        }
        assert!(in_model(&i, all_features()), "{name} on the interpreter's host model");
    }
}
