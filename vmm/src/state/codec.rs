//! Little-endian bytes in and out, bounds first: what the container and the migration protocol are written with.
//!
//! A [`Cursor`] never reads past its slice and never allocates more than the slice holds, whatever the lengths in it
//! say. Varints are LEB128 of at most five bytes, and only the shortest spelling is taken.

/// The bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("ends {missing} bytes too early, in {what}")]
    Short {
        /// The field that was being read.
        what: &'static str,
        /// How many bytes more it needs.
        missing: u64,
    },
    /// A field has a value it cannot have.
    #[error("{what} is malformed")]
    Malformed {
        /// The field.
        what: &'static str,
    },
    /// A length or count is over its bound.
    #[error("{what} is {found}, more than the {limit} allowed")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// Bytes follow the last field.
    #[error("{found} bytes too many after {what}")]
    Trailing {
        /// What should have ended there.
        what: &'static str,
        /// How many.
        found: u64,
    },
}

/// Reads fields one after another.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Begins at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The bytes from position `from` to here.
    pub fn since(&self, from: usize) -> &'a [u8] {
        self.bytes.get(from..self.at).unwrap_or_default()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`].
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let left = self.remaining();
        if len > left {
            return Err(CodecError::Short { what, missing: (len - left) as u64 });
        }
        let out = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(out)
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        let out = &self.bytes[self.at..];
        self.at = self.bytes.len();
        out
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N, what)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`CodecError::Short`], here and in the other integers.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A 16-bit integer. Errors as [`Cursor::u8`].
    #[allow(clippy::missing_errors_doc)]
    pub fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// A 32-bit integer. Errors as [`Cursor::u8`].
    #[allow(clippy::missing_errors_doc)]
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A 64-bit integer. Errors as [`Cursor::u8`].
    #[allow(clippy::missing_errors_doc)]
    pub fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A LEB128 number of at most 32 bits, in its shortest spelling.
    ///
    /// # Errors
    /// [`CodecError::Short`], or [`CodecError::Malformed`] for a longer spelling or more bits.
    pub fn varint(&mut self, what: &'static str) -> Result<u32, CodecError> {
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift != 0 {
                    break;
                }
                return u32::try_from(value).map_err(|_| CodecError::Malformed { what });
            }
        }
        Err(CodecError::Malformed { what })
    }

    /// Text with its length in one byte before it; printable ASCII only.
    ///
    /// # Errors
    /// [`CodecError::TooLong`], [`CodecError::Short`] or [`CodecError::Malformed`].
    pub fn name(&mut self, limit: u8, what: &'static str) -> Result<&'a str, CodecError> {
        let len = self.u8(what)?;
        if len > limit {
            return Err(CodecError::TooLong { what, found: len.into(), limit: limit.into() });
        }
        let bytes = self.bytes(len.into(), what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) if bytes.iter().all(|b| (0x20..0x7f).contains(b)) => Ok(text),
            _ => Err(CodecError::Malformed { what }),
        }
    }

    /// Bytes with their length in a 32-bit integer before them.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] or [`CodecError::Short`].
    pub fn blob(&mut self, limit: u32, what: &'static str) -> Result<&'a [u8], CodecError> {
        let len = self.u32(what)?;
        if len > limit {
            return Err(CodecError::TooLong { what, found: len.into(), limit: limit.into() });
        }
        self.bytes(len as usize, what)
    }

    /// A count in a 32-bit integer of things of at least `each` bytes, which must be there.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] if it is over `limit`, [`CodecError::Short`] if so many cannot follow.
    pub fn count(&mut self, limit: u32, each: usize, what: &'static str) -> Result<usize, CodecError> {
        let count = self.u32(what)?;
        if count > limit {
            return Err(CodecError::TooLong { what, found: count.into(), limit: limit.into() });
        }
        let (need, left) = (u64::from(count) * each as u64, self.remaining() as u64);
        if need > left {
            return Err(CodecError::Short { what, missing: need - left });
        }
        Ok(count as usize)
    }

    /// Nothing may follow.
    ///
    /// # Errors
    /// [`CodecError::Trailing`].
    pub fn end(&self, what: &'static str) -> Result<(), CodecError> {
        match self.remaining() {
            0 => Ok(()),
            n => Err(CodecError::Trailing { what, found: n as u64 }),
        }
    }
}

/// Appends `value` as LEB128.
pub fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends text with its length in one byte; what is beyond 255 bytes or not printable ASCII is left out.
pub fn put_name(out: &mut Vec<u8>, text: &str) {
    let bytes: Vec<u8> = text.bytes().filter(|b| (0x20..0x7f).contains(b)).take(255).collect();
    out.push(bytes.len() as u8);
    out.extend_from_slice(&bytes);
}

/// Appends bytes with their length in a 32-bit integer.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_have_one_spelling() {
        for v in [0, 1, 127, 128, 300, 16383, 16384, u32::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, v);
            let mut c = Cursor::new(&bytes);
            assert_eq!(c.varint("v"), Ok(v));
            c.end("v").unwrap();
        }
        for bad in
            [&[0x80, 0][..], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0x80, 0x80, 0x80, 0x80, 0x80, 1], &[0x80]]
        {
            assert!(Cursor::new(bad).varint("v").is_err(), "{bad:x?}");
        }
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_taken() {
        let huge = [0xff; 8];
        assert!(matches!(Cursor::new(&huge).blob(100, "b"), Err(CodecError::TooLong { .. })));
        assert!(matches!(Cursor::new(&huge).count(u32::MAX, 16, "c"), Err(CodecError::Short { .. })));
        assert!(matches!(Cursor::new(&[5, b'a']).name(8, "n"), Err(CodecError::Short { missing: 4, .. })));
        assert!(matches!(Cursor::new(&[1, 0x80]).name(8, "n"), Err(CodecError::Malformed { .. })));
    }
}
