//! A blocking client of weftd's control socket, with a deadline on every wait.
#![forbid(unsafe_code)]

use bytes::BytesMut;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weft_proto::limits::{DRAIN_TIMEOUT, FRAME_LEN_MAX, PROTOCOL_VERSION};
use weft_proto::{
    AssembleError, Assembler, Chunks, Delta, Digest, Event, FrameError, Hello, Installed, LogLevel, MessageError,
    PeerReport, RecordRef, Refusal, RefusalCode, Reply, Request, RouteAnswer, RouteSet, StatsReport, StatusReport,
    TableError, Transaction, frame,
};

/// A connection on which the hello was exchanged.
///
/// After an error other than [`ClientError::Refused`] and [`ClientError::Invalid`] the connection is of no further use:
/// connect again, and send the whole table.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    input: BytesMut,
    timeout: Duration,
    hello: Hello,
}

/// Why a request failed. `weft` maps it to an exit code.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("weftd is not reachable at {path}; is it running? (--socket names another socket)")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What connect said.
        source: io::Error,
    },
    /// The socket's mode refuses this user.
    #[error("no permission to open {path}: run as root or as a member of the socket's group")]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// weftd speaks another protocol version.
    #[error(
        "weftd at {path} speaks protocol version {theirs}, this weft speaks {PROTOCOL_VERSION}: use weft and weftd of one release"
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// weftd's version, or a text where it is not known.
        theirs: String,
    },
    /// weftd did not answer in time.
    #[error("weftd at {path} did not answer within {after:?}")]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The deadline.
        after: Duration,
    },
    /// weftd closed the connection or it broke.
    #[error("weftd at {path} closed the connection")]
    Closed {
        /// The socket.
        path: PathBuf,
        /// What the read or write said.
        source: io::Error,
    },
    /// The bytes are no weft control protocol.
    #[error("{path} does not speak weft's control protocol: {what}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// weftd refused; nothing was changed.
    #[error(transparent)]
    Refused(Refusal),
    /// The table breaks a rule; nothing was sent.
    #[error(transparent)]
    Invalid(#[from] TableError),
}

impl ClientError {
    /// Whether the table in force was not the expected generation.
    pub fn is_stale(&self) -> bool {
        matches!(self, ClientError::Refused(refusal) if refusal.code == RefusalCode::Stale)
    }
}

/// A table as weftd holds it, with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// In canonical form: equal to [`RouteSet::canonical`] of what was installed.
    pub set: RouteSet,
    /// Number and digest.
    pub installed: Installed,
}

