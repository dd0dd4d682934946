//! What everybody else gets: an error, and no effect on tables and neighbours.

use super::*;
use bytes::{BufMut, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdStream;
use weft_proto::limits::{PROGRESS_TIMEOUT, PROTOCOL_VERSION};
use weft_proto::{Delta, Refusal, Request, Transaction, frame};

/// A client that says whatever it likes.
struct Raw {
    stream: StdStream,
    input: BytesMut,
}

impl Raw {
    fn connect(server: &Running) -> Raw {
        let stream = StdStream::connect(&server.path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Raw { stream, input: BytesMut::new() }
    }

    /// Connects and exchanges hellos.
    fn greeted(server: &Running) -> Raw {
        let mut raw = Raw::connect(server);
        raw.say(&bytes(&[hello()]));
        assert!(matches!(raw.reply(), Some(Reply::Hello(_))));
        raw
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Next reply; `None` when the server closed the connection.
    fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(frame) = frame::take(&mut self.input).unwrap() {
                return Some(Reply::decode(frame).unwrap());
            }
            let mut piece = [0; 65536];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(len) => self.input.put_slice(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Next reply, which must be a refusal of that code, after which the connection is closed.
    fn refused_for_good(mut self, code: RefusalCode) -> Refusal {
        match self.reply() {
            Some(Reply::Refused(refusal)) if refusal.code == code => {
                assert_eq!(self.reply(), None, "the connection is closed");
                refusal
            }
            other => panic!("expected {code:?}: {other:?}"),
        }
    }

    /// Says `bytes`, then nothing more; reads until the server closes.
    fn say_all(mut self, bytes: &[u8]) -> Vec<Reply> {
        // A server that has seen enough may close before everything is sent.
        let _ = self.stream.write_all(bytes);
        let _ = self.stream.shutdown(Shutdown::Write);
        std::iter::from_fn(|| self.reply()).collect()
    }
}

fn hello() -> Request {
    Request::Hello { protocol: PROTOCOL_VERSION, client: "test".into() }
}

fn bytes(requests: &[Request]) -> BytesMut {
    let mut bytes = BytesMut::new();
    for request in requests {
        request.encode(&mut bytes);
    }
    bytes
}

/// A whole session that installs `set`.
fn swap_session(set: &RouteSet) -> Vec<Request> {
    let mut session = vec![hello(), Request::Begin { kind: Transaction::Swap, expect: None }];
    session.extend(set.chunks().map(Request::Chunk));
    let records = (set.peers.len() + set.routes.len()) as u32;
    session.push(Request::Commit { records, digest: set.digest() });
    session
}

fn delta_session(delta: &Delta) -> Vec<Request> {
    let mut session = vec![hello(), Request::Begin { kind: Transaction::Delta, expect: Some(1) }];
    let mut chunks = delta.chunks();
    session.extend(chunks.by_ref().map(Request::Chunk));
    session.push(Request::Commit { records: chunks.record_count(), digest: delta.digest() });
    session
}

#[test]
fn every_truncation_and_every_damaged_byte_of_a_session_changes_nothing() {
    let server = Running::start(0);
    server.client().swap(&table(0, 2, 4), None).unwrap();
    let before = server.client().routes().unwrap();
    let delta = Delta {
        upsert: vec![("10.7.0.0/16".parse().unwrap(), peer(3)), ("fd00::/64".parse().unwrap(), peer(3))],
        remove: vec!["10.0.0.1/32".parse().unwrap()],
    };
    let sessions = [
        swap_session(&table(7, 2, 3)),
        delta_session(&delta),
        vec![hello(), Request::Drain],
        vec![hello(), Request::Status, Request::List, Request::SetLogLevel(weft_proto::LogLevel::Warn)],
    ];
    for session in sessions {
        let good = bytes(&session);
        for len in 0..good.len() {
            Raw::connect(&server).say_all(&good[..len]);
        }
        for position in 0..good.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = good.to_vec();
                damaged[position] ^= flip;
                let replies = Raw::connect(&server).say_all(&damaged);
                // Every session ends with its only change, so no damage may let that be answered as done.
                let done = replies.iter().any(|reply| matches!(reply, Reply::Installed(_) | Reply::Done));
                assert!(!done, "byte {position} ^ {flip:#x}: {replies:?}");
            }
        }
        assert_eq!(server.client().routes().unwrap(), before);
    }
}

#[test]
fn the_recorded_sessions_do_work_undamaged() {
    let server = Running::start(0);
    let replies = Raw::connect(&server).say_all(&bytes(&swap_session(&table(0, 2, 4))));
    assert!(matches!(replies.as_slice(), [Reply::Hello(_), Reply::Installed(_)]), "{replies:?}");
    let delta = Delta { upsert: vec![], remove: vec!["10.0.0.1/32".parse().unwrap()] };
    let replies = Raw::connect(&server).say_all(&bytes(&delta_session(&delta)));
    assert!(matches!(replies.as_slice(), [Reply::Hello(_), Reply::Installed(_)]), "{replies:?}");
    assert_eq!(server.generation(), 2);
}

#[test]
fn a_wrong_digest_or_count_is_refused_and_the_connection_goes_on() {
    let server = Running::start(0);
    let set = table(0, 2, 4);
    let mut session = swap_session(&set);
    let mut raw = Raw::greeted(&server);
    for wrong in [
        Request::Commit { records: 5, digest: set.digest() },
        Request::Commit { records: 6, digest: table(1, 2, 4).digest() },
    ] {
        *session.last_mut().unwrap() = wrong;
        raw.say(&bytes(&session[1..]));
        assert!(matches!(raw.reply(), Some(Reply::Refused(refusal)) if refusal.code == RefusalCode::Malformed));
    }
    raw.say(&bytes(&swap_session(&set)[1..]));
    assert!(matches!(raw.reply(), Some(Reply::Installed(installed)) if installed.generation == 1));
}

#[test]
fn a_table_beyond_the_bounds_is_refused_as_it_arrives_and_the_connection_goes_on() {
    let server = Running::start(0);
    let mut raw = Raw::greeted(&server);
    let mut oversized = table(0, weft_proto::limits::PEERS_MAX as u32 + 1, 0);
    oversized.peers.iter_mut().for_each(|peer| peer.name = None);
    raw.say(&bytes(&swap_session(&oversized)[1..]));
    assert!(matches!(raw.reply(), Some(Reply::Refused(refusal)) if refusal.code == RefusalCode::TooLarge));
    raw.say(&bytes(&swap_session(&table(0, 2, 4))[1..]));
    assert!(matches!(raw.reply(), Some(Reply::Installed(installed)) if installed.generation == 1));
}

#[test]
fn strangers_are_told_what_is_wrong() {
    let server = Running::start(0);
    let mut raw = Raw::connect(&server);
    raw.say(b"GET / HTTP/1.1\r\nHost: weft\r\n\r\n");
    assert!(raw.refused_for_good(RefusalCode::TooLarge).text.contains("weftd's control socket"));
    let mut raw = Raw::connect(&server);
    raw.say(&bytes(&[Request::Hello { protocol: 99, client: "weft 99".into() }]));
    assert!(raw.refused_for_good(RefusalCode::Version).text.contains("weft 99 speaks protocol version 99"));
    let mut raw = Raw::connect(&server);
    raw.say(&bytes(&[Request::Status]));
    raw.refused_for_good(RefusalCode::Malformed);
    for out_of_place in [hello(), Request::Chunk(bytes::Bytes::new())] {
        let mut raw = Raw::greeted(&server);
        raw.say(&bytes(&[out_of_place]));
        raw.refused_for_good(RefusalCode::Malformed);
    }
    let mut raw = Raw::greeted(&server);
    raw.say(&u32::MAX.to_be_bytes());
    raw.say(&[0; 5]);
    assert!(raw.refused_for_good(RefusalCode::TooLarge).text.contains("4294967295 bytes"));
    let mut raw = Raw::greeted(&server);
    raw.say(&bytes(&[Request::Begin { kind: Transaction::Swap, expect: None }, Request::Status]));
    raw.refused_for_good(RefusalCode::Malformed);
}

#[test]
fn half_sent_messages_and_transactions_are_cut_off_in_time_and_hold_up_nobody() {
    let server = Running::start(0);
    let session = bytes(&swap_session(&table(0, 50, 100_000)));
    let begun = Instant::now();
    let mut half_frame = Raw::connect(&server);
    half_frame.say(&session[..session.len() / 2]);
    assert!(matches!(half_frame.reply(), Some(Reply::Hello(_))));
    let mut half_transaction = Raw::greeted(&server);
    half_transaction.say(&bytes(&[Request::Begin { kind: Transaction::Swap, expect: None }]));
    let silent = Raw::connect(&server);
    server.client().swap(&table(9, 1, 10), None).unwrap();
    assert!(begun.elapsed() < PROGRESS_TIMEOUT, "others are served meanwhile");
    for raw in [half_frame, half_transaction, silent] {
        raw.refused_for_good(RefusalCode::Deadline);
    }
    assert!(begun.elapsed() >= PROGRESS_TIMEOUT);
    assert_eq!(server.generation(), 1, "only the whole one was installed");
}

#[test]
fn a_reader_that_does_not_read_is_disconnected() {
    let server = Running::start(0);
    server.client().swap(&table(0, 50, 100_000), None).unwrap();
    let mut slow = Raw::greeted(&server);
    slow.say(&bytes(&[Request::List]));
    assert_eq!(server.client().status().unwrap().routes, 100_000);
    // Nothing is read until the server has hung up.
    let mut waits = [PollFd::new(&slow.stream, PollFlags::empty())];
    let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut waits, Some(&timeout)).unwrap(), 1, "it is still connected");
    let replies: Vec<_> = std::iter::from_fn(|| {
        let mut piece = [0; 65536];
        slow.stream.read(&mut piece).ok().filter(|len| *len > 0)
    })
    .collect();
    let received: usize = replies.iter().sum();
    assert!(received < 900_000, "{received} bytes of a table that takes a million arrived");
}

