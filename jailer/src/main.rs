//! `godwit-jailer`: starts Godwit inside a jail of its own, with Firecracker's jailer flags and layout.
//!
//! ```text
//!   args ─► libraries (elf) ─► tree: copy, nodes ─► netns, limits, cgroup ─► new root ─► pid ns ─► landlock, drop ─► exec
//! ```
//!
//! Run as root by people and by container tools. It has one thread, opens nothing for the program it starts and trusts
//! neither its environment nor its inherited descriptors. `docs/SECURITY.md` says what the jail stops.

#![deny(unsafe_code)]

mod args;
mod cgroup;
mod elf;
mod landlock;
mod libraries;
#[allow(unsafe_code)]
mod sys;
mod tree;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use args::{Backend, Config};
use tree::Tree;

/// Anything that ends the jailer before its exec.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("Failed to close inherited file descriptors: {0}")]
    Descriptors(io::Error),
    #[error("Failed to canonicalize path {path}: {source}", path = .0.display(), source = .1)]
    Canonicalize(PathBuf, io::Error),
    #[error("{path} is not a file", path = .0.display())]
    NotAFile(PathBuf),
    #[error("Failed to extract filename from path {path}", path = .0.display())]
    FileName(PathBuf),
    #[error("the jailer must be started as root")]
    NotRoot,
    #[error("the backend {name} is not installed: there is no {file} in {dirs}")]
    NoBackend { name: String, file: String, dirs: String },
    #[error(transparent)]
    Libraries(#[from] libraries::LibraryError),
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    #[error("Failed to open file {path}: {source}", path = .0.display(), source = .1)]
    Open(PathBuf, io::Error),
    #[error("Failed to join network namespace {path}: {source}", path = .0.display(), source = .1)]
    NetNs(PathBuf, io::Error),
    #[error("Failed to set limit for resource: {0:?}: {1}")]
    Limit(sys::Limit, io::Error),
    #[error("Failed to daemonize: {0}")]
    Daemonize(io::Error),
    #[error("Failed to make a new PID namespace: {0}")]
    PidNs(io::Error),
    #[error("Failed to write {path}: {source}", path = .0.display(), source = .1)]
    PidFile(PathBuf, io::Error),
    #[error("Failed to set up Landlock: {0}")]
    Landlock(::landlock::RulesetError),
    #[error("Failed to drop privileges: {0}: {1}")]
    Privileges(&'static str, io::Error),
    #[error("Failed to exec into {path}: {source}", path = .0.display(), source = .1)]
    Exec(PathBuf, io::Error),
}

/// Device nodes that every jail has, as Firecracker's.
const COMMON_NODES: [(&str, u32, u32); 2] = [("/dev/net/tun", 10, 200), ("/dev/urandom", 1, 9)];
/// Its number is the kernel's choice, and not every kernel has it: made if the host has it.
const USERFAULTFD: &str = "/dev/userfaultfd";
/// Device nodes that a backend needs, by its name. A backend that is not here needs none, or `--device`.
const BACKEND_NODES: [(&str, &str, u32, u32); 1] = [("kvm", "/dev/kvm", 10, 232)];
/// Where the exec file, which becomes `/<name>`, looks for plugins: `../lib/godwit`.
const PLUGIN_DIR: &str = "/lib/godwit";
const PLUGIN_PREFIX: &str = "libgodwit_backend_";

fn main() -> ExitCode {
    let started_us = sys::clock_us(libc::CLOCK_MONOTONIC);
    if let Err(error) = sys::close_inherited().map_err(Error::Descriptors) {
        return failed(&error);
    }
    // Arguments that are not UTF-8 could not be shown in an error, nor given on.
    let args: Result<Vec<String>, _> = std::env::args_os().skip(1).map(|a| a.into_string()).collect();
    let command =
        args.map_err(|bad| args::ArgError::NotText(bad.to_string_lossy().into_owned())).and_then(args::parse);
    match command {
        Ok(args::Command::Help) => {
            print!("{}", args::HELP);
            ExitCode::SUCCESS
        }
        Ok(args::Command::Version) => {
            println!("Jailer v{}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("Arguments parsing error: {error}\n\nFor more information try --help.");
            ExitCode::FAILURE
        }
        Ok(args::Command::Run(config)) => match run(&config, started_us) {
            Ok(never) => match never {},
            Err(error) => failed(&error),
        },
    }
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("Jailer error: {error}");
    ExitCode::FAILURE
}

fn run(config: &Config, started_us: u64) -> Result<std::convert::Infallible, Error> {
    if sys::effective_uid() != 0 {
        return Err(Error::NotRoot);
    }
    // A symbolic link is followed here, once; the jail is named for what it leads to.
    let exec_file = canonical_file(&config.exec_file)?;
    let exec_name =
        exec_file.file_name().map(PathBuf::from).ok_or_else(|| Error::FileName(exec_file.clone()))?;
    let inside = Path::new("/").join(&exec_name);
    let plugins = plugins(&config.backends, &exec_file)?;
    let programs: Vec<PathBuf> = [&exec_file].into_iter().chain(&plugins).cloned().collect();
    let needs = libraries::needed_by(&programs)?;
    let netns = match &config.netns {
        Some(path) => Some((path, File::open(path).map_err(|e| Error::Open(path.clone(), e))?)),
        None => None,
    };
    let cgroups = cgroup::plan(
        config.cgroup_version,
        &config.cgroups,
        config.parent_cgroup.as_deref(),
        &exec_name,
        &config.id,
    )?;
    let dev_null = if config.daemonize {
        let path = Path::new("/dev/null");
        Some(File::options().read(true).write(true).open(path).map_err(|e| Error::Open(path.into(), e))?)
    } else {
        None
    };

    let tree = Tree::new(&config.chroot_base, &exec_name, &config.id)?;
    let read_only = fill(&tree, config, (&exec_file, &inside), &plugins, &needs.files)?;
    if let Some((path, fd)) = netns {
        sys::join_netns(&fd).map_err(|e| Error::NetNs(path.clone(), e))?;
    }
    if let Some(plan) = cgroups {
        plan.carry_out()?;
    }
    tree.become_root(&read_only)?;

    // Late, because the limits would hold for the copies above too. A core dump would hold the guest's memory.
    let limits = [
        (sys::Limit::FileSize, config.limit_fsize),
        (sys::Limit::OpenFiles, Some(config.limit_no_file)),
        (sys::Limit::CoreDump, Some(0)),
    ];
    if let Some(dev_null) = dev_null {
        sys::new_session().map_err(Error::Daemonize)?;
        sys::replace_stdio(&dev_null).map_err(Error::Daemonize)?;
    }
    let pid_file = PathBuf::from(format!("{}.pid", inside.display()));
    if config.new_pid_ns {
        sys::unshare(libc::CLONE_NEWPID).map_err(Error::PidNs)?;
        if let Some(child) = sys::fork().map_err(Error::PidNs)? {
            write_pid(&pid_file, child.unsigned_abs())?;
            std::process::exit(0);
        }
    } else {
        write_pid(&pid_file, std::process::id())?;
    }
    for (limit, value) in limits {
        if let Some(value) = value {
            sys::limit(limit, value).map_err(|e| Error::Limit(limit, e))?;
        }
    }
    let cpu_us = sys::clock_us(libc::CLOCK_PROCESS_CPUTIME_ID);
    let mut command = Command::new(&inside);
    command.env_clear();
    match config.extra.split_first() {
        // A subcommand stands before all flags, and those of Firecracker's about time are not for it.
        Some((subcommand, rest)) if !subcommand.starts_with('-') => {
            command.args([subcommand, "--id", &config.id]).args(rest);
        }
        _ => {
            command.args(["--id", &config.id]);
            command.args(["--start-time-us", &started_us.to_string()]);
            command.args(["--start-time-cpu-us", &if config.new_pid_ns { 0 } else { cpu_us }.to_string()]);
            command.args(["--parent-cpu-time-us", &cpu_us.to_string()]);
            command.args(&config.extra);
        }
    }

    sys::drop_privileges(config.uid, config.gid).map_err(|(what, e)| Error::Privileges(what, e))?;
    let mut executables: Vec<PathBuf> = vec![inside.clone()];
    executables.extend(needs.loader);
    landlock::enforce(&executables).map_err(Error::Landlock)?;
    Err(Error::Exec(inside, command.exec()))
}

/// Puts all in the jail; returns what nobody in it may change.
fn fill(
    tree: &Tree,
    config: &Config,
    (exec_file, inside): (&Path, &Path),
    plugins: &[PathBuf],
    libraries: &libraries::Files,
) -> Result<Vec<PathBuf>, Error> {
    // First, because it is what shows that the jail has been used before.
    tree.copy(exec_file, inside)?;
    let mut read_only = vec![inside.to_path_buf()];
    let copies = libraries.iter().map(|(inside, from)| (from.clone(), inside.clone()));
    let plugin_copies =
        plugins.iter().filter_map(|p| Some((p.clone(), Path::new(PLUGIN_DIR).join(p.file_name()?))));
    for (from, inside) in copies.chain(plugin_copies) {
        tree.copy(&from, &inside)?;
        let top: PathBuf = inside.components().take(2).collect();
        if !read_only.contains(&top) {
            read_only.push(top);
        }
    }
    for dir in ["/", "/dev", "/dev/net", "/run"] {
        tree.give(Path::new(dir), config.uid, config.gid)?;
    }
    for (path, major, minor) in COMMON_NODES {
        tree.node(Path::new(path), Some((major, minor)), config.uid, config.gid)?;
    }
    if Path::new(USERFAULTFD).exists() {
        tree.node(Path::new(USERFAULTFD), None, config.uid, config.gid)?;
    }
    for (backend, path, major, minor) in BACKEND_NODES {
        let file = format!("{PLUGIN_PREFIX}{backend}.so");
        let chosen = plugins.iter().any(|p| p.file_name().is_some_and(|n| n == file.as_str()));
        // With its plugins linked in, nothing tells what the exec file will use; then, as Firecracker does, all is there.
        if chosen || (plugins.is_empty() && config.backends.is_empty()) {
            tree.node(Path::new(path), Some((major, minor)), config.uid, config.gid)?;
        }
    }
    for path in &config.devices {
        tree.node(path, None, config.uid, config.gid)?;
    }
    Ok(read_only)
}

fn canonical_file(path: &Path) -> Result<PathBuf, Error> {
    let real = fs::canonicalize(path).map_err(|e| Error::Canonicalize(path.to_path_buf(), e))?;
    if real.is_file() { Ok(real) } else { Err(Error::NotAFile(real)) }
}

/// The plugins' files, each once.
fn plugins(backends: &[Backend], exec_file: &Path) -> Result<Vec<PathBuf>, Error> {
    let beside = exec_file.parent().unwrap_or(Path::new("/"));
    let dirs = [beside.join("../lib/godwit"), beside.to_path_buf()];
    let mut found = Vec::new();
    for backend in backends {
        found.push(match backend {
            Backend::At(path) => canonical_file(path)?,
            Backend::Named(name) => {
                let file = format!("{PLUGIN_PREFIX}{}.so", name.replace('-', "_"));
                let path = dirs.iter().map(|d| d.join(&file)).find(|p| p.is_file()).ok_or_else(|| {
                    let dirs = dirs.each_ref().map(|d| d.display().to_string()).join(", ");
                    Error::NoBackend { name: name.clone(), file, dirs }
                })?;
                canonical_file(&path)?
            }
        });
    }
    if backends.is_empty() {
        // The first directory that has any, as the exec file itself looks for them.
        let installed = |dir: &PathBuf| -> Vec<PathBuf> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let is_plugin = |n: &str| n.starts_with(PLUGIN_PREFIX) && n.ends_with(".so");
            entries
                .filter(|e| e.file_name().to_str().is_some_and(is_plugin))
                .filter_map(|e| canonical_file(&e.path()).ok())
                .collect()
        };
        found = dirs.iter().map(installed).find(|list| !list.is_empty()).unwrap_or_default();
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn write_pid(path: &Path, pid: u32) -> Result<(), Error> {
    let file =
        File::options().write(true).create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path);
    file.and_then(|mut f| write!(f, "{pid}")).map_err(|e| Error::PidFile(path.to_path_buf(), e))
}
