//! The command line: Firecracker's jailer flags, and two of ours (`--backend`, `--device`).
//!
//! Called by `main`. Nothing here touches the host: what a flag names is looked at by whoever uses it.

use std::path::{Component, Path, PathBuf};

/// Most characters of an `--id`.
pub(crate) const MAX_ID_LEN: usize = 64;
/// Where jails are unless `--chroot-base-dir` says otherwise.
const DEFAULT_BASE: &str = "/srv/jailer";
/// What `RLIMIT_NOFILE` becomes unless `--resource-limit no-file=` says otherwise.
const DEFAULT_NO_FILE: u64 = 2048;

/// Why a command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgError {
    #[error("Found argument '{0}' which wasn't expected, or isn't valid in this context.")]
    Unexpected(String),
    #[error("The argument '{0}' requires a value, but none was supplied.")]
    MissingValue(String),
    #[error("The argument '{0}' takes no value.")]
    NoValueWanted(String),
    #[error("The argument '{0}' was provided more than once.")]
    Duplicate(String),
    #[error("Argument '{0}' required, but not found.")]
    Missing(&'static str),
    #[error("Invalid instance ID: Invalid len ({0}); the length must be between 1 and {MAX_ID_LEN}.")]
    IdLength(usize),
    #[error(
        "Invalid instance ID: Invalid char ({0}) at position {1}; only letters, digits and '-' are allowed."
    )]
    IdChar(char, usize),
    #[error("Invalid uid: {0}")]
    Uid(String),
    #[error("Invalid gid: {0}")]
    Gid(String),
    #[error("{0} is an invalid cgroup version specifier: use 1 or 2.")]
    CgroupVersion(String),
    #[error("Invalid format for cgroups: {0}. It must be <cgroup_file>=<value>, for instance cpu.shares=10.")]
    CgroupFormat(String),
    #[error("Cgroup invalid file: {0}. It must be <controller>.<property>.")]
    CgroupFile(String),
    #[error("Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'")]
    ParentCgroup,
    #[error("Invalid format for resources limits: {0}. It must be <resource>=<value>.")]
    LimitFormat(String),
    #[error("Invalid limit value for resource: {0}: it must be a number from 0 to 18446744073709551615.")]
    LimitValue(String),
    #[error("Invalid resource argument: {0}. The resources are fsize and no-file.")]
    LimitName(String),
    #[error("Invalid backend: {0}. Name it by letters, digits, '-' and '_', or give an absolute path.")]
    Backend(String),
    #[error("Invalid device node: {0}. It must be a path below /dev without '..' or '.'.")]
    Device(String),
    #[error("The argument '{0}' is not valid UTF-8.")]
    NotText(String),
}

/// A line for a cgroup file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupValue {
    /// What the file's name begins with, up to the first dot.
    pub(crate) controller: String,
    /// For instance "cpu.shares".
    pub(crate) file: String,
    pub(crate) value: String,
}

/// A CPU backend to bring into the jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// `libgodwit_backend_<name>.so`, from where plugins are installed.
    Named(String),
    /// This file.
    At(PathBuf),
}

/// What the jail is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) id: String,
    pub(crate) exec_file: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) chroot_base: PathBuf,
    pub(crate) cgroup_version: u8,
    pub(crate) cgroups: Vec<CgroupValue>,
    pub(crate) parent_cgroup: Option<PathBuf>,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) limit_fsize: Option<u64>,
    pub(crate) limit_no_file: u64,
    pub(crate) daemonize: bool,
    pub(crate) new_pid_ns: bool,
    /// Empty: every plugin that is installed beside the exec file.
    pub(crate) backends: Vec<Backend>,
    pub(crate) devices: Vec<PathBuf>,
    /// What follows `--`, for the exec file.
    pub(crate) extra: Vec<String>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Run(Box<Config>),
}

/// The text of `--help`.
pub(crate) const HELP: &str = "\
Start Godwit in a jail of its own.

Usage: godwit-jailer --id <id> --exec-file <path> --uid <uid> --gid <gid> [options] [-- <arguments for the exec file>]

required:
  --id <id>                        Jail ID: 1 to 64 letters, digits and hyphens.
  --exec-file <path>               File path to exec into.
  --uid <uid>                      The user identifier the jailer switches to before exec.
  --gid <gid>                      The group identifier the jailer switches to before exec.

