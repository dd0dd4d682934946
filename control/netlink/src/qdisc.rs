//! Queueing disciplines: the token bucket that limits what a link sends.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rustix::io::Errno;

use super::socket::Subject;
use super::{Netlink, Result};

/// A token bucket (`tbf`, tc-tbf(8)): what a link sends is held to a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second, headers of the link included.
    pub rate: u64,
    /// Bytes that may leave at once after a pause: not less than the largest packet.
    pub burst: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

impl Netlink {
    /// Puts a token bucket before a link, in the place of any other discipline at its root.
    pub fn replace_token_bucket(&mut self, link: u32, bucket: &TokenBucket) -> Result<()> {
        let action = format_args!("limiting to {} bytes/s", bucket.rate);
        let mut message = root_of(link);
        message.attributes = vec![TcAttribute::Kind("tbf".into()), TcAttribute::Options(bucket.to_options())];
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.change(Subject::on(&action, link), NLM_F_CREATE | NLM_F_REPLACE, message)
    }

    /// Takes the discipline at the root of a link away, so that the kernel's default is back; success if none, or no link,
    /// is there.
    pub fn delete_root_qdisc(&mut self, link: u32) -> Result<()> {
        let message = RouteNetlinkMessage::DelQueueDiscipline(root_of(link));
        self.delete(Subject::on(&"removing the queueing discipline", link), message, &[Errno::NOENT, Errno::NODEV])
    }
}

fn root_of(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(link as i32);
    message.header.parent = TcHandle::ROOT;
    message
}

/// Attributes of `tbf` (`include/uapi/linux/pkt_sched.h`, Linux 6.18).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel computes times itself and needs no table (`tbf_change`, net/sched/sch_tbf.c).
const LINKLAYER_ETHERNET: u8 = 1;

impl TokenBucket {
    fn to_options(self) -> Vec<TcOption> {
        // struct tc_tbf_qopt: rate and peak rate (each a struct tc_ratespec of 12 bytes), limit, buffer, mtu.
        let mut parameters = [0; 36];
        parameters[1] = LINKLAYER_ETHERNET;
        parameters[8..12].copy_from_slice(&u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        parameters[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        [
            (TCA_TBF_PARMS, parameters.to_vec()),
            (TCA_TBF_RATE64, self.rate.to_ne_bytes().to_vec()),
            (TCA_TBF_BURST, self.burst.to_ne_bytes().to_vec()),
        ]
        .map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)))
        .to_vec()
    }
}
