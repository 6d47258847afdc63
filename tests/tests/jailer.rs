//! `godwit-jailer` from outside: every flag with good and bad values, and what a jailed program sees and may do.
//!
//! The jailed program is `jail-probe`. All this needs root; without it the tests are skipped by name.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::jail::{self, GID, UID};
use godwit_tests::harness::program;

/// The probe, in a directory without plugins.
fn probe() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("jail-probe");
        fs::create_dir_all(&dir).unwrap();
        let dir = dir.canonicalize().unwrap();
        let (new, path) = (dir.join(format!("new-{}", std::process::id())), dir.join("jail-probe"));
        fs::copy(program("jail-probe").unwrap(), &new).unwrap();
        fs::rename(new, &path).unwrap();
        path
    })
}

/// The jailer's program, built if this package is tested alone.
fn jailer() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = program("jail-probe").unwrap().with_file_name("godwit-jailer");
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "godwit-jailer"]).status();
        assert!(path.is_file(), "godwit-jailer is not built: {built:?}");
        path
    })
}

macro_rules! need_root {
    () => {
        if !jail::is_root() {
            eprintln!("SKIPPED {}: the jailer must be started as root", module_path!());
            return;
        }
    };
}

/// A chroot base directory for the probe's jails.
struct Base(jail::Base);

impl Base {
    fn new() -> Self {
        Self(jail::Base::create())
    }

    fn dir(&self) -> &Path {
        self.0.dir()
    }

    fn root(&self, id: &str) -> PathBuf {
        self.0.root("jail-probe", id)
    }

    fn command(&self, id: &str, more: &[&str]) -> Command {
        let mut c = Command::new(jailer());
        c.args(["--id", id, "--uid", &UID.to_string(), "--gid", &GID.to_string(), "--chroot-base-dir"])
            .arg(self.dir());
        if !more.contains(&"--exec-file") {
            c.arg("--exec-file").arg(probe());
        }
        c.args(more);
        c
    }

    fn run(&self, id: &str, more: &[&str]) -> Output {
        self.command(id, more).output().unwrap()
    }

    /// Runs the probe and reads its report.
    fn report(&self, id: &str, more: &[&str]) -> Report {
        let out = self.run(id, more);
        assert!(out.status.success(), "{more:?}: {}", String::from_utf8_lossy(&out.stderr));
        // With --daemonize and --new-pid-ns the jailer may be gone before the probe is done.
        Report::read(&self.root(id).join("report"))
    }
}

struct Report(BTreeMap<String, Vec<String>>);

