//! The API thread's loop: connections on the Unix socket, bounded in number, size and time.
//!
//! One thread serves all connections by readiness; a request is handled on it, one at a time, in order of arrival. A client that
//! sends nothing, half a request, or reads no answers costs a slot until somebody else needs it, never the guest.

use super::http::{MAX_HEAD, Parsed, Request, Response, parse};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Connections at once; more push out the longest idle one. Between two that are accepted everyone who has sent something is
/// served, so that only the silent are pushed out.
const MAX_CONNECTIONS: usize = 100;
/// Unsent answer bytes of a client that does not read.
const MAX_UNSENT: usize = 256 << 10;

/// Bytes that a client may still send after it was refused, so that it gets to read why.
const MAX_AFTERWARDS: usize = 1 << 20;

/// Answers requests. Called on the API thread.
pub trait Handler {
    /// One request to one response.
    fn handle(&mut self, request: Request) -> Response;
}

impl<F: FnMut(Request) -> Response> Handler for F {
    fn handle(&mut self, request: Request) -> Response {
        self(request)
    }
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    continued: bool,
    closing: bool,
    /// What it sends is not looked at any more.
    refused: bool,
    /// Bytes thrown away since then.
    thrown_away: usize,
    last_active: Instant,
}

/// Listener and connections.
pub struct Server<H> {
    listener: UnixListener,
    stop: EventFd,
    epoll: Epoll,
    connections: HashMap<RawFd, Connection>,
    max_body: usize,
    handler: H,
}

impl<H: Handler> Server<H> {
    /// A server on `listener`; bodies longer than `max_body` bytes are refused; a write to `stop` ends [`Self::run`].
    ///
    /// # Errors
    /// epoll could not be set up.
    pub fn new(listener: UnixListener, stop: EventFd, max_body: usize, handler: H) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        for fd in [listener.as_raw_fd(), stop.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64))?;
        }
        Ok(Server { listener, stop, epoll, connections: HashMap::new(), max_body, handler })
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// epoll failed; nothing that a client does leads here.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::default(); MAX_CONNECTIONS + 2];
        loop {
            let n = match self.epoll.wait(-1, &mut events) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            for event in &events[..n] {
                let fd = event.data() as RawFd;
                if fd == self.stop.as_raw_fd() {
                    return Ok(());
                } else if fd == self.listener.as_raw_fd() {
                    self.accept();
                } else {
                    self.serve(fd);
                }
            }
        }
    }

    fn accept(&mut self) {
        // One a wake-up: level-triggered epoll comes back, and requests get their turn between.
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS
            && let Some(idle) = self.connections.iter().min_by_key(|(_, c)| c.last_active).map(|(fd, _)| *fd)
        {
            self.close(idle);
        }
        let fd = stream.as_raw_fd();
        if self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64)).is_ok() {
            self.connections.insert(
                fd,
                Connection {
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    continued: false,
                    closing: false,
                    refused: false,
                    thrown_away: 0,
                    last_active: Instant::now(),
                },
            );
        }
    }

    fn close(&mut self, fd: RawFd) {
        // Dropping the stream takes the descriptor out of the epoll set too.
        self.connections.remove(&fd);
    }

    fn serve(&mut self, fd: RawFd) {
        let Some(connection) = self.connections.get_mut(&fd) else { return };
        if connection.refused && connection.output.is_empty() {
            if !connection.throw_away() {
                self.close(fd);
            }
            return;
        }
        let mut keep = connection.flush();
        if keep && !connection.closing {
            keep = connection.fill(MAX_HEAD + self.max_body) | connection.has_request();
            keep &= connection.answer(self.max_body, &mut self.handler) && connection.flush();
        }
        let done = connection.closing && connection.output.is_empty();
        // Closed with bytes unread, the socket would tell the client of a reset, perhaps before it has read the answer.
        let lingers = done && keep && connection.refused && connection.say_no_more();
        if !keep || done && !lingers {
            return self.close(fd);
        }
        let waiting = if connection.output.is_empty() { EventSet::IN } else { EventSet::OUT };
        if self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(waiting, fd as u64)).is_err() {
            self.close(fd);
        }
    }
}

