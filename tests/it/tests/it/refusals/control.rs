//! Clients of the control socket that send half a frame, garbage, or lengths that nobody has room for, that never read, or
//! that are too many: the packets do not notice.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use weft_lab::{eventually, udp};
use weft_proto::Request;
use weft_proto::limits::PROTOCOL_VERSION;

use crate::support::{Family, TIMEOUT, Tunnel};

/// Attacks during one stream.
const ATTACK_COUNT_MIN: u32 = 20;

fn hello() -> BytesMut {
    let mut bytes = BytesMut::new();
    Request::Hello { protocol: PROTOCOL_VERSION, client: "hostile".into() }.encode(&mut bytes);
    bytes
}

/// One hostile connection of a kind; what weftd does about it, if anything, is to close it.
fn attack(path: &Path, kind: u32) -> Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(Duration::from_millis(50)))?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    // A refusal closes the connection, so writing and reading may fail.
    let mut write = |bytes: &[u8]| stream.write_all(bytes).is_ok();
    match kind % 6 {
        0 => drop(write(&hello()[..7])),
        1 => drop(write(&[0xff; 4096])),
        2 => drop(write(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1])),
        3 => {
            let mut bytes = hello();
            bytes[10] ^= 0x40;
            write(&bytes);
        }
        4 => {
            // Asks and asks, and reads nothing of the answers.
            let mut bytes = hello();
            for _ in 0..2000 {
                Request::Stats.encode(&mut bytes);
            }
            write(&bytes);
        }
        _ => return Ok(()), // Comes and goes.
    }
    let _ = stream.read(&mut [0; 64]);
    Ok(())
}

/// Which step of the way has fewer packets than the one before.
fn where_lost(tunnel: &Tunnel) -> String {
    let (Ok(a), Ok(b)) = (tunnel.a.stats(), tunnel.b.stats()) else { return "weftd does not answer".into() };
    let (read, sent, accepted) = (a.counter("tun_read_packets"), a.sent(), b.accepted());
    format!(
        "a read {read} from the TUN and sent {sent}, b accepted {accepted}; dropped {:?} {:?}",
        a.drops(),
        b.drops()
    )
}

#[test]
fn hostile_clients_cost_no_packet_and_keep_nobody_out_for_long() -> Result<()> {
    for engine in ["uring", "epoll"] {
        let Some(tunnel) = Tunnel::builder().each(|options| options.engine = Some(engine.into())).build()? else {
            return Ok(());
        };
        let generation = tunnel.a.status()?.generation;
        let path = tunnel.a.weftd.socket();
        let (done, attacks) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| -> Result<()> {
            let hostile: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        while !done.load(Ordering::Relaxed) {
                            // weftd may be too busy with the others to take one more.
                            let _ = attack(path, attacks.fetch_add(1, Ordering::Relaxed));
                        }
                    })
                })
                .collect();
            let stream = udp::Stream::new(tunnel.b.overlay(Family::V4), 20_000, 500);
            let outcome = udp::during(&tunnel.a.node, &tunnel.b.node, &stream, || {
                eventually(TIMEOUT, || {
                    ensure!(attacks.load(Ordering::Relaxed) > ATTACK_COUNT_MIN, "only {attacks:?} attacks");
                    Ok(())
                })
            });
            done.store(true, Ordering::Relaxed);
            for thread in hostile {
                thread.join().expect("a hostile client ends without a panic");
            }
            outcome?.0.perfect().map(drop)
        })
        .with_context(|| format!("{engine}: {}", where_lost(&tunnel)))?;
        let status = eventually(TIMEOUT, || tunnel.a.status())?;
        ensure!(status.generation == generation && status.routes == 2, "{engine}: the table changed: {status:?}");
        ensure!(!tunnel.a.weftd.log().contains("panicked"), "{engine}:\n{}", tunnel.a.weftd.log());
        tunnel.balanced()?;
    }
    Ok(())
}
