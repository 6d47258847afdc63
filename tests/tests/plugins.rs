//! Plugins that are none: each is refused with the file's name and the reason, by `godwit backends` and at start.

use godwit_tests::harness::{PATIENCE, Scratch, ask, program};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A library in C whose table begins with these; `None`: without the entry symbol.
fn library(dir: &Scratch, name: &str, table: Option<(u64, u32)>) -> Option<()> {
    let source = dir.path("plugin.c");
    let code = match table {
        None => "int nothing_of_interest;\n".to_owned(),
        Some((magic, major)) => format!(
            "static const struct {{ unsigned long long magic; unsigned major, minor, size, reserved; void *rest[64]; }} \
             table = {{ {magic}ull, {major}, 0, 216, 0 }};\nconst void *godwit_backend_entry(void) {{ return &table; }}\n"
        ),
    };
    std::fs::write(&source, code).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(dir.path(name)).arg(&source).status();
    made.ok().filter(|s| s.success()).map(|_| ())
}

/// An ELF header of another machine, enough for whoever looks before loading.
fn foreign(path: &Path) {
    let mut elf = std::fs::read(program("godwit").unwrap()).unwrap();
    elf.truncate(4096);
    // e_machine: s390x is 22, x86-64 is 62; on a big-endian host it lies the other way round.
    let other: u16 = if cfg!(target_arch = "s390x") { 62 } else { 22 };
    elf[18..20].copy_from_slice(&other.to_ne_bytes());
    std::fs::write(path, elf).unwrap();
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_is_no_plugin_is_refused_by_name_and_reason() {
    let test = "what_is_no_plugin_is_refused_by_name_and_reason";
    let godwit = match program("godwit") {
        Ok(godwit) => godwit,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let cases: [(&str, &[&str]); 6] = [
        ("text", &["ELF"]),
        ("empty", &["ELF"]),
        ("foreign", &["machine"]),
        ("symbol", &["godwit_backend_entry"]),
        ("magic", &["magic"]),
        ("major", &["77", "1"]),
    ];
    let dir = Scratch::new(test);
    let file = |name: &str| format!("libgodwit_backend_{name}.so");
    std::fs::write(dir.path(&file("text")), "I am no library\n").unwrap();
    std::fs::write(dir.path(&file("empty")), "").unwrap();
    foreign(&dir.path(&file("foreign")));
    let magic = 0x474f_4457_4954_4245;
    for (name, table) in [("symbol", None), ("magic", Some((12345, 1))), ("major", Some((magic, 77)))] {
        if library(&dir, &file(name), table).is_none() {
            return println!("SKIPPED {test}: no C compiler (cc)");
        }
    }
    let place = dir.path("");
    let listed = Command::new(&godwit).args(["backends", "--backend-dir"]).arg(&place).output().unwrap();
    assert_eq!(listed.status.code(), Some(1), "none of them is usable: {}", said(&listed));
    let config = dir.config("hello", 16, "x86-64", "");
    for (name, words) in cases {
        let path = dir.path(&file(name));
        let run = Command::new(&godwit)
            .args(["--no-api", "--config-file"])
            .arg(&config)
            .arg("--backend")
            .arg(&path)
            .output()
            .unwrap();
        assert_ne!(run.status.code(), Some(0), "{name}: {}", said(&run));
        assert!(run.status.code().is_some(), "{name} ended it by a signal");
        for text in [said(&run), said(&listed)] {
            assert!(text.contains(&file(name)), "{name} is not named: {text}");
        }
        let run = said(&run);
        for word in words {
            assert!(run.to_lowercase().contains(&word.to_lowercase()), "{name}: no {word:?} in: {run}");
        }
        println!("{name}: {}", run.trim());
    }
}

/// A plugin of ours in a directory of its own, and how to run a guest on it.
struct Place {
    godwit: std::path::PathBuf,
    dir: Scratch,
    plugin: std::path::PathBuf,
    config: std::path::PathBuf,
}

impl Place {
    fn new(test: &str, library: &str) -> Option<Self> {
        let found = program("godwit").and_then(|godwit| Ok((godwit, program(library)?)));
        let (godwit, library) = match found {
            Ok(found) => found,
            Err(why) => {
                println!("SKIPPED {test}: {why}");
                return None;
            }
        };
        let dir = Scratch::new(test);
        let inner = dir.path("plugins");
        std::fs::create_dir(&inner).unwrap();
        let plugin = inner.join("libgodwit_backend_it.so");
        std::fs::copy(library, &plugin).unwrap();
        mode(&inner, 0o755);
        mode(&plugin, 0o755);
        let config = dir.config("hello", 16, "x86-64", "");
        Some(Self { godwit, dir, plugin, config })
    }

    fn run(&self, plugin: &Path, more: &[&str], told: &str) -> Output {
        let mut command = Command::new(&self.godwit);
        command.args(["--no-api", "--config-file"]).arg(&self.config).arg("--backend").arg(plugin);
        command.args(more).env("GODWIT_HOSTILE", told).output().unwrap()
    }
}

fn mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_plugin_that_others_could_have_made_is_refused() {
    use std::os::unix::fs::{chown, symlink};
    let test = "a_plugin_that_others_could_have_made_is_refused";
    let Some(place) = Place::new(test, "libgodwit_backend_interp.so") else { return };
    let (plugin, dir) = (place.plugin.as_path(), place.plugin.parent().unwrap());
    let refused = |what: &str, plugin: &Path, more: &[&str], words: &[&str]| {
        let out = place.run(plugin, more, "");
        let text = said(&out);
        assert_eq!(out.status.code(), Some(1), "{what}: {text}");
        let name = plugin.file_name().unwrap().to_str().unwrap();
        for word in words.iter().chain([&name]) {
            assert!(text.contains(word), "{what}: no {word:?} in: {text}");
        }
        println!("{what}: {}", text.trim());
    };
    let runs = |what: &str, plugin: &Path, more: &[&str]| {
        let out = place.run(plugin, more, "");
        assert!(out.status.success() && said(&out).contains("Hello"), "{what}: {}", said(&out));
    };
    runs("as it is", plugin, &[]);

    mode(plugin, 0o757);
    refused("a file that all may write", plugin, &[], &["can be written by others", "chmod go-w"]);
    mode(plugin, 0o755);
    for bits in [0o777, 0o1777] {
        mode(dir, bits);
        refused("a directory that all may write", plugin, &[], &["can be written by others", "chmod go-w"]);
    }
    mode(dir, 0o755);

    let link = place.dir.path("libgodwit_backend_link.so");
    symlink(plugin, &link).unwrap();
    runs("a link to a good place", &link, &[]);
    let bad = place.dir.path("bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::copy(plugin, bad.join("libgodwit_backend_it.so")).unwrap();
    mode(&bad, 0o777);
    let link = place.dir.path("libgodwit_backend_bad.so");
    symlink(bad.join("libgodwit_backend_it.so"), &link).unwrap();
    refused("a link to a bad place", &link, &[], &["/bad can be written by others"]);

    let sum = Command::new("sha256sum").arg(plugin).output();
    let wrong = "0".repeat(64);
    refused("another hash", plugin, &["--plugin-sha256", &wrong], &["SHA-256", "not among the 1 pinned"]);
    match sum {
        Ok(sum) if sum.status.success() => {
            let right = String::from_utf8_lossy(&sum.stdout[..64]).into_owned();
            runs("its hash", plugin, &["--plugin-sha256", &right]);
            runs("its hash among others", plugin, &["--plugin-sha256", &wrong, "--plugin-sha256", &right]);
        }
        _ => println!("SKIPPED {test}, the right hash: no sha256sum"),
    }
    let out = place.run(plugin, &["--plugin-sha256", "abc"], "");
    assert_eq!(out.status.code(), Some(153), "no hash at all: {}", said(&out));

    // A stranger's, though he could not have written it where it is.
    const NOBODY: u32 = 65534;
    if chown(plugin, Some(NOBODY), None).is_err() {
        return println!("SKIPPED {test}, the wrong owner: only root gives files away");
    }
    refused("a stranger's file", plugin, &[], &["belongs to user 65534"]);
    chown(plugin, Some(0), None).unwrap();
    chown(dir, Some(NOBODY), None).unwrap();
    refused("a stranger's directory", plugin, &[], &["belongs to user 65534"]);
    chown(dir, Some(0), None).unwrap();
}

#[test]
fn a_plugin_that_asks_for_too_much_is_refused_by_name() {
    let test = "a_plugin_that_asks_for_too_much_is_refused_by_name";
    let Some(place) = Place::new(test, "libgodwit_backend_hostile.so") else { return };
    for (told, words) in [
        ("greedy-call", ["system call execve", "no plugin may"]),
        ("greedy-ioctl", ["ioctl request 0x5412", "no plugin may"]),
    ] {
        // Without filters too: what it asks for is looked at before a machine is made.
        for more in [&[][..], &["--no-seccomp"]] {
            let out = place.run(&place.plugin, more, told);
            let text = said(&out);
            assert_eq!(out.status.code(), Some(1), "{told}: {text}");
            for word in words.iter().chain([&"libgodwit_backend_it.so"]) {
                assert!(text.contains(word), "{told}: no {word:?} in: {text}");
            }
        }
    }
}

/// One life of a guest on a plugin that panics in `entry`: all that the program and its API say.
fn life(place: &Place, entry: &str, load: bool) -> String {
    let socket = place.dir.path(&format!("{entry}.sock"));
    let mut vm = {
        let mut command = Command::new(&place.godwit);
        command.arg("--api-sock").arg(&socket).arg("--backend").arg(&place.plugin);
        command.env("GODWIT_HOSTILE", format!("panic:{entry}")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let end = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(&socket).is_err() && vm.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "{entry}: neither an API nor an end");
        std::thread::sleep(Duration::from_millis(2));
    }
    let (state, memory) = (place.dir.path("state"), place.dir.path("memory"));
    let snapshot = |kind: &str, to: &str| {
        let (state, memory) = (place.dir.path(to), place.dir.path(&format!("{to}.memory")));
        json!({"snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory})
    };
    let machine =
        json!({"vcpu_count": 1, "mem_size_mib": 16, "cpu_model": "x86-64", "track_dirty_pages": true});
    let paused = json!({"state": "Paused"});
    let resumed = json!({"state": "Resumed"});
    let taken = [
        ("PUT", "/machine-config", machine),
        ("PUT", "/boot-source", json!({"kernel_image_path": place.dir.path("hello.elf")})),
        ("PUT", "/entropy", json!({})),
        ("PUT", "/actions", json!({"action_type": "InstanceStart"})),
        ("PUT", "/actions", json!({"action_type": "SendCtrlAltDel"})),
        ("PATCH", "/vm", paused.clone()),
        ("PUT", "/snapshot/create", snapshot("Full", &format!("{entry}.full"))),
        ("PATCH", "/vm", resumed.clone()),
        ("PATCH", "/vm", paused),
        ("PUT", "/snapshot/create", snapshot("Diff", &format!("{entry}.diff"))),
        ("PATCH", "/vm", resumed),
    ];
    let backed = json!({"backend_type": "File", "backend_path": memory});
    let loaded = [(
        "PUT",
        "/snapshot/load",
        json!({"snapshot_path": state, "mem_backend": backed, "resume_vm": true}),
    )];
    let requests = if load { &loaded[..] } else { &taken[..] };
    let mut text = String::new();
    for (method, path, body) in requests {
        // After its end nobody answers.
        if let Ok((status, answer)) = ask(&socket, method, path, &body.to_string()) {
            assert_ne!(status, 500, "{entry}: {answer}");
            text.push_str(&format!("{method} {path}: {status} {answer}\n"));
        }
    }
    // SAFETY: plain system call on a child that has not been waited for.
    unsafe { libc::kill(vm.id() as i32, libc::SIGTERM) };
    let end = Instant::now() + PATIENCE;
    while vm.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "{entry}: it does not end: {text}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = vm.wait_with_output().unwrap();
    text.push_str(&said(&output));
    assert!(output.status.code().is_some(), "{entry}: ended by a signal: {text}");
    text
}

#[test]
fn a_plugin_that_panics_anywhere_is_an_error_and_no_crash() {
    let test = "a_plugin_that_panics_anywhere_is_an_error_and_no_crash";
    let Some(place) = Place::new(test, "libgodwit_backend_hostile.so") else { return };
    // What a load needs: the same guest, written by a plugin that behaves.
    let good = life(&place, "none", false);
    assert!(!good.contains("panic") && !good.contains(" 400 "), "{good}");
    std::fs::copy(place.dir.path("none.full"), place.dir.path("state")).unwrap();
    std::fs::copy(place.dir.path("none.full.memory"), place.dir.path("memory")).unwrap();
    let good = life(&place, "nowhere", true);
    assert!(good.contains("/snapshot/load: 204"), "{good}");
    // All that a machine's life comes by, and which of it says so to the API or at the end.
    for (entry, load, at) in [
        ("probe", false, ""),
        ("create", false, "PUT /actions: 400"),
        ("map_memory", false, "PUT /actions: 400"),
        ("create_vcpu", false, "PUT /actions: 400"),
        ("kicker", false, "PUT /actions: 400"),
        ("set_routes", false, ""),
        ("load", false, "PUT /actions: 400"),
        ("load", true, "PUT /snapshot/load: 400"),
        ("load_clock", true, "PUT /snapshot/load: 400"),
        ("run", false, "godwit: vCPU 0: "),
        ("start_clock", false, "PUT /actions: 400"),
        ("stop_clock", false, "PATCH /vm: 400"),
        ("save", false, "PUT /actions: 400"),
        ("save_clock", false, "PUT /actions: 400"),
        ("set_dirty_log", false, "PUT /actions: 400"),
        ("take_dirty_log", false, "PUT /snapshot/create: 400"),
    ] {
        let text = life(&place, entry, load);
        let wanted = format!("the backend panicked: told to panic in {entry}");
        let line = text.lines().find(|l| l.contains(&wanted));
        assert!(line.is_some_and(|l| l.starts_with(at)), "{entry}: {text}");
    }
    // It has no answer: the panic ends at the wall, and the guest goes on.
    let text = life(&place, "memory_written", false);
    assert!(text.contains("told to panic in memory_written") && !text.contains(" 400 "), "{text}");
}
