//! A stand-in for the proxy of flannel's `udp` backend, written from a description of its behaviour and from nothing of
//! weft's: one thread, one packet per datagram, one buffer of exactly the TUN's MTU (what is longer is cut off in silence),
//! TTL taken down on both sides, a list of routes of which the first match wins and moves to the front, and nobody asked who
//! sent a datagram.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_tap::{Iface, Mode};
use weft_lab::Node;

/// How often the loop looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// The TTL of the one ICMP error it knows.
const ICMP_TTL: u8 = 8;

/// A running double; dropping it removes its TUN.
pub struct Double {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Double {
    /// Opens the TUN, gives it the subnet's base address and a route for the whole network, and starts forwarding.
    pub fn start(node: &Node, config: Config) -> Result<Self> {
        let name = config.tun_name;
        let tun = node.run(|| Iface::without_packet_info(name, Mode::Tun)).context("opening the TUN of the double")?;
        tun.set_non_blocking()?;
        node.set_up_tun(name, config.mtu as u32, &[&config.address.to_string()], &[config.network])?;
        let socket = node.run(|| UdpSocket::bind(config.bind))?;
        socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let buffer = vec![0; config.mtu];
        let mut proxy = Proxy { tun, socket, routes: config.routes, address: config.address, buffer };
        let thread = thread::Builder::new().name("flannel double".into()).spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    proxy.wait();
                    proxy.burst();
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic was shown when it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What `flanneld` would have learnt from its lease and its configuration.
pub struct Config {
    pub tun_name: &'static str,
    /// Base address of the own subnet.
    pub address: Ipv4Addr,
    /// The whole overlay network.
    pub network: &'static str,
    /// MTU of the TUN, bytes.
    pub mtu: usize,
    pub bind: SocketAddrV4,
    /// In the order in which the leases came.
    pub routes: Vec<(Ipv4Net, SocketAddrV4)>,
}

struct Proxy {
    tun: Iface,
    socket: UdpSocket,
    routes: Vec<(Ipv4Net, SocketAddrV4)>,
    address: Ipv4Addr,
    buffer: Vec<u8>,
}

impl Proxy {
    /// Waits until there is something to read, or it is time to look whether to stop.
    fn wait(&self) {
        // SAFETY: the descriptor is that of `tun`, which this object owns and which outlives the borrow.
        let tun = unsafe { BorrowedFd::borrow_raw(self.tun.as_raw_fd()) };
        let mut polled = [PollFd::new(&tun, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: STOP_INTERVAL.subsec_nanos().into() };
        // An interrupted wait is a short one.
        let _ = poll(&mut polled, Some(&timeout));
    }

    /// One packet each way until both sides have nothing more.
    fn burst(&mut self) {
        while self.tun_to_udp() | self.udp_to_tun() {}
    }

    fn tun_to_udp(&mut self) -> bool {
        let Ok(len) = self.tun.recv(&mut self.buffer) else { return false };
        let packet = &mut self.buffer[..len];
        if len < 20 {
            return true;
        }
        let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        let Some(position) = self.routes.iter().position(|(prefix, _)| prefix.contains(&destination)) else {
            if let Some(error) = net_unreachable(self.address, packet) {
                let _ = self.tun.send(&error);
            }
            return true;
        };
        self.routes.swap(0, position);
        if decrement_ttl(packet) {
            // A lost datagram is a lost packet, no more.
            let _ = self.socket.send_to(packet, self.routes[0].1);
        }
        true
    }

    fn udp_to_tun(&mut self) -> bool {
        let len = match self.socket.recv(&mut self.buffer) {
            Ok(len) => len,
            Err(error) => return error.kind() == ErrorKind::Interrupted,
        };
        let packet = &mut self.buffer[..len];
        if len >= 20 && decrement_ttl(packet) {
            let _ = self.tun.send(packet);
        }
        true
    }
}

/// False if that was the last hop.
fn decrement_ttl(packet: &mut [u8]) -> bool {
    packet[8] = packet[8].wrapping_sub(1);
    if packet[8] == 0 {
        return false;
    }
    // RFC 1624: the sum of the header went down by 0x0100, so its complement goes up by as much, with end-around carry.
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
    let sum = if sum >= 0xffff { sum + 1 } else { sum };
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    true
}

/// Destination network unreachable, about anything but ICMP and later fragments.
fn net_unreachable(source: Ipv4Addr, packet: &[u8]) -> Option<Vec<u8>> {
    let header_len = usize::from(packet[0] & 15) * 4;
    let is_later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    if packet[9] == 1 || is_later_fragment || header_len >= 60 || packet.len() < header_len + 8 {
        return None;
    }
    let quoted = &packet[..header_len + 8];
    let mut error = vec![0; 28];
    error[0] = 0x45;
    error[2..4].copy_from_slice(&(28 + quoted.len() as u16).to_be_bytes());
    error[8] = ICMP_TTL;
    error[9] = 1;
    error[12..16].copy_from_slice(&source.octets());
    error[16..20].copy_from_slice(&packet[12..16]);
    error[20] = 3;
    error.extend_from_slice(quoted);
    let sum = internet_checksum(&error[..20]);
    error[10..12].copy_from_slice(&sum.to_be_bytes());
    let sum = internet_checksum(&error[20..]);
    error[22..24].copy_from_slice(&sum.to_be_bytes());
    Some(error)
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
