use super::packet::{HOST_CID, NO_RECEIVE, NO_SEND, STREAM, op};
use super::*;
use crate::virtio::fuzz::test_vsock;
use crate::virtio::mock::{Driver, ram};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use vmm_sys_util::tempdir::TempDir;

const PORT: u32 = 52;

fn started() -> (Driver<Vsock>, TempDir, String) {
    let (vsock, dir, path) = test_vsock();
    let mut d = Driver::new(vsock, ram());
    d.start_plain();
    (d, dir, path)
}

fn header(op: u16, src_port: u32, dst_port: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port,
        dst_port,
        kind: STREAM,
        op,
        buf_alloc: 1000,
        ..Header::default()
    }
}

fn send(d: &mut Driver<Vsock>, h: Header, payload: &[u8]) {
    let h = Header { len: payload.len() as u32, ..h };
    d.send(1, &[&h.to_bytes(), payload], &[]);
    assert!(d.run(1, 4));
    while d.used(1).is_some() {}
}

/// The packets for the guest, now.
fn packets(d: &mut Driver<Vsock>) -> Vec<(Header, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        if d.outstanding(0) == 0 {
            d.send(0, &[], &[4096]);
        }
        assert!(d.run(0, 4));
        let Some((head, len)) = d.used(0) else { return all };
        let at = d.bytes(0x1_0000 + u64::from(head) * 16, 8);
        let bytes = d.bytes(u64::from_le_bytes(at.try_into().unwrap()), len as usize);
        all.push((Header::from_bytes(bytes[..HEADER].try_into().unwrap()), bytes[HEADER..].to_vec()));
    }
}

fn ops(d: &mut Driver<Vsock>) -> Vec<u16> {
    packets(d).iter().map(|p| p.0.op).collect()
}

#[test]
fn the_guest_connects_talks_and_half_closes() {
    let (mut d, _dir, path) = started();
    let listener = UnixListener::bind(format!("{path}_{PORT}")).unwrap();
    send(&mut d, header(op::REQUEST, 1000, PORT), &[]);
    let mut host = listener.accept().unwrap().0;
    let response = packets(&mut d)[0].0;
    assert_eq!((response.op, response.src_port, response.dst_port), (op::RESPONSE, PORT, 1000));
    assert_eq!((response.src_cid, response.dst_cid, response.buf_alloc), (2, 3, 65536));
    send(&mut d, header(op::RW, 1000, PORT), b"from the guest");
    let mut got = [0; 14];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"from the guest");
    // Credit: 1000 bytes, then a request for more, then the rest.
    host.write_all(&[7; 1500]).unwrap();
    d.worker.lock().unwrap().run_event(0, EventSet::IN);
    let p = packets(&mut d);
    let total: usize = p.iter().map(|p| p.1.len()).sum();
    assert_eq!((total, p.last().unwrap().0.op), (1000, op::CREDIT_REQUEST));
    assert_eq!(p[0].0.fwd_cnt, 14);
    send(&mut d, Header { fwd_cnt: 1000, ..header(op::CREDIT_UPDATE, 1000, PORT) }, &[]);
    assert_eq!(packets(&mut d).iter().map(|p| p.1.len()).sum::<usize>(), 500);
    // The guest stops sending; the host sees the end and may still answer.
    send(&mut d, Header { flags: NO_SEND, ..header(op::SHUTDOWN, 1000, PORT) }, &[]);
    assert_eq!(host.read(&mut got).unwrap(), 0);
    send(&mut d, Header { fwd_cnt: 1500, ..header(op::CREDIT_UPDATE, 1000, PORT) }, &[]);
    host.write_all(b"bye").unwrap();
    drop(host);
    d.worker.lock().unwrap().run_event(0, EventSet::IN);
    let p = packets(&mut d);
    assert_eq!(p[0].1, b"bye");
    assert_eq!((p[1].0.op, p[1].0.flags), (op::SHUTDOWN, NO_SEND | NO_RECEIVE));
    send(&mut d, header(op::RST, 1000, PORT), &[]);
    send(&mut d, header(op::RW, 1000, PORT), b"x");
    assert_eq!(ops(&mut d), [op::RST], "the connection is gone");
}

#[test]
fn the_host_connects_by_firecrackers_convention() {
    let (mut d, _dir, path) = started();
    let mut host = UnixStream::connect(&path).unwrap();
    host.write_all(b"CONNECT 77\nand more").unwrap();
    for _ in 0..3 {
        d.worker.lock().unwrap().run_event(0, EventSet::IN);
    }
    let request = packets(&mut d)[0].0;
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 77));
    send(&mut d, header(op::RESPONSE, 77, request.src_port), &[]);
    let mut line = String::new();
    BufReader::new(&host).read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", request.src_port));
    assert_eq!(packets(&mut d)[0].1, b"and more");
    send(&mut d, Header { flags: 3, ..header(op::SHUTDOWN, 77, request.src_port) }, &[]);
    assert_eq!(ops(&mut d), [op::RST]);
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
    // Refused by the guest, and nonsense: closed without OK.
    for text in [
        "CONNECT 5\n",
        "HELLO 5\n",
        "CONNECT x\n",
        "CONNECT 99999999999\n",
        "0123456789012345678901234567890123456789",
    ] {
        let mut host = UnixStream::connect(&path).unwrap();
        host.write_all(text.as_bytes()).unwrap();
        for _ in 0..3 {
            d.worker.lock().unwrap().run_event(0, EventSet::IN);
        }
        if let Some((h, _)) = packets(&mut d).first() {
            send(&mut d, header(op::RST, 5, h.src_port), &[]);
        }
        assert!(!matches!(host.read(&mut [0; 9]), Ok(1..)), "{text}");
    }
}

