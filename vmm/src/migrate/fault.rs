//! Injected faults: at any protocol step of either side, for tests. Nothing happens unless a plan was set.
//!
//! A process takes its plan from `GODWIT_FAULT`, for instance `source:precopy:cut` (side, step, action); tests in this
//! crate hand a plan in.

use std::str::FromStr;

macro_rules! names {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $name:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $($(#[$vdoc])* $name),* }
        impl $type {
            /// All of them.
            pub const ALL: &'static [$type] = &[$($type::$name),*];
            /// The name in plans.
            pub fn name(self) -> &'static str {
                match self { $($type::$name => $text),* }
            }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                let known: Vec<_> = Self::ALL.iter().map(|x| x.name()).collect();
                Self::ALL.iter().copied().find(|x| x.name() == s)
                    .ok_or_else(|| format!("{s:?} is not one of {}", known.join(", ")))
            }
        }
    };
}

names! {
    /// Which end.
    Side { /** The sender. */ Source = "source", /** The receiver. */ Destination = "destination" }
}

names! {
    /// Where in the protocol, by what this side is about to do.
    Step {
        /// Exchange prefaces.
        Hello = "hello",
        /// Send the offer; answer it.
        Preflight = "preflight",
        /// Hand guest memory over, or take it.
        HandOver = "hand-over",
        /// Send or take the first pages.
        Precopy = "precopy",
        /// Finish or acknowledge a round.
        Round = "round",
        /// Pause the guest (source only).
        Pause = "pause",
        /// Send or take the state.
        State = "state",
        /// Send or take the last pages and the finish.
        Finish = "finish",
        /// Load the state and say so; wait for it.
        Ready = "ready",
        /// Send or take the commit.
        Commit = "commit",
        /// Say or hear that the guest runs.
        Running = "running",
        /// Send or take the first page after that.
        Postcopy = "postcopy",
        /// Say or hear that all pages are there.
        Complete = "complete",
    }
}

names! {
    /// What happens.
    Action {
        /// The process ends without a word.
        Kill = "kill",
        /// The connection is cut.
        Cut = "cut",
        /// This side says nothing for longer than any limit.
        Stall = "stall",
        /// A bit of the next frame is flipped.
        Flip = "flip",
        /// The next frame is sent twice.
        Repeat = "repeat",
    }
}

/// One fault to inject.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The end that misbehaves.
    pub side: Side,
    /// Where.
    pub step: Step,
    /// How.
    pub action: Action,
    /// What [`Action::Kill`] does.
    pub kill: fn(),
    /// How long [`Action::Stall`] lasts.
    pub stall: std::time::Duration,
}

impl Plan {
    /// The plan in the environment, if there is one and it makes sense.
    pub fn from_env() -> Option<Plan> {
        let text = std::env::var("GODWIT_FAULT").ok()?;
        match text.parse() {
            Ok(plan) => Some(plan),
            Err(why) => {
                tracing::warn!("GODWIT_FAULT={text}: {why}");
                None
            }
        }
    }
}

impl FromStr for Plan {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parts: Vec<&str> = s.split(':').collect();
        let [side, step, action] = parts[..] else { return Err("say SIDE:STEP:ACTION".into()) };
        Ok(Plan {
            side: side.parse()?,
            step: step.parse()?,
            action: action.parse()?,
            kill: || std::process::abort(),
            stall: std::time::Duration::from_secs(3600),
        })
    }
}
