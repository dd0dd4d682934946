//! The socket's file: who may open it, what to do about one left behind, and its removal.

use crate::holder::{self, Holder};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Mode of the parent directory if this process makes it.
const DIRECTORY_MODE: u32 = 0o750;

/// File mode bits that the socket is born without: what remains of 0777 is 0660.
const SOCKET_UMASK: Mode = Mode::from_bits_truncate(0o117);

/// A bound control socket. Dropping it removes the file, unless another process has put its own in place.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another weftd listens there.
    #[error("control socket {path} is held by {holder}: stop it, or give this weftd another path")]
    Held {
        /// The socket.
        path: PathBuf,
        /// Name and pid, or a text if the kernel does not say.
        holder: String,
    },
    /// Something else lies at the path.
    #[error("{path} exists and is not a socket: remove it, or give another path")]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("control socket {path}: {step}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Listener {
    /// Binds `path` with mode 0660, making its directory (0750) if it is missing. A socket that nobody listens on is
    /// replaced. Sets the process's umask for the length of the call: call it before other threads create files.
    pub fn bind(path: impl AsRef<Path>) -> Result<Listener, ListenError> {
        let path = path.as_ref();
        let failed = |step| {
            let path = path.to_path_buf();
            move |source: io::Error| ListenError::Io { path, step, source }
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(parent).map_err(failed("make its directory"))?;
        // Two weftds that start together must not both find the old socket dead and remove each other's new one.
        let directory = rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| failed("open its directory")(e.into()))?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive)
            .map_err(|e| failed("lock its directory")(e.into()))?;
        remove_stale(path)?;
        let umask = rustix::process::umask(SOCKET_UMASK);
        let bound = UnixListener::bind(path);
        rustix::process::umask(umask);
        let socket = bound.map_err(failed("bind"))?;
        socket.set_nonblocking(true).map_err(failed("make it non-blocking"))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at the new socket"))?;
        Ok(Listener { socket, path: path.to_path_buf(), identity: (metadata.dev(), metadata.ino()) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("control socket {}: remove: {error}", self.path.display());
        }
    }
}

/// Removes a socket that refuses connections; a live one, or anything else, is left alone and is an error.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |step| {
        let path = path.to_path_buf();
        move |source: io::Error| ListenError::Io { path, step, source }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at what is there")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotSocket { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    // Non-blocking: a weftd that is stopped with a full backlog is alive, and must not hold up its successor's error.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|e| failed("make a socket")(e.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|e| failed("use the path")(e.into()))?;
    let held = |holder| Err(ListenError::Held { path: path.to_path_buf(), holder });
    match net::connect(&probe, &address) {
        Ok(()) => held(match sockopt::socket_peercred(&probe) {
            Ok(cred) => holder::of_pid(cred.pid.as_raw_nonzero().get().unsigned_abs()).to_string(),
            Err(_) => Holder::Unknown.to_string(),
        }),
        Err(rustix::io::Errno::AGAIN) => held("another process that does not answer".into()),
        Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed("remove the stale socket")),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("ask who listens there")(error.into())),
    }
}