optional:
  --chroot-base-dir <dir>          The base folder where chroot jails are located. [default: /srv/jailer]
  --cgroup <file>=<value>          Cgroup file and the value to write to it, for instance cpu.shares=10. May be repeated.
  --cgroup-version <1|2>           Select the cgroup version used by the jailer. [default: 1]
  --parent-cgroup <relative path>  Parent cgroup in which the cgroup of this microVM will be placed. [default: name of the exec file]
  --netns <path>                   Path to the network namespace this microVM should join.
  --resource-limit <name>=<value>  Limit of the process: fsize (bytes of a file it writes) or no-file (one more than its
                                   highest file descriptor). May be repeated. [default: no-file=2048]
  --daemonize                      Before exec, call setsid() and redirect standard input, output and error to /dev/null.
  --new-pid-ns                     Exec into a new PID namespace.
  --backend <name|path>            CPU backend to bring into the jail, with the device nodes it needs: kvm, interp, or the
                                   absolute path of a plugin. May be repeated. [default: every plugin installed with the exec file]
  --device <path>                  A further device node of the host to make inside the jail. May be repeated.
  --version                        Print the version number.
  --help                           Show this text.
";

/// Reads the arguments, without the program's own name.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, ArgError> {
    let mut given = Given::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            given.extra = args.collect();
            break;
        }
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), Some(value.to_owned())),
            _ => (arg, None),
        };
        match flag.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" | "-V" => return Ok(Command::Version),
            "--daemonize" | "--new-pid-ns" => {
                if inline.is_some() {
                    return Err(ArgError::NoValueWanted(flag));
                }
                let on = if flag == "--daemonize" { &mut given.daemonize } else { &mut given.new_pid_ns };
                if std::mem::replace(on, true) {
                    return Err(ArgError::Duplicate(flag));
                }
            }
            _ => {
                let Some(place) = given.place(&flag) else { return Err(ArgError::Unexpected(flag)) };
                let value = match inline {
                    Some(value) => value,
                    // A forgotten value must not swallow the next flag.
                    None => args
                        .next()
                        .filter(|v| !v.starts_with("--"))
                        .ok_or_else(|| ArgError::MissingValue(flag.clone()))?,
                };
                match place {
                    Place::Once(slot) if slot.is_some() => return Err(ArgError::Duplicate(flag)),
                    Place::Once(slot) => *slot = Some(value),
                    Place::Many(list) => list.push(value),
                }
            }
        }
    }
    given.check().map(|config| Command::Run(Box::new(config)))
}

enum Place<'a> {
    Once(&'a mut Option<String>),
    Many(&'a mut Vec<String>),
}

#[derive(Default)]
struct Given {
    id: Option<String>,
    exec_file: Option<String>,
    uid: Option<String>,
    gid: Option<String>,
    chroot_base: Option<String>,
    cgroup_version: Option<String>,
    parent_cgroup: Option<String>,
    netns: Option<String>,
    cgroups: Vec<String>,
    limits: Vec<String>,
    backends: Vec<String>,
    devices: Vec<String>,
    daemonize: bool,
    new_pid_ns: bool,
    extra: Vec<String>,
}

impl Given {
    fn place(&mut self, flag: &str) -> Option<Place<'_>> {
        Some(match flag {
            "--id" => Place::Once(&mut self.id),
            "--exec-file" => Place::Once(&mut self.exec_file),
            "--uid" => Place::Once(&mut self.uid),
            "--gid" => Place::Once(&mut self.gid),
            "--chroot-base-dir" => Place::Once(&mut self.chroot_base),
            "--cgroup-version" => Place::Once(&mut self.cgroup_version),
            "--parent-cgroup" => Place::Once(&mut self.parent_cgroup),
            "--netns" => Place::Once(&mut self.netns),
            "--cgroup" => Place::Many(&mut self.cgroups),
            "--resource-limit" => Place::Many(&mut self.limits),
            "--backend" => Place::Many(&mut self.backends),
            "--device" => Place::Many(&mut self.devices),
            _ => return None,
        })
    }

    fn check(self) -> Result<Config, ArgError> {
        let id = self.id.ok_or(ArgError::Missing("id"))?;
        check_id(&id)?;
        let exec_file = PathBuf::from(self.exec_file.ok_or(ArgError::Missing("exec-file"))?);
        let uid = self.uid.ok_or(ArgError::Missing("uid"))?;
        let uid = id_number(&uid).ok_or(ArgError::Uid(uid))?;
        let gid = self.gid.ok_or(ArgError::Missing("gid"))?;
        let gid = id_number(&gid).ok_or(ArgError::Gid(gid))?;
        let cgroup_version = match self.cgroup_version.as_deref() {
            None | Some("1") => 1,
            Some("2") => 2,
            Some(other) => return Err(ArgError::CgroupVersion(other.to_owned())),
        };
        let parent_cgroup = self.parent_cgroup.map(PathBuf::from);
        if parent_cgroup.as_deref().is_some_and(|p| !is_plain_relative(p)) {
            return Err(ArgError::ParentCgroup);
        }
        let (mut limit_fsize, mut limit_no_file) = (None, DEFAULT_NO_FILE);
        for limit in self.limits {
            let (name, value) = limit.split_once('=').ok_or_else(|| ArgError::LimitFormat(limit.clone()))?;
            let number = value.parse::<u64>().map_err(|_| ArgError::LimitValue(value.to_owned()))?;
            match name {
                "fsize" => limit_fsize = Some(number),
                "no-file" => limit_no_file = number,
                _ => return Err(ArgError::LimitName(name.to_owned())),
            }
        }
        Ok(Config {
            id,
            exec_file,
            uid,
            gid,
            chroot_base: PathBuf::from(self.chroot_base.unwrap_or_else(|| DEFAULT_BASE.to_owned())),
            cgroup_version,
            cgroups: self.cgroups.iter().map(|c| cgroup_value(c)).collect::<Result<_, _>>()?,
            parent_cgroup,
            netns: self.netns.map(PathBuf::from),
            limit_fsize,
            limit_no_file,
            daemonize: self.daemonize,
            new_pid_ns: self.new_pid_ns,
            backends: self.backends.into_iter().map(backend).collect::<Result<_, _>>()?,
            devices: self.devices.into_iter().map(device).collect::<Result<_, _>>()?,
            extra: self.extra,
        })
    }
}

