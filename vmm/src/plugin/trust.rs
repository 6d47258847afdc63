//! Which plugin files may be loaded: checked before `dlopen`, because a library's code runs as it is loaded.
//!
//! Called by the loader with a path from start-up configuration. A plugin becomes part of this process, so whoever can
//! write it, or exchange it for another, could do all that the process can. Hence: the file and its directory belong to
//! root or to the running user, nobody else can write them, nobody else can exchange a directory above them, the file
//! is for this machine, and, where pins are given, its SHA-256 is one of them.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Greatest plugin that is read, in bytes.
pub const MAX_PLUGIN_BYTES: u64 = 256 << 20;

/// The SHA-256 of a plugin that may be loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Reads 64 hexadecimal digits, with or without `sha256:` before them.
    pub fn parse(text: &str) -> Result<Self, TrustError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        let bad = || TrustError::BadPin(text.chars().take(100).collect());
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(bad());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble =
                |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(bad);
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

/// Why a plugin is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The path is relative: it would depend on the working directory.
    #[error("plugin {path}: give an absolute path", path = .0.display())]
    Relative(PathBuf),
    /// The file cannot be found, opened or read.
    #[error("plugin {path}: {source}", path = .0.display(), source = .1)]
    Read(PathBuf, io::Error),
    /// A directory, device or the like.
    #[error("plugin {path}: not a regular file", path = .0.display())]
    NotAFile(PathBuf),
    /// Larger than [`MAX_PLUGIN_BYTES`].
    #[error("plugin {path}: larger than {MAX_PLUGIN_BYTES} bytes", path = .0.display())]
    TooLarge(PathBuf),
    /// Somebody else owns it and so could change it.
    #[error("plugin {path}: {what} belongs to user {uid}; it must belong to root or to the user that runs godwit ({me})", path = .path.display(), what = .what.display())]
    Owner {
        /// The plugin.
        path: PathBuf,
        /// The file or directory that is not trusted.
        what: PathBuf,
        /// Its owner.
        uid: u32,
        /// The running user.
        me: u32,
    },
    /// Others may write it.
    #[error("plugin {path}: {what} can be written by others (mode {mode:o}); take that away with: chmod go-w {what}", path = .path.display(), what = .what.display())]
    Writable {
        /// The plugin.
        path: PathBuf,
        /// The file or directory that is not trusted.
        what: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No ELF file.
    #[error("plugin {path}: not an ELF shared library", path = .0.display())]
    NotElf(PathBuf),
    /// ELF, but for other hosts.
    #[error("plugin {path}: built for another machine ({found}); this host needs {wanted}", path = .path.display())]
    Machine {
        /// The plugin.
        path: PathBuf,
        /// What the file is for.
        found: String,
        /// What this host needs.
        wanted: String,
    },
    /// Its hash is not pinned.
    #[error("plugin {path}: its SHA-256 is {found}, which is not among the {pins} pinned", path = .path.display())]
    NotPinned {
        /// The plugin.
        path: PathBuf,
        /// Its hash.
        found: Pin,
        /// Number of pins.
        pins: usize,
    },
    /// A pin that is no SHA-256.
    #[error("`{0}` is no SHA-256: give 64 hexadecimal digits")]
    BadPin(String),
}

/// A file that may be loaded.
#[derive(Debug)]
pub struct Trusted {
    /// Its path without symbolic links: the one to load.
    pub path: PathBuf,
    /// The file that was looked at. Keep it open until it is loaded.
    pub file: File,
    /// Its SHA-256, where pins were given: a hash of megabytes is milliseconds of a start.
    pub sha256: Option<Pin>,
}

/// Bytes of a file that say what it is and which machine it is for.
const ELF_HEADER: u64 = 20;

/// ELF machine numbers of the 64-bit hosts that Linux and Rust's std run on.
const MACHINES: [(u16, &str); 8] = [
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (22, "s390x"),
    (21, "powerpc64"),
    (43, "sparc64"),
    (258, "loongarch64"),
    (8, "mips64"),
];

/// Checks the plugin at `path`; with pins, also its hash.
pub fn check(path: &Path, pins: &[Pin]) -> Result<Trusted, TrustError> {
    check_for(path, pins, effective_uid())
}

