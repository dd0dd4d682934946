//! UDP -> TUN: whether a datagram's packet may enter.

use super::Refusal;
use crate::shared::PeerCheck;
use weft_fib::{Fib, OwnerId, PeerId};
use weft_packet::icmp::IcmpError;
use weft_packet::{DropReason, Inner, Version, ip, martian};

/// A packet that may enter.
#[derive(Clone, Copy, Debug)]
pub struct Admitted {
    /// Facts about the packet.
    pub inner: Inner,
    /// The peer that the inner source belongs to, where it also is the sender.
    pub peer: Option<PeerId>,
    /// In mode `log`: the strict check would have dropped it.
    pub suspicious: bool,
}

/// Checks one inner packet and decrements its TTL. `owner` is who the outer source belongs to (`None`: a stranger, whom
/// `strict` has turned away before this is called). The caller trims to `inner.total_len`.
#[inline]
pub fn admit(fib: &Fib, check: PeerCheck, owner: Option<OwnerId>, packet: &mut [u8]) -> Result<Admitted, Refusal> {
    if packet.is_empty() {
        return Err(DropReason::Empty.into());
    }
    let inner = ip::check(packet)?;
    martian::check(packet, &inner)?;
    let source = match inner.version {
        Version::V4 => fib.lookup4(inner.src4(packet)),
        Version::V6 => fib.lookup6(inner.src6(packet)),
    };
    let peer = source.filter(|peer| Some(fib.peer(*peer).owner) == owner);
    let suspicious = peer.is_none() && check != PeerCheck::Off;
    if suspicious && check == PeerCheck::Strict {
        return Err(DropReason::PeerSpoof.into());
    }
    ip::decrement_ttl(packet, &inner)
        .map_err(|reason| Refusal { reason, reply: Some((IcmpError::TimeExceeded, inner)) })?;
    Ok(Admitted { inner, peer, suspicious })
}
