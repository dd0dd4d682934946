//! Requests and replies: frames <-> types. Decoding is total: any bytes give a message or an error.

use crate::digest::Digest;
use crate::frame::{self, BODY_LEN_MAX, Frame};
use crate::limits::{MAGIC, TEXT_LEN_MAX};
use crate::record;
use crate::report::*;
use crate::table::Installed;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use std::net::IpAddr;

/// What a client may ask. Each request has one reply or a stream of replies that ends, in the order of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First message of every connection.
    Hello {
        /// Protocol version that the client speaks.
        protocol: u16,
        /// Who calls, for the log.
        client: String,
    },
    /// Begins a transaction; [`Request::Chunk`]s and one [`Request::Commit`] follow. Gets no reply of its own.
    Begin {
        /// Whole table or change.
        kind: Transaction,
        /// Refuse unless this generation is in force at the commit.
        expect: Option<u64>,
    },
    /// Packed records (see [`crate::record`]). Gets no reply.
    Chunk(Bytes),
    /// Ends the transaction. Reply: [`Reply::Installed`].
    Commit {
        /// Records sent since the begin.
        records: u32,
        /// [`crate::RouteSet::digest`] or [`crate::Delta::digest`] of what was sent.
        digest: Digest,
    },
    /// Whole table. Replies: [`Reply::TableBegin`], [`Reply::TableChunk`]s, [`Reply::TableEnd`].
    List,
    /// Which route covers an address. Reply: [`Reply::Route`].
    Get(IpAddr),
    /// Peers with counters. Replies: [`Reply::Peers`], then [`Reply::Done`].
    Peers,
    /// Counters. Replies: [`Reply::Stats`], one [`Reply::Worker`] each, then [`Reply::Done`].
    Stats,
    /// State. Reply: [`Reply::Status`].
    Status,
    /// Events from here on. Reply: [`Reply::Done`] once subscribed, then [`Reply::Event`]s until the client leaves.
    Subscribe,
    /// Changes the log level. Reply: [`Reply::Done`].
    SetLogLevel(LogLevel),
    /// Stop reading TUN, finish what was read, exit. Reply: [`Reply::Done`] when all workers ended.
    Drain,
}

/// What a transaction carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// A whole table.
    Swap,
    /// A change.
    Delta,
}

impl Transaction {
    /// "swap" or "delta".
    pub const fn name(self) -> &'static str {
        match self {
            Transaction::Swap => "swap",
            Transaction::Delta => "delta",
        }
    }
}

/// What weftd answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To the hello.
    Hello(Hello),
    /// Refused; nothing was changed.
    Refused(Refusal),
    /// A table came into force.
    Installed(Installed),
    /// A table follows.
    TableBegin(Installed),
    /// Packed records of the table: all peers, then all routes.
    TableChunk(Bytes),
    /// The table is complete.
    TableEnd {
        /// Records sent since the begin.
        records: u32,
    },
    /// To [`Request::Get`].
    Route(RouteAnswer),
    /// Some peers; more may follow.
    Peers(Vec<PeerReport>),
    /// Totals; the workers follow.
    Stats(StatsTotals),
    /// One worker.
    Worker(WorkerReport),
    /// To [`Request::Status`].
    Status(StatusReport),
    /// Something happened.
    Event(Event),
    /// A request without an answer of its own succeeded, or a stream is complete.
    Done,
}