fn check_for(path: &Path, pins: &[Pin], me: u32) -> Result<Trusted, TrustError> {
    let failed = |e| TrustError::Read(path.to_path_buf(), e);
    if !path.is_absolute() {
        return Err(TrustError::Relative(path.to_path_buf()));
    }
    let real = fs::canonicalize(path).map_err(failed)?;
    // Before it is opened: opening a device or a pipe can block or do things.
    if !fs::metadata(&real).map_err(failed)?.is_file() {
        return Err(TrustError::NotAFile(real));
    }
    let mut file = File::open(&real).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    allowed(path, &real, &meta, me, false)?;
    for (up, dir) in real.ancestors().skip(1).enumerate() {
        // Above the plugin's own directory a sticky one, such as /tmp, will do: nobody can exchange others' entries.
        allowed(path, dir, &fs::metadata(dir).map_err(failed)?, me, up > 0)?;
    }
    if meta.len() > MAX_PLUGIN_BYTES {
        return Err(TrustError::TooLarge(real));
    }
    // Without pins the header is enough.
    let wanted = if pins.is_empty() { ELF_HEADER } else { MAX_PLUGIN_BYTES + 1 };
    let mut bytes = Vec::new();
    (&mut file).take(wanted).read_to_end(&mut bytes).map_err(failed)?;
    check_elf(path, &bytes)?;
    let sha256 = (!pins.is_empty()).then(|| Pin(Sha256::digest(&bytes).into()));
    if let Some(found) = sha256
        && !pins.contains(&found)
    {
        return Err(TrustError::NotPinned { path: path.to_path_buf(), found, pins: pins.len() });
    }
    Ok(Trusted { path: real, file, sha256 })
}

