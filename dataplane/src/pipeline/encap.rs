//! TUN -> UDP: which peer gets a packet, and in how many pieces.

use super::Refusal;
use weft_fib::{Fib, PeerId};
use weft_packet::gso::{self, Split};
use weft_packet::icmp::IcmpError;
use weft_packet::ip::{self, PROTOCOL_UDP};
use weft_packet::vnet::{GsoKind, VnetHeader};
use weft_packet::{DropReason, Fragmentation, Inner, Version, martian};

/// A packet that may leave, ready to be put into a batch.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// To whom.
    pub peer: PeerId,
    /// Facts about the packet.
    pub inner: Inner,
    /// `None`: one datagram, the packet as it stands up to `inner.total_len`.
    pub split: Option<Split>,
}

impl Forward {
    /// Length of the longest datagram.
    pub fn datagram_len(&self) -> usize {
        self.split.map_or(usize::from(self.inner.total_len), |split| split.segment_len())
    }
}

/// Decides about one packet read from TUN and prepares it in place: TTL decremented, transport checksum completed (a
/// super-packet's are made while splitting). `vnet` is the header before it, [`VnetHeader::PLAIN`] for a queue without;
/// `port` is our own UDP port.
#[inline]
pub fn plan(fib: &Fib, port: u16, vnet: &VnetHeader, packet: &mut [u8]) -> Result<Forward, Refusal> {
    let inner = ip::check(packet)?;
    martian::check(packet, &inner)?;
    let next_hop = match inner.version {
        Version::V4 => fib.lookup4(inner.dst4(packet)),
        Version::V6 => fib.lookup6(inner.dst6(packet)),
    };
    let Some(peer) = next_hop else {
        return Err(Refusal { reason: DropReason::NoRoute, reply: Some((IcmpError::NetUnreachable, inner)) });
    };
    if is_ours(fib, port, packet, &inner) {
        return Err(Refusal::silent(DropReason::Recursion));
    }
    ip::decrement_ttl(packet, &inner)
        .map_err(|reason| Refusal { reason, reply: Some((IcmpError::TimeExceeded, inner)) })?;
    let packet = &mut packet[..usize::from(inner.total_len)];
    let split = if vnet.gso == GsoKind::None {
        gso::finish_checksum(vnet, &inner, packet)?;
        None
    } else {
        Some(Split::new(vnet, &inner, packet)?)
    };
    Ok(Forward { peer, inner, split })
}

/// Whether the packet is one of our own datagrams on its way to a peer's underlay address, which a route would lead into the
/// tunnel again (RFC 2003 section 4).
#[inline]
fn is_ours(fib: &Fib, port: u16, packet: &[u8], inner: &Inner) -> bool {
    if inner.protocol != PROTOCOL_UDP || inner.fragmentation == Fragmentation::Later {
        return false;
    }
    let at = usize::from(inner.l4_offset) + 2;
    let Some(destination_port) = packet.get(at..at + 2) else { return false };
    destination_port == port.to_be_bytes()
        && fib
            .owner_of(match inner.version {
                Version::V4 => inner.dst4(packet).to_be_bytes().into(),
                Version::V6 => inner.dst6(packet).to_be_bytes().into(),
            })
            .is_some()
}
