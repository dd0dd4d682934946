//! Seeing the frames of a link.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::{Node, TIMEOUT, sys};

/// How often the capturing thread looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// How long an ending capture reads what is still arriving, on a link that is never quiet.
const STOP_GRACE: Duration = TIMEOUT;
/// The longest frame: a super-packet and its Ethernet header.
const FRAME_LEN_MAX: usize = 64 * 1024 + 64;
/// Bytes that may wait for the capturing thread.
const RECEIVE_BUFFER_LEN: usize = 32 << 20;
/// Frames kept; later ones are counted and dropped.
const FRAME_COUNT_MAX: usize = 200_000;

/// A captured frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// From the Ethernet header on; from the IP header on where the link has no other, as a TUN.
    pub bytes: Vec<u8>,
    /// The node sent it; else it received it.
    pub outgoing: bool,
    /// When it was read.
    pub time: Instant,
}

impl Frame {
    /// The protocol of the IPv4 packet in an Ethernet frame; `None` if something else is in it. (In an ARP frame the MAC address of the
    /// sender stands where the protocol would.)
    pub fn ipv4_protocol(&self) -> Option<u8> {
        (self.bytes.get(12..14)? == [0x08, 0x00]).then(|| self.bytes.get(23).copied())?
    }
}

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    frames: Mutex<Vec<Frame>>,
    stop: AtomicBool,
}

impl Capture {
    /// Captures the frames of a link that `filter` admits, the first 200,000 of them. Outgoing frames are seen as they
    /// leave for the device, after segmentation that the device does not do; incoming ones
    /// after the node merged them (GRO).
    ///
    /// # Errors
    /// If there is no such link, or the kernel gives no packet socket.
    pub fn start(node: &Node, link: &str, filter: impl Fn(&Frame) -> bool + Send + 'static) -> Result<Self> {
        let index = node.link(link)?.index;
        let socket = node.run(|| open(index)).with_context(|| format!("capturing on {link} of {}", node.name()))?;
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name(format!("capture {link}")).spawn({
            let shared = shared.clone();
            move || shared.collect(&socket, filter)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What has been captured so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.shared.frames.lock().expect("no holder of this lock panics").clone()
    }

    /// Ends the capture, after what is already in the socket, and returns all of it.
    ///
    /// # Panics
    /// If the filter panicked.
    pub fn stop(mut self) -> Vec<Frame> {
        self.end().expect("the capturing thread ends without a panic");
        std::mem::take(&mut *self.shared.frames.lock().expect("no holder of this lock panics"))
    }

    fn end(&mut self) -> thread::Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // A panic of the filter was shown when it happened.
        let _ = self.end();
    }
}

impl Shared {
    fn collect(&self, socket: &OwnedFd, filter: impl Fn(&Frame) -> bool) {
        let mut buffer = vec![0; FRAME_LEN_MAX];
        let mut stop_deadline = None;
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            if stopping && Instant::now() > *stop_deadline.get_or_insert_with(|| Instant::now() + STOP_GRACE) {
                return;
            }
            match sys::receive_packet(socket.as_fd(), &mut buffer) {
                Ok((len, outgoing)) => {
                    let frame =
                        Frame { bytes: buffer[..len.min(FRAME_LEN_MAX)].to_vec(), outgoing, time: Instant::now() };
                    let admitted = filter(&frame);
                    let mut frames = self.frames.lock().expect("no holder of this lock panics");
                    if admitted && frames.len() < FRAME_COUNT_MAX {
                        frames.push(frame);
                    }
                }
                // The link went down; frames come again when it is up.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => (),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    if stopping {
                        return;
                    }
                }
                Err(_) => return, // The link is gone.
            }
        }
    }
}

fn open(link_index: u32) -> Result<OwnedFd> {
    // With protocol 0, nothing arrives before the socket is bound to the link.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_LEN)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(STOP_INTERVAL))?;
    sys::bind_packet(socket.as_fd(), link_index, libc::ETH_P_ALL as u16)?;
    Ok(socket)
}