/// A frame that is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A kind that this version does not know.
    #[error("unknown message type {0:#04x}")]
    Kind(u8),
    /// The hello does not begin with [`MAGIC`].
    #[error("the hello does not begin with the magic bytes of weft's control socket")]
    Magic,
    /// The body ends too early, or goes on after its end.
    #[error("a {0} message has the wrong length")]
    Len(&'static str),
    /// A field has a value that this version does not know.
    #[error("a {0} message holds a value that does not exist")]
    Value(&'static str),
    /// The JSON body does not fit the message.
    #[error("a {0} message does not parse: {1}")]
    Json(&'static str, #[source] serde_json::Error),
}

// Requests are below 0x80, replies above.
const HELLO: u8 = 0x01;
const BEGIN: u8 = 0x02;
const CHUNK: u8 = 0x03;
const COMMIT: u8 = 0x04;
const LIST: u8 = 0x05;
const GET: u8 = 0x06;
const PEERS: u8 = 0x07;
const STATS: u8 = 0x08;
const STATUS: u8 = 0x09;
const SUBSCRIBE: u8 = 0x0a;
const SET_LOG_LEVEL: u8 = 0x0b;
const DRAIN: u8 = 0x0c;
const R_HELLO: u8 = 0x81;
const R_REFUSED: u8 = 0x82;
const R_INSTALLED: u8 = 0x83;
const R_TABLE_BEGIN: u8 = 0x84;
const R_TABLE_CHUNK: u8 = 0x85;
const R_TABLE_END: u8 = 0x86;
const R_ROUTE: u8 = 0x87;
const R_PEERS: u8 = 0x88;
const R_STATS: u8 = 0x89;
const R_WORKER: u8 = 0x8a;
const R_STATUS: u8 = 0x8b;
const R_EVENT: u8 = 0x8c;
const R_DONE: u8 = 0x8d;

/// Names of the requests, as [`Hello::capabilities`] lists them.
pub const CAPABILITIES: &[&str] =
    &["swap", "delta", "list", "get", "peers", "stats", "status", "subscribe", "log-level", "drain"];

impl Request {
    /// Appends the request as one frame.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Request::Hello { protocol, client } => frame::put(out, HELLO, |body| {
                body.put_slice(&MAGIC);
                body.put_u16(*protocol);
                body.put_slice(cut(client).as_bytes());
            }),
            Request::Begin { kind, expect } => frame::put(out, BEGIN, |body| {
                body.put_u8(match kind {
                    Transaction::Swap => 0,
                    Transaction::Delta => 1,
                });
                if let Some(generation) = expect {
                    body.put_u64(*generation);
                }
            }),
            Request::Chunk(records) => frame::put(out, CHUNK, |body| body.put_slice(records)),
            Request::Commit { records, digest } => frame::put(out, COMMIT, |body| {
                body.put_u32(*records);
                body.put_u128(digest.0);
            }),
            Request::List => frame::put(out, LIST, |_| {}),
            Request::Get(address) => frame::put(out, GET, |body| record::put_ip(body, *address)),
            Request::Peers => frame::put(out, PEERS, |_| {}),
            Request::Stats => frame::put(out, STATS, |_| {}),
            Request::Status => frame::put(out, STATUS, |_| {}),
            Request::Subscribe => frame::put(out, SUBSCRIBE, |_| {}),
            Request::SetLogLevel(level) => {
                frame::put(out, SET_LOG_LEVEL, |body| body.put_slice(level.name().as_bytes()))
            }
            Request::Drain => frame::put(out, DRAIN, |_| {}),
        };
    }

    /// Reads a frame. Chunk contents are not looked at: see [`crate::Assembler`].
    pub fn decode(frame: Frame) -> Result<Request, MessageError> {
        let mut body = frame.body;
        Ok(match frame.kind {
            HELLO => {
                if !body.starts_with(&MAGIC) {
                    return Err(MessageError::Magic);
                }
                body.advance(MAGIC.len());
                let protocol = body.try_get_u16().map_err(|_| MessageError::Len("hello"))?;
                // The rest of the hello may grow in later versions: a version mismatch must stay readable.
                let client = cut(&String::from_utf8_lossy(&body)).to_owned();
                Request::Hello { protocol, client }
            }
            BEGIN => {
                let kind = match body.try_get_u8().map_err(|_| MessageError::Len("begin"))? {
                    0 => Transaction::Swap,
                    1 => Transaction::Delta,
                    _ => return Err(MessageError::Value("begin")),
                };
                let expect = match body.len() {
                    0 => None,
                    _ => Some(body.try_get_u64().map_err(|_| MessageError::Len("begin"))?),
                };
                ended(&body, "begin")?;
                Request::Begin { kind, expect }
            }
            CHUNK => Request::Chunk(body),
            COMMIT => {
                let records = body.try_get_u32().map_err(|_| MessageError::Len("commit"))?;
                let digest = Digest(body.try_get_u128().map_err(|_| MessageError::Len("commit"))?);
                ended(&body, "commit")?;
                Request::Commit { records, digest }
            }
            LIST => empty(&body, "list", Request::List)?,
            GET => {
                let address = record::take_ip(&mut body).map_err(|_| MessageError::Value("get"))?;
                ended(&body, "get")?;
                Request::Get(address)
            }
            PEERS => empty(&body, "peers", Request::Peers)?,
            STATS => empty(&body, "stats", Request::Stats)?,
            STATUS => empty(&body, "status", Request::Status)?,
            SUBSCRIBE => empty(&body, "subscribe", Request::Subscribe)?,
            SET_LOG_LEVEL => Request::SetLogLevel(
                std::str::from_utf8(&body)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or(MessageError::Value("log-level"))?,
            ),
            DRAIN => empty(&body, "drain", Request::Drain)?,
            kind => return Err(MessageError::Kind(kind)),
        })
    }
}