impl Client {
    /// Connects and exchanges hellos. `timeout` bounds the connect, and every later wait for weftd's next answer.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Client, ClientError> {
        let path = path.as_ref().to_path_buf();
        let stream = open(&path, timeout).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path: path.clone() },
            io::ErrorKind::WouldBlock => ClientError::Timeout { path: path.clone(), after: timeout },
            _ => ClientError::Unreachable { path: path.clone(), source },
        })?;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            weftd_version: String::new(),
            pid: 0,
            tun_name: String::new(),
            bind: SocketAddr::from(([0, 0, 0, 0], 0)),
            engine: String::new(),
            capabilities: Vec::new(),
            may_change: false,
        };
        let mut client = Client { stream, path, input: BytesMut::new(), timeout, hello };
        let name = concat!("weft ", env!("CARGO_PKG_VERSION"));
        match client.ask(&Request::Hello { protocol: PROTOCOL_VERSION, client: name.into() }) {
            Ok(Reply::Hello(hello)) if hello.protocol == PROTOCOL_VERSION => client.hello = hello,
            Ok(Reply::Hello(hello)) => {
                return Err(ClientError::Version { path: client.path, theirs: hello.protocol.to_string() });
            }
            Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::Version => {
                return Err(ClientError::Version { path: client.path, theirs: format!("(it says: {})", refusal.text) });
            }
            Ok(other) => return Err(client.unexpected("hello", &other)),
            Err(error) => return Err(error),
        }
        Ok(client)
    }

    /// What weftd said about itself when the connection began.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Replaces the whole table, all or nothing. With `expect`, only if that generation is in force when the swap commits.
    pub fn swap(&mut self, set: &RouteSet, expect: Option<u64>) -> Result<Installed, ClientError> {
        set.check(self.hello.bind)?;
        self.transact(Transaction::Swap, expect, set.digest(), set.chunks())
    }

    /// Applies a change to the table in force, all or nothing. `expect` as in [`Client::swap`].
    pub fn delta(&mut self, delta: &Delta, expect: Option<u64>) -> Result<Installed, ClientError> {
        delta.check(self.hello.bind)?;
        self.transact(Transaction::Delta, expect, delta.digest(), delta.chunks())
    }

    /// Reads the whole table back.
    pub fn routes(&mut self) -> Result<Table, ClientError> {
        let installed = match self.ask(&Request::List)? {
            Reply::TableBegin(installed) => installed,
            other => return Err(self.unexpected("list", &other)),
        };
        let mut assembler = Assembler::default();
        loop {
            match self.reply()? {
                Reply::TableChunk(chunk) => assembler.add(chunk).map_err(|error| self.assemble(&error))?,
                Reply::TableEnd { records } if records == assembler.records() => break,
                other => return Err(self.unexpected("list", &other)),
            }
        }
        let set = assembler.into_set().map_err(|error| self.assemble(&error))?;
        if set.digest() != installed.digest {
            return Err(self.protocol("the table that arrived does not have the digest that was announced"));
        }
        Ok(Table { set, installed })
    }

    /// Asks which route covers an inner address.
    pub fn get(&mut self, address: IpAddr) -> Result<RouteAnswer, ClientError> {
        match self.ask(&Request::Get(address))? {
            Reply::Route(answer) => Ok(answer),
            other => Err(self.unexpected("get", &other)),
        }
    }

    /// Reads every peer with its counters, in address order.
    pub fn peers(&mut self) -> Result<Vec<PeerReport>, ClientError> {
        self.send(&Request::Peers)?;
        let mut all = Vec::new();
        loop {
            match self.reply()? {
                Reply::Peers(mut some) => all.append(&mut some),
                Reply::Done => return Ok(all),
                other => return Err(self.unexpected("peers", &other)),
            }
        }
    }

    /// Reads every counter.
    pub fn stats(&mut self) -> Result<StatsReport, ClientError> {
        let totals = match self.ask(&Request::Stats)? {
            Reply::Stats(totals) => totals,
            other => return Err(self.unexpected("stats", &other)),
        };
        let mut workers = Vec::new();
        loop {
            match self.reply()? {
                Reply::Worker(worker) => workers.push(worker),
                Reply::Done => return Ok(StatsReport { totals, workers }),
                other => return Err(self.unexpected("stats", &other)),
            }
        }
    }

    /// Reads the state.
    pub fn status(&mut self) -> Result<StatusReport, ClientError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(self.unexpected("status", &other)),
        }
    }

    /// Changes the log level.
    pub fn set_log_level(&mut self, level: LogLevel) -> Result<(), ClientError> {
        self.done(&Request::SetLogLevel(level), "log-level")
    }

    /// Makes weftd stop reading from TUN, finish what it read, and exit; returns when its workers have ended.
    pub fn drain(&mut self) -> Result<(), ClientError> {
        self.timeout += DRAIN_TIMEOUT;
        self.done(&Request::Drain, "drain")
    }

    /// Turns the connection into a stream of events. The iterator blocks until the next event, and ends with an error when
    /// weftd leaves.
    pub fn subscribe(mut self) -> Result<Events, ClientError> {
        self.done(&Request::Subscribe, "subscribe")?;
        Ok(Events { client: self, failed: false })
    }

    fn transact<'a>(
        &mut self,
        kind: Transaction,
        expect: Option<u64>,
        digest: Digest,
        mut chunks: Chunks<impl Iterator<Item = RecordRef<'a>>>,
    ) -> Result<Installed, ClientError> {
        self.send(&Request::Begin { kind, expect })?;
        for chunk in &mut chunks {
            self.send(&Request::Chunk(chunk))?;
        }
        match self.ask(&Request::Commit { records: chunks.record_count(), digest })? {
            Reply::Installed(installed) => Ok(installed),
            other => Err(self.unexpected(kind.name(), &other)),
        }
    }

    fn done(&mut self, request: &Request, what: &str) -> Result<(), ClientError> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(what, &other)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        self.reply()
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut bytes = BytesMut::with_capacity(FRAME_LEN_MAX);
        request.encode(&mut bytes);
        self.stream.set_write_timeout(Some(self.timeout)).map_err(|source| self.closed(source))?;
        self.stream.write_all(&bytes).map_err(|source| {
            // weftd may have said why before it closed the connection.
            match self.reply() {
                Err(refused @ ClientError::Refused(_)) => refused,
                _ => self.closed(source),
            }
        })
    }

    /// Waits for the next reply; a refusal is an error.
    fn reply(&mut self) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.timeout;
        match self.next_reply(Some(deadline))? {
            Some(Reply::Refused(refusal)) => Err(ClientError::Refused(refusal)),
            Some(reply) => Ok(reply),
            None => Err(ClientError::Timeout { path: self.path.clone(), after: self.timeout }),
        }
    }

    /// Waits for the next reply; `None` at the deadline. What arrived of an unfinished frame is kept for the next call.
    fn next_reply(&mut self, deadline: Option<Instant>) -> Result<Option<Reply>, ClientError> {
        loop {
            let taken = frame::take(&mut self.input).map_err(|error: FrameError| self.protocol(error))?;
            if let Some(frame) = taken {
                return Reply::decode(frame).map(Some).map_err(|error: MessageError| self.protocol(error));
            }
            let wait = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(None),
                wait => wait,
            };
            self.stream.set_read_timeout(wait).map_err(|source| self.closed(source))?;
            let start = self.input.len();
            self.input.resize(start + FRAME_LEN_MAX, 0);
            let result = self.stream.read(&mut self.input[start..]);
            self.input.truncate(start + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => return Err(self.closed(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(self.closed(error)),
            }
        }
    }

    fn closed(&self, source: io::Error) -> ClientError {
        if source.kind() == io::ErrorKind::WouldBlock {
            return ClientError::Timeout { path: self.path.clone(), after: self.timeout };
        }
        ClientError::Closed { path: self.path.clone(), source }
    }

    fn protocol(&self, what: impl ToString) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), what: what.to_string() }
    }

    fn assemble(&self, error: &AssembleError) -> ClientError {
        self.protocol(error)
    }

    fn unexpected(&self, asked: &str, reply: &Reply) -> ClientError {
        let text = format!("{reply:?}");
        let name = text.split(['(', ' ', '{']).next().unwrap_or_default();
        self.protocol(format!("{asked} was answered with {name}"))
    }
}

/// Events of one weftd, oldest first. Ends after the first error.
#[derive(Debug)]
pub struct Events {
    client: Client,
    failed: bool,
}

impl Events {
    /// Waits at most `wait` for the next event; `None`: nothing happened.
    pub fn next_within(&mut self, wait: Duration) -> Result<Option<Event>, ClientError> {
        self.receive(Some(Instant::now() + wait))
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, ClientError> {
        match self.client.next_reply(deadline)? {
            Some(Reply::Event(event)) => Ok(Some(event)),
            Some(Reply::Refused(refusal)) => Err(ClientError::Refused(refusal)),
            Some(other) => Err(self.client.unexpected("subscribe", &other)),
            None => Ok(None),
        }
    }
}

impl Iterator for Events {
    type Item = Result<Event, ClientError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let event = self.receive(None).transpose()?;
        self.failed = event.is_err();
        Some(event)
    }
}

/// Connects with a deadline: a weftd that is stopped with a full backlog would block a plain connect for ever.
fn open(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