impl Connection {
    /// Reads what is there; false: the client has closed or failed.
    fn fill(&mut self, limit: usize) -> bool {
        let mut chunk = [0; 4096];
        // One byte more than any request may have is enough for the parser to refuse it.
        while self.input.len() <= limit {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    // Half-closed after a whole request: answer it, then close.
                    self.closing = true;
                    return false;
                }
                Ok(n) => {
                    self.input.extend_from_slice(&chunk[..n]);
                    self.last_active = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Ends the answers; false: the client is gone.
    fn say_no_more(&self) -> bool {
        self.stream.shutdown(std::net::Shutdown::Write).is_ok()
    }

    /// Reads what is not wanted; false: it is the end, or enough.
    fn throw_away(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => {
                    self.thrown_away += n;
                    self.last_active = Instant::now();
                    if self.thrown_away > MAX_AFTERWARDS {
                        return false;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    fn has_request(&self) -> bool {
        self.closing && !self.input.is_empty()
    }

    /// Handles every whole request in the input; false: the client reads no answers.
    fn answer(&mut self, max_body: usize, handler: &mut impl Handler) -> bool {
        while !self.input.is_empty() {
            match parse(&self.input, max_body) {
                Parsed::Partial { expects_continue } => {
                    if expects_continue && !self.continued {
                        self.continued = true;
                        self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    break;
                }
                Parsed::Refuse(response) => {
                    self.output.extend_from_slice(&response.to_bytes(false));
                    self.input.clear();
                    // Nothing more comes from a client that has closed its side.
                    self.refused = !self.closing;
                    self.closing = true;
                }
                Parsed::Done(request, taken) => {
                    let keep_alive = request.keep_alive && !self.closing;
                    let response = handler.handle(request);
                    self.output.extend_from_slice(&response.to_bytes(keep_alive));
                    self.input.drain(..taken);
                    self.continued = false;
                    if !keep_alive {
                        self.input.clear();
                        self.closing = true;
                    }
                }
            }
            if self.output.len() > MAX_UNSENT && (!self.flush() || self.output.len() > MAX_UNSENT) {
                return false;
            }
        }
        true
    }

    /// Writes what can be written; false: the client is gone.
    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(n) => {
                    self.output.drain(..n);
                    self.last_active = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::io::BufReader;
    use std::time::Duration;

    struct Running {
        path: std::path::PathBuf,
        stop: EventFd,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Running {
        fn start(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("godwit-http-{}-{name}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            let stop = EventFd::new(0).unwrap();
            let seen = stop.try_clone().unwrap();
            let thread = std::thread::spawn(move || {
                let echo =
                    |r: Request| Response::ok(&format!("{} {} {}", r.method.name(), r.path, r.body.len()));
                Server::new(listener, seen, 1000, echo).unwrap().run().unwrap();
            });
            Running { path, stop, thread: Some(thread) }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.write(1).unwrap();
            self.thread.take().unwrap().join().unwrap();
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn status(stream: &UnixStream) -> String {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    #[test]
    fn requests_in_pieces_and_in_a_row_are_answered_in_order() {
        let server = Running::start("order");
        let mut c = server.connect();
        for byte in b"PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" {
            c.write_all(&[*byte]).unwrap();
        }
        c.write_all(b"GET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut all = String::new();
        c.read_to_string(&mut all).unwrap();
        let at = |what| all.find(what).unwrap_or_else(|| panic!("{what} in {all}"));
        assert!(at("PUT /a 3") < at("GET /b 0") && at("GET /b 0") < at("GET /c 0"));
    }

    #[test]
    fn a_half_closed_client_gets_its_answer() {
        let server = Running::start("half");
        let mut c = server.connect();
        c.write_all(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
        c.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(status(&c), "HTTP/1.1 200 OK");
    }

    #[test]
    fn a_refused_client_that_goes_on_sending_reads_why() {
        let server = Running::start("refused");
        let mut c = server.connect();
        c.write_all(b"PUT /x HTTP/1.1\r\nContent-Length: 200000\r\n\r\n").unwrap();
        for _ in 0..50 {
            c.write_all(&[b'x'; 4000]).unwrap();
        }
        let mut all = String::new();
        c.read_to_string(&mut all).unwrap();
        assert!(all.starts_with("HTTP/1.1 413 "), "{all}");
        // One that never ends is cut off.
        let mut c = server.connect();
        c.write_all(b"nonsense\r\n\r\n").unwrap();
        let mut sent = 0;
        while sent < 100 << 20 && c.write_all(&[b'x'; 4096]).is_ok() {
            sent += 4096;
        }
        assert!(sent < 100 << 20);
    }

    #[test]
    fn idle_and_hostile_clients_do_not_keep_others_out() {
        let server = Running::start("idle");
        let idle: Vec<_> = (0..2 * MAX_CONNECTIONS).map(|_| server.connect()).collect();
        idle.iter().for_each(|mut c| drop(c.write_all(b"GET / HT")));
        for _ in 0..10 {
            let mut c = server.connect();
            c.write_all(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
            assert_eq!(status(&c), "HTTP/1.1 200 OK");
            let mut g = server.connect();
            g.write_all(b"\0\0\0garbage\r\n\r\n").unwrap();
            assert_eq!(status(&g), "HTTP/1.1 400 Bad Request");
        }
    }
}
