//! Frames: what keeps messages apart on a byte stream, and damaged ones out.
//!
//! ```text
//!  0        4         8      9
//!  | len u32 | check u32 | kind u8 | body (len bytes) |
//! ```
//! Big-endian. `check` is the low half of XXH3-64 over `len`, `kind` and `body`: no single damaged or misplaced byte can turn a
//! frame into another valid one, say a `status` into a `drain`.

use crate::limits::FRAME_LEN_MAX;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

/// Bytes before the body.
pub const HEADER_LEN: usize = 9;

/// Longest body.
pub const BODY_LEN_MAX: usize = FRAME_LEN_MAX - HEADER_LEN;

/// One frame whose check was right. What `kind` and `body` mean is told by [`crate::Request`] and [`crate::Reply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Message type.
    pub kind: u8,
    /// Message contents.
    pub body: Bytes,
}

/// Bytes that are not a frame. The stream cannot be resynchronised: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// `len` exceeds [`BODY_LEN_MAX`].
    #[error("a frame announces {0} bytes: at most {BODY_LEN_MAX} are allowed (is this weftd's control socket?)")]
    TooLong(u32),
    /// `check` does not match.
    #[error("a frame is damaged: its check does not match its bytes")]
    Check,
}

/// Appends one frame whose body `fill` writes. Returns the number of bytes appended.
///
/// Panics if `fill` writes more than [`BODY_LEN_MAX`] bytes: encoders cut their messages below it.
pub fn put(out: &mut BytesMut, kind: u8, fill: impl FnOnce(&mut BytesMut)) -> usize {
    let start = out.len();
    out.put_bytes(0, HEADER_LEN);
    fill(out);
    let len = out.len() - start - HEADER_LEN;
    assert!(len <= BODY_LEN_MAX, "an encoder wrote a frame of {len} bytes");
    let check = check(len as u32, kind, &out[start + HEADER_LEN..]);
    let mut header = &mut out[start..start + HEADER_LEN];
    header.put_u32(len as u32);
    header.put_u32(check);
    header.put_u8(kind);
    HEADER_LEN + len
}

/// Takes one whole frame from the front of `input`; `None`: more bytes are needed, and nothing was taken.
pub fn take(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(mut header) = input.get(..HEADER_LEN) else { return Ok(None) };
    let (len, expected, kind) = (header.get_u32(), header.get_u32(), header.get_u8());
    if len as usize > BODY_LEN_MAX {
        return Err(FrameError::TooLong(len));
    }
    let Some(body) = input.get(HEADER_LEN..HEADER_LEN + len as usize) else { return Ok(None) };
    if check(len, kind, body) != expected {
        return Err(FrameError::Check);
    }
    input.advance(HEADER_LEN);
    Ok(Some(Frame { kind, body: input.split_to(len as usize).freeze() }))
}

fn check(len: u32, kind: u8, body: &[u8]) -> u32 {
    let mut hasher = Xxh3::new();
    hasher.update(&len.to_be_bytes());
    hasher.update(&[kind]);
    hasher.update(body);
    hasher.digest() as u32
}
