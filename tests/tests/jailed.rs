//! The real godwit in a jail: guests run there on every CPU, are snapshot and restored, arrive and leave, live; and whoever took
//! godwit over would find no file, process or right that it does not need.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::jail::{self, Base, GID, Jailed, UID};
use godwit_tests::harness::{PATIENCE, Process, Scratch, ask, check_lines, program};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What a test needs; otherwise it is skipped by name.
fn needed(test: &str, backends: &[&str]) -> Option<(Base, Scratch)> {
    let usable = || {
        if !jail::is_root() {
            return Err("the jailer must be started as root".to_owned());
        }
        backends.iter().try_for_each(|b| Plugin::usable(b).map(drop))?;
        program("godwit-jailer").map(drop)
    };
    match usable() {
        Ok(()) => Some((Base::create(), Scratch::new(test))),
        Err(why) => {
            println!("SKIPPED {test}: {why}");
            None
        }
    }
}

/// The counter's files, with paths as they are in a jail.
fn counter(scratch: &Scratch) -> [PathBuf; 2] {
    let outside = scratch.config("counter", 32, "x86-64", "rate=50");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&outside).unwrap()).unwrap();
    spec["boot-source"]["kernel_image_path"] = "/counter.elf".into();
    let inside = scratch.path("vm.json");
    fs::write(&inside, spec.to_string()).unwrap();
    [scratch.path("counter.elf"), inside]
}

fn answered(socket: &Path, process: &Process) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask(socket, "GET", "/", "") {
            Ok((200, answer)) => return answer,
            other => assert!(Instant::now() < end, "no API: {other:?}; {}", process.err()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn does(socket: &Path, method: &str, path: &str, body: Value) {
    let (status, answer) = ask(socket, method, path, &body.to_string()).unwrap();
    assert_eq!(status, 204, "{method} {path} {body}: {answer}");
}

/// A guest that runs in a jail, its API at `/run/api.sock`.
fn running(base: &Base, scratch: &Scratch, id: &str, backend: &str, flags: &[&str]) -> Jailed {
    let files = counter(scratch);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let flags: Vec<&str> = ["--backend", backend].iter().chain(flags).copied().collect();
    let args = ["--config-file", "/vm.json", "--api-sock", "/run/api.sock", "--backend", backend];
    let jailed = Jailed::start(base, id, &files, &flags, &args).unwrap();
    jailed.process.wait_lines(3).unwrap();
    jailed
}

/// All below a directory, without following links.
fn walk(dir: &Path, top: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            walk(&path, top, found);
        } else {
            found.insert(format!("/{}", path.strip_prefix(top).unwrap().display()));
        }
    }
}

/// Nothing but what is needed is to be seen or done by any thread of the jailed process.
fn has_nothing_more(jailed: &Jailed, backend: &str, own_pids: bool) {
    let proc = PathBuf::from(format!("/proc/{}", jailed.pid()));
    for task in fs::read_dir(proc.join("task")).unwrap().flatten() {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(&format!("{name}:")));
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let thread = field("Name");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{thread}: {set}");
        }
        assert_eq!(field("Uid"), [UID.to_string().as_str(); 4].join(" "), "{thread}");
        assert_eq!(field("Gid"), [GID.to_string().as_str(); 4].join(" "), "{thread}");
        assert_eq!(field("Groups"), "", "{thread}");
        assert_eq!(field("NoNewPrivs"), "1", "{thread}");
        assert_eq!(field("Seccomp"), "2", "{thread} has a filter");
        if own_pids {
            assert_eq!(field("NSpid").split(' ').count(), 2, "{thread} is in a PID namespace of its own");
        }
    }
    // Its own names for mounts, System V objects and hosts; of processes too, if asked.
    for space in ["mnt", "ipc", "uts"].into_iter().chain(own_pids.then_some("pid")) {
        let link = |p: &Path| fs::read_link(p.join("ns").join(space)).unwrap();
        assert_ne!(link(&proc), link(Path::new("/proc/self")), "{space}");
    }
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    for line in mounts.lines() {
        let (head, tail) = line.split_once(" - ").unwrap();
        let (at, kind) = (head.split(' ').nth(4).unwrap(), tail.split(' ').next().unwrap());
        let special = ["proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "devpts", "devtmpfs"];
        assert!(!special.contains(&kind), "{kind} is mounted on {at}");
    }
    let root = proc.join("root");
    let mut found = BTreeSet::new();
    walk(&root, &root, &mut found);
    let plugin = format!("/lib/godwit/libgodwit_backend_{backend}.so");
    let mut wanted = vec!["/godwit", "/godwit.pid", "/counter.elf", "/vm.json", "/run/api.sock", &plugin];
    wanted.extend(["/dev/net/tun", "/dev/urandom"]);
    wanted.extend((backend == "kvm").then_some("/dev/kvm"));
    for name in &wanted {
        assert!(found.remove(*name), "{name} is not in the jail: {found:?}");
    }
    found.remove("/dev/userfaultfd");
    found.retain(|f| {
        !(["/lib/", "/lib64/", "/usr/lib"].iter().any(|d| f.starts_with(d)) && f.contains(".so"))
    });
    assert!(found.is_empty(), "not on the list: {found:?}");
    for fd in fs::read_dir(proc.join("fd")).unwrap().flatten() {
        let to = fs::read_link(fd.path()).unwrap().display().to_string();
        let known =
            ["anon_inode:", "socket:", "pipe:", "/memfd:", "/dev/null"].iter().any(|k| to.starts_with(k));
        // A path that godwit could have opened itself: nothing of the host came along.
        let inside = to == "/dev/kvm" && backend == "kvm" || to.contains(jailed.root().to_str().unwrap());
        let own = to.starts_with("/vm.json") || to.starts_with("/counter.elf");
        assert!(known || inside || own, "an open file of the host's: {to}");
    }
    if !Path::new("/sys/kernel/security/landlock").exists()
        && !fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|l| l.contains("landlock"))
    {
        println!("Landlock: not to be seen in this kernel's list of modules; jailer.rs tries it out");
    }
}

