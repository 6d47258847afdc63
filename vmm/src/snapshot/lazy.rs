//! Guest memory served by a page fault handler: Firecracker's protocol, so that its handlers serve Godwit too.
//!
//! The handler listens on a Unix socket. It gets one message: a JSON array of where each region is mapped here and where its
//! bytes lie in the memory file, with the userfaultfd beside it (`SCM_RIGHTS`). From then on it answers faults, for as
//! long as the guest lives: a guest whose handler has ended stands still at the next missing page.

use super::{Loaded, SnapshotError, at};
use crate::memory::ram::{self, Backing};
use crate::memory::{FaultHandle, GuestRam, Region};
use serde_json::json;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// What must live as long as memory that a handler serves.
#[derive(Debug)]
pub struct Served {
    _faults: FaultHandle,
    _handler: UnixStream,
}

/// Memory of these regions, filled by the handler that listens at `socket`.
///
/// # Errors
/// A diff snapshot, regions of another size, no handler, or no userfaultfd for this process.
pub fn serve_memory(
    loaded: &Loaded,
    socket: &Path,
    regions: &[Region],
) -> Result<(GuestRam, Served), SnapshotError> {
    let mismatch = |why: &str| SnapshotError::Mismatch { path: socket.to_owned(), why: why.to_owned() };
    if loaded.memory.diff.is_some() {
        return Err(mismatch("the state is of a Diff snapshot: merge it with its base first (godwit merge)"));
    }
    if regions.iter().map(|r| r.len).sum::<u64>() != loaded.memory.bytes {
        return Err(mismatch("the snapshot's memory does not fill this machine's"));
    }
    // The handler first: without one, a first touch would wait for ever.
    let handler = UnixStream::connect(socket).map_err(at(socket, "connect to the page fault handler"))?;
    let ram = ram::allocate(loaded.memory.bytes, &Backing::Anonymous)
        .map_err(|e| SnapshotError::Memory(e.to_string()))?;
    let faults = FaultHandle::new(&ram).map_err(|e| SnapshotError::Memory(format!("userfaultfd: {e}")))?;
    let page = rustix::param::page_size();
    let mut offset = 0;
    let mut mappings = Vec::new();
    for region in ram.iter() {
        mappings.push(json!({
            "base_host_virt_addr": region.as_ptr() as u64,
            "size": region.len(),
            "offset": offset,
            "page_size": page,
            // Bytes, under the name that older handlers read.
            "page_size_kib": page,
        }));
        offset += region.len();
    }
    let message = serde_json::Value::from(mappings).to_string();
    let sent = handler
        .send_with_fd(message.as_bytes(), faults.as_fd().as_raw_fd())
        .map_err(|e| at(socket, "send to the page fault handler")(e.into()))?;
    if sent != message.len() {
        return Err(mismatch("the page fault handler took only half of the message"));
    }
    Ok((ram, Served { _faults: faults, _handler: handler }))
}
