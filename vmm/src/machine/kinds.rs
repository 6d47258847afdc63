//! Which sections a machine's state has: what is offered before a move, and what can be taken.

use super::Machine;
use crate::board::IoApicV1;
use crate::board::PicV1;
use crate::board::clock::BoardClockV1;
use crate::board::generation::GenerationV1;
use crate::board::i8042::I8042V1;
use crate::board::pit::PitV1;
use crate::board::rtc::RtcV1;
use crate::board::serial::SerialV1;
use crate::virtio;
use godwit_state::{AvxV1, Section, model::Feature};

/// A section's kind and version.
pub type Kind = (String, u32);

fn kind<S: Section>() -> Kind {
    (S::KIND.to_owned(), S::VERSION)
}

/// Sections of the board: every machine has each once.
pub fn board_kinds() -> Vec<Kind> {
    vec![
        kind::<BoardClockV1>(),
        kind::<PicV1>(),
        kind::<IoApicV1>(),
        kind::<PitV1>(),
        kind::<RtcV1>(),
        kind::<I8042V1>(),
        kind::<SerialV1>(),
        kind::<GenerationV1>(),
    ]
}

/// Sections of all virtio devices that can be built.
pub fn device_kinds() -> Vec<Kind> {
    vec![
        kind::<virtio::transport::MmioV1>(),
        kind::<virtio::block::BlockV1>(),
        kind::<virtio::rng::RngV1>(),
        kind::<virtio::net::NetV1>(),
        kind::<virtio::vsock::VsockV1>(),
        kind::<virtio::balloon::BalloonV1>(),
    ]
}

impl Machine {
    /// Kinds of sections that [`Machine::save`] will give, each once.
    pub fn section_kinds(&self) -> Vec<Kind> {
        let avx = self.shape().features.is_none_or(|f| f.has(Feature::AVX));
        let mut out: Vec<Kind> =
            godwit_state::SECTIONS.iter().map(|(kind, version)| ((*kind).to_owned(), *version)).collect();
        out.retain(|(kind, _)| kind != AvxV1::KIND || avx);
        out.extend(board_kinds());
        for s in self.slots().save() {
            let kind = (s.section.kind, s.section.version);
            if !out.contains(&kind) {
                out.push(kind);
            }
        }
        out
    }
}
