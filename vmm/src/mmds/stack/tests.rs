//! Frames in and out: a TCP client made of smoltcp too, and hostile ones made by hand.

use super::*;
use crate::virtio::net::MmdsConfig;
use serde_json::json;
use smoltcp::iface::Config;
use smoltcp::wire::IpAddress;

const GUEST: [u8; 6] = [6, 0, 0, 0, 0, 2];
const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

fn stack(data: serde_json::Value) -> Stack {
    let service = Service::new("test");
    service.store().put(data).unwrap();
    service.store().configure(&MmdsConfig::default());
    Stack::new(service, SERVER).unwrap()
}

/// The guest's network card: its other end is the stack.
struct Card {
    stack: Stack,
    pending: VecDeque<Vec<u8>>,
}

struct ToStack<'a>(&'a mut Card);

impl TxToken for ToStack<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = [&MAC[..], &GUEST, &IPV4].concat();
        frame.resize(ETHERNET + len, 0);
        let result = f(&mut frame[ETHERNET..]);
        assert!(self.0.stack.wants(&frame[..len.min(64)]), "not for the service: {frame:x?}");
        self.0.stack.take(&frame, 1_000_000);
        let mut next = Vec::new();
        while self.0.stack.next(&mut next, 1_000_000) {
            self.0.pending.push_back(std::mem::take(&mut next));
        }
        result
    }
}

impl Device for Card {
    type RxToken<'a> = In;
    type TxToken<'a> = ToStack<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(In, ToStack<'_>)> {
        let frame = self.pending.pop_front()?;
        assert_eq!(frame[..ETHERNET], [&GUEST[..], &MAC, &IPV4].concat());
        Some((In(frame[ETHERNET..].to_vec()), ToStack(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<ToStack<'_>> {
        Some(ToStack(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ip;
        c.max_transmission_unit = MTU;
        c
    }
}

struct Guest {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    port: u16,
}

impl Guest {
    fn new(stack: Stack) -> Self {
        let mut card = Card { stack, pending: VecDeque::new() };
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut card, Instant::ZERO);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(IpAddress::v4(10, 0, 0, 2), 0)).unwrap());
        Guest { card, interface, sockets: SocketSet::new(vec![]), port: 1000 }
    }

    fn poll(&mut self) {
        for _ in 0..20 {
            self.interface.poll(Instant::from_millis(1), &mut self.card, &mut self.sockets);
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 100_000]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        self.port += 1;
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(context, (IpAddress::from(SERVER), 80), self.port).unwrap();
        self.poll();
        handle
    }

    fn say(&mut self, handle: SocketHandle, text: &[u8]) -> String {
        self.sockets.get_mut::<Socket<'_>>(handle).send_slice(text).unwrap();
        let mut all = Vec::new();
        for _ in 0..50 {
            self.poll();
            let socket = self.sockets.get_mut::<Socket<'_>>(handle);
            let mut bytes = vec![0; socket.recv_queue()];
            if !bytes.is_empty() {
                socket.recv_slice(&mut bytes).unwrap();
            }
            all.extend(bytes);
        }
        String::from_utf8(all).unwrap()
    }
}

#[test]
fn a_guest_fetches_by_tcp() {
    let mut g = Guest::new(stack(json!({"a": {"b": "deep"}})));
    let c = g.connect();
    let answer = g.say(c, b"GET /a/b HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\ndeep"), "{answer}");
    // The connection stays for the next request, and two at once get two answers.
    let answer = g.say(c, b"GET /a HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("\r\n\r\nb") && answer.contains("404 Not Found"), "{answer}");
    assert!(!g.sockets.get::<Socket<'_>>(c).may_recv(), "it was asked to close");
}

#[test]
fn an_answer_longer_than_all_buffers_arrives_whole() {
    let text = "0123456789".repeat(5000);
    let mut g = Guest::new(stack(json!({ "long": text })));
    let c = g.connect();
    let answer = g.say(c, b"GET /long HTTP/1.1\r\n\r\n");
    assert!(answer.ends_with(&text), "{} bytes", answer.len());
}

#[test]
fn idle_connections_give_way_and_nothing_grows() {
    let mut g = Guest::new(stack(json!({"a": "b"})));
    let idle: Vec<_> = (0..5 * CONNECTIONS).map(|_| g.connect()).collect();
    let c = g.connect();
    assert!(g.say(c, b"GET /a HTTP/1.1\r\n\r\n").ends_with("\r\n\r\nb"));
    let open = idle.iter().filter(|h| g.sockets.get::<Socket<'_>>(**h).may_send()).count();
    assert!(open < CONNECTIONS, "{open}");
    assert_eq!(g.card.stack.connections.len(), CONNECTIONS);
}

#[test]
fn frames_for_others_are_left_alone() {
    let s = stack(json!({}));
    let mut arp = [&[0xff; 6][..], &GUEST, &ARP, &ARP_REQUEST, &GUEST, &[10, 0, 0, 2]].concat();
    arp.extend([0; 6]);
    let mut other = arp.clone();
    arp.extend(SERVER.octets());
    other.extend([10, 0, 0, 1]);
    assert!(s.wants(&arp) && !s.wants(&other) && !s.wants(&arp[..40]) && !s.wants(&[]));
}

#[test]
fn what_waits_for_the_guest_is_bounded() {
    let mut s = stack(json!({}));
    let arp = [&[0xff; 6][..], &GUEST, &ARP, &ARP_REQUEST, &GUEST, &[10, 0, 0, 2], &[0; 6], &SERVER.octets()];
    for _ in 0..10_000 {
        s.take(&arp.concat(), 0);
    }
    assert!(s.wire.outgoing.len() <= MAX_FRAMES);
    let mut reply = Vec::new();
    assert!(s.next(&mut reply, 0));
    let wanted =
        [&GUEST[..], &MAC, &ARP, &[0, 1, 8, 0, 6, 4, 0, 2], &MAC, &SERVER.octets(), &GUEST, &[10, 0, 0, 2]];
    assert_eq!(reply, wanted.concat());
    for len in 0..60 {
        s.take(&vec![0x45; len], 0);
    }
}
