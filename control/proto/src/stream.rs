//! Tables and deltas as runs of chunks: [`Chunks`] cuts, [`Assembler`] puts together.

use crate::frame::BODY_LEN_MAX;
use crate::limits::{DELTA_MAX, PEERS_MAX, ROUTES_MAX};
use crate::record::{self, RECORD_LEN_MAX, Record, RecordError};
use crate::table::{Delta, PeerSpec, RouteSet, RouteSpec};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;

/// Cuts records into chunks. An iterator, so that a sender holds one chunk at a time.
#[derive(Debug)]
pub struct Chunks<R> {
    records: R,
    count: u32,
}

impl<R> Chunks<R> {
    /// Records cut so far; all of them once the iterator has ended.
    pub fn record_count(&self) -> u32 {
        self.count
    }
}

/// One record to send, borrowed from the table it describes.
#[derive(Clone, Copy, Debug)]
pub enum RecordRef<'a> {
    /// As [`Record::Peer`].
    Peer(&'a PeerSpec),
    /// As [`Record::Route`].
    Route(RouteSpec),
    /// As [`Record::Removal`].
    Removal(ipnet::IpNet),
}

impl<'a, R: Iterator<Item = RecordRef<'a>>> Chunks<R> {
    /// Cuts any run of records.
    pub fn new(records: R) -> Chunks<R> {
        Chunks { records, count: 0 }
    }
}

impl<'a, R: Iterator<Item = RecordRef<'a>>> Iterator for Chunks<R> {
    type Item = Bytes;
    fn next(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        while chunk.len() + RECORD_LEN_MAX <= BODY_LEN_MAX {
            match self.records.next() {
                Some(RecordRef::Peer(peer)) => record::put_peer(&mut chunk, peer),
                Some(RecordRef::Route(route)) => record::put_route(&mut chunk, route.prefix, route.peer),
                Some(RecordRef::Removal(prefix)) => record::put_removal(&mut chunk, prefix),
                None => break,
            }
            self.count += 1;
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }
}

impl RouteSet {
    /// The set as chunks: all peers, then all routes.
    pub fn chunks(&self) -> Chunks<impl Iterator<Item = RecordRef<'_>>> {
        Chunks::new(self.peers.iter().map(RecordRef::Peer).chain(self.routes.iter().copied().map(RecordRef::Route)))
    }
}

impl Delta {
    /// The delta as chunks: each peer before the first route to it, then the removals.
    pub fn chunks(&self) -> Chunks<impl Iterator<Item = RecordRef<'_>>> {
        let mut index: HashMap<&PeerSpec, u32> = HashMap::new();
        let upserts = self.upsert.iter().flat_map(move |(prefix, peer)| {
            let next = index.len() as u32;
            let number = *index.entry(peer).or_insert(next);
            let new = (number == next).then_some(RecordRef::Peer(peer));
            new.into_iter().chain([RecordRef::Route(RouteSpec { prefix: *prefix, peer: number })])
        });
        Chunks::new(upserts.chain(self.remove.iter().copied().map(RecordRef::Removal)))
    }
}

/// Why chunks do not make a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A record does not parse.
    #[error("record {index}: {source}")]
    Record {
        /// Position in the stream.
        index: u32,
        /// What is wrong with it.
        source: RecordError,
    },
    /// More than [`PEERS_MAX`].
    #[error("more than {PEERS_MAX} peers")]
    TooManyPeers,
    /// More than [`ROUTES_MAX`] routes or [`DELTA_MAX`] changes.
    #[error("more than {ROUTES_MAX} routes")]
    TooManyRoutes,
    /// A route came before its peer.
    #[error("record {index}: the route names peer number {peer}, which was not sent before it")]
    UnknownPeer {
        /// Position in the stream.
        index: u32,
        /// The number it gave.
        peer: u32,
    },
    /// A removal in a whole table.
    #[error("record {index}: a removal has no place in a whole table")]
    Removal {
        /// Position in the stream.
        index: u32,
    },
}

/// Puts chunks together. Memory grows with what arrived, never with what was announced, and is bounded by the limits.
#[derive(Debug, Default)]
pub struct Assembler {
    set: RouteSet,
    removals: Vec<ipnet::IpNet>,
    records: u32,
}

impl Assembler {
    /// Adds one chunk. After an error the assembler is of no further use.
    pub fn add(&mut self, mut chunk: Bytes) -> Result<(), AssembleError> {
        while !chunk.is_empty() {
            let index = self.records;
            match record::take(&mut chunk).map_err(|source| AssembleError::Record { index, source })? {
                Record::Peer(_) if self.set.peers.len() == PEERS_MAX => return Err(AssembleError::TooManyPeers),
                Record::Peer(peer) => self.set.peers.push(peer),
                Record::Route(_, peer) if peer as usize >= self.set.peers.len() => {
                    return Err(AssembleError::UnknownPeer { index, peer });
                }
                Record::Route(..) if self.set.routes.len() == ROUTES_MAX => return Err(AssembleError::TooManyRoutes),
                Record::Route(prefix, peer) => self.set.routes.push(RouteSpec { prefix, peer }),
                Record::Removal(_) if self.removals.len() == DELTA_MAX => return Err(AssembleError::TooManyRoutes),
                Record::Removal(prefix) => self.removals.push(prefix),
            }
            self.records += 1;
        }
        Ok(())
    }

    /// Records taken so far.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// The whole table that was sent.
    pub fn into_set(self) -> Result<RouteSet, AssembleError> {
        if self.removals.is_empty() { Ok(self.set) } else { Err(AssembleError::Removal { index: self.records }) }
    }

    /// The change that was sent.
    pub fn into_delta(self) -> Delta {
        let RouteSet { peers, routes } = self.set;
        let upsert = routes.into_iter().map(|route| (route.prefix, peers[route.peer as usize].clone())).collect();
        Delta { upsert, remove: self.removals }
    }
}