impl Report {
    fn read(path: &Path) -> Self {
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.ends_with("end\n") {
                let mut map = BTreeMap::<_, Vec<_>>::new();
                for (k, v) in text.lines().filter_map(|l| l.split_once('=')) {
                    map.entry(k.to_owned()).or_default().push(v.to_owned());
                }
                return Self(map);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn one(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |v| v[0].as_str())
    }

    fn paths(&self, key: &str) -> Vec<&str> {
        self.0.get(key).into_iter().flatten().map(|l| l.split(' ').next().unwrap()).collect()
    }
}

#[test]
fn the_jailed_program_sees_only_its_list_and_has_no_rights() {
    need_root!();
    let base = Base::new();
    // A descriptor and variables that must not come through.
    let script = format!("exec 7</etc/passwd; export SECRET=1; exec {} \"$@\"", jailer().display());
    let out = Command::new("sh")
        .args(["-c", &script, "sh", "--id", "see", "--uid", "61234", "--gid", "61235", "--backend", "interp"])
        .args(["--exec-file", probe().to_str().unwrap(), "--chroot-base-dir", base.dir().to_str().unwrap()])
        .args(["--backend", probe().to_str().unwrap(), "--", "--exec", "/bin/sh"])
        .output()
        .unwrap();
    // There is no interp plugin beside the probe.
    assert!(String::from_utf8_lossy(&out.stderr).contains("interp is not installed"), "{out:?}");
    assert!(!base.root("see").exists(), "nothing is made before all is found");

    let out = Command::new("sh")
        .args(["-c", &script, "sh", "--id", "see", "--uid", "61234", "--gid", "61235"])
        .args(["--exec-file", probe().to_str().unwrap(), "--chroot-base-dir", base.dir().to_str().unwrap()])
        .args(["--backend", probe().to_str().unwrap(), "--", "--exec", "/bin/sh"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let r = Report::read(&base.root("see").join("report"));
    assert_eq!(r.one("env"), "0");
    assert_eq!(r.one("cwd"), "/");
    assert_eq!(r.one("fds"), "[0, 1, 2]");
    assert_eq!(r.one("ids"), format!("[{UID}, {UID}, {GID}, {GID}]"));
    assert_eq!(r.one("groups"), "0");
    assert_eq!(r.one("caps"), "0 true bounding 0");
    assert_eq!(r.one("no_new_privs"), "1");
    assert_eq!(r.one("limit-no-file"), "2048 2048");
    assert_eq!(r.one("limit-core"), "0 0");
    let perm = libc::EPERM.to_string();
    for what in ["setuid", "setgid", "chroot", "mount", "unshare", "kill-parent"] {
        assert_eq!(r.one(&format!("try-{what}")), perm, "{what}");
    }
    assert!(["1", "13"].contains(&r.one("try-mknod")), "{}", r.one("try-mknod"));
    assert_eq!(r.one("try-kvm"), libc::ENOENT.to_string(), "no backend that needs it was chosen");
    assert_eq!(r.one("try-urandom"), "0");
    assert_eq!(r.one("exec"), libc::ENOENT.to_string());
    for part in ["own", "lib", "lib64"] {
        let got = r.one(&format!("write-{part}"));
        assert!(["", "30", "13", "16", "1"].contains(&got), "{part} can be changed: {got}");
    }
    let mut nodes = r.paths("node");
    nodes.retain(|n| *n != "/dev/userfaultfd");
    assert_eq!(nodes, ["/dev/net/tun", "/dev/urandom"]);
    for file in r.paths("file") {
        let known = ["/jail-probe", "/jail-probe.pid", "/lib/godwit/jail-probe"].contains(&file)
            || ["/lib", "/lib64", "/usr/lib"].iter().any(|d| file.starts_with(d)) && file.contains(".so");
        assert!(known, "{file} should not be in the jail");
    }
    assert!(r.paths("unreadable").is_empty() && r.paths("link").is_empty());
    let args = r.one("args");
    assert!(args.starts_with("/jail-probe --id see --start-time-us "), "{args}");
    assert!(args.contains(" --start-time-cpu-us ") && args.ends_with(" --exec /bin/sh"), "{args}");
}

#[test]
fn user_0_has_no_rights_either() {
    need_root!();
    let base = Base::new();
    let mut c = Command::new(jailer());
    c.args(["--id", "zero", "--uid", "0", "--gid", "0", "--chroot-base-dir"])
        .arg(base.dir())
        .arg("--exec-file")
        .arg(probe());
    assert!(c.status().unwrap().success());
    let r = Report::read(&base.root("zero").join("report"));
    assert_eq!(r.one("caps"), "0 true bounding 0");
    for what in ["chroot", "mount", "unshare"] {
        assert_eq!(r.one(&format!("try-{what}")), libc::EPERM.to_string(), "{what}");
    }
}

#[test]
fn good_values_of_each_flag() {
    need_root!();
    let base = Base::new();
    let r = base.report("limits", &["--resource-limit", "no-file=77", "--resource-limit", "fsize=1000000"]);
    assert_eq!((r.one("limit-no-file"), r.one("limit-fsize")), ("77 77", "1000000 1000000"));

    let r = base.report("pidns", &["--new-pid-ns"]);
    assert_eq!(r.one("pid"), "1");
    let pid = fs::read_to_string(base.root("pidns").join("jail-probe.pid")).unwrap();
    assert!(pid.parse::<u32>().unwrap() > 1, "{pid}");

    let r = base.report("daemon", &["--daemonize"]);
    assert_eq!((r.one("session_leader"), r.one("stdin")), ("true", "1:3"));

    let r = base.report("device", &["--device", "/dev/null"]);
    assert!(r.paths("node").contains(&"/dev/null"));

    let r = base.report("plain", &[]);
    assert!(r.paths("node").contains(&"/dev/kvm"), "without plugins all is there, as with Firecracker");
    assert!(r.one("interfaces").contains("lo"));
    let pid = fs::read_to_string(base.root("plain").join("jail-probe.pid")).unwrap();
    assert_eq!(pid, r.one("pid"));

    for (flag, wanted) in [("--version", "Jailer v"), ("--help", "--resource-limit <name>=<value>")] {
        let out = Command::new(jailer()).arg(flag).output().unwrap();
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains(wanted));
    }
}

#[test]
fn a_network_namespace_is_joined() {
    need_root!();
    let base = Base::new();
    let (path, wait) = std::sync::mpsc::channel::<String>();
    let (done, until) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        // SAFETY: numbers only; this thread does nothing else.
        let ok = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        // SAFETY: takes nothing.
        let tid = unsafe { libc::syscall(libc::SYS_gettid) };
        let name = if ok { format!("/proc/{}/task/{tid}/ns/net", std::process::id()) } else { String::new() };
        path.send(name).unwrap();
        let _ = until.recv();
    });
    let path = wait.recv().unwrap();
    if path.is_empty() {
        eprintln!("SKIPPED a_network_namespace_is_joined: no network namespaces here");
    } else {
        let r = base.report("net", &["--netns", &path]);
        assert!(r.one("interfaces").split(',').all(|i| i != "eth0"), "{}", r.one("interfaces"));
        assert!(r.one("interfaces").contains("lo"));
    }
    drop(done);
    holder.join().unwrap();
    for (id, path, wanted) in [
        ("no-ns", "/nowhere", "Failed to open file /nowhere"),
        ("bad-ns", "/proc/self/ns/uts", "Failed to join network namespace"),
    ] {
        let out = base.run(id, &["--netns", path]);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && text.contains(wanted), "{text}");
    }
}

