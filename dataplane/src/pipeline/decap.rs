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

/// Whom the last packet was from: the next is likely to have the same addresses. Good for the datagrams of one sender, as
/// long as the table is the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known(Option<(Version, [u64; 4], Option<PeerId>)>);

impl Known {
    /// What `peer` was, if the last packet had these addresses.
    #[inline]
    fn find(&self, version: Version, addresses: &[u64; 4]) -> Option<Option<PeerId>> {
        let (known_version, known, peer) = &self.0?;
        let same = known[0] == addresses[0] && (version == Version::V4 || known[1..] == addresses[1..]);
        (*known_version == version && same).then_some(*peer)
    }
}

/// Checks one inner packet and decrements its TTL. `owner` is who the outer source belongs to (`None`: a stranger, whom
/// `strict` has turned away before this is called). The caller trims to `inner.total_len`.
#[inline(always)]
pub fn admit(
    fib: &Fib,
    check: PeerCheck,
    owner: Option<OwnerId>,
    known: &mut Known,
    packet: &mut [u8],
) -> Result<Admitted, Refusal> {
    if packet.is_empty() {
        return Err(DropReason::Empty.into());
    }
    let inner = ip::check(packet)?;
    let addresses = inner.addresses(packet);
    let peer = match known.find(inner.version, &addresses) {
        Some(peer) => peer,
        None => {
            martian::check(packet, &inner)?;
            let source = match inner.version {
                Version::V4 => fib.lookup4(inner.src4(packet)),
                Version::V6 => fib.lookup6(inner.src6(packet)),
            };
            let peer = source.filter(|peer| Some(fib.peer(*peer).owner) == owner);
            if peer.is_none() && check == PeerCheck::Strict {
                return Err(DropReason::PeerSpoof.into());
            }
            known.0 = Some((inner.version, addresses, peer));
            peer
        }
    };
    ip::decrement_ttl(packet, &inner)
        .map_err(|reason| Refusal { reason, reply: Some((IcmpError::TimeExceeded, inner)) })?;
    Ok(Admitted { inner, peer, suspicious: peer.is_none() && check != PeerCheck::Off })
}