impl Reply {
    /// Appends the reply as one frame.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Reply::Hello(hello) => put_json(out, R_HELLO, hello),
            Reply::Refused(refusal) => {
                let text = cut(&refusal.text).to_owned();
                put_json(out, R_REFUSED, &Refusal { text, ..refusal.clone() })
            }
            Reply::Installed(installed) => put_json(out, R_INSTALLED, installed),
            Reply::TableBegin(installed) => put_json(out, R_TABLE_BEGIN, installed),
            Reply::TableChunk(records) => {
                frame::put(out, R_TABLE_CHUNK, |body| body.put_slice(records));
            }
            Reply::TableEnd { records } => {
                frame::put(out, R_TABLE_END, |body| body.put_u32(*records));
            }
            Reply::Route(answer) => put_json(out, R_ROUTE, answer),
            Reply::Peers(peers) => put_json(out, R_PEERS, peers),
            Reply::Stats(totals) => put_json(out, R_STATS, totals),
            Reply::Worker(worker) => put_json(out, R_WORKER, worker),
            Reply::Status(status) => put_json(out, R_STATUS, status),
            Reply::Event(event) => put_json(out, R_EVENT, event),
            Reply::Done => {
                frame::put(out, R_DONE, |_| {});
            }
        }
    }

    /// Reads a frame. Chunk contents are not looked at: see [`crate::Assembler`].
    pub fn decode(frame: Frame) -> Result<Reply, MessageError> {
        let mut body = frame.body;
        Ok(match frame.kind {
            R_HELLO => Reply::Hello(json(&body, "hello")?),
            R_REFUSED => Reply::Refused(json(&body, "refused")?),
            R_INSTALLED => Reply::Installed(json(&body, "installed")?),
            R_TABLE_BEGIN => Reply::TableBegin(json(&body, "table-begin")?),
            R_TABLE_CHUNK => Reply::TableChunk(body),
            R_TABLE_END => {
                let records = body.try_get_u32().map_err(|_| MessageError::Len("table-end"))?;
                ended(&body, "table-end")?;
                Reply::TableEnd { records }
            }
            R_ROUTE => Reply::Route(json(&body, "route")?),
            R_PEERS => Reply::Peers(json(&body, "peers")?),
            R_STATS => Reply::Stats(json(&body, "stats")?),
            R_WORKER => Reply::Worker(json(&body, "worker")?),
            R_STATUS => Reply::Status(json(&body, "status")?),
            R_EVENT => Reply::Event(json(&body, "event")?),
            R_DONE => empty(&body, "done", Reply::Done)?,
            kind => return Err(MessageError::Kind(kind)),
        })
    }
}

/// Peers per [`Reply::Peers`]: with the longest name and the most aliases a peer takes under 2.5 KiB of JSON.
pub const PEERS_PER_REPLY: usize = 24;

const _: () = assert!(PEERS_PER_REPLY * 2560 <= BODY_LEN_MAX, "a peers reply fits a frame");

fn put_json(out: &mut BytesMut, kind: u8, value: &impl Serialize) {
    frame::put(out, kind, |body| {
        serde_json::to_writer(body.writer(), value)
            .expect("reports have string keys and writing to memory cannot fail");
    });
}

fn json<T: DeserializeOwned>(body: &Bytes, what: &'static str) -> Result<T, MessageError> {
    serde_json::from_slice(body).map_err(|source| MessageError::Json(what, source))
}

fn empty<T>(body: &Bytes, what: &'static str, message: T) -> Result<T, MessageError> {
    ended(body, what).map(|()| message)
}

fn ended(body: &Bytes, what: &'static str) -> Result<(), MessageError> {
    if body.is_empty() { Ok(()) } else { Err(MessageError::Len(what)) }
}

/// Free text within its bound, cut at a character.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
