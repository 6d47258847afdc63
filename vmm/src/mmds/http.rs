//! Requests of the guest, and what they get: Firecracker's status codes and texts.

use super::store::{Format, MetadataError, Store};
use crate::virtio::net::MmdsVersion;

/// Longest request, in bytes, body included.
pub(super) const MAX_REQUEST: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN_HEADERS: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const LIFETIME_HEADERS: [&str; 2] = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];

/// What became of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// More must come.
    Part,
    /// A request that took so many bytes, and its response.
    Whole { taken: usize, response: Vec<u8>, close: bool },
}

enum Kind {
    Text,
    Json,
}

struct Answer {
    status: u16,
    kind: Kind,
    body: String,
    allow: bool,
}

fn text(status: u16, body: impl Into<String>) -> Answer {
    Answer { status, kind: Kind::Text, body: body.into(), allow: false }
}

impl Answer {
    fn bytes(&self, minor: u8, close: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            413 => "Payload Too Large",
            _ => "Not Implemented",
        };
        let connection = if close { "close" } else { "keep-alive" };
        let kind = match self.kind {
            Kind::Text => "text/plain",
            Kind::Json => "application/json",
        };
        let allow = if self.allow { "Allow: GET, PUT\r\n" } else { "" };
        let (status, len, body) = (self.status, self.body.len(), &self.body);
        format!(
            "HTTP/1.{minor} {status} {reason}\r\nServer: Godwit MMDS\r\nConnection: {connection}\r\n{allow}\
             Content-Type: {kind}\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// The path of a request target, which may be a whole URI; empty if there is none.
fn path(target: &str) -> &str {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None if target.starts_with('/') => target,
        None => "",
    }
}

/// Slashes that follow each other count once.
fn without_double_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [httparse::Header<'a>],
}

impl Request<'_> {
    fn header(&self, names: &[&str]) -> Option<(&str, &str)> {
        let found = self.headers.iter().find(|h| names.iter().any(|n| h.name.eq_ignore_ascii_case(n)))?;
        Some((found.name, std::str::from_utf8(found.value).unwrap_or("").trim()))
    }

    fn answer(&self, store: &Store, now_ns: u64) -> Answer {
        if self.path.is_empty() {
            return text(400, "Invalid URI.");
        }
        match self.method {
            "GET" => self.get(store, now_ns),
            "PUT" => self.put(store, now_ns),
            _ => Answer { allow: true, ..text(405, "Not allowed HTTP method.") },
        }
    }

    fn get(&self, store: &Store, now_ns: u64) -> Answer {
        if store.version() == MmdsVersion::V2 {
            match self.header(&TOKEN_HEADERS) {
                None => {
                    let why = "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to \
                               specify the session token.";
                    return text(401, why);
                }
                Some((_, token)) if !store.is_valid(token, now_ns) => {
                    return text(401, "MMDS token not valid.");
                }
                Some(_) => {}
            }
        }
        let wants_json = self.header(&["accept"]).is_some_and(|(_, v)| v.contains("application/json"));
        let (format, kind) = match wants_json && !store.always_imds() {
            true => (Format::Json, Kind::Json),
            false => (Format::Imds, Kind::Text),
        };
        match store.value(&without_double_slashes(self.path), format) {
            Ok(body) => Answer { status: 200, kind, body, allow: false },
            Err(MetadataError::NotFound) => text(404, format!("Resource not found: {}.", self.path)),
            Err(e) => text(501, e.to_string()),
        }
    }

