//! What one connection has asked for and is owed: requests in, replies out. Knows no socket.

use super::core::{Core, refusal};
use super::table::Table;
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Instant;
use weft_proto::limits::{PROGRESS_TIMEOUT, PROTOCOL_VERSION, STREAM_TIMEOUT};
use weft_proto::{
    AssembleError, Assembler, Chunks, Digest, Event, Frame, PEERS_PER_REPLY, RecordRef, Refusal, RefusalCode, Reply,
    Request, Transaction,
};

/// One connection's conversation.
#[derive(Debug)]
pub struct Session {
    may_change: bool,
    state: State,
    stream: Option<(Stream, Instant)>,
}

#[derive(Debug)]
enum State {
    /// Waits for the hello, since then.
    Greeting(Instant),
    Ready,
    Transaction(Box<Open>),
    /// A refused transaction: its remaining frames are skipped up to the commit, so that it has exactly one reply.
    Skipping {
        begun: Instant,
        progress: Instant,
    },
    Subscribed,
    /// Waits for the drain to end.
    Draining,
}

/// A begun transaction.
#[derive(Debug)]
struct Open {
    kind: Transaction,
    expect: Option<u64>,
    assembler: Assembler,
    begun: Instant,
    progress: Instant,
}

/// A reply of many frames, made as the client reads it.
#[derive(Debug)]
enum Stream {
    Table { table: Arc<Table>, sent: u32 },
    Peers { table: Arc<Table>, next: usize },
    Workers { next: usize },
}

/// What the connection should do after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// Send what is queued, then close.
    Close,
}

impl Session {
    /// A fresh connection.
    pub fn new(may_change: bool) -> Session {
        Session { may_change, state: State::Greeting(Instant::now()), stream: None }
    }

    /// Whether events go here.
    pub fn subscribed(&self) -> bool {
        matches!(self.state, State::Subscribed)
    }

    /// Whether requests may be taken: not while a stream is being sent, because replies keep the order of requests.
    pub fn ready(&self) -> bool {
        self.stream.is_none()
    }

    /// When the session has waited long enough for its client to go on.
    pub fn deadline(&self) -> Option<Instant> {
        let state = match &self.state {
            State::Greeting(since) => Some(*since + PROGRESS_TIMEOUT),
            State::Transaction(open) => Some((open.progress + PROGRESS_TIMEOUT).min(open.begun + STREAM_TIMEOUT)),
            State::Skipping { begun, progress } => Some((*progress + PROGRESS_TIMEOUT).min(*begun + STREAM_TIMEOUT)),
            State::Ready | State::Subscribed | State::Draining => None,
        };
        let stream = self.stream.as_ref().map(|(_, begun)| *begun + STREAM_TIMEOUT);
        [state, stream].into_iter().flatten().min()
    }

