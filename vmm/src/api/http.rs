//! HTTP/1.1 on a Unix socket: parsing one request out of a buffer, and writing one response.
//!
//! Only what REST clients of a local socket use: a method, a path, `Content-Length`. Everything is bounded before it is
//! stored; what is not understood is answered with an error and never guessed at.

use serde_json::json;

/// Longest request line and headers together, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

/// Request methods that the API has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Read.
    Get,
    /// Create or do.
    Put,
    /// Change.
    Patch,
    /// Undo.
    Delete,
}

impl Method {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// One whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// Path without query, beginning with "/".
    pub path: String,
    /// What follows the "?", undecoded; empty if there is none.
    pub query: String,
    /// Body bytes; empty if there is none.
    pub body: Vec<u8>,
    /// The client wants the connection kept.
    pub keep_alive: bool,
}

/// What became of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// More bytes are needed; true: the client waits for "100 Continue" before it sends the body.
    Partial {
        /// The head is complete and has `Expect: 100-continue`.
        expects_continue: bool,
    },
    /// A request, and how many bytes of the buffer it took.
    Done(Request, usize),
    /// Answer with this and close: what follows cannot be told apart any more.
    Refuse(Response),
}

/// Parses the request at the beginning of `buffer`; a body longer than `max_body` bytes is refused.
pub fn parse(buffer: &[u8], max_body: usize) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(buffer) {
        Ok(httparse::Status::Complete(n)) if n <= MAX_HEAD => n,
        Ok(httparse::Status::Partial) if buffer.len() <= MAX_HEAD => {
            return Parsed::Partial { expects_continue: false };
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Refuse(Response::fault(
                431,
                format!("The request's headers are longer than {MAX_HEAD} bytes or more than {MAX_HEADERS}."),
            ));
        }
        Err(e) => {
            return Parsed::Refuse(Response::fault(400, format!("This is not an HTTP/1 request: {e}.")));
        }
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Parsed::Refuse(Response::fault(400, "The request line is not complete."));
    };
    let method = match method {
        "GET" => Method::Get,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        other => {
            return Parsed::Refuse(Response::fault(
                400,
                format!("The method {other} is not used here; there are GET, PUT, PATCH and DELETE."),
            ));
        }
    };
    let mut length: Option<usize> = None;
    let mut keep_alive = minor == 1;
    let mut expects_continue = false;
    for header in head.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        let value = value.trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            // Only digits: "+5" parses as a number but is no length.
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            match value.parse().ok().filter(|_| digits) {
                Some(n) if length.is_none_or(|m| m == n) => length = Some(n),
                _ => {
                    return Parsed::Refuse(Response::fault(
                        400,
                        format!("Content-Length {value:?} is no length, or given twice."),
                    ));
                }
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Parsed::Refuse(Response::fault(
                400,
                "Transfer-Encoding is not supported: send the body with a Content-Length.",
            ));
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = match value {
                v if v.eq_ignore_ascii_case("close") => false,
                v if v.eq_ignore_ascii_case("keep-alive") => true,
                _ => keep_alive,
            };
        } else if header.name.eq_ignore_ascii_case("expect") {
            if !value.eq_ignore_ascii_case("100-continue") {
                return Parsed::Refuse(Response::fault(
                    417,
                    format!("The expectation {value:?} cannot be met."),
                ));
            }
            expects_continue = true;
        }
    }
    let length = length.unwrap_or(0);
    if length > max_body {
        return Parsed::Refuse(Response::fault(
            413,
            format!("The body has {length} bytes; the limit is {max_body} (--http-api-max-payload-size)."),
        ));
    }
    let total = head_len + length;
    if buffer.len() < total {
        return Parsed::Partial { expects_continue: expects_continue && buffer.len() == head_len };
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !path.starts_with('/') {
        return Parsed::Refuse(Response::fault(
            400,
            format!("The path {path:?} does not begin with a slash."),
        ));
    }
    let body = buffer[head_len..total].to_vec();
    Parsed::Done(Request { method, path: path.to_owned(), query: query.to_owned(), body, keep_alive }, total)
}

/// A response: status and JSON body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// JSON text, or nothing (204).
    pub body: Option<String>,
}

impl Response {
    /// 204: done, nothing to say.
    pub fn no_content() -> Self {
        Response { status: 204, body: None }
    }

    /// 200 with a JSON body.
    pub fn ok(body: &impl serde::Serialize) -> Self {
        match serde_json::to_string(body) {
            Ok(body) => Response { status: 200, body: Some(body) },
            Err(e) => Response::fault(500, format!("The answer could not be written as JSON: {e}.")),
        }
    }

    /// An error in Firecracker's shape: `{"fault_message": …}`.
    pub fn fault(status: u16, message: impl Into<String>) -> Self {
        Response { status, body: Some(json!({ "fault_message": message.into() }).to_string()) }
    }

    /// The bytes on the wire.
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            413 => "Payload Too Large",
            417 => "Expectation Failed",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let mut out = format!("HTTP/1.1 {} {reason}\r\nServer: Godwit API\r\n", self.status);
        out.push_str(if keep_alive { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" });
        if let Some(body) = &self.body {
            out.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        } else {
            out.push_str("\r\n");
        }
        out.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8]) -> u16 {
        match parse(bytes, 1000) {
            Parsed::Refuse(r) => r.status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_taken_whole_and_the_next_one_left() {
        let bytes =
            b"PUT /actions?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n";
        let Parsed::Done(r, n) = parse(bytes, 1000) else { panic!() };
        assert_eq!(
            (r.method, r.path.as_str(), r.query.as_str(), &r.body[..], r.keep_alive),
            (Method::Put, "/actions", "x=1", &b"{}"[..], true)
        );
        let Parsed::Done(r, m) = parse(&bytes[n..], 1000) else { panic!() };
        assert_eq!((r.method, r.keep_alive, n + m), (Method::Get, false, bytes.len()));
        for cut in 0..n {
            assert!(matches!(parse(&bytes[..cut], 1000), Parsed::Partial { .. }), "{cut}");
        }
    }

    #[test]
    fn continue_is_asked_for_once() {
        let head = b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(parse(head, 1000), Parsed::Partial { expects_continue: true });
        let mut more = head.to_vec();
        more.push(b'a');
        assert_eq!(parse(&more, 1000), Parsed::Partial { expects_continue: false });
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert_eq!(refused(b"BREW / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400);
        assert_eq!(refused(b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(refused(b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n"), 400);
        assert_eq!(refused(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
        assert_eq!(refused(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
        assert_eq!(refused(b"PUT / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n"), 413);
        assert_eq!(refused(b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n"), 400);
        assert_eq!(refused(b"PUT / HTTP/1.1\r\nExpect: wonders\r\n\r\n"), 417);
        assert_eq!(refused(b"GET x HTTP/1.1\r\n\r\n"), 400);
        let long = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'a'; MAX_HEAD]].concat();
        assert_eq!(refused(&long), 431);
        let many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"A: b\r\n".repeat(MAX_HEADERS + 1), b"\r\n"].concat();
        assert_eq!(refused(&many), 431);
    }

    #[test]
    fn responses_have_firecrackers_shape() {
        let r = Response::fault(400, "No \"x\".");
        assert_eq!(r.body.as_deref(), Some(r#"{"fault_message":"No \"x\"."}"#));
        let text = String::from_utf8(r.to_bytes(false)).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n") && text.contains("Connection: close\r\n"));
        assert!(
            !String::from_utf8(Response::no_content().to_bytes(true)).unwrap().contains("Content-Length")
        );
    }
}
