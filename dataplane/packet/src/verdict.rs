//! What became of one packet, in the words that metrics and people use.

macro_rules! drop_reasons {
    ($($variant:ident = $name:literal, $help:literal;)*) => {
        /// Why one packet was not delivered. Each has its own counter; see [`DropReason::help`] for the sentence a
        /// person reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $help] $variant,)* }

        impl DropReason {
            /// Every reason, in counter order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// The snake_case name that counters, `--json` and docs show.
            pub const fn name(self) -> &'static str { match self { $(DropReason::$variant => $name,)* } }
            /// One sentence for a person: what happened and, where there is one, the remedy.
            pub const fn help(self) -> &'static str { match self { $(DropReason::$variant => $help,)* } }
        }
    };
}

drop_reasons! {
    // Header sanity, both directions (RFC 1812 section 5.2.2, RFC 8200).
    Empty = "empty", "the datagram carried no bytes";
    TooShort = "too_short", "fewer bytes than an IP header needs";
    BadVersion = "bad_version", "the first nibble is neither 4 nor 6: not an IP packet";
    BadHeaderLen = "bad_header_len", "IPv4 IHL below 5 or beyond the packet, or IPv4 options or IPv6 extension headers that do not parse";
    BadTotalLen = "bad_total_len", "the packet claims more bytes than arrived, or fewer than its header";
    BadChecksum = "bad_checksum", "the IPv4 header checksum is wrong";
    TtlExceeded = "ttl_exceeded", "TTL or hop limit ran out at this hop";
    MartianSource = "martian_source", "an inner source address that no forwarded packet may carry";
    MartianDestination = "martian_destination", "an inner destination that may not be forwarded (loopback, link-local, reserved)";
    Multicast = "multicast", "multicast or broadcast destination: weft carries unicast only";
    SourceRoute = "source_route", "IPv4 source-route option or IPv6 type 0 routing header (RFC 7126, RFC 5095)";
    PingOfDeath = "ping_of_death", "a fragment that would end beyond 65,535 bytes";
    // Encap: TUN -> UDP.
    BadVnetHeader = "bad_vnet_header", "the virtio-net header before a TUN packet contradicts the packet";
    NoRoute = "no_route", "no route covers the destination; the sender was told net-unreachable";
    TooBig = "too_big", "larger than the path MTU to the peer and not allowed to be fragmented; the sender was told";
    Recursion = "recursion", "an encapsulated packet would be routed into the tunnel again: destination is a peer's underlay address";
    UnderlayError = "underlay_error", "the kernel refused the send (link down, no route, firewall)";
    UnderlayBusy = "underlay_busy", "the UDP send queue stayed full";
    // Decap: UDP -> TUN.
    Truncated = "truncated", "the datagram was longer than the receive buffer: raise the MTU here or lower it at the peer";
    PeerUnknown = "peer_unknown", "the outer source address is no known peer";
    PeerSpoof = "peer_spoof", "the inner source address is not routed to the peer that sent it (strict peer check)";
    TunError = "tun_error", "the kernel refused the packet on the TUN device (link down or malformed)";
}

impl DropReason {
    /// How many reasons there are: the length of a counter array.
    pub const COUNT: usize = Self::ALL.len();
    /// Position in [`Self::ALL`] and in every counter array.
    pub const fn index(self) -> usize {
        self as usize
    }
}
