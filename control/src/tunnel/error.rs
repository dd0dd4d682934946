//! What can go wrong with a tunnel, and what to do about it.

use crate::causes;
use crate::cli::Exit;
use crate::client::ClientError;
use crate::daemon::{self, DaemonError};
use crate::netlink::NetlinkError;
use crate::state::StateError;

/// Why a tunnel could not be brought up, changed or taken down.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// It is up.
    #[error("tunnel {name:?} is up already (weftd is process {pid})")]
    AlreadyUp {
        /// The tunnel.
        name: String,
        /// weftd.
        pid: u32,
    },
    /// It is up, and what weft knew of it is lost.
    #[error("tunnel {name:?} is up (weftd is process {pid}), but its state file is gone")]
    Stateless {
        /// The tunnel.
        name: String,
        /// weftd.
        pid: u32,
    },
    /// It is up in a network namespace that this process is not in.
    #[error("tunnel {name:?} is up in another network namespace (weftd is process {pid})")]
    OtherNamespace {
        /// The tunnel.
        name: String,
        /// weftd.
        pid: u32,
    },
    /// A weftd with changed settings could not be had.
    #[error("{}; weftd runs again with the settings that it had, and the tunnel is as it was", causes::text(.why))]
    Restored {
        /// What went wrong.
        why: Box<TunnelError>,
    },
    /// No right to make a device.
    #[error("a TUN device and routes need CAP_NET_ADMIN, which this process does not have")]
    NotPermitted,
    /// The process.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Its control socket.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Links and routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The run directory.
    #[error(transparent)]
    State(#[from] StateError),
}

impl TunnelError {
    /// The exit code of a command that failed with this.
    pub fn exit(&self) -> Exit {
        match self {
            TunnelError::NotPermitted => Exit::NotPermitted,
            TunnelError::Restored { why } => why.exit(),
            TunnelError::Client(error) => error.into(),
            TunnelError::Netlink(error) if error.is_permission_denied() => Exit::NotPermitted,
            TunnelError::State(error) if error.is_permission_denied() => Exit::NotPermitted,
            _ => Exit::Failed,
        }
    }

    /// The remedy, where there is one to name.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            TunnelError::AlreadyUp { name, .. } => {
                format!("`weft down {name}` takes it down; `weft run` adopts it and follows its file")
            }
            TunnelError::Stateless { name, .. } => format!("`weft down {name}` takes it down all the same"),
            TunnelError::OtherNamespace { name, pid } => {
                format!("enter it first: nsenter --net=/proc/{pid}/ns/net weft down {name}")
            }
            TunnelError::Daemon(DaemonError::NotFound { .. }) => {
                format!("install weftd beside weft, or name it in {}", daemon::WEFTD_VARIABLE)
            }
            TunnelError::Daemon(DaemonError::Ended { log, .. }) if log.contains("--bind") || log.contains("TUN `") => {
                "in the tunnel file, weftd's --bind is `listen`, and --tun is `tun`".into()
            }
            TunnelError::Restored { why } => return why.hint(),
            TunnelError::State(StateError::Locked { .. }) => {
                "a `weft run` holds its tunnel as long as it lives: stop it (SIGTERM takes the tunnel down)".into()
            }
            TunnelError::State(error @ StateError::File { .. }) if !error.is_permission_denied() => {
                "sockets, logs and states go to /run/weft, or to another directory with --run-dir".into()
            }
            TunnelError::State(StateError::Content { path, .. }) => format!("remove {} and try again", path.display()),
            TunnelError::Netlink(NetlinkError::Exists { .. }) => {
                "another route or address is in the way: see `ip route`, and choose another network or remove it".into()
            }
            _ if self.exit() == Exit::NotPermitted => "run it as root, or with CAP_NET_ADMIN".into(),
            _ => return None,
        })
    }
}
