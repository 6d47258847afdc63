//! `godwit-corpus`: packs a fuzz corpus into one file, and unpacks it. Used by `scripts/fuzz`.
//!
//! The file is `godwit fuzz corpus 1\n`, then each input as its length (u32, little-endian) and its bytes, the shortest
//! first, until [`MOST`] bytes are full.

use std::path::Path;
use std::process::ExitCode;

const MAGIC: &[u8] = b"godwit fuzz corpus 1\n";
/// Bytes of a packed corpus.
const MOST: usize = 128 << 10;

type Outcome = Result<(), String>;

fn pack(dir: &Path, file: &Path) -> Outcome {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        inputs.push(std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?);
    }
    inputs.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    let mut out = MAGIC.to_vec();
    let mut kept = 0;
    for input in inputs.iter().take_while(|i| i.len() < MOST) {
        if out.len() + 4 + input.len() > MOST {
            break;
        }
        out.extend((input.len() as u32).to_le_bytes());
        out.extend(input);
        kept += 1;
    }
    println!("{}: {kept} of {} inputs, {} bytes", file.display(), inputs.len(), out.len());
    std::fs::write(file, out).map_err(|e| format!("{}: {e}", file.display()))
}

fn unpack(file: &Path, dir: &Path) -> Outcome {
    let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let damaged = || format!("{} is damaged", file.display());
    let mut left = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    for number in 0.. {
        let Some((len, rest)) = left.split_first_chunk::<4>() else { break };
        let input = rest.get(..u32::from_le_bytes(*len) as usize).ok_or_else(damaged)?;
        std::fs::write(dir.join(format!("packed-{number}")), input).map_err(|e| e.to_string())?;
        left = &rest[input.len()..];
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["pack", dir, file] => pack(Path::new(dir), Path::new(file)),
        ["unpack", file, dir] => unpack(Path::new(file), Path::new(dir)),
        _ => Err("usage: godwit-corpus pack DIR FILE | unpack FILE DIR".into()),
    };
    outcome.map_or_else(
        |why| {
            eprintln!("godwit-corpus: {why}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
