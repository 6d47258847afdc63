//! Session tokens: an end of life that only this process can have written, so none needs to be remembered.
//!
//! A token is the hexadecimal form of `expiry (8 bytes) | nonce (8) | the first 16 bytes of HMAC-SHA-256 (RFC 2104)` over
//! both and the instance's name.

use sha2::{Digest, Sha256};

const MIN_SECONDS: u32 = 1;
const MAX_SECONDS: u32 = 21_600;
const BODY: usize = 16;
const TAG: usize = 16;
const BLOCK: usize = 64;

/// Why there is no token: Firecracker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    #[error(
        "Invalid time to live value provided for token: {0}. Please provide a value between {MIN_SECONDS} and \
         {MAX_SECONDS}."
    )]
    Lifetime(u32),
    #[error("Failed to generate a key")]
    Key,
}

/// Gives tokens out and knows its own.
pub(super) struct Authority {
    instance: String,
    /// Made when it is first needed: most machines never ask for a token.
    key: std::sync::OnceLock<Option<[u8; 32]>>,
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).ok()?;
    (got == N).then_some(bytes)
}

impl Authority {
    pub(super) fn new(instance: &str) -> Self {
        Authority { instance: instance.into(), key: std::sync::OnceLock::new() }
    }

    fn tag(&self, body: &[u8; BODY]) -> Option<[u8; TAG]> {
        let key = self.key.get_or_init(random).as_ref()?;
        let pad = |with: u8| {
            let mut block = [with; BLOCK];
            block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
            block
        };
        let inner = Sha256::new().chain_update(pad(0x36)).chain_update(body).chain_update(&self.instance);
        let outer = Sha256::new().chain_update(pad(0x5c)).chain_update(inner.finalize()).finalize();
        outer.first_chunk().copied()
    }

    pub(super) fn issue(&self, seconds: u32, now_ns: u64) -> Result<String, TokenError> {
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            return Err(TokenError::Lifetime(seconds));
        }
        let expiry = now_ns.saturating_add(u64::from(seconds) * 1_000_000_000);
        let nonce: [u8; 8] = random().ok_or(TokenError::Key)?;
        let mut body = [0; BODY];
        body[..8].copy_from_slice(&expiry.to_le_bytes());
        body[8..].copy_from_slice(&nonce);
        let tag = self.tag(&body).ok_or(TokenError::Key)?;
        Ok(body.iter().chain(&tag).map(|b| format!("{b:02x}")).collect())
    }

    pub(super) fn is_valid(&self, token: &str, now_ns: u64) -> bool {
        if token.len() != 2 * (BODY + TAG) || !token.bytes().all(|b| b.is_ascii_hexdigit()) {
            return false;
        }
        let byte = |i: usize| token.get(2 * i..2 * i + 2).and_then(|t| u8::from_str_radix(t, 16).ok());
        let body: [u8; BODY] = std::array::from_fn(|i| byte(i).unwrap_or(0));
        let Some(tag) = self.tag(&body) else { return false };
        // All of it, whatever differs first: time tells nothing.
        let differs = tag.iter().enumerate().fold(0, |d, (i, b)| d | (b ^ byte(BODY + i).unwrap_or(!b)));
        let expiry = u64::from_le_bytes(std::array::from_fn(|i| body[i]));
        differs == 0 && expiry > now_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_time_and_its_issuer() {
        let (a, b) = (Authority::new("one"), Authority::new("one"));
        let token = a.issue(2, 1_000_000_000).unwrap();
        assert!(a.is_valid(&token, 2_999_999_999) && !a.is_valid(&token, 3_000_000_000));
        assert!(!b.is_valid(&token, 0));
        assert_ne!(token, a.issue(2, 1_000_000_000).unwrap());
        for (i, c) in token.char_indices() {
            let other = if c == '0' { '1' } else { '0' };
            let changed = format!("{}{other}{}", &token[..i], &token[i + 1..]);
            assert!(!a.is_valid(&changed, 0), "{i}");
        }
        for text in ["", "x", &token[1..], &format!("{token}0"), &"é".repeat(32), &"+1".repeat(32)] {
            assert!(!a.is_valid(text, 0), "{text}");
        }
    }

    #[test]
    fn lifetimes_have_bounds() {
        let a = Authority::new("one");
        assert!(a.issue(1, u64::MAX).is_ok() && a.issue(21_600, 0).is_ok());
        let text = a.issue(0, 0).unwrap_err().to_string();
        assert_eq!(
            text,
            "Invalid time to live value provided for token: 0. Please provide a value between 1 and 21600."
        );
        assert!(a.issue(21_601, 0).is_err());
    }
}