#[test]
fn a_subscriber_that_does_not_read_is_disconnected() {
    let server = Running::start(0);
    let mut slow = Raw::greeted(&server);
    slow.say(&bytes(&[Request::Subscribe]));
    let mut client = server.client();
    let set = table(0, 1, 1);
    let mut events = server.client().subscribe().unwrap();
    for generation in 1..=6000 {
        client.swap(&set, None).unwrap();
        match events.next_within(TIMEOUT).unwrap() {
            Some(weft_proto::Event::TableInstalled { generation: told, .. }) => assert_eq!(told, generation),
            other => panic!("{other:?}"),
        }
    }
    let mut received = 0;
    while let Ok(len @ 1..) = slow.stream.read(&mut [0; 65536]) {
        received += len;
    }
    assert!(received < 6000 * 130, "{received} bytes");
}

#[test]
fn connections_beyond_the_bound_are_told_so() {
    let server = Running::start(0);
    let clients: Vec<_> = (0..CLIENTS_MAX).map(|_| server.client()).collect();
    let raw = Raw::connect(&server);
    assert!(raw.refused_for_good(RefusalCode::Busy).text.contains("all 16 control connections"));
    drop(clients);
    eventually("the slots are free again", || Client::connect(&server.path, TIMEOUT).is_ok());
}
