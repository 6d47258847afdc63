//! The interpreter backend: x86-64 on any host.
//!
//! ```text
//!  vm.rs       the contract: Backend, Vm, Vcpu            state.rs   to and from canonical state
//!  exec.rs     dispatcher: find block, run chain, deliver
//!    │  ├─ events.rs     interrupts, NMI, INIT, debug traps, HLT
//!    │  └─ exception.rs  through the IDT                   segment.rs descriptors, task.rs
//!    ├─ cache.rs ◄─ decode.rs ◄─ iced-x86                  op.rs      an op, a link, how handlers run on
//!    └─ ops/   handlers, one file a family ─► num/  pure arithmetic
//!         └─ mmu/  TLBs, walks, RAM                        lapic.rs clock.rs msr.rs
//! ```
//!
//! A *block* is up to 32 instructions from one page, keyed by guest-physical address and mode. Each instruction is an
//! [`op::Op`] of 32 bytes with a pointer to its handler; a handler does its work and jumps to the next op's.
//! Branches jump straight to the block they are linked to. Between chains the dispatcher polls the attention word.
//!
//! # Where is an instruction?
//! `ops::lower` names the family of every mnemonic; the family's `lower` names the handler for each form.
//!
//! # Adding one
//! 1. If it needs arithmetic of its own, add a pure function to `num`.
//! 2. Write a handler in the family's file: fetch operands (`ops::operand`), do everything that may fault, then
//!    change registers. `ops!` makes a handler of a fallible body.
//! 3. Name the mnemonic in the family's `lower` and in `ops::lower`; a feature new to the model goes into
//!    `decode::in_model`. If it must end its block, say so in `ops::ends_block`.
//! 4. Let the fuzzer know it.
//!
//! # The seam for a translator
//! `decode` gives a [`cache::Draft`] that does not depend on how it is run. A translating backend would turn a draft
//! into host code at `Cache::insert` and call the handlers it does not translate; links, invalidation and the dispatcher stay.

mod cache;
mod clock;
mod counters;
mod cpu;
mod decode;
mod events;
mod exception;
mod exec;
mod flags;
mod host_tsc;
mod lapic;
mod mmu;
mod msr;
pub mod num;
mod op;
mod ops;
mod random;
mod regs;
mod segment;
mod shared;
mod state;
mod task;
pub mod vendor;
mod vm;
mod wait;

pub use vm::{Interp, InterpVcpu, InterpVm};
