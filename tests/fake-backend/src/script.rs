//! The language of the fake guest.

/// One step: an opcode byte and its operands, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Any other byte, and where there is no memory: waits to be kicked, from then on halted.
    Halt,
    /// 1, port (2), value (1): OUT.
    Out {
        /// Where to.
        port: u16,
        /// What.
        value: u8,
    },
    /// 2, port (2): IN, into RAX.
    In {
        /// Where from.
        port: u16,
    },
    /// 3, address (4), value (1): a byte into memory, or to the board where there is none.
    Store {
        /// Where to.
        gpa: u32,
        /// What.
        value: u8,
    },
    /// 4, address (4): goes on there.
    Jump {
        /// The next step.
        to: u32,
    },
    /// 5: triple fault.
    Shutdown,
    /// 6: `run` returns an error.
    Fail,
    /// 7: the backend panics.
    Panic,
}

impl Step {
    /// Bytes of the longest step.
    pub const LONGEST: usize = 6;

    /// The step that begins here, and its length.
    pub fn decode(b: &[u8; Self::LONGEST]) -> (Step, u64) {
        let word = u16::from_le_bytes([b[1], b[2]]);
        let long = u32::from_le_bytes([b[1], b[2], b[3], b[4]]);
        match b[0] {
            1 => (Step::Out { port: word, value: b[3] }, 4),
            2 => (Step::In { port: word }, 3),
            3 => (Step::Store { gpa: long, value: b[5] }, 6),
            4 => (Step::Jump { to: long }, 5),
            5 => (Step::Shutdown, 1),
            6 => (Step::Fail, 1),
            7 => (Step::Panic, 1),
            _ => (Step::Halt, 1),
        }
    }
}
