//! Single wrong bits: of every frame of whole migrations, and of what the two sides say before the first frame.

use super::error::MigrateError;
use super::fault::Side;
use super::link::tests::taken;
use super::tests::{Case, Relay, check, lazy, migrate};
use super::wire::{FrameHeader, HEADER_LEN, Kind, PREFACE_LEN};
use super::{MemoryWay, Mode, Outcome};
use crate::memory::missing_is_possible;
use std::collections::BTreeSet;

/// Payloads up to here are gone through bit by bit; of longer ones (pages) the ends, and every 1009th bit between.
const WHOLE: usize = 16 << 10;
const END: usize = 64 * 8;

/// All that the two sides sent.
fn recorded(mut case: Case) -> [Vec<u8>; 2] {
    let relay = Relay::default();
    case.relay = Some(relay.clone());
    let e = migrate(case);
    check("recorded", &e);
    assert_eq!(e.runs(), (false, true));
    relay.seen.map(|seen| seen.lock().unwrap().clone())
}

/// The frames of one direction.
fn frames(stream: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut all) = (&stream[PREFACE_LEN..], Vec::new());
    while !rest.is_empty() {
        let header = FrameHeader::decode(rest[..HEADER_LEN].try_into().unwrap()).unwrap();
        let (frame, next) = rest.split_at(HEADER_LEN + header.len as usize);
        all.push(frame);
        rest = next;
    }
    all
}

#[test]
fn no_flipped_bit_of_any_frame_is_taken() {
    // The relay loses descriptors: their frame comes, and pages after it.
    let mut cases = vec![Case::default(), Case::default()];
    cases[0].options.memory = MemoryWay::Auto;
    cases[1].options.compress = true;
    if missing_is_possible().is_ok() {
        cases.extend([lazy(Mode::Postcopy), lazy(Mode::Hybrid)]);
    }
    let (mut kinds, mut flips) = (BTreeSet::new(), 0u64);
    for mut case in cases {
        case.pages_a_turn = 20;
        for stream in recorded(case) {
            for (number, frame) in (0u32..).zip(frames(&stream)) {
                let kind = taken(frame.to_vec(), number).unwrap();
                // Several with pages are alike.
                if !kinds.insert(kind.name()) && frame.len() > WHOLE {
                    continue;
                }
                let bits = frame.len() * 8;
                for bit in 0..bits {
                    if bits > WHOLE * 8 && bit >= END && bit < bits - END && bit % 1009 != 0 {
                        continue;
                    }
                    let mut bad = frame.to_vec();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    let error = taken(bad, number).expect_err("a flipped bit is taken");
                    assert!(matches!(error, MigrateError::Frame(_) | MigrateError::Closed { .. }), "{error}");
                    flips += 1;
                }
            }
        }
    }
    println!("{flips} flips in frames with {kinds:?}");
    for kind in
        [Kind::Offer, Kind::Memory, Kind::Accept, Kind::Zero, Kind::Pages, Kind::RoundEnd, Kind::State]
    {
        assert!(kinds.contains(kind.name()), "{} did not occur", kind.name());
    }
}

/// Versions and capabilities have no checksum of their own: whatever one wrong bit makes of them, the guest runs on one side, all of it.
#[test]
fn a_flipped_bit_of_a_greeting_costs_the_move_at_most() {
    let (mut moved, mut stayed) = (0, 0);
    for side in [Side::Source, Side::Destination] {
        for bit in 0..PREFACE_LEN * 8 {
            let relay = Relay { flip: Some((side, bit)), ..Relay::default() };
            let mut case = Case::default();
            (case.relay, case.pages_a_turn) = (Some(relay), 5);
            case.options.memory = MemoryWay::Auto;
            case.options.compress = true;
            let e = migrate(case);
            check(&format!("{} bit {bit}", side.name()), &e);
            match e.source {
                Some(Outcome::Moved(..)) => moved += 1,
                Some(Outcome::Stayed { .. }) => stayed += 1,
                _ => panic!("{} bit {bit}: nobody runs", side.name()),
            }
        }
    }
    println!("{moved} moved, {stayed} stayed");
    // The magic's bits at least.
    assert!(stayed >= 2 * 64 && moved > 0);
}
