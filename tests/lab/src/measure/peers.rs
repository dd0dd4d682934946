//! UDP datagrams to many addresses: many small flows.
//!
//! The number of a datagram decides its way, so that the receiver knows where it has to be and what came before it:
//!
//! ```text
//!   number   0 1 2 ... 63 | 64 ...  127 | ...
//!   socket   0            | 1           |        64 datagrams by one system call, then the next socket
//!   peer     0 1 2 ... 63 | 64 ... P-1 0 | ...   each to the peer after the last one's
//! ```

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{io, thread};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::addr::SocketAddrArg;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use std::io::IoSlice;

use super::udp::{BATCH_LEN, Blasted, HEADER_LEN, LOOK, RECEIVE_BUFFER_LEN, Template, is_nothing, taken};
use super::{Run, join};
use crate::{Node, sys};

/// A sender of datagrams to many addresses of one node, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Spread<'a> {
    /// The addresses.
    pub peers: &'a [Ipv4Addr],
    /// Sockets of the sender: so many flows lead to each address.
    pub sockets: usize,
    /// Payload bytes of each datagram, 16 at least.
    pub payload_len: usize,
}

impl Spread<'_> {
    fn peer(&self, number: u64) -> usize {
        (number % self.peers.len() as u64) as usize
    }

    fn socket(&self, number: u64) -> usize {
        (number / BATCH_LEN as u64 % self.sockets as u64) as usize
    }

    fn flow(&self, number: u64) -> usize {
        self.socket(number) * self.peers.len() + self.peer(number)
    }
}

/// What came of a [`Spread`].
#[derive(Debug, Clone)]
pub struct Spreaded {
    /// As of other datagrams.
    pub blasted: Blasted,
    /// Datagrams that arrived after later ones of their flow.
    pub late: u64,
}

/// Sends as many datagrams as the kernel takes from one node to addresses of another, and counts what arrives.
///
/// # Errors
/// If a socket fails, a datagram is wrong or arrives at an address that it was not sent to, none arrives at some address, or
/// [`super::Stopped`].
pub fn udp_spread(from: &Node, to: &Node, spread: Spread<'_>, run: &mut Run<'_>) -> Result<Spreaded> {
    let Spread { peers, sockets, payload_len } = spread;
    ensure!(
        payload_len >= HEADER_LEN && sockets > 0 && !peers.is_empty(),
        "{payload_len} bytes from {sockets} sockets to {} addresses",
        peers.len()
    );
    let receiver = to.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER_LEN)?;
    receiver.set_read_timeout(Some(LOOK))?;
    sys::set_option(receiver.as_fd(), libc::SOL_IP, libc::IP_PKTINFO, 1).context("IP_PKTINFO")?;
    let port = receiver.local_addr()?.port();
    let sender = || {
        let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.set_write_timeout(Some(LOOK))?;
        anyhow::Ok(socket)
    };
    let senders = (0..sockets).map(|_| sender()).collect::<Result<Vec<_>>>()?;
    let template = Template::new(payload_len);
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let arrivals = Arrivals::default();
    let observed = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, spread, &template, &arrivals, &over));
        let sending = scope.spawn(|| send(&senders, spread, port, &template, &sent, &over));
        let observed =
            run.observe(|| [&arrivals.intact, &sent, &arrivals.late].map(|count| count.load(Ordering::Relaxed)));
        over.store(true, Ordering::Relaxed);
        let missed = join(receiving, "receiving").and_then(|missed| join(sending, "sending").map(|()| missed));
        let (missed, observed) = (missed?, observed?);
        ensure!(
            missed.is_empty(),
            "nothing arrived at {} of {} peers, such as {}",
            missed.len(),
            peers.len(),
            missed[0]
        );
        Ok(observed)
    })
    .with_context(|| format!("UDP datagrams from {} to {} peers", from.name(), peers.len()))?;
    let [received, sent, late] = observed.counts;
    Ok(Spreaded { blasted: Blasted { sent, received, throughput: observed.throughput(payload_len)? }, late })
}

#[derive(Debug, Default)]
struct Arrivals {
    intact: AtomicU64,
    late: AtomicU64,
}

fn send(
    sockets: &[UdpSocket],
    spread: Spread<'_>,
    port: u16,
    template: &Template,
    sent: &AtomicU64,
    over: &AtomicBool,
) -> Result<()> {
    let addresses: Vec<_> = spread.peers.iter().map(|peer| SocketAddrV4::new(*peer, port).as_any()).collect();
    let mut batch = template.batch(BATCH_LEN);
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        // What the kernel did not take of a batch is the next one: its socket is that of the number.
        let count = BATCH_LEN - (number % BATCH_LEN as u64) as usize;
        let batch = &mut batch[..count * template.len()];
        template.number(batch, number);
        let slices: Vec<_> = batch.chunks_exact(template.len()).map(|datagram| [IoSlice::new(datagram)]).collect();
        let mut controls: Vec<_> = (0..count).map(|_| SendAncillaryBuffer::default()).collect();
        let messages = (number..).zip(slices.iter().zip(&mut controls));
        let messages = messages
            .map(|(number, (slice, control))| MMsgHdr::new_with_addr(&addresses[spread.peer(number)], slice, control));
        let mut messages: Vec<_> = messages.collect();
        let outcome = sendmmsg(&sockets[spread.socket(number)], &mut messages, SendFlags::empty());
        let count = taken(outcome.map_err(io::Error::from))? as u64;
        number += count;
        sent.fetch_add(count, Ordering::Relaxed);
    }
    Ok(())
}

