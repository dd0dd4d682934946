//! Queueing disciplines: token buckets that limit what a link sends, by bytes, or by packets before each of its queues.

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_REPLACE};
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

/// A token bucket before one transmit queue of a link that counts packets, whatever their length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketBucket {
    /// Transmit queue, from 0.
    pub queue: u16,
    /// Packets per second; at most 4 million.
    pub rate: u32,
    /// Packets that may leave at once; it begins full, and is filled whenever it is set. At most 4 million.
    pub burst: u32,
    /// Packets that may wait; at most 4 million.
    pub limit: u32,
}

impl Netlink {
    /// Gives each transmit queue of a link a discipline of its own (`mq`), the kernel's default for now, under a handle by
    /// which [`Netlink::set_packet_bucket`] and [`Netlink::unite_queues`] know it. Success if that was done before.
    ///
    /// # Errors
    /// `EEXIST` if another discipline than the kernel's default is there.
    pub fn divide_queues(&mut self, link: u32) -> Result<()> {
        let mut message = root_of(link);
        message.header.handle = DIVISION;
        message.attributes = vec![TcAttribute::Kind("mq".into())];
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.change(Subject::on(&"dividing the transmit queues", link), NLM_F_CREATE, message)
    }

    /// Undoes [`Netlink::divide_queues`], so that the kernel's default is back; success if another discipline, or no link, is
    /// there.
    pub fn unite_queues(&mut self, link: u32) -> Result<()> {
        let mut message = root_of(link);
        message.header.handle = DIVISION;
        let message = RouteNetlinkMessage::DelQueueDiscipline(message);
        let gone = [Errno::NOENT, Errno::NODEV, Errno::INVAL];
        self.delete(Subject::on(&"uniting the transmit queues", link), message, &gone)
    }

    /// Puts a bucket before a queue of a divided link, in the place of what is there.
    pub fn replace_packet_bucket(&mut self, link: u32, bucket: &PacketBucket) -> Result<()> {
        self.packet_bucket(link, bucket, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Fills the bucket that is before a queue of a divided link, and sets its properties.
    ///
    /// # Errors
    /// `ENOENT` or `EINVAL` if no bucket is there: somebody has replaced it, or the division.
    pub fn set_packet_bucket(&mut self, link: u32, bucket: &PacketBucket) -> Result<()> {
        self.packet_bucket(link, bucket, 0)
    }

    fn packet_bucket(&mut self, link: u32, bucket: &PacketBucket, flags: u16) -> Result<()> {
        let action = format_args!("limiting queue {} to {} packets", bucket.queue, bucket.burst);
        let mut message = TcMessage::with_index(link as i32);
        message.header.parent = TcHandle { major: DIVISION.major, minor: bucket.queue + 1 };
        message.attributes = vec![
            TcAttribute::Kind("tbf".into()),
            TcAttribute::Stab(one_size_for_all()),
            TcAttribute::Options(bucket.in_bytes().to_options()),
        ];
        self.change(Subject::on(&action, link), flags, RouteNetlinkMessage::NewQueueDiscipline(message))
    }

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

/// The handle of the division: any that others are unlikely to choose.
const DIVISION: TcHandle = TcHandle { major: 0x77ef, minor: 0 };

/// For how many bytes a bucket of packets takes each.
const PACKET_SIZE: u16 = 1024;
/// Attributes of a size table, and the logarithm of a length that no packet has (`include/uapi/linux/pkt_sched.h`, Linux 6.18).
const TCA_STAB_BASE: u16 = 1;
const TCA_STAB_DATA: u16 = 2;
const CELL_LOG: u8 = 24;

/// A size table by which the kernel takes every packet for [`PACKET_SIZE`] bytes (`__qdisc_calculate_pkt_len`,
/// net/sched/sch_api.c): one cell for all lengths.
fn one_size_for_all() -> Vec<u8> {
    // struct tc_sizespec: cell_log, size_log, cell_align, overhead, linklayer, mpu, mtu, tsize.
    let mut specification = [0; 24];
    specification[0] = CELL_LOG;
    specification[8..12].copy_from_slice(&u32::from(LINKLAYER_ETHERNET).to_ne_bytes());
    specification[20..24].copy_from_slice(&1u32.to_ne_bytes());
    let table = [
        DefaultNla::new(TCA_STAB_BASE, specification.to_vec()),
        DefaultNla::new(TCA_STAB_DATA, PACKET_SIZE.to_ne_bytes().to_vec()),
    ];
    let table = table.as_slice();
    let mut bytes = vec![0; table.buffer_len()];
    table.emit(&mut bytes);
    bytes
}

impl PacketBucket {
    fn in_bytes(self) -> TokenBucket {
        let bytes = |packets: u32| packets.saturating_mul(PACKET_SIZE.into());
        TokenBucket { rate: bytes(self.rate).into(), burst: bytes(self.burst), limit: bytes(self.limit) }
    }
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
