//! A client of the metadata service.

use crate::mmio::{Failure, Outcome};
use crate::nic::Nic;
use crate::rt::{Out, option, options};
use crate::{address, memory, now, rt};
use smoltcp::iface::{Interface, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{IpAddress, Ipv4Address};

/// A ring-0 service: comes back at once.
const NOTHING: u8 = 3;

const RESPONSE: usize = 64 << 10;
/// Seconds that an answer may take; only a service that is dead does.
const PATIENCE: i64 = 60;

struct Client<'a> {
    interface: &'a mut Interface,
    nic: &'a mut Nic,
    server: Ipv4Address,
    port: u16,
    buffers: [&'static mut [u8]; 2],
    response: &'static mut [u8],
}

impl Client<'_> {
    /// Sends the pieces of a request; the response's status and body.
    fn ask(&mut self, request: &[&[u8]]) -> Outcome<(u64, usize, usize)> {
        self.port += 1;
        let [receive, send] = &mut self.buffers;
        let socket = Socket::new(SocketBuffer::new(&mut receive[..]), SocketBuffer::new(&mut send[..]));
        let mut storage = [const { SocketStorage::EMPTY }; 1];
        let mut sockets = SocketSet::new(&mut storage[..]);
        let handle = sockets.add(socket);
        let to = (IpAddress::Ipv4(self.server), 80);
        let socket: &mut Socket<'_> = sockets.get_mut(handle);
        socket
            .connect(self.interface.context(), to, self.port)
            .map_err(|_| Failure("cannot begin to connect"))?;
        let (mut asked, mut len, end) = (false, 0, now().total_micros() + PATIENCE * 1_000_000);
        loop {
            self.interface.poll(now(), self.nic, &mut sockets);
            self.nic.flush();
            let socket: &mut Socket<'_> = sockets.get_mut(handle);
            if !asked && socket.can_send() {
                for piece in request {
                    let _ = socket.send_slice(piece);
                }
                asked = true;
            }
            while socket.can_recv() {
                len += socket.recv_slice(&mut self.response[len..]).map_err(|_| Failure("response"))?;
            }
            if asked && let Some(whole) = parse(&self.response[..len]) {
                socket.close();
                self.interface.poll(now(), self.nic, &mut sockets);
                self.nic.flush();
                return Ok(whole);
            }
            if !socket.is_open() {
                return Err(Failure("no whole response"));
            }
            if now().total_micros() > end {
                return Err(Failure("no response"));
            }
            rt::service(NOTHING, 0);
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w.eq_ignore_ascii_case(what))
}

/// Status, and where the body begins and ends, once all of it is there.
fn parse(bytes: &[u8]) -> Option<(u64, usize, usize)> {
    let head = find(bytes, b"\r\n\r\n")?;
    let status = rt::number(bytes.get(9..12)?);
    let len = find(&bytes[..head], b"\r\ncontent-length: ")
        .map_or(0, |at| rt::number(&bytes[at + 18..head]) as usize);
    let (start, end) = (head + 4, head + 4 + len);
    (bytes.len() >= end).then_some((status, start, end))
}

fn show(what: &[u8], status: u64, body: &[u8]) {
    let text = |bytes: &[u8]| {
        for byte in bytes {
            let shown = match byte {
                b'\n' => b'|',
                b' '..=b'~' => *byte,
                _ => b'?',
            };
            Out.text(core::str::from_utf8(&[shown]).unwrap_or("?"));
        }
    };
    Out.text("http ");
    text(what);
    Out.text(" ").decimal(status).text(" ");
    text(body);
    Out.text("\n").flush();
}

pub fn run(interface: &mut Interface, nic: &mut Nic) -> Outcome {
    let server = address(option("metadata").unwrap_or(b"169.254.169.254"));
    // The service is a neighbour, whatever our own address is.
    interface.update_ip_addrs(|list| {
        for cidr in list.iter_mut() {
            *cidr = smoltcp::wire::IpCidr::new(cidr.address(), 0);
        }
    });
    let mut client = Client {
        interface,
        nic,
        server,
        port: 40_000,
        buffers: [memory(16 << 10), memory(16 << 10)],
        response: memory(RESPONSE),
    };
    let mut token = [0u8; 128];
    let mut token_len = 0;
    if option("token").is_some() {
        let ask: &[&[u8]] = &[b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 600\r\n\r\n"];
        let (status, start, end) = client.ask(ask)?;
        token_len = (end - start).min(token.len());
        token[..token_len].copy_from_slice(&client.response[start..start + token_len]);
        show(b"token", status, if token_len > 0 { b"given" } else { b"none" });
    }
    let accept: &[u8] = if option("json").is_some() { b"Accept: application/json\r\n" } else { b"" };
    for path in options("fetch") {
        let header: &[u8] = if token_len > 0 { b"X-metadata-token: " } else { b"X-nothing: " };
        let ask = [b"GET ", path, b" HTTP/1.1\r\n", accept, header, &token[..token_len], b"\r\n\r\n"];
        let (status, start, end) = client.ask(&ask)?;
        show(path, status, &client.response[start..end]);
    }
    Ok(())
}
