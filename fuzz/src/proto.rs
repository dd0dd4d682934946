//! Targets over weft-proto.

use bytes::{Bytes, BytesMut};
use weft_proto::{Assembler, Frame, Reply, Request, frame};

/// Feeds bytes to every decoder of the control socket: as a stream, and past the frame's check as one message (first byte:
/// its kind) and as one chunk. Whatever decodes must encode to a message that decodes to the same.
pub fn proto_decode(input: &[u8]) {
    let mut stream = BytesMut::from(input);
    while let Ok(Some(frame)) = frame::take(&mut stream) {
        message(frame);
    }
    if let Some((&kind, body)) = input.split_first() {
        message(Frame { kind, body: Bytes::copy_from_slice(body) });
    }
    chunk(Bytes::copy_from_slice(input));
}

fn message(frame: Frame) {
    if let Ok(request) = Request::decode(frame.clone()) {
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        let again = frame::take(&mut bytes).expect("an encoded frame passes its check").expect("and is whole");
        assert_eq!(Request::decode(again).expect("an encoded request decodes"), request);
        if let Request::Chunk(records) = request {
            chunk(records);
        }
    }
    // JSON with omitted fields grows when it is written again; what weftd writes stays within a frame.
    let room_to_grow = frame.body.len() <= frame::BODY_LEN_MAX / 4;
    if let Ok(reply) = Reply::decode(frame)
        && room_to_grow
    {
        let mut bytes = BytesMut::new();
        reply.encode(&mut bytes);
        let again = frame::take(&mut bytes).expect("an encoded frame passes its check").expect("and is whole");
        Reply::decode(again).expect("an encoded reply decodes");
    }
}

fn chunk(records: Bytes) {
    let mut assembler = Assembler::default();
    if assembler.add(records).is_err() {
        return;
    }
    let set = assembler.into_set().unwrap_or_default();
    let mut again = Assembler::default();
    set.chunks().for_each(|chunk| again.add(chunk).expect("a decoded set encodes to records that decode"));
    let again = again.into_set().expect("a set holds no removals");
    assert_eq!(again, set);
    assert_eq!(again.canonical().digest(), set.digest());
}
