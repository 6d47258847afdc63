//! `godwit ps`: the microVMs of this host, without a daemon that keeps a list: whoever runs with an API socket is asked.

use super::{client, exit};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);

/// Lists the microVMs that run on this host: every godwit with an API socket that this user may ask.
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// As JSON, one array.
    #[arg(long)]
    json: bool,
    /// Print API sockets only, one a line.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

/// A process that looks like one.
struct Found {
    pid: u32,
    socket: PathBuf,
}

/// What follows `--NAME` or `--NAME=` among arguments.
fn option<'a>(args: &[&'a [u8]], name: &[u8]) -> Option<&'a OsStr> {
    let at = args.iter().position(|a| a.starts_with(name))?;
    let value = match args[at].strip_prefix(name)? {
        [] => args.get(at + 1)?,
        [b'=', value @ ..] => value,
        _ => return None,
    };
    Some(OsStr::from_bytes(value))
}

/// True if the arguments begin a machine; a client's have `--api-sock` too.
fn serves(args: &[&[u8]]) -> bool {
    const CLIENTS: [&[u8]; 6] = [b"pause", b"resume", b"snapshot", b"restore", b"migrate", b"ps"];
    !args.get(1).is_some_and(|first| CLIENTS.contains(first))
}

fn examine(pid: u32) -> Option<Found> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let name = |path: &Path| path.file_name().map(|n| n.as_bytes().to_vec());
    let cmdline = std::fs::read(proc.join("cmdline")).ok()?;
    let args: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
    let program = std::fs::read_link(proc.join("exe")).ok().and_then(|exe| name(&exe));
    let called = args.first().and_then(|a| name(Path::new(OsStr::from_bytes(a))));
    // Under the name that tools for Firecracker call it by, it is itself behind the link; in a jail, a copy.
    let is_ours = |n: &Vec<u8>| n.starts_with(b"godwit") && !n.starts_with(b"godwit-jailer");
    if ![program, called].iter().flatten().any(is_ours) || !serves(&args) {
        return None;
    }
    let socket = Path::new(option(&args, b"--api-sock")?);
    // As that process sees it: it may have another working directory or root.
    let root = std::fs::read_link(proc.join("root")).ok()?;
    let socket = match (root == Path::new("/"), socket.is_absolute()) {
        (true, true) => socket.to_owned(),
        (true, false) => std::fs::read_link(proc.join("cwd")).ok()?.join(socket),
        (false, _) => root.join(socket.strip_prefix("/").unwrap_or(socket)),
    };
    Some(Found { pid, socket })
}

fn find() -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pid = |e: std::fs::DirEntry| e.file_name().to_str()?.parse().ok();
    let mut pids: Vec<u32> = entries.flatten().filter_map(pid).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(examine).collect()
}

fn ask(found: &Found) -> Value {
    let get = |path: &str| -> Result<Value, String> {
        let answer = client::request(&found.socket, "GET", path, "", Some(PATIENCE))?;
        serde_json::from_str(&answer.body).map_err(|e| e.to_string())
    };
    let mut row = json!({ "pid": found.pid, "api_sock": found.socket });
    match get("/").and_then(|instance| Ok((instance, get("/machine-config")?))) {
        Ok((instance, machine)) => {
            for name in ["id", "state", "backend", "vmm_version"] {
                row[name] = instance[name].clone();
            }
            for name in ["vcpu_count", "mem_size_mib", "cpu_model"] {
                row[name] = machine[name].clone();
            }
        }
        Err(why) => row["error"] = why.into(),
    }
    row
}

fn text(rows: &[Value]) -> String {
    let head = ["ID", "PID", "STATE", "CPU", "VCPUS", "MIB", "API SOCKET"];
    let mut table = vec![head.map(str::to_owned)];
    for row in rows {
        let cell = |name: &str| match &row[name] {
            Value::String(s) => s.clone(),
            Value::Null => "-".into(),
            other => other.to_string(),
        };
        let state = if row["error"].is_null() { cell("state") } else { "no answer".into() };
        table.push([
            cell("id"),
            cell("pid"),
            state,
            cell("backend"),
            cell("vcpu_count"),
            cell("mem_size_mib"),
            cell("api_sock"),
        ]);
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|i| table.iter().map(|row| row[i].chars().count()).max().unwrap_or_default())
        .collect();
    let mut out = String::new();
    for row in &table {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

impl Ps {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        let found = find();
        if self.quiet {
            found.iter().for_each(|f| println!("{}", f.socket.display()));
            return exit::OK;
        }
        let rows: Vec<Value> = found.iter().map(ask).collect();
        if self.json {
            println!("{:#}", Value::from(rows));
        } else {
            print!("{}", text(&rows));
        }
        exit::OK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_among_arguments() {
        let args = |line: &'static str| line.split(' ').map(str::as_bytes).collect::<Vec<_>>();
        let socket = |line| option(&args(line), b"--api-sock").map(|s| s.to_str().unwrap());
        assert_eq!(socket("godwit --id x --api-sock /a.sock"), Some("/a.sock"));
        assert_eq!(socket("godwit --api-sock=/a.sock --id x"), Some("/a.sock"));
        assert_eq!(socket("godwit --api-socket /a.sock"), None);
        assert_eq!(socket("godwit --api-sock"), None);
        assert!(serves(&args("godwit --api-sock x")) && serves(&args("godwit receive tcp:x --api-sock x")));
        assert!(!serves(&args("godwit pause --api-sock x")));
    }

    #[test]
    fn a_table_has_a_line_each() {
        let rows = [
            json!({"id": "a", "pid": 7, "state": "Running", "vcpu_count": 2, "api_sock": "/s"}),
            json!({"pid": 123456, "api_sock": "/t", "error": "refused"}),
        ];
        let text = text(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("ID  PID     STATE"), "{text}");
        assert!(lines[1].contains("Running") && lines[2].contains("no answer"), "{text}");
    }
}