#[test]
fn bad_values_are_refused_and_leave_no_jail() {
    need_root!();
    let base = Base::new();
    let link = base.dir().join("link-to-dir");
    symlink("/tmp", &link).unwrap();
    let not_dir = base.dir().join("plain-file");
    fs::write(&not_dir, "").unwrap();
    let long = "x".repeat(65);
    let not_dir = not_dir.to_str().unwrap();
    // (id, further flags, part of the message)
    let table: &[(&str, &[&str], &str)] = &[
        ("", &[], "Invalid instance ID: Invalid len (0)"),
        (&long, &[], "Invalid instance ID: Invalid len (65)"),
        ("../../etc", &[], "Invalid char (.) at position 0"),
        ("a/b", &[], "Invalid char (/) at position 1"),
        ("a_b", &[], "Invalid char (_)"),
        ("x", &["--exec-file", "/no/such/file"], "Failed to canonicalize path /no/such/file"),
        ("x", &["--exec-file", "/tmp"], "/tmp is not a file"),
        ("x", &["--cgroup-version", "3"], "3 is an invalid cgroup version specifier"),
        ("x", &["--cgroup", "cpu.shares"], "Invalid format for cgroups"),
        ("x", &["--cgroup", "cpu/../x.y=1"], "Cgroup invalid file"),
        ("x", &["--cgroup", "nosuch.limit=1"], "Controller nosuch is unavailable"),
        ("x", &["--cgroup-version", "2", "--cgroup", "nosuch.limit=1"], "nosuch"),
        ("x", &["--parent-cgroup", "../up"], "Parent cgroup path is invalid"),
        ("x", &["--parent-cgroup", "/abs"], "Parent cgroup path is invalid"),
        ("x", &["--resource-limit", "no-file=many"], "Invalid limit value for resource: many"),
        ("x", &["--resource-limit", "cpu=1"], "Invalid resource argument: cpu"),
        ("x", &["--resource-limit", "cpu"], "Invalid format for resources limits"),
        ("x", &["--backend", "nosuch"], "the backend nosuch is not installed"),
        ("x", &["--backend", "a/b"], "Invalid backend: a/b"),
        ("x", &["--backend", "/no/plugin.so"], "Failed to canonicalize path /no/plugin.so"),
        ("x", &["--backend", not_dir], "not an ELF file"),
        ("x", &["--device", "/etc/passwd"], "Invalid device node"),
        ("x", &["--frob"], "--frob"),
        ("x", &["--netns", "--daemonize"], "requires a value"),
    ];
    for (id, more, wanted) in table {
        let out = base.run(id, more);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{id:?} {more:?}: {text}");
        assert!(text.contains(wanted), "{id:?} {more:?}: {text}");
        assert!(!base.dir().join("jail-probe").exists(), "{id:?} {more:?} left a jail");
    }
    for (bad_base, wanted) in [
        (Path::new("/no/such/base"), "Failed to canonicalize"),
        (Path::new(not_dir), "is not a directory"),
        (Path::new("/tmp"), "must belong to root"),
        (link.as_path(), "must belong to root"),
    ] {
        let mut c = Command::new(jailer());
        c.args(["--id", "x", "--uid", "1", "--gid", "1", "--chroot-base-dir"]).arg(bad_base);
        let out = c.arg("--exec-file").arg(probe()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && text.contains(wanted), "{bad_base:?}: {text}");
    }
}

