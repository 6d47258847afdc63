//! The counter moves between godwits, by the command line: what the tests of that share.
//!
//! Called by `tests/migration.rs`, `tests/postcopy.rs` and `tests/tls.rs`.

use super::{Process, Scratch, check_lines, program};
use crate::conformance::plugin::Plugin;
use std::path::PathBuf;
use std::process::{Command, Output};

/// What a test of moves needs: the program, and a directory of its own.
pub struct Stage {
    /// The program.
    pub godwit: PathBuf,
    /// Where everything lies.
    pub scratch: Scratch,
}

impl Stage {
    /// What a test needs; otherwise it is skipped by name.
    pub fn set(test: &str, backends: &[&str]) -> Option<Stage> {
        let missing = |why| println!("SKIPPED {test}: {why}");
        for backend in backends {
            if let Err(why) = Plugin::usable(backend) {
                missing(why);
                return None;
            }
        }
        match program("godwit") {
            Ok(godwit) => Some(Stage { godwit, scratch: Scratch::new(test) }),
            Err(why) => {
                missing(why);
                None
            }
        }
    }

    /// The path of a file in the directory.
    pub fn text(&self, name: &str) -> String {
        self.scratch.path(name).to_string_lossy().into_owned()
    }

    /// The counter on `backend`, its API socket being `api`.
    pub fn source(&self, backend: &str, mib: u64, args: &str, api: &str, fault: &str) -> Process {
        self.source_as("x86-64", backend, mib, args, api, fault)
    }

    /// The same, its CPU being `model`.
    pub fn source_as(
        &self,
        model: &str,
        backend: &str,
        mib: u64,
        args: &str,
        api: &str,
        fault: &str,
    ) -> Process {
        let config = self.scratch.config("counter", mib, model, args);
        let (config, api) = (config.to_str().expect("a plain path"), self.text(api));
        let source = Process::start(
            &self.godwit,
            &["--config-file", config, "--api-sock", &api, "--backend", backend],
            fault,
        );
        source.wait_lines(3).expect("the guest runs");
        source
    }

    /// A receiver at the Unix socket `socket`.
    pub fn receiver(&self, backend: &str, socket: &str, api: &str, more: &[&str], fault: &str) -> Process {
        let at = format!("unix:{}", self.text(socket));
        self.receiver_at(backend, &at, api, more, fault).0
    }

    /// A receiver at an address, and the address with the port that it got.
    pub fn receiver_at(
        &self,
        backend: &str,
        at: &str,
        api: &str,
        more: &[&str],
        fault: &str,
    ) -> (Process, String) {
        let api = self.text(api);
        let mut args = vec!["receive", at, "--backend", backend, "--api-sock", &api];
        args.extend(more);
        let receiver = Process::start(&self.godwit, &args, fault);
        let place = receiver.wait_place().unwrap();
        (receiver, place)
    }

    /// `godwit migrate` to the Unix socket `socket`; guest memory is copied unless `more` says otherwise.
    pub fn migrate(&self, api: &str, socket: &str, more: &[&str]) -> Output {
        self.migrate_to(api, &format!("unix:{}", self.text(socket)), more)
    }

    /// The same to an address.
    pub fn migrate_to(&self, api: &str, target: &str, more: &[&str]) -> Output {
        let api = self.text(api);
        let mut args = vec!["migrate", "--api-sock", &api, target];
        if !more.contains(&"--memory") {
            args.extend(["--memory", "copy"]);
        }
        args.extend(more);
        Command::new(&self.godwit).args(args).output().expect("the program starts")
    }

    /// `godwit migrate` that goes on with what was begun.
    pub fn again(&self, api: &str, how: &str) -> Output {
        Command::new(&self.godwit)
            .args(["migrate", "--api-sock", &self.text(api), how])
            .output()
            .expect("the program starts")
    }
}

/// All that a program said.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The guest goes on at the source, undisturbed.
pub fn goes_on(source: &mut Process) {
    source.wait_lines(4).expect("the guest goes on");
    assert!(source.is_alive());
    check_lines(&[source.text()]);
}
