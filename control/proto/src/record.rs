//! Packed records of tables and deltas. A chunk is a run of whole records; no record spans two chunks.
//!
//! ```text
//! peer     01 | addr | name_len u8 | name | alias_count u8 | alias ...
//! route    04 | v4 4 bytes  | prefix_len u8 | peer u32        06 | v6 16 bytes | prefix_len u8 | peer u32
//! removal  14 | v4 4 bytes  | prefix_len u8                   16 | v6 16 bytes | prefix_len u8
//! addr     04 | 4 bytes | port u16                            06 | 16 bytes | port u16 | scope id u32
//! alias    04 | 4 bytes                                       06 | 16 bytes
//! ```
//! Integers are big-endian. A route's peer is the index of a peer record that came before it in the same stream.

use crate::limits::{ALIASES_MAX, NAME_LEN_MAX};
use crate::table::PeerSpec;
use bytes::{Buf, BufMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// One decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A peer; the n-th of a stream has index n.
    Peer(PeerSpec),
    /// A route to the peer of that index.
    Route(IpNet, u32),
    /// A prefix to remove (deltas only).
    Removal(IpNet),
}

/// Longest encoded record: a peer with the longest name and the most aliases, all IPv6.
pub const RECORD_LEN_MAX: usize = 1 + (1 + 16 + 2 + 4) + (1 + NAME_LEN_MAX) + (1 + 17 * ALIASES_MAX);

const _: () = assert!(RECORD_LEN_MAX < crate::limits::FRAME_LEN_MAX / 2, "a chunk holds at least one record");

const PEER: u8 = 0x01;
const ROUTE4: u8 = 0x04;
const ROUTE6: u8 = 0x06;
const REMOVAL4: u8 = 0x14;
const REMOVAL6: u8 = 0x16;
const FAMILY4: u8 = 4;
const FAMILY6: u8 = 6;

/// Bytes that are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end inside a record.
    #[error("a record is cut short")]
    Short,
    /// First byte of a record that this version does not know.
    #[error("unknown record type {0:#04x}")]
    Tag(u8),
    /// Neither 4 nor 6.
    #[error("unknown address family {0}")]
    Family(u8),
    /// More than 32 or 128.
    #[error("prefix length {0} is longer than the address")]
    PrefixLen(u8),
    /// Longer than [`NAME_LEN_MAX`] or not UTF-8.
    #[error("a peer name is longer than {NAME_LEN_MAX} bytes or not UTF-8")]
    Name,
    /// More than [`ALIASES_MAX`].
    #[error("{0} aliases: at most {ALIASES_MAX}")]
    Aliases(u8),
}

/// Appends a peer record. A name longer than [`NAME_LEN_MAX`] or aliases beyond [`ALIASES_MAX`], which no checked table has,
/// are left out.
pub fn put_peer(out: &mut impl BufMut, peer: &PeerSpec) {
    out.put_u8(PEER);
    put_ip(out, peer.addr.ip());
    out.put_u16(peer.addr.port());
    if let SocketAddr::V6(v6) = peer.addr {
        out.put_u32(v6.scope_id());
    }
    let name = peer.name.as_deref().filter(|name| name.len() <= NAME_LEN_MAX).unwrap_or_default();
    out.put_u8(name.len() as u8);
    out.put_slice(name.as_bytes());
    let aliases = &peer.aliases[..peer.aliases.len().min(ALIASES_MAX)];
    out.put_u8(aliases.len() as u8);
    for alias in aliases {
        put_ip(out, *alias);
    }
}

/// Appends a route record.
pub fn put_route(out: &mut impl BufMut, prefix: IpNet, peer: u32) {
    put_prefix(out, prefix, ROUTE4, ROUTE6);
    out.put_u32(peer);
}

/// Appends a removal record.
pub fn put_removal(out: &mut impl BufMut, prefix: IpNet) {
    put_prefix(out, prefix, REMOVAL4, REMOVAL6);
}

