//! What there is to compare with: so many bytes through one TCP connection on the loopback, and nothing else done to them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

const CHUNK: usize = 1 << 20;
/// Most memory for each side; a longer copy goes over it again, as rounds do.
const HELD: usize = 1 << 30;

/// Milliseconds for `bytes` from memory that has been written to memory that has not, as a guest's is at its destination.
pub(crate) fn copy_ms(bytes: u64) -> f64 {
    copy(usize::try_from(bytes).unwrap_or(usize::MAX)).unwrap_or(f64::NAN)
}

fn copy(bytes: usize) -> std::io::Result<f64> {
    let held = bytes.min(HELD);
    let source: Vec<u8> = (0..held).map(|i| (i >> 3) as u8 | 1).collect();
    // Zeroed by the system: untouched until written.
    let mut target = vec![0u8; held];
    let chunks = || (0..bytes).step_by(CHUNK).map(|at| at % HELD..at % HELD + CHUNK.min(bytes - at));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let begun = Instant::now();
    std::thread::scope(|s| {
        let sender = s.spawn(move || {
            let mut to = TcpStream::connect(address)?;
            chunks().try_for_each(|chunk| to.write_all(&source[chunk]))
        });
        let (mut from, _) = listener.accept()?;
        chunks().try_for_each(|chunk| from.read_exact(&mut target[chunk]))?;
        sender.join().unwrap_or_else(|_| Err(std::io::Error::other("the sender panicked")))
    })?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    std::hint::black_box(&target);
    Ok(took)
}