fn check_id(id: &str) -> Result<(), ArgError> {
    let len = id.chars().count();
    if len == 0 || len > MAX_ID_LEN {
        return Err(ArgError::IdLength(len));
    }
    match id.chars().enumerate().find(|(_, c)| !(c.is_ascii_alphanumeric() || *c == '-')) {
        Some((at, c)) => Err(ArgError::IdChar(c, at)),
        None => Ok(()),
    }
}

/// The greatest value means "leave unchanged" to the kernel, so it is no user or group.
fn id_number(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|&n| n != u32::MAX && !text.starts_with('+'))
}

fn is_plain_relative(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    // Path::components() hides "." in the middle of a path.
    !text.is_empty()
        && text.split(|&b| b == b'/').all(|part| part != b".")
        && path.components().all(|c| matches!(c, Component::Normal(_)))
}

fn cgroup_value(arg: &str) -> Result<CgroupValue, ArgError> {
    let (file, value) = arg
        .split_once('=')
        .filter(|(file, value)| !file.is_empty() && !value.is_empty())
        .ok_or_else(|| ArgError::CgroupFormat(arg.to_owned()))?;
    let plain = file.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    match file.split_once('.') {
        Some((controller, property))
            if plain && !controller.is_empty() && !property.starts_with('.') && !property.is_empty() =>
        {
            Ok(CgroupValue {
                controller: controller.to_owned(),
                file: file.to_owned(),
                value: value.to_owned(),
            })
        }
        _ => Err(ArgError::CgroupFile(file.to_owned())),
    }
}

fn backend(arg: String) -> Result<Backend, ArgError> {
    if arg.starts_with('/') {
        return Ok(Backend::At(PathBuf::from(arg)));
    }
    let plain = arg.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if arg.is_empty() || !plain { Err(ArgError::Backend(arg)) } else { Ok(Backend::Named(arg)) }
}