#[test]
fn an_id_is_used_once_and_a_prepared_jail_is_taken() {
    need_root!();
    let base = Base::new();
    // Container tools put disks into the jail before they start the jailer.
    let root = base.root("prepared");
    fs::create_dir_all(root.join("run")).unwrap();
    fs::write(root.join("rootfs.ext4"), "disk").unwrap();
    let r = base.report("prepared", &[]);
    assert!(r.paths("file").contains(&"/rootfs.ext4"));
    assert_eq!(fs::metadata(&root).unwrap().uid(), UID);
    assert_eq!(fs::metadata(root.join("run")).unwrap().mode() & 0o777, 0o700);

    let out = base.run("prepared", &[]);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && text.contains("this id has been used before"), "{text}");
}

#[test]
fn planted_links_lead_nowhere() {
    need_root!();
    let base = Base::new();
    let victim = base.dir().join("victim");
    fs::write(&victim, "precious").unwrap();
    // In place of the exec file, a library directory, a device directory and the root itself.
    for (id, at, to) in [
        ("exec", "jail-probe", victim.clone()),
        ("dev", "dev", base.dir().join("elsewhere")),
        ("run", "run", base.dir().join("elsewhere")),
    ] {
        let root = base.root(id);
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(base.dir().join("elsewhere")).unwrap();
        symlink(&to, root.join(at)).unwrap();
        let out = base.run(id, &[]);
        assert!(!out.status.success(), "{id}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_dir(base.dir().join("elsewhere")).unwrap().count(), 0, "{id}");
    }
    fs::create_dir_all(base.root("r").parent().unwrap()).unwrap();
    symlink("/", base.root("r")).unwrap();
    let out = base.run("r", &[]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("is not a directory"), "{out:?}");

    // A directory on the way that somebody else could exchange.
    let other = base.dir().join("jail-probe/weak");
    fs::create_dir_all(&other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o777)).unwrap();
    let out = base.run("weak", &[]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("must belong to root"), "{out:?}");
}

#[test]
fn a_linked_exec_file_is_followed_once() {
    need_root!();
    let base = Base::new();
    let link = base.dir().join("godwit-current");
    symlink(probe(), &link).unwrap();
    let r = base.report("link", &["--exec-file", link.to_str().unwrap()]);
    assert!(r.one("args").starts_with("/jail-probe "), "the jail is named for what the link leads to");
}

#[test]
fn nothing_but_the_exec_file_can_be_executed() {
    need_root!();
    let base = Base::new();
    let root = base.root("tool");
    fs::create_dir_all(&root).unwrap();
    fs::copy("/bin/true", root.join("tool")).unwrap();
    let r = base.report("tool", &["--", "--exec", "/tool"]);
    match r.one("exec") {
        // Refused by Landlock.
        "13" => {}
        other if Path::new("/sys/kernel/security/landlock").exists() => panic!("exec: {other}"),
        _ => eprintln!("SKIPPED nothing_but_the_exec_file_can_be_executed: no Landlock in this kernel"),
    }
}

#[test]
fn a_socket_made_in_the_jail_is_reached_from_outside() {
    need_root!();
    let base = Base::new();
    let mut child = base.command("api", &["--", "--serve", "/run/firecracker.socket"]).spawn().unwrap();
    let path = base.root("api").join("run/firecracker.socket");
    let mut stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) => {
                assert!(child.try_wait().unwrap().is_none(), "the probe ended early");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    };
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert!(child.wait().unwrap().success());
}