    /// Handles one frame. A frame that is no request, or one out of place, ends the connection with an error reply.
    pub fn handle(&mut self, frame: Frame, core: &mut Core<'_>, out: &mut BytesMut) -> Next {
        let request = match Request::decode(frame) {
            Ok(request) => request,
            Err(error) => return refuse(out, refusal(RefusalCode::Malformed, error.to_string())),
        };
        match (&mut self.state, request) {
            (State::Greeting(_), Request::Hello { protocol: PROTOCOL_VERSION, client }) => {
                tracing::debug!(client, "control connection");
                Reply::Hello(core.hello(self.may_change)).encode(out);
                self.state = State::Ready;
                Next::Continue
            }
            (State::Greeting(_), Request::Hello { protocol, client }) => {
                let text = format!(
                    "{client} speaks protocol version {protocol}, this weftd {PROTOCOL_VERSION}: use weft and weftd of one release"
                );
                refuse(out, refusal(RefusalCode::Version, text))
            }
            (State::Greeting(_), _) => {
                refuse(out, refusal(RefusalCode::Malformed, "the first message must be a hello"))
            }
            (State::Ready, request) => self.request(request, core, out),
            (State::Transaction(open), Request::Chunk(chunk)) => {
                open.progress = Instant::now();
                let begun = open.begun;
                match open.assembler.add(chunk) {
                    Ok(()) => Next::Continue,
                    Err(error) => {
                        let code = match error {
                            AssembleError::TooManyPeers | AssembleError::TooManyRoutes => RefusalCode::TooLarge,
                            _ => RefusalCode::Malformed,
                        };
                        self.skip(begun, refusal(code, error.to_string()), out)
                    }
                }
            }
            (State::Transaction(open), Request::Commit { records, digest }) => {
                let assembler = std::mem::take(&mut open.assembler);
                let open = Open { assembler, ..**open };
                self.state = State::Ready;
                answer(out, commit(open, records, digest, core))
            }
            (State::Skipping { progress, .. }, Request::Chunk(_)) => {
                *progress = Instant::now();
                Next::Continue
            }
            (State::Skipping { .. }, Request::Commit { .. }) => {
                self.state = State::Ready;
                Next::Continue
            }
            (State::Transaction(_) | State::Skipping { .. }, _) => refuse(
                out,
                refusal(RefusalCode::Malformed, "only chunks and a commit may follow the begin of a transaction"),
            ),
            (State::Subscribed | State::Draining, _) => refuse(
                out,
                refusal(RefusalCode::Malformed, "a connection that subscribed or drains takes no further requests"),
            ),
        }
    }

    /// A request outside of a transaction.
    fn request(&mut self, request: Request, core: &mut Core<'_>, out: &mut BytesMut) -> Next {
        match request {
            Request::Begin { kind, expect } => {
                let begun = Instant::now();
                let admitted = self
                    .permitted(kind.name())
                    .and_then(|()| core.check_serving())
                    .and_then(|()| core.check_generation(expect));
                match admitted {
                    Ok(()) => {
                        let assembler = Assembler::default();
                        self.state =
                            State::Transaction(Box::new(Open { kind, expect, assembler, begun, progress: begun }));
                        Next::Continue
                    }
                    Err(refusal) => self.skip(begun, refusal, out),
                }
            }
            Request::List => {
                let table = core.table().clone();
                Reply::TableBegin(table.installed).encode(out);
                self.begin_stream(Stream::Table { table, sent: 0 })
            }
            Request::Get(address) => reply(out, &Reply::Route(core.route(address))),
            Request::Peers => self.begin_stream(Stream::Peers { table: core.table().clone(), next: 0 }),
            Request::Stats => {
                Reply::Stats(core.stats()).encode(out);
                self.begin_stream(Stream::Workers { next: 0 })
            }
            Request::Status => reply(out, &Reply::Status(core.status())),
            Request::Subscribe => {
                core.poll_offloads();
                self.state = State::Subscribed;
                reply(out, &Reply::Done)
            }
            Request::SetLogLevel(level) => {
                answer(out, self.permitted("log-level").and_then(|()| core.set_log_level(level)).map(|()| Reply::Done))
            }
            Request::Drain => match self.permitted("drain") {
                Ok(()) => {
                    core.drain("client");
                    self.state = State::Draining;
                    Next::Continue
                }
                Err(refusal) => reply(out, &Reply::Refused(refusal)),
            },
            Request::Hello { .. } => refuse(out, refusal(RefusalCode::Malformed, "a second hello")),
            Request::Chunk(_) | Request::Commit { .. } => {
                refuse(out, refusal(RefusalCode::Malformed, "a chunk or commit without the begin of a transaction"))
            }
        }
    }