/// Takes one record from the front of a chunk.
pub fn take(bytes: &mut impl Buf) -> Result<Record, RecordError> {
    match take_u8(bytes)? {
        PEER => take_peer(bytes).map(Record::Peer),
        ROUTE4 => Ok(Record::Route(take_prefix4(bytes)?, take_u32(bytes)?)),
        ROUTE6 => Ok(Record::Route(take_prefix6(bytes)?, take_u32(bytes)?)),
        REMOVAL4 => take_prefix4(bytes).map(Record::Removal),
        REMOVAL6 => take_prefix6(bytes).map(Record::Removal),
        tag => Err(RecordError::Tag(tag)),
    }
}

/// Appends one address: a family byte and its bytes.
pub(crate) fn put_ip(out: &mut impl BufMut, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            out.put_u8(FAMILY4);
            out.put_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.put_u8(FAMILY6);
            out.put_slice(&v6.octets());
        }
    }
}

fn put_prefix(out: &mut impl BufMut, prefix: IpNet, tag4: u8, tag6: u8) {
    match prefix {
        IpNet::V4(v4) => {
            out.put_u8(tag4);
            out.put_slice(&v4.addr().octets());
        }
        IpNet::V6(v6) => {
            out.put_u8(tag6);
            out.put_slice(&v6.addr().octets());
        }
    }
    out.put_u8(prefix.prefix_len());
}

fn take_peer(bytes: &mut impl Buf) -> Result<PeerSpec, RecordError> {
    let ip = take_ip(bytes)?;
    let port = take_u16(bytes)?;
    let addr = match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, port),
        IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, take_u32(bytes)?)),
    };
    let name_len = usize::from(take_u8(bytes)?);
    if name_len > NAME_LEN_MAX {
        return Err(RecordError::Name);
    }
    if bytes.remaining() < name_len {
        return Err(RecordError::Short);
    }
    let mut name = vec![0; name_len];
    bytes.copy_to_slice(&mut name);
    let name = String::from_utf8(name).map_err(|_| RecordError::Name)?;
    let count = take_u8(bytes)?;
    if usize::from(count) > ALIASES_MAX {
        return Err(RecordError::Aliases(count));
    }
    let aliases = (0..count).map(|_| take_ip(bytes)).collect::<Result<_, _>>()?;
    Ok(PeerSpec { name: (!name.is_empty()).then_some(name), addr, aliases })
}

/// Takes one address: a family byte and its bytes.
pub(crate) fn take_ip(bytes: &mut impl Buf) -> Result<IpAddr, RecordError> {
    match take_u8(bytes)? {
        FAMILY4 => take_array(bytes).map(|octets: [u8; 4]| IpAddr::V4(Ipv4Addr::from(octets))),
        FAMILY6 => take_array(bytes).map(|octets: [u8; 16]| IpAddr::V6(Ipv6Addr::from(octets))),
        family => Err(RecordError::Family(family)),
    }
}

fn take_prefix4(bytes: &mut impl Buf) -> Result<IpNet, RecordError> {
    let addr = Ipv4Addr::from(take_array::<4>(bytes)?);
    let len = take_u8(bytes)?;
    Ipv4Net::new(addr, len).map(IpNet::V4).map_err(|_| RecordError::PrefixLen(len))
}

fn take_prefix6(bytes: &mut impl Buf) -> Result<IpNet, RecordError> {
    let addr = Ipv6Addr::from(take_array::<16>(bytes)?);
    let len = take_u8(bytes)?;
    Ipv6Net::new(addr, len).map(IpNet::V6).map_err(|_| RecordError::PrefixLen(len))
}

fn take_array<const N: usize>(bytes: &mut impl Buf) -> Result<[u8; N], RecordError> {
    let mut array = [0; N];
    bytes.try_copy_to_slice(&mut array).map_err(|_| RecordError::Short)?;
    Ok(array)
}

fn take_u8(bytes: &mut impl Buf) -> Result<u8, RecordError> {
    bytes.try_get_u8().map_err(|_| RecordError::Short)
}

fn take_u16(bytes: &mut impl Buf) -> Result<u16, RecordError> {
    bytes.try_get_u16().map_err(|_| RecordError::Short)
}

fn take_u32(bytes: &mut impl Buf) -> Result<u32, RecordError> {
    bytes.try_get_u32().map_err(|_| RecordError::Short)
}