#[test]
fn device_nodes_are_those_of_the_chosen_backend() {
    need_root!();
    let base = Base::new();
    // Any library will do: the jailer goes by the plugins' names.
    let bin = base.dir().join("bin");
    let lib = base.dir().join("lib/godwit");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&lib).unwrap();
    let exec = bin.join("jail-probe");
    fs::copy(probe(), &exec).unwrap();
    for name in ["kvm", "interp"] {
        fs::copy(probe(), lib.join(format!("libgodwit_backend_{name}.so"))).unwrap();
    }
    let exec = exec.to_str().unwrap();
    for (id, backends, kvm, plugins) in [
        ("interp", &["--backend", "interp"][..], false, 1),
        ("kvm", &["--backend", "kvm"], true, 1),
        ("both", &["--backend", "kvm", "--backend", "interp"], true, 2),
        ("all", &[], true, 2),
    ] {
        let args: Vec<&str> = ["--exec-file", exec].iter().chain(backends).copied().collect();
        let r = base.report(id, &args);
        assert_eq!(r.paths("node").contains(&"/dev/kvm"), kvm, "{id}");
        let opened = r.one("try-kvm") == "0";
        assert_eq!(opened, kvm && Path::new("/dev/kvm").exists(), "{id}: {}", r.one("try-kvm"));
        let there =
            r.paths("file").iter().filter(|f| f.starts_with("/lib/godwit/libgodwit_backend_")).count();
        assert_eq!(there, plugins, "{id}");
    }
}

#[test]
fn a_jail_has_the_device_nodes_that_its_backend_declares() {
    need_root!();
    let base = Base::new();
    for name in ["kvm", "interp"] {
        let (path, plugin) = match Plugin::path(name).and_then(|path| Ok((path, Plugin::find(name)?))) {
            Ok(found) => found,
            Err(why) => {
                eprintln!("SKIPPED a_jail_has_the_device_nodes_that_its_backend_declares: {why}");
                continue;
            }
        };
        let r = base.report(name, &["--backend", path.to_str().unwrap()]);
        let mut nodes = r.paths("node");
        // What every jail has.
        nodes.retain(|n| !["/dev/net/tun", "/dev/urandom", "/dev/userfaultfd"].contains(n));
        assert_eq!(nodes, plugin.needs().1, "{name}");
    }
}

/// Mount point of a version 1 controller, or of version 2 if it has the controller.
fn hierarchy(version: u8, controller: &str) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/mounts").ok()?;
    table.lines().find_map(|l| {
        let f: Vec<&str> = l.split(' ').collect();
        let dir = PathBuf::from(f[1]);
        let fits = match (version, f[2]) {
            (1, "cgroup") => f[3].split(',').any(|o| o == controller),
            (2, "cgroup2") => fs::read_to_string(dir.join("cgroup.controllers"))
                .is_ok_and(|c| c.split_whitespace().any(|c| c == controller)),
            _ => false,
        };
        fits.then_some(dir)
    })
}

#[test]
fn cgroups_are_made_filled_and_joined() {
    need_root!();
    for (version, controller, file, value) in [
        (1u8, "cpu", "cpu.shares", "512"),
        (1, "cpuset", "cpuset.cpus", "0"),
        (1, "memory", "memory.limit_in_bytes", "268435456"),
        (2, "cpu", "cpu.weight", "50"),
        (2, "pids", "pids.max", "64"),
        (2, "hugetlb", "hugetlb.2MB.max", "4194304"),
    ] {
        let Some(dir) = hierarchy(version, controller) else {
            eprintln!(
                "SKIPPED cgroups_are_made_filled_and_joined: no {controller} in cgroup version {version} here"
            );
            continue;
        };
        let base = Base::new();
        let parent = format!("godwit-test-{}/{controller}{version}", std::process::id());
        let group = dir.join(&parent).join("cg");
        let setting = format!("{file}={value}");
        let version = version.to_string();
        let flags = [
            "--cgroup-version",
            &version,
            "--cgroup",
            &setting,
            "--parent-cgroup",
            &parent,
            "--",
            "--serve",
            "/s",
        ];
        let mut child = base.command("cg", &flags).spawn().unwrap();
        let report = Report::read(&base.root("cg").join("report"));
        let got = fs::read_to_string(group.join(file)).unwrap();
        assert_eq!(got.trim(), value, "{file}");
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), report.one("pid"), "{controller}");
        while UnixStream::connect(base.root("cg").join("s")).is_err() {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
        for dir in [group.clone(), dir.join(&parent), dir.join(&parent).parent().unwrap().to_path_buf()] {
            let _ = fs::remove_dir(dir);
        }
    }
}
