//! What to say of an API socket that cannot be made or reached, and the name of an instance.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Longest path of a Unix socket, in bytes: `sun_path` less its end.
const MAX_PATH: usize = 107;
/// Longest name of an instance, as Firecracker's.
const MAX_ID: usize = 64;

/// Why there is no socket at `path`, and what to do.
pub(super) fn not_made(path: &Path, why: &io::Error) -> String {
    let shown = path.display();
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new(".")).display();
    let len = path.as_os_str().len();
    let what = match why.kind() {
        ErrorKind::AddrInUse => match UnixStream::connect(path).map_err(|e| e.kind()) {
            Err(ErrorKind::ConnectionRefused) => {
                format!("left there by a program that has ended without removing it: rm {shown}")
            }
            _ => "in use by another program: give this one a path of its own".to_owned(),
        },
        ErrorKind::NotFound => format!("there is no directory {dir}: make it first"),
        ErrorKind::PermissionDenied => format!("this user may not make files in {dir}"),
        _ if len > MAX_PATH => {
            format!("the path has {len} bytes, and a Unix socket's {MAX_PATH} at most: give a shorter one")
        }
        _ => why.to_string(),
    };
    format!("API socket {shown}: {what}")
}

/// Why nobody is reached at `path`, and what to do.
pub(super) fn not_reached(path: &Path, why: &io::Error) -> String {
    let what = match why.kind() {
        ErrorKind::NotFound => "there is no API socket; `godwit ps` lists those of this host".to_owned(),
        ErrorKind::ConnectionRefused => {
            "nobody listens: the program that made the socket has ended".to_owned()
        }
        ErrorKind::PermissionDenied => "this user may not connect to it".to_owned(),
        _ => why.to_string(),
    };
    format!("{}: {what}", path.display())
}

/// Takes the name of an instance, as Firecracker's `--id`.
pub(super) fn instance_id(text: &str) -> Result<String, String> {
    let len = text.chars().count();
    if len == 0 || len > MAX_ID {
        return Err(format!("a name has 1 to {MAX_ID} characters, and this {len}"));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
        Some(c) => Err(format!("{c:?} is none of letters, digits and '-'")),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn each_failure_says_what_to_do() {
        let dir = std::env::temp_dir().join(format!("godwit-socket-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let made = |name: &str| {
            let path = dir.join(name);
            let listener = UnixListener::bind(&path);
            listener.map_err(|e| not_made(&path, &e))
        };
        let reached = |name: &str| {
            let path = dir.join(name);
            UnixStream::connect(&path).map(drop).map_err(|e| not_reached(&path, &e))
        };
        let listener = made("a").unwrap();
        assert!(made("a").unwrap_err().contains("in use by another program"));
        reached("a").unwrap();
        drop(listener);
        let stale = made("a").unwrap_err();
        assert!(stale.ends_with(&format!("rm {}", dir.join("a").display())), "{stale}");
        assert!(reached("a").unwrap_err().contains("has ended"));
        assert!(reached("b").unwrap_err().contains("godwit ps"));
        assert!(made("no/a").unwrap_err().contains("make it first"));
        assert!(made(&"x".repeat(200)).unwrap_err().contains("107 at most"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn names_are_firecrackers() {
        for good in ["a", "anonymous-instance", &"x".repeat(64), "551e7604-e35c-42b3-b825-416853441234"] {
            assert_eq!(instance_id(good).as_deref(), Ok(good));
        }
        for bad in ["", "a b", "a_b", "../x", "\u{e9}", &"x".repeat(65)] {
            assert!(instance_id(bad).is_err(), "{bad}");
        }
    }
}