fn lives_in_a_jail(test: &str, backend: &str) {
    let Some((base, scratch)) = needed(test, &[backend]) else { return };
    let first = running(&base, &scratch, "first", backend, &["--new-pid-ns"]);
    let api = first.path("run/api.sock");
    let answer = answered(&api, &first.process);
    assert_eq!((answer["id"].as_str(), answer["state"].as_str()), (Some("first"), Some("Running")));
    has_nothing_more(&first, backend, true);

    does(&api, "PATCH", "/vm", json!({"state": "Paused"}));
    let files = json!({"snapshot_path": "/state", "mem_file_path": "/memory"});
    does(&api, "PUT", "/snapshot/create", files);
    let said = settled(&first.process);
    let second_files = [first.path("state"), first.path("memory")];
    let second_files: Vec<&Path> = second_files.iter().map(PathBuf::as_path).collect();
    let args = ["--api-sock", "/run/api.sock", "--backend", backend];
    let second = Jailed::start(&base, "second", &second_files, &["--backend", backend], &args).unwrap();
    drop(first);
    let api = second.path("run/api.sock");
    answered(&api, &second.process);
    let backed = json!({"snapshot_path": "/state", "resume_vm": true,
        "mem_backend": {"backend_type": "File", "backend_path": "/memory"}});
    does(&api, "PUT", "/snapshot/load", backed);
    second.process.wait_lines(5).unwrap();
    check_lines(&[said, second.process.text()]);
}

/// All that a guest which stands still has said.
fn settled(process: &Process) -> String {
    loop {
        let before = process.text();
        std::thread::sleep(Duration::from_millis(100));
        if process.text() == before {
            return before;
        }
    }
}

#[test]
fn a_guest_on_the_interpreter_lives_in_a_jail() {
    lives_in_a_jail("a_guest_on_the_interpreter_lives_in_a_jail", "interp");
}

#[test]
fn a_guest_on_kvm_lives_in_a_jail() {
    lives_in_a_jail("a_guest_on_kvm_lives_in_a_jail", "kvm");
}

/// Has the godwit behind `api` send its guest away.
fn migrate(api: &Path, to: &str) {
    let out = Command::new(program("godwit").unwrap())
        .args(["migrate", "--api-sock"])
        .arg(api)
        .arg(to)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Outside, into a jail, into another one, and out again.
fn moves(test: &str, [out, one, two, home]: [&str; 4]) {
    let Some((base, scratch)) = needed(test, &[out, one, two, home]) else { return };
    let godwit = program("godwit").unwrap();
    let [a, z] = ["a.sock", "z.sock"].map(|n| scratch.path(n).to_str().unwrap().to_owned());
    let config = scratch.config("counter", 32, "x86-64", "rate=50");
    let source = Process::start(
        &godwit,
        &["--config-file", config.to_str().unwrap(), "--api-sock", &a, "--backend", out],
        "",
    );
    source.wait_lines(3).unwrap();
    let receive = |id: &str, backend: &str, at: &str| {
        let args = ["receive", at, "--api-sock", "/run/api.sock", "--backend", backend];
        Jailed::start(&base, id, &[], &["--backend", backend], &args).unwrap()
    };
    // Over a Unix socket that the jailed receiver makes in its jail.
    let first = receive("one", one, "unix:/run/move.sock");
    first.process.wait_place().unwrap();
    migrate(Path::new(&a), &format!("unix:{}", first.path("run/move.sock").display()));
    first.process.wait_lines(3).unwrap();
    let second = receive("two", two, "tcp:127.0.0.1:0");
    let at = second.process.wait_place().unwrap();
    migrate(&first.path("run/api.sock"), &at);
    second.process.wait_lines(3).unwrap();
    let last =
        Process::start(&godwit, &["receive", "tcp:127.0.0.1:0", "--api-sock", &z, "--backend", home], "");
    let at = last.wait_place().unwrap();
    migrate(&second.path("run/api.sock"), &at);
    last.wait_lines(3).unwrap();
    check_lines(&[source.text(), first.process.text(), second.process.text(), last.text()]);
}

#[test]
fn a_guest_moves_into_a_jail_and_out_of_it() {
    moves("a_guest_moves_into_a_jail_and_out_of_it", ["interp"; 4]);
}

#[test]
fn a_guest_moves_between_cpus_and_jails() {
    moves("a_guest_moves_between_cpus_and_jails", ["kvm", "interp", "kvm", "interp"]);
}