    /// Appends the next frame of a stream under way. Returns whether there was one.
    pub fn pump(&mut self, core: &Core<'_>, out: &mut BytesMut) -> bool {
        let Some((stream, _)) = &mut self.stream else { return false };
        let ended = match stream {
            Stream::Table { table, sent } => {
                let peers = table.set.peers.len();
                let position = *sent as usize;
                let remaining_peers = table.set.peers.iter().skip(position).map(RecordRef::Peer);
                let routes = table.set.routes[position.saturating_sub(peers)..].iter().copied().map(RecordRef::Route);
                let mut chunks = Chunks::new(remaining_peers.chain(routes));
                match chunks.next() {
                    Some(chunk) => {
                        Reply::TableChunk(chunk).encode(out);
                        *sent += chunks.record_count();
                        false
                    }
                    None => {
                        Reply::TableEnd { records: *sent }.encode(out);
                        true
                    }
                }
            }
            Stream::Peers { table, next } if *next < table.set.peers.len() => {
                let end = (*next + PEERS_PER_REPLY).min(table.set.peers.len());
                Reply::Peers((*next..end).map(|position| core.peer(table, position)).collect()).encode(out);
                *next = end;
                false
            }
            Stream::Peers { .. } => {
                Reply::Done.encode(out);
                true
            }
            Stream::Workers { next } => match core.worker(*next) {
                Some(worker) => {
                    Reply::Worker(worker).encode(out);
                    *next += 1;
                    false
                }
                None => {
                    Reply::Done.encode(out);
                    true
                }
            },
        };
        if ended {
            self.stream = None;
        }
        true
    }

    /// Appends an event if this connection subscribed.
    pub fn event(&self, event: &Event, out: &mut BytesMut) {
        if self.subscribed() {
            Reply::Event(event.clone()).encode(out);
        }
    }

    /// Answers the drain that this connection waits for, if it does.
    pub fn drained(&mut self, out: &mut BytesMut) {
        if matches!(self.state, State::Draining) {
            Reply::Done.encode(out);
        }
    }

    fn permitted(&self, what: &str) -> Result<(), Refusal> {
        if self.may_change {
            return Ok(());
        }
        let text = format!("{what} is not permitted: only root and the user that weftd runs as may change anything");
        Err(refusal(RefusalCode::NotPermitted, text))
    }

    fn begin_stream(&mut self, stream: Stream) -> Next {
        self.stream = Some((stream, Instant::now()));
        Next::Continue
    }

    /// Refuses a transaction under way.
    fn skip(&mut self, begun: Instant, refusal: Refusal, out: &mut BytesMut) -> Next {
        self.state = State::Skipping { begun, progress: Instant::now() };
        reply(out, &Reply::Refused(refusal))
    }
}

/// Checks that everything arrived, and installs it.
fn commit(open: Open, records: u32, digest: Digest, core: &mut Core<'_>) -> Result<Reply, Refusal> {
    core.check_serving()?;
    core.check_generation(open.expect)?;
    let received = open.assembler.records();
    if received != records {
        let text = format!("the commit announces {records} records, {received} arrived");
        return Err(refusal(RefusalCode::Malformed, text));
    }
    let damaged = || refusal(RefusalCode::Malformed, "what arrived does not have the digest that the commit announces");
    let installed = match open.kind {
        Transaction::Swap => {
            let set = open.assembler.into_set().map_err(|error| refusal(RefusalCode::Malformed, error.to_string()))?;
            if set.digest() != digest {
                return Err(damaged());
            }
            core.swap(set)
        }
        Transaction::Delta => {
            let delta = open.assembler.into_delta();
            if delta.digest() != digest {
                return Err(damaged());
            }
            core.apply(&delta)
        }
    };
    installed.map(Reply::Installed)
}

fn reply(out: &mut BytesMut, reply: &Reply) -> Next {
    reply.encode(out);
    Next::Continue
}

fn answer(out: &mut BytesMut, result: Result<Reply, Refusal>) -> Next {
    reply(out, &result.unwrap_or_else(Reply::Refused))
}

fn refuse(out: &mut BytesMut, refusal: Refusal) -> Next {
    Reply::Refused(refusal).encode(out);
    Next::Close
}
