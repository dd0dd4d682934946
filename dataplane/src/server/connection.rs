//! One client's socket: frames in and out without ever blocking, and deadlines on whoever dawdles.

use super::core::{Core, refusal};
use super::session::{Next, Session};
use bytes::{Buf, BytesMut};
use mio::net::UnixStream;
use std::io::{self, Read, Write};
use std::time::Instant;
use weft_proto::limits::{FRAME_LEN_MAX, OUT_QUEUE_LEN_MAX, PROGRESS_TIMEOUT};
use weft_proto::{Event, FrameError, RefusalCode, Reply, frame};

/// Frames that one client may have handled before the others get their turn.
const TURN_FRAME_COUNT: usize = 16;

/// Replies are made ahead of the reader up to here; a stream pauses above.
const OUT_QUEUE_LEN_AIM: usize = OUT_QUEUE_LEN_MAX - FRAME_LEN_MAX;

/// A client.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// May change things, so does not count against the readers' share.
    pub may_change: bool,
    session: Session,
    input: BytesMut,
    output: BytesMut,
    /// Readiness that the kernel reported and that was not used up.
    readable: bool,
    writable: bool,
    /// The client will send no more.
    ended: bool,
    /// Close as soon as the output is sent.
    closing: bool,
    /// When the unfinished frame at the front of `input` began.
    input_since: Option<Instant>,
    /// When the waiting output last shrank.
    output_since: Option<Instant>,
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until the kernel or a deadline says so.
    Idle,
    /// More to do at once.
    Busy,
    /// The connection is over.
    Over,
}

impl Connection {
    /// Takes over an accepted socket.
    pub fn new(socket: UnixStream, may_change: bool) -> Connection {
        Connection {
            socket,
            may_change,
            session: Session::new(may_change),
            input: BytesMut::new(),
            output: BytesMut::new(),
            readable: true,
            writable: true,
            ended: false,
            closing: false,
            input_since: None,
            output_since: None,
        }
    }

    /// The socket, for registration.
    pub fn socket(&mut self) -> &mut UnixStream {
        &mut self.socket
    }

    /// Notes readiness.
    pub fn ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Whether events go here.
    pub fn subscribed(&self) -> bool {
        self.session.subscribed()
    }

    /// Does what can be done without blocking, up to a bound.
    pub fn turn(&mut self, core: &mut Core<'_>) -> Turn {
        match self.work(core) {
            Ok(turn) => turn,
            Err(error) => {
                tracing::debug!(%error, "control connection broke");
                Turn::Over
            }
        }
    }

    fn work(&mut self, core: &mut Core<'_>) -> io::Result<Turn> {
        for _ in 0..TURN_FRAME_COUNT {
            self.flush()?;
            let progress = if self.closing {
                false
            } else if self.output.len() >= OUT_QUEUE_LEN_AIM {
                self.flush()?;
                self.output.len() < OUT_QUEUE_LEN_AIM
            } else if !self.session.ready() {
                self.session.pump(core, &mut self.output)
            } else {
                self.take_frame(core) || self.fill()?
            };
            if !progress {
                self.flush()?;
                let over = self.output.is_empty() && (self.closing || self.ended);
                return Ok(if over { Turn::Over } else { Turn::Idle });
            }
        }
        Ok(Turn::Busy)
    }

    /// Handles the next whole frame. `false`: there is none.
    fn take_frame(&mut self, core: &mut Core<'_>) -> bool {
        match frame::take(&mut self.input) {
            Ok(Some(frame)) => {
                self.input_since = None;
                self.closing = self.session.handle(frame, core, &mut self.output) == Next::Close;
                true
            }
            Ok(None) => {
                if self.input.is_empty() {
                    self.input_since = None;
                } else {
                    self.input_since.get_or_insert_with(Instant::now);
                }
                false
            }
            Err(error) => {
                let code = match error {
                    FrameError::TooLong(_) => RefusalCode::TooLarge,
                    FrameError::Check => RefusalCode::Malformed,
                };
                self.refuse(code, &error.to_string());
                true
            }
        }
    }

    /// Reads once. `false`: nothing arrived.
    fn fill(&mut self) -> io::Result<bool> {
        if !self.readable || self.ended {
            return Ok(false);
        }
        let start = self.input.len();
        self.input.resize(start + FRAME_LEN_MAX, 0);
        let result = self.socket.read(&mut self.input[start..]);
        self.input.truncate(start + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => {
                self.ended = true;
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Writes what the kernel takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.writable && !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(len) => {
                    self.output.advance(len);
                    self.output_since = Some(Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.output.is_empty() {
            self.output_since = None;
        } else {
            self.output_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Queues an event for a subscriber. `false`: the subscriber reads too slowly and must go.
    pub fn event(&mut self, event: &Event) -> bool {
        self.session.event(event, &mut self.output);
        self.output.len() <= OUT_QUEUE_LEN_MAX && self.flush().is_ok()
    }

    /// Sends the end of a drain to a client that waits for it, as far as the kernel takes it.
    pub fn drained(&mut self) {
        self.session.drained(&mut self.output);
        let _ = self.flush();
    }

    /// When this client has dawdled for too long; `None`: it may take its time.
    pub fn deadline(&self) -> Option<Instant> {
        let reading = (!self.subscribed() || self.closing).then_some(self.output_since).flatten();
        let session = if self.closing { None } else { self.session.deadline() };
        [self.input_since.map(|since| since + PROGRESS_TIMEOUT), reading.map(|since| since + PROGRESS_TIMEOUT), session]
            .into_iter()
            .flatten()
            .min()
    }

    /// Ends a client whose deadline has passed; it is told why if it reads at all. Whoever did not read in time is cut off.
    pub fn expire(&mut self) -> Turn {
        let unread = self.closing || !self.output.is_empty();
        self.input_since = None;
        self.refuse(
            RefusalCode::Deadline,
            &format!("a begun message, transaction or reply was not finished within {PROGRESS_TIMEOUT:?}"),
        );
        if unread || self.flush().is_err() || self.output.is_empty() { Turn::Over } else { Turn::Idle }
    }

    fn refuse(&mut self, code: RefusalCode, text: &str) {
        Reply::Refused(refusal(code, text)).encode(&mut self.output);
        self.closing = true;
    }
}