    /// A new session. It is given in version 1 too, where nobody needs it.
    fn put(&self, store: &Store, now_ns: u64) -> Answer {
        // A proxy must not fetch tokens for others.
        if let Some((name, _)) = self.header(&["x-forwarded-for"]) {
            return text(400, format!("Invalid header. Reason: Unsupported header name. Key: {name}"));
        }
        if without_double_slashes(self.path) != TOKEN_PATH {
            return text(404, format!("Resource not found: {}.", self.path));
        }
        let Some((name, value)) = self.header(&LIFETIME_HEADERS) else {
            let why = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
                       `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.";
            return text(400, why);
        };
        let Ok(seconds) = value.parse() else {
            return text(400, format!("Invalid header. Reason: Invalid value. Key:{name}; Value:{value}"));
        };
        match store.new_token(seconds, now_ns) {
            Ok(token) => text(200, token),
            Err(e) => text(400, e.to_string()),
        }
    }
}

/// Answers the request at the beginning of `bytes`, once it is whole.
pub(super) fn hear(store: &Store, bytes: &[u8], now_ns: u64) -> Heard {
    let refuse = |status, why: String| Heard::Whole {
        taken: bytes.len(),
        response: text(status, why).bytes(1, true),
        close: true,
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_REQUEST => return Heard::Part,
        Ok(_) => return refuse(413, "The request is too long.".into()),
        Err(e) => return refuse(400, format!("Invalid request: {e}.")),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return refuse(400, "Invalid request.".into());
    };
    let request = Request { method, path: path(target), headers: head.headers };
    let body = match request.header(&["content-length"]) {
        None => 0,
        Some((_, value)) => match value.parse::<usize>() {
            Ok(n) if n <= MAX_REQUEST => n,
            Ok(_) => return refuse(413, "The request is too long.".into()),
            Err(_) => return refuse(400, "Invalid Content-Length.".into()),
        },
    };
    let taken = head_len + body;
    if bytes.len() < taken {
        return if taken <= MAX_REQUEST {
            Heard::Part
        } else {
            refuse(413, "The request is too long.".into())
        };
    }
    let close = match request.header(&["connection"]) {
        Some((_, value)) if value.eq_ignore_ascii_case("close") => true,
        Some((_, value)) if value.eq_ignore_ascii_case("keep-alive") => false,
        _ => minor == 0,
    };
    Heard::Whole { taken, response: request.answer(store, now_ns).bytes(minor, close), close }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::net::MmdsConfig;
    use serde_json::json;

    fn store(version: MmdsVersion, imds_compat: bool) -> Store {
        let mut store = Store::new("test");
        store.configure(&MmdsConfig { version, imds_compat, ..MmdsConfig::default() });
        store.put(json!({"name": {"first": "John"}, "age": 43})).unwrap();
        store
    }

    /// Status, content type and body.
    fn ask(store: &Store, head: &str) -> (u16, String, String) {
        let request = format!("{head}\r\n\r\n");
        let Heard::Whole { taken, response, .. } = hear(store, request.as_bytes(), 5) else {
            panic!("{head}: not whole")
        };
        assert_eq!(taken, request.len());
        let response = String::from_utf8(response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        let kind = head.split("Content-Type: ").nth(1).unwrap().lines().next().unwrap();
        (head[9..12].parse().unwrap(), kind.to_owned(), body.to_owned())
    }

    #[test]
    fn version_1_answers_anybody() {
        let s = store(MmdsVersion::V1, false);
        let plain = |status, body: &str| (status, "text/plain".to_owned(), body.to_owned());
        assert_eq!(ask(&s, "GET /name/first HTTP/1.1"), plain(200, "John"));
        assert_eq!(ask(&s, "GET http://169.254.169.254//name///first HTTP/1.0"), plain(200, "John"));
        let json = ask(&s, "GET / HTTP/1.1\r\nAccept: application/json");
        assert_eq!(json, (200, "application/json".into(), r#"{"age":43,"name":{"first":"John"}}"#.into()));
        assert_eq!(ask(&s, "GET /no HTTP/1.1"), plain(404, "Resource not found: /no."));
        assert_eq!(ask(&s, "GET http:// HTTP/1.0"), plain(400, "Invalid URI."));
        let unsupported = "Cannot retrieve value. The value has an unsupported type.";
        assert_eq!(ask(&s, "GET /age HTTP/1.1"), plain(501, unsupported));
        assert_eq!(ask(&s, "PATCH / HTTP/1.1"), plain(405, "Not allowed HTTP method."));
        let compat = store(MmdsVersion::V1, true);
        assert_eq!(ask(&compat, "GET /name HTTP/1.1\r\nAccept: application/json"), plain(200, "first"));
    }

    #[test]
    fn version_2_wants_a_token() {
        let s = store(MmdsVersion::V2, false);
        let (status, _, body) = ask(&s, "GET /name/first HTTP/1.1");
        assert_eq!(status, 401);
        assert!(body.starts_with("No MMDS token provided."), "{body}");
        let bad = ask(&s, "GET /name/first HTTP/1.1\r\nX-metadata-token: foo");
        assert_eq!((bad.0, bad.2.as_str()), (401, "MMDS token not valid."));
        for header in ["X-metadata-token", "x-AWS-ec2-metadata-token"] {
            let (status, kind, token) =
                ask(&s, &format!("PUT /latest/api/token HTTP/1.1\r\n{header}-ttl-seconds: 60"));
            assert_eq!((status, kind.as_str()), (200, "text/plain"));
            let got = ask(&s, &format!("GET /name/first HTTP/1.1\r\n{header}: {token}"));
            assert_eq!((got.0, got.2.as_str()), (200, "John"));
        }
        let put = "PUT /latest/api/token HTTP/1.1";
        assert!(ask(&s, put).2.starts_with("Token time to live value not found."));
        assert_eq!(ask(&s, &format!("{put}\r\nX-metadata-token-ttl-seconds: 0")).0, 400);
        assert_eq!(ask(&s, &format!("{put}\r\nX-metadata-token-ttl-seconds: ten")).0, 400);
        let proxy = format!("{put}\r\nX-metadata-token-ttl-seconds: 9\r\nX-Forwarded-For: 1.1.1.1");
        assert_eq!(ask(&s, &proxy).0, 400);
        assert_eq!(ask(&s, "PUT /x HTTP/1.1\r\nX-metadata-token-ttl-seconds: 9").0, 404);
    }

    #[test]
    fn requests_are_bounded_and_follow_each_other() {
        let s = store(MmdsVersion::V1, false);
        let two = b"GET /name/first HTTP/1.1\r\nContent-Length: 2\r\n\r\nxxGET / HTTP/1.1\r\n\r\n";
        let Heard::Whole { taken, close, .. } = hear(&s, two, 0) else { panic!() };
        assert_eq!((&two[taken..taken + 5], close), (&b"GET /"[..], false));
        assert_eq!(hear(&s, &two[..taken - 1], 0), Heard::Part);
        let long = [b"GET /".as_slice(), &vec![b'a'; MAX_REQUEST]].concat();
        for bytes in [&long[..], b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n"] {
            let Heard::Whole { taken, close, .. } = hear(&s, bytes, 0) else { panic!() };
            assert!(close && taken == bytes.len());
        }
    }
}