fn allowed(
    path: &Path,
    what: &Path,
    meta: &fs::Metadata,
    me: u32,
    sticky_will_do: bool,
) -> Result<(), TrustError> {
    let (path, what) = (path.to_path_buf(), what.to_path_buf());
    if meta.uid() != 0 && meta.uid() != me {
        return Err(TrustError::Owner { path, what, uid: meta.uid(), me });
    }
    // Root's group holds nobody who is not root already.
    let group = meta.mode() & 0o020 != 0 && meta.gid() != 0;
    let sticky = sticky_will_do && meta.mode() & 0o1000 != 0;
    if (group || meta.mode() & 0o002 != 0) && !sticky {
        return Err(TrustError::Writable { path, what, mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

fn check_elf(path: &Path, bytes: &[u8]) -> Result<(), TrustError> {
    let not_elf = || TrustError::NotElf(path.to_path_buf());
    let header = bytes.get(..20).filter(|h| &h[..4] == b"\x7fELF").ok_or_else(not_elf)?;
    let read = |at: usize| {
        let pair = [header[at], header[at + 1]];
        if header[5] == 2 { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
    };
    let name = |class: u8, order: u8, machine: u16| {
        let known = MACHINES.iter().find(|(n, _)| *n == machine).map(|(_, name)| (*name).to_owned());
        let known = known.unwrap_or_else(|| format!("machine {machine}"));
        let bits = if class == 2 { 64 } else { 32 };
        let order = if order == 2 { "big" } else { "little" };
        format!("{known}, {bits}-bit, {order}-endian")
    };
    let host_order = if cfg!(target_endian = "big") { 2 } else { 1 };
    let host = MACHINES.iter().find(|(_, name)| *name == std::env::consts::ARCH).map(|(n, _)| *n);
    let (class, order, machine) = (header[4], header[5], read(18));
    // On a host that the table lacks dlopen has to refuse.
    if class != 2 || order != host_order || host.is_some_and(|h| h != machine) {
        return Err(TrustError::Machine {
            path: path.to_path_buf(),
            found: name(class, order, machine),
            wanted: name(2, host_order, host.unwrap_or(machine)),
        });
    }
    const ET_DYN: u16 = 3;
    if read(16) == ET_DYN { Ok(()) } else { Err(not_elf()) }
}

fn effective_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("godwit-trust-{}-{name}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            chmod(&dir, 0o755);
            Self(dir.canonicalize().unwrap())
        }

        fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, bytes).unwrap();
            chmod(&path, 0o755);
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The head of a shared library of this host.
    fn elf() -> Vec<u8> {
        let mut b = vec![0; 64];
        b[..4].copy_from_slice(b"\x7fELF");
        b[4] = 2;
        let host = MACHINES.iter().find(|(_, n)| *n == std::env::consts::ARCH).map_or(0, |m| m.0);
        b[5] = if cfg!(target_endian = "big") { 2 } else { 1 };
        let put = |v: u16| if cfg!(target_endian = "big") { v.to_be_bytes() } else { v.to_le_bytes() };
        b[16..18].copy_from_slice(&put(3));
        b[18..20].copy_from_slice(&put(host));
        b
    }

    #[test]
    fn a_good_plugin_is_trusted_also_by_a_link() {
        let dir = Dir::new("good");
        let file = dir.put("p.so", &elf());
        let trusted = check(&file, &[]).unwrap();
        assert_eq!(trusted.path, file);
        assert_eq!(trusted.sha256, None);
        let pin = Pin(Sha256::digest(elf()).into());
        assert_eq!(check(&file, &[pin]).unwrap().sha256, Some(pin));
        check(&file, &[Pin([1; 32]), pin]).unwrap();
        assert_eq!(Pin::parse(&format!("sha256:{pin}")).unwrap(), pin);
        assert_eq!(Pin::parse(&pin.to_string().to_uppercase()).unwrap(), pin);
        let link = dir.0.join("link.so");
        symlink(&file, &link).unwrap();
        assert_eq!(check(&link, &[]).unwrap().path, file);
    }

    #[test]
    fn what_others_could_change_is_refused() {
        // (name, what to do, part of the message)
        type Spoil = fn(&Dir, &Path) -> PathBuf;
        let table: &[(&str, Spoil, &str)] = &[
            (
                "world-file",
                |_, f| {
                    chmod(f, 0o777);
                    f.into()
                },
                "chmod go-w",
            ),
            (
                "world-dir",
                |d, f| {
                    chmod(&d.0, 0o777);
                    f.into()
                },
                "can be written by others",
            ),
            (
                "sticky-dir",
                |d, f| {
                    chmod(&d.0, 0o1777);
                    f.into()
                },
                "can be written by others",
            ),
            (
                "dir-above",
                |d, _| {
                    let inner = d.0.join("inner");
                    fs::create_dir(&inner).unwrap();
                    chmod(&inner, 0o755);
                    chmod(&d.0, 0o777);
                    fs::write(inner.join("p.so"), elf()).unwrap();
                    inner.join("p.so")
                },
                "can be written by others",
            ),
            (
                "link-to-bad-place",
                |d, _| {
                    let bad = d.0.join("bad");
                    fs::create_dir(&bad).unwrap();
                    fs::write(bad.join("p.so"), elf()).unwrap();
                    chmod(&bad, 0o777);
                    symlink(bad.join("p.so"), d.0.join("link.so")).unwrap();
                    d.0.join("link.so")
                },
                "bad can be written by others",
            ),
            ("relative", |_, _| PathBuf::from("p.so"), "absolute"),
            ("missing", |d, _| d.0.join("none.so"), "No such file"),
            ("directory", |d, _| d.0.clone(), "not a regular file"),
            ("device", |_, _| PathBuf::from("/dev/null"), "not a regular file"),
            ("empty", |d, _| d.put("e.so", b""), "not an ELF"),
            ("script", |d, _| d.put("s.so", b"#!/bin/sh\necho hello from a script\n"), "not an ELF"),
            (
                "program",
                |d, _| {
                    let mut b = elf();
                    b[16..18].copy_from_slice(&[2, 2]);
                    d.put("x.so", &b)
                },
                "not an ELF",
            ),
            (
                "machine",
                |d, _| {
                    let mut b = elf();
                    b[18..20].copy_from_slice(&[0x28, 0x28]);
                    d.put("m.so", &b)
                },
                "another machine",
            ),
            (
                "order",
                |d, _| {
                    let mut b = elf();
                    b[5] = 3 - b[5];
                    d.put("o.so", &b)
                },
                "another machine",
            ),
            (
                "class",
                |d, _| {
                    let mut b = elf();
                    b[4] = 1;
                    d.put("c.so", &b)
                },
                "another machine",
            ),
        ];
        for (name, spoil, wanted) in table {
            let dir = Dir::new(name);
            let path = spoil(&dir, &dir.put("p.so", &elf()));
            let text = check(&path, &[]).unwrap_err().to_string();
            assert!(text.contains(wanted), "{name}: {text}");
        }
        let dir = Dir::new("pin");
        let text = check(&dir.put("p.so", &elf()), &[Pin([7; 32])]).unwrap_err().to_string();
        assert!(text.contains("not among the 1 pinned"), "{text}");
    }

    #[test]
    fn a_stranger_owner_is_refused() {
        if effective_uid() != 0 {
            eprintln!("SKIPPED a_stranger_owner_is_refused: only root can give a file away");
            return;
        }
        let dir = Dir::new("owner");
        let file = dir.put("p.so", &elf());
        std::os::unix::fs::chown(&file, Some(61_234), None).unwrap();
        let text = check(&file, &[]).unwrap_err().to_string();
        assert!(text.contains("belongs to user 61234"), "{text}");
        // Its owner itself may load it.
        check_for(&file, &[], 61_234).unwrap();
        std::os::unix::fs::chown(&dir.0, Some(61_235), None).unwrap();
        assert!(check_for(&file, &[], 61_234).unwrap_err().to_string().contains("belongs to user 61235"));
    }

    #[test]
    fn bad_pins() {
        for text in ["", "abc", &"g".repeat(64), &"1".repeat(63), &"1".repeat(65), "sha256:", &"é".repeat(32)]
        {
            assert!(matches!(Pin::parse(text), Err(TrustError::BadPin(_))), "{text}");
        }
    }
}