fn device(arg: String) -> Result<PathBuf, ArgError> {
    match Path::new(&arg).strip_prefix("/dev") {
        Ok(rest) if is_plain_relative(rest) => Ok(PathBuf::from(arg)),
        _ => Err(ArgError::Device(arg)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 8] = ["--id", "a-1", "--exec-file", "/bin/godwit", "--uid", "123", "--gid", "100"];

    fn with(more: &[&str]) -> Result<Command, ArgError> {
        parse(GOOD.iter().chain(more).map(|s| (*s).to_owned()))
    }

    fn config(more: &[&str]) -> Config {
        match with(more) {
            Ok(Command::Run(config)) => *config,
            other => panic!("{more:?}: {other:?}"),
        }
    }

    #[test]
    fn defaults_are_firecrackers() {
        let c = config(&[]);
        assert_eq!(c.chroot_base, Path::new("/srv/jailer"));
        assert_eq!((c.cgroup_version, c.limit_no_file, c.limit_fsize), (1, 2048, None));
        assert!(!c.daemonize && !c.new_pid_ns && c.cgroups.is_empty() && c.netns.is_none());
    }

    #[test]
    fn every_flag_is_read() {
        let c = config(&[
            "--chroot-base-dir",
            "/jails",
            "--cgroup",
            "cpu.shares=10",
            "--cgroup=memory.limit_in_bytes=1=2",
            "--cgroup-version",
            "2",
            "--parent-cgroup",
            "all/external",
            "--netns",
            "/run/netns/a",
            "--resource-limit",
            "fsize=5",
            "--resource-limit",
            "no-file=7",
            "--daemonize",
            "--new-pid-ns",
            "--backend",
            "interp",
            "--backend",
            "/x/y.so",
            "--device",
            "/dev/vfio/vfio",
            "--",
            "--api-sock",
            "a",
            "--",
        ]);
        assert_eq!(c.chroot_base, Path::new("/jails"));
        assert_eq!(c.cgroups[1].value, "1=2");
        assert_eq!(c.cgroups[0].controller, "cpu");
        assert_eq!((c.cgroup_version, c.limit_fsize, c.limit_no_file), (2, Some(5), 7));
        assert!(c.daemonize && c.new_pid_ns);
        assert_eq!(c.backends, [Backend::Named("interp".into()), Backend::At("/x/y.so".into())]);
        assert_eq!(c.extra, ["--api-sock", "a", "--"]);
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        use ArgError as E;
        let table: &[(&[&str], E)] = &[
            (&["--frob"], E::Unexpected("--frob".into())),
            (&["stray"], E::Unexpected("stray".into())),
            (&["--netns"], E::MissingValue("--netns".into())),
            (&["--netns", "--daemonize"], E::MissingValue("--netns".into())),
            (&["--daemonize=1"], E::NoValueWanted("--daemonize".into())),
            (&["--daemonize", "--daemonize"], E::Duplicate("--daemonize".into())),
            (&["--uid", "1"], E::Duplicate("--uid".into())),
            (&["--cgroup-version", "3"], E::CgroupVersion("3".into())),
            (&["--cgroup-version", "v2"], E::CgroupVersion("v2".into())),
            (&["--cgroup", "cpu.shares"], E::CgroupFormat("cpu.shares".into())),
            (&["--cgroup", "cpu.shares="], E::CgroupFormat("cpu.shares=".into())),
            (&["--cgroup", "=1"], E::CgroupFormat("=1".into())),
            (&["--cgroup", "cpu=1"], E::CgroupFile("cpu".into())),
            (&["--cgroup", ".shares=1"], E::CgroupFile(".shares".into())),
            (&["--cgroup", "cpu./../x=1"], E::CgroupFile("cpu./../x".into())),
            (&["--cgroup", "cpu..=1"], E::CgroupFile("cpu..".into())),
            (&["--parent-cgroup", "/abs"], E::ParentCgroup),
            (&["--parent-cgroup", "a/../b"], E::ParentCgroup),
            (&["--parent-cgroup", "a/./b"], E::ParentCgroup),
            (&["--parent-cgroup="], E::ParentCgroup),
            (&["--resource-limit", "fsize"], E::LimitFormat("fsize".into())),
            (&["--resource-limit", "fsize=x"], E::LimitValue("x".into())),
            (&["--resource-limit", "fsize=-1"], E::LimitValue("-1".into())),
            (&["--resource-limit", "stack=1"], E::LimitName("stack".into())),
            (&["--backend", "../x"], E::Backend("../x".into())),
            (&["--device", "/etc/passwd"], E::Device("/etc/passwd".into())),
            (&["--device", "/dev/../etc/passwd"], E::Device("/dev/../etc/passwd".into())),
        ];
        for (args, want) in table {
            assert_eq!(with(args).as_ref(), Err(want), "{args:?}");
        }
    }

    #[test]
    fn ids_and_numbers() {
        let long = "x".repeat(65);
        for (id, bad) in [
            ("", true),
            ("a", false),
            ("551e7604-e35c-42b3-b825-416853441234", false),
            (long.as_str(), true),
            (&long[1..], false),
            ("..", true),
            ("a/b", true),
            ("../../etc", true),
            ("a_b", true),
            ("a b", true),
            ("é", true),
            ("a\0", true),
        ] {
            assert_eq!(check_id(id).is_err(), bad, "{id:?}");
        }
        for (n, want) in [
            ("0", Some(0)),
            ("123", Some(123)),
            ("-1", None),
            ("+1", None),
            ("4294967295", None),
            ("zzz", None),
            ("", None),
        ] {
            assert_eq!(id_number(n), want, "{n:?}");
        }
    }

    #[test]
    fn what_is_required_is_asked_for() {
        for (at, name) in [(0, "id"), (2, "exec-file"), (4, "uid"), (6, "gid")] {
            let mut args: Vec<_> = GOOD.iter().map(|s| (*s).to_owned()).collect();
            args.drain(at..at + 2);
            assert_eq!(parse(args), Err(ArgError::Missing(name)));
        }
        assert_eq!(with(&["--help"]), Ok(Command::Help));
        assert_eq!(parse(["--version".to_owned()]), Ok(Command::Version));
    }
}
