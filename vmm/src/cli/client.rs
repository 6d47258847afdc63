//! One HTTP request to the API socket of a running godwit.

use super::socket::not_reached;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest answer taken, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// For answers that are looked up, not worked for.
pub const SOON: Duration = Duration::from_secs(10);

/// Status and body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For instance 204.
    pub status: u16,
    /// JSON, or empty.
    pub body: String,
}

impl Answer {
    /// What to tell the user of a refusal: the `fault_message`, or all of the body.
    pub fn fault(&self) -> String {
        let value: Option<serde_json::Value> = serde_json::from_str(&self.body).ok();
        let message = value.as_ref().and_then(|v| v["fault_message"].as_str());
        message.map_or_else(|| format!("HTTP status {} {}", self.status, self.body.trim()), str::to_owned)
    }

    /// True for 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Sends a request and reads the answer. What the request asks for may take its time (a snapshot of a large guest does):
/// this returns when it is done, or when the program at the other end has ended. `limit` ends the wait earlier.
///
/// # Errors
/// Text for the user: nobody listens, or what answers is not an API.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    limit: Option<Duration>,
) -> Result<Answer, String> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::WouldBlock => format!("{}: no answer in {limit:?}", socket.display()),
        _ => format!("{}: {e}", socket.display()),
    };
    let mut stream = UnixStream::connect(socket).map_err(|e| not_reached(socket, &e))?;
    stream.set_read_timeout(limit).map_err(failed)?;
    stream.set_write_timeout(Some(SOON)).map_err(failed)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).map_err(failed)?;
    let mut bytes = Vec::new();
    // The peer may keep the connection open: what is complete is enough.
    let mut chunk = [0; 4096];
    loop {
        if let Some(answer) = parse(&bytes).map_err(|why| format!("{}: {why}", socket.display()))? {
            return Ok(answer);
        }
        let n = stream.read(&mut chunk).map_err(failed)?;
        if n == 0 || bytes.len() as u64 + n as u64 > MAX_ANSWER {
            return Err(format!("{}: the answer is cut short", socket.display()));
        }
        bytes.extend_from_slice(&chunk[..n]);
    }
}

fn parse(bytes: &[u8]) -> Result<Option<Answer>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes).map_err(|e| format!("not an HTTP answer: {e}"))? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return Ok(None),
    };
    let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length =
        length.and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse().ok()).unwrap_or(0usize);
    let Some(body) = bytes.get(head..head.saturating_add(length)) else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    Ok(Some(Answer { status, body: String::from_utf8_lossy(body).into_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_pieces_and_faults_are_read() {
        let bytes = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 22\r\n\r\n{\"fault_message\":\"no\"}";
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), Ok(None), "{len}");
        }
        let answer = parse(bytes).unwrap().unwrap();
        assert_eq!((answer.status, answer.fault().as_str()), (400, "no"));
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap().status, 204);
        assert!(parse(b"SSH-2.0-OpenSSH\r\n").is_err());
    }
}
