//! What can go wrong with etcd.

/// Why etcd, or this node, could not do what was asked. The text says where, what and what to do.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The options, or a file that they name. Trying again does not help.
    #[error("{0}")]
    Options(String),
    /// No endpoint answered. Trying again may help.
    #[error("etcd does not answer: {0}")]
    Unreachable(String),
    /// etcd answered that it will not.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// The network config is missing or not in order.
    #[error("{0}")]
    Config(String),
    /// No lease can be had.
    #[error("{0}")]
    NoSubnet(String),
}

impl EtcdError {
    /// Whether the same call may succeed later, without anybody doing anything but mending the network or etcd.
    pub fn is_temporary(&self) -> bool {
        matches!(self, EtcdError::Unreachable(_))
    }
}