/// Counts what arrives; gives the peers at which nothing did. Reads on after the end until all is there that is under way: for
/// what finds no socket, the kernel would send ICMP errors.
fn receive(
    socket: &UdpSocket,
    spread: Spread<'_>,
    template: &Template,
    arrivals: &Arrivals,
    over: &AtomicBool,
) -> Result<Vec<Ipv4Addr>> {
    // One byte more than is due, so that a longer datagram shows.
    let mut batch = sys::DatagramBatch::<BATCH_LEN>::with_destinations(template.len() + 1);
    // The number after the last one of each flow.
    let mut nexts = vec![0; spread.sockets * spread.peers.len()];
    loop {
        match batch.receive(socket.as_fd()) {
            Ok(()) => {}
            Err(error) if is_nothing(&error) && over.load(Ordering::Relaxed) => break,
            Err(error) if is_nothing(&error) => continue,
            Err(error) => return Err(error.into()),
        }
        let (mut intact, mut late) = (0, 0);
        for (datagram, destination) in batch.datagrams().zip(batch.destinations()) {
            let Some(number) = template.read(datagram) else {
                bail!("WRONG PAYLOAD: {} bytes that arrived are none of those that were sent", datagram.len())
            };
            let peer = spread.peers[spread.peer(number)];
            if destination != Some(peer) {
                bail!("WRONG PEER: datagram {number} was sent to {peer} and arrived at {destination:?}");
            }
            let next = &mut nexts[spread.flow(number)];
            late += u64::from(number < *next);
            *next = (*next).max(number + 1);
            intact += 1;
        }
        arrivals.intact.fetch_add(intact, Ordering::Relaxed);
        arrivals.late.fetch_add(late, Ordering::Relaxed);
    }
    let count = spread.peers.len();
    let is_missed = |index: &usize| nexts.iter().skip(*index).step_by(count).all(|next| *next == 0);
    Ok((0..count).filter(is_missed).map(|index| spread.peers[index]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEERS: [Ipv4Addr; 3] =
        [Ipv4Addr::new(127, 0, 1, 1), Ipv4Addr::new(127, 0, 1, 2), Ipv4Addr::new(127, 0, 1, 3)];
    const SPREAD: Spread<'_> = Spread { peers: &PEERS, sockets: 2, payload_len: 64 };

    /// What comes of datagrams with these numbers at these addresses: late ones and missed peers.
    fn arrive(datagrams: &[(u64, Ipv4Addr)]) -> Result<(u64, u64, Vec<Ipv4Addr>)> {
        let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        receiver.set_read_timeout(Some(LOOK))?;
        sys::set_option(receiver.as_fd(), libc::SOL_IP, libc::IP_PKTINFO, 1)?;
        let template = Template::new(SPREAD.payload_len);
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        for (number, address) in datagrams {
            let mut datagram = template.batch(1);
            template.number(&mut datagram, *number);
            sender.send_to(&datagram, (*address, receiver.local_addr()?.port()))?;
        }
        let (arrivals, over) = (Arrivals::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(&receiver, SPREAD, &template, &arrivals, &over));
            while !receiving.is_finished() {
                thread::sleep(LOOK);
                let is_all = arrivals.intact.load(Ordering::Relaxed) == datagrams.len() as u64;
                over.store(is_all, Ordering::Relaxed);
            }
            let missed = receiving.join().expect("it does not panic")?;
            Ok((arrivals.intact.load(Ordering::Relaxed), arrivals.late.load(Ordering::Relaxed), missed))
        })
    }

    #[test]
    fn late_datagrams_are_told_apart_by_flow_and_peers_without_any_are_named() {
        // 0 and 3 are of one flow, 66 has the same peer and another socket.
        let all = arrive(&[(3, PEERS[0]), (0, PEERS[0]), (66, PEERS[0]), (1, PEERS[1])]).unwrap();
        assert_eq!(all, (4, 1, vec![PEERS[2]]));
    }

    #[test]
    fn a_datagram_at_an_address_that_it_was_not_sent_to_is_an_error() {
        let error = arrive(&[(1, PEERS[1]), (2, PEERS[0])]).unwrap_err().to_string();
        assert!(error.contains("WRONG PEER: datagram 2 was sent to 127.0.1.3"), "{error}");
    }

    #[test]
    fn numbers_use_every_flow() {
        let peers = [Ipv4Addr::LOCALHOST; 250];
        let spread = Spread { peers: &peers, sockets: 4, payload_len: 64 };
        let mut flows: Vec<usize> = (0..1000 * 64).map(|number| spread.flow(number)).collect();
        flows.sort_unstable();
        flows.dedup();
        assert_eq!(flows, (0..1000).collect::<Vec<_>>());
    }
}