#[test]
fn what_cannot_be_is_reset() {
    let (mut d, _dir, path) = started();
    send(&mut d, header(op::REQUEST, 1, 99), &[]);
    assert_eq!(ops(&mut d), [op::RST], "nobody listens");
    send(&mut d, header(op::RST, 1, 99), &[]);
    assert_eq!(ops(&mut d), [0; 0], "a reset is not answered");
    let _listener = UnixListener::bind(format!("{path}_{PORT}")).unwrap();
    for wrong in [
        Header { kind: 2, ..header(op::REQUEST, 1, PORT) },
        Header { dst_cid: 9, ..header(op::REQUEST, 1, PORT) },
        Header { src_cid: 9, ..header(op::REQUEST, 1, PORT) },
        header(op::RW, 1, PORT),
        header(op::RESPONSE, 1, PORT),
    ] {
        send(&mut d, wrong, &[]);
        assert_eq!(ops(&mut d), [op::RST], "{wrong:?}");
    }
    // More data than there was credit for.
    send(&mut d, header(op::REQUEST, 1, PORT), &[]);
    assert_eq!(ops(&mut d), [op::RESPONSE]);
    let mut last = Vec::new();
    for _ in 0..20 {
        send(&mut d, header(op::RW, 1, PORT), &[0; 60_000]);
        last = ops(&mut d);
        if last.contains(&op::RST) {
            break;
        }
    }
    assert!(last.contains(&op::RST));
    // A length beyond the chain.
    let h = Header { len: 1000, ..header(op::RW, 1, PORT) };
    d.send(1, &[&h.to_bytes()], &[]);
    assert!(d.run(1, 2) && !d.broken());
}

#[test]
fn a_slow_host_gets_every_byte_and_the_guest_its_credit_back() {
    let (mut d, _dir, path) = started();
    let listener = UnixListener::bind(format!("{path}_{PORT}")).unwrap();
    send(&mut d, header(op::REQUEST, 1, PORT), &[]);
    let mut host = listener.accept().unwrap().0;
    assert_eq!(ops(&mut d), [op::RESPONSE]);
    host.set_nonblocking(true).unwrap();
    let (mut sent, mut fwd, mut got, mut n) = (0u32, 0u32, Vec::<u8>::new(), 0u8);
    while got.len() < 1_000_000 {
        while sent - fwd <= 65_536 - 10_000 && sent < 1_000_000 {
            send(&mut d, header(op::RW, 1, PORT), &[n; 10_000]);
            n = n.wrapping_add(1);
            sent += 10_000;
        }
        let mut buf = [0; 3000];
        let n_read = host.read(&mut buf).unwrap_or(0);
        got.extend(&buf[..n_read]);
        d.worker.lock().unwrap().run_event(0, EventSet::OUT);
        for (h, _) in packets(&mut d) {
            assert_eq!(h.op, op::CREDIT_UPDATE);
            fwd = h.fwd_cnt;
        }
    }
    assert_eq!(got.len(), 1_000_000);
    assert!(got.chunks(10_000).zip(0u8..).all(|(c, i)| c.iter().all(|b| *b == i)));
}

#[test]
fn a_move_ends_connections_by_a_transport_reset() {
    let (mut d, _dir, path) = started();
    let listener = UnixListener::bind(format!("{path}_{PORT}")).unwrap();
    send(&mut d, header(op::REQUEST, 1, PORT), &[]);
    let _host = listener.accept().unwrap().0;
    let at = d.send(2, &[], &[4]);
    let (other, _other_dir, _) = test_vsock();
    let mut d = d.moved_to(other);
    d.run(2, 2);
    assert_eq!((d.used(2), d.used(2)), (Some((0, 4)), None));
    assert_eq!(d.bytes(at[0], 4), [0; 4]);
    send(&mut d, header(op::RW, 1, PORT), b"x");
    assert_eq!(ops(&mut d), [op::RST]);
}

#[test]
fn sockets_are_named_in_errors_and_unlinked_at_the_end() {
    let (vsock, _dir, path) = test_vsock();
    let config = VsockConfig { guest_cid: 3, uds_path: path.clone(), vsock_id: None };
    let error = Vsock::new(&config).err().unwrap().to_string();
    assert!(error.contains(&path), "{error}");
    drop(vsock);
    assert!(!std::path::Path::new(&path).exists());
    assert!(matches!(Vsock::new(&VsockConfig { guest_cid: 2, ..config }), Err(VsockError::Cid(2))));
}
