//! What can go wrong, naming the object it went wrong with.

use std::io;

use netlink_packet_core::{DecodeError, NlasIterator};
use rustix::io::Errno;

/// `NLMSGERR_ATTR_MSG`, `include/uapi/linux/netlink.h`: the kernel's explanation, a string.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `struct nlmsghdr`, which precedes the attributes of a capped error message.
const NLMSGHDR_LEN: usize = 16;

/// A netlink request that failed. `what` names action and object: `adding route 10.9.0.0/16 dev flannel0`.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused the request.
    #[error("{what}: {}{}", io::Error::from(*errno), explanation(message))]
    Refused {
        /// Action and object.
        what: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's explanation (extended acknowledgement), where it gave one.
        message: Option<String>,
    },
    /// An object of that name exists and is different.
    #[error("{what}: it exists and differs: {difference}")]
    Exists {
        /// Action and object.
        what: String,
        /// What is there, and what was asked for.
        difference: String,
    },
    /// The link to act on does not exist in this network namespace.
    #[error("{what}: no link of that name or index in this network namespace")]
    NoSuchLink {
        /// Action and object.
        what: String,
    },
    /// The socket to the kernel failed.
    #[error("{what}: netlink socket: {source}")]
    Socket {
        /// Action and object.
        what: String,
        /// The failure.
        source: io::Error,
    },
    /// The kernel answered something that this program cannot read.
    #[error("{what}: cannot read the kernel's answer: {source}")]
    Decode {
        /// Action and object.
        what: String,
        /// The failure.
        source: DecodeError,
    },
    /// The table kept changing while it was read, several times in a row.
    #[error("{what}: the kernel's table kept changing while it was read; try again")]
    Interrupted {
        /// Action and object.
        what: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// True if the caller lacks `CAP_NET_ADMIN` in the network namespace.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self.errno(), Some(Errno::PERM | Errno::ACCESS))
    }
}

fn explanation(message: &Option<String>) -> String {
    message.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

/// The explanation in the payload of an error message, which is the header of the request and then attributes.
///
/// Holds for sockets with `NETLINK_CAP_ACK` and `NETLINK_EXT_ACK` set, where the request is cut to its header.
pub(super) fn extended_ack(payload: &[u8]) -> Option<String> {
    let attributes = payload.get(NLMSGHDR_LEN..)?;
    let message = NlasIterator::new(attributes).filter_map(|a| a.ok()).find(|a| a.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches(['\0', '.']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_names_object_errno_and_explanation() {
        let error = NetlinkError::Refused {
            what: "adding route 10.9.0.0/16 dev flannel0".into(),
            errno: Errno::NETUNREACH,
            message: Some("Nexthop has invalid gateway".into()),
        };
        assert_eq!(
            error.to_string(),
            "adding route 10.9.0.0/16 dev flannel0: Network is unreachable (os error 101) (Nexthop has invalid gateway)"
        );
    }

    #[test]
    fn extended_ack_is_read_after_the_echoed_header() {
        let mut payload = vec![0; NLMSGHDR_LEN];
        payload.extend_from_slice(&[8, 0, 1, 0, b'b', b'a', b'd', 0]);
        assert_eq!(extended_ack(&payload).as_deref(), Some("bad"));
        assert_eq!(extended_ack(&payload[..NLMSGHDR_LEN]), None);
        assert_eq!(extended_ack(&[]), None);
    }
}
