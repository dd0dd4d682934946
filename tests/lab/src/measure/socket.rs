//! TCP sockets of the measurements, with the congestion control that was asked for.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, set_tcp_congestion, tcp_congestion};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};

use super::tcp::ANSWER_TIMEOUT;

/// Connections that may wait to be accepted, as the standard library has it.
const BACKLOG: i32 = 128;
/// What the kernel can do.
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// What TCP sockets of the calling thread's network namespace use: `asked`, or the system's if that is `None`.
///
/// # Errors
/// If the kernel refuses it; the error names those that it offers.
pub fn congestion_control(asked: Option<&str>) -> Result<String> {
    let socket = open(AddressFamily::INET, asked)?;
    tcp_congestion(&socket).context("reading TCP_CONGESTION")
}

/// Fails if a socket uses another congestion control than was asked for. Those that were accepted have it from their
/// listener, and are checked all the same.
pub(super) fn check(socket: impl AsFd, asked: Option<&str>) -> Result<()> {
    let Some(asked) = asked else { return Ok(()) };
    let used = tcp_congestion(socket).context("reading TCP_CONGESTION")?;
    ensure!(used == asked, "congestion control: asked for {asked}, the socket uses {used}");
    Ok(())
}

/// A socket that listens in the calling thread's network namespace, on a port that the kernel chooses.
pub(super) fn listening(address: std::net::IpAddr, congestion_control: Option<&str>) -> Result<TcpListener> {
    let address = SocketAddr::new(address, 0);
    let socket = open(family(address), congestion_control)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A connection from the calling thread's network namespace.
pub(super) fn connected(address: SocketAddr, congestion_control: Option<&str>) -> Result<TcpStream> {
    let socket = open(family(address), congestion_control)?;
    // The send timeout is that of connect(2), too (socket(7), SO_SNDTIMEO), which ends with EINPROGRESS then.
    set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_TIMEOUT))?;
    match connect(&socket, &address) {
        Err(Errno::INPROGRESS) => Err(Errno::TIMEDOUT),
        outcome => outcome,
    }?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn open(family: AddressFamily, congestion_control: Option<&str>) -> Result<OwnedFd> {
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if let Some(name) = congestion_control {
        set_tcp_congestion(&socket, name).with_context(|| {
            let offered = fs::read_to_string(AVAILABLE).unwrap_or_default();
            format!("the kernel refuses congestion control `{name}`; it offers: {}", offered.trim())
        })?;
        check(&socket, congestion_control)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_answered_with_what_the_kernel_offers() {
        let offered = fs::read_to_string(AVAILABLE).unwrap();
        for name in ["warp", "a name that is longer than the kernel has room for"] {
            let error = format!("{:#}", congestion_control(Some(name)).unwrap_err());
            assert!(error.contains(&format!("`{name}`")) && error.contains(offered.trim()), "{error}");
        }
    }

    #[test]
    fn a_socket_that_uses_another_one_is_an_error() {
        let used = congestion_control(None).unwrap();
        let socket = open(AddressFamily::INET, None).unwrap();
        check(&socket, Some(&used)).unwrap();
        let error = check(&socket, Some("warp")).unwrap_err().to_string();
        assert!(error.contains("asked for warp") && error.contains(&used), "{error}");
    }
}
