//! What makes desired routes true. A backend knows tables and nothing of where they come from.

pub mod udp;
pub mod udp_tunnel;
