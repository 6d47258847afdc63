//! A Linux guest under the real program: from a config file, with an API socket, and what it prints.

use godwit_tests::harness::mount::run;
use godwit_tests::harness::{PATIENCE, Process, Scratch, cached, program, room};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Waits for something that is sure to come on a machine that is not stuck.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a Debian guest is made from.
pub(crate) struct Debian {
    kernel: PathBuf,
    initrd: PathBuf,
    root: PathBuf,
    godwit: PathBuf,
    plugin: PathBuf,
}

impl Debian {
    /// All that is needed, or why not.
    pub(crate) fn find() -> Result<Self, String> {
        room(512)?;
        let names = ["debian.bzImage", "debian.initramfs.cpio.gz", "debian.ext4"];
        let [kernel, initrd, root] = cached(names, "--rootfs")?;
        let (godwit, plugin) = (program("godwit")?, program("libgodwit_backend_interp.so")?);
        Ok(Debian { kernel, initrd, root, godwit, plugin })
    }

    /// A copy of the root file system, as sparse as it is.
    pub(crate) fn root(&self, scratch: &Scratch) -> PathBuf {
        let copy = scratch.path("root.ext4");
        run(Command::new("cp").arg("--sparse=always").args([&self.root, &copy])).unwrap();
        copy
    }

    /// Writes the config file: the first drive is the root, the second holds the script that the guest runs.
    pub(crate) fn config(
        &self,
        scratch: &Scratch,
        script: &str,
        extra: &[&Path],
        mib: u64,
        more: Value,
    ) -> PathBuf {
        let mut text = script.as_bytes().to_vec();
        text.resize(text.len().next_multiple_of(4096), 0);
        std::fs::write(scratch.path("script"), text).unwrap();
        let drive = |id: &str, path: &Path, read_only: bool| {
            json!({"drive_id": id, "path_on_host": path, "is_root_device": id == "root",
                   "is_read_only": read_only, "cache_type": "Writeback"})
        };
        let mut drives =
            vec![drive("root", &self.root(scratch), false), drive("script", &scratch.path("script"), true)];
        drives.extend(extra.iter().enumerate().map(|(i, path)| drive(&format!("data{i}"), path, false)));
        let mut config = json!({
            "boot-source": {
                "kernel_image_path": self.kernel, "initrd_path": self.initrd,
                "boot_args": "console=ttyS0 reboot=k panic=1 quiet loglevel=5 godwit.do=disk godwit.run=/dev/vdb godwit.ip=10.0.9.2/24"
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": mib},
            "drives": drives
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let path = scratch.path("vm.json");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Starts a program with an API socket of this name, and a config file or none.
    pub(crate) fn start(&self, scratch: &Scratch, name: &str, config: Option<&Path>) -> Guest {
        let socket = scratch.path(name);
        let text = |p: &Path| p.to_str().unwrap().to_owned();
        let mut args = vec!["--api-sock".to_owned(), text(&socket), "--backend".into(), text(&self.plugin)];
        args.extend(config.into_iter().flat_map(|c| ["--config-file".to_owned(), text(c)]));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let guest = Guest { process: Process::start(&self.godwit, &args, ""), socket };
        until("there is an API socket", || UnixStream::connect(&guest.socket).is_ok());
        guest
    }
}

/// A program with a guest.
pub(crate) struct Guest {
    pub(crate) process: Process,
    socket: PathBuf,
}

impl Guest {
    /// Sends a request: the answer's body. It must succeed.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.exchange(method, path, &body);
        assert!(
            answer.starts_with("HTTP/1.1 20"),
            "{method} {path} {body}: {answer}; {}",
            self.process.err()
        );
        serde_json::from_str(answer.split_once("\r\n\r\n").map_or("", |(_, b)| b)).unwrap_or(Value::Null)
    }

    /// Sends a request that must be refused: the whole answer.
    pub(crate) fn refused(&self, method: &str, path: &str, body: Value) -> String {
        let answer = self.exchange(method, path, &body);
        assert!(answer.starts_with("HTTP/1.1 400"), "{method} {path} {body}: {answer}");
        answer
    }

    fn exchange(&self, method: &str, path: &str, body: &Value) -> String {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// What the guest said after "CHECK name", when it has.
    pub(crate) fn said(&self, name: &str) -> Option<String> {
        let prefix = format!("CHECK {name} ");
        self.process
            .lines()
            .iter()
            .find_map(|l| l.find(&prefix).map(|at| l[at + prefix.len()..].trim().into()))
    }

    /// Waits until it says it. Only silence is a hang: the host may be slow.
    pub(crate) fn hear(&mut self, name: &str) -> String {
        let (mut end, mut seen) = (Instant::now() + PATIENCE, 0);
        loop {
            if let Some(found) = self.said(name) {
                return found;
            }
            let text = self.process.text();
            if text.len() > seen {
                (seen, end) = (text.len(), Instant::now() + PATIENCE);
            }
            let tail = &text[text.char_indices().rev().nth(3000).map_or(0, |(at, _)| at)..];
            let alive = self.process.is_alive() || self.said(name).is_some();
            assert!(alive, "no CHECK {name}; godwit ended: {}\n{tail}", self.process.err());
            assert!(Instant::now() < end, "no CHECK {name}; silence: {}\n{tail}", self.process.err());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Resident memory of the program in MiB.
    pub(crate) fn resident_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() / 1024
    }
}
