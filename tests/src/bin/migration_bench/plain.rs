//! What there is to compare with: so many bytes through one TCP connection on the loopback, and nothing else done to them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

const CHUNK: usize = 1 << 20;

/// Milliseconds for `bytes` from memory that has been written to memory that has not, as a guest's is at its destination.
pub(crate) fn copy_ms(bytes: u64) -> f64 {
    copy(usize::try_from(bytes).unwrap_or(usize::MAX)).unwrap_or(f64::NAN)
}

fn copy(bytes: usize) -> std::io::Result<f64> {
    let source: Vec<u8> = (0..bytes).map(|i| (i >> 3) as u8 | 1).collect();
    // Zeroed by the system: untouched until written.
    let mut target = vec![0u8; bytes];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let begun = Instant::now();
    std::thread::scope(|s| {
        let sender = s.spawn(move || {
            let mut to = TcpStream::connect(address)?;
            source.chunks(CHUNK).try_for_each(|chunk| to.write_all(chunk))
        });
        let (mut from, _) = listener.accept()?;
        target.chunks_mut(CHUNK).try_for_each(|chunk| from.read_exact(chunk))?;
        sender.join().unwrap_or_else(|_| Err(std::io::Error::other("the sender panicked")))
    })?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    std::hint::black_box(&target);
    Ok(took)
}
