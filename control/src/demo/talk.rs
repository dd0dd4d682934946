//! The two hosts talk: echo requests, and real files.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use weft_lab::measure::Stop;
use weft_lab::{Ping, ping};

use super::hosts::Host;
use super::report::{PingReport, TransferReport};

/// Echo requests of one ping.
const PING_COUNT: usize = 5;
/// TTL or hop limit that an echo reply starts with: Linux's default.
const TTL_SENT: u8 = 64;
/// What is left of it: encap and decap count as one router each.
const TTL_EXPECTED: u8 = TTL_SENT - 2;
/// Longest wait for an echo reply, and longest standstill of a transfer.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one read or write.
const CHUNK_LEN: usize = 128 * 1024;

/// Pings `to` from `from` by one of its addresses inside the tunnel. A failure is in the report.
pub fn exchange_pings(from: &Host, to: &Host, address: IpAddr) -> PingReport {
    let mut times = Vec::new();
    let mut report = PingReport {
        ok: false,
        from: from.node.name().into(),
        to: to.node.name().into(),
        address,
        sent: 0,
        received: 0,
        rtt_us: None,
        ttl: None,
        error: None,
    };
    let outcome = (0..PING_COUNT).try_for_each(|_| -> Result<()> {
        report.sent += 1;
        let (rtt, ttl) = ping(&from.node, &Ping { timeout: STALL_TIMEOUT, ..Ping::to(address) })?.reply()?;
        report.received += 1;
        report.ttl = Some(ttl);
        times.push(rtt.as_nanos() as f64 / 1e3);
        ensure!(
            ttl == TTL_EXPECTED,
            "the reply has TTL {ttl}; two tunnel ends should have left {TTL_EXPECTED} of {TTL_SENT}"
        );
        Ok(())
    });
    times.sort_by(f64::total_cmp);
    report.rtt_us = times.get(times.len() / 2).copied();
    report.ok = outcome.is_ok();
    report.error = outcome.err().map(|error| format!("{error:#}"));
    report
}

/// Writes a file of random bytes.
///
/// # Errors
/// If the disk is full, or the kernel refuses.
pub fn write_random_file(path: &Path, bytes: u64, stop: &Stop) -> Result<()> {
    let mut file = File::create(path)?;
    let mut random = File::open("/dev/urandom")?;
    let mut chunk = vec![0; CHUNK_LEN];
    let mut left = bytes;
    while left > 0 {
        stop.check()?;
        let len = left.min(CHUNK_LEN as u64) as usize;
        random.read_exact(&mut chunk[..len])?;
        file.write_all(&chunk[..len]).with_context(|| format!("writing {}", path.display()))?;
        left -= len as u64;
    }
    Ok(())
}

/// Sends the file `source` from one host to an address of another, where it is written to `target`, and compares the
/// hashes of both files as they are on disk. A failure is in the report.
pub fn transfer_file(
    from: &Host,
    to: &Host,
    address: IpAddr,
    source: &Path,
    target: &Path,
    stop: &Stop,
) -> TransferReport {
    let mut report = TransferReport {
        ok: false,
        from: from.node.name().into(),
        to: to.node.name().into(),
        address,
        bytes: 0,
        seconds: None,
        sha256_sent: None,
        sha256_received: None,
        error: None,
    };
    let outcome = (|| -> Result<()> {
        report.bytes = source.metadata()?.len();
        report.seconds = Some(send_file(from, to, address, source, target, stop)?.as_secs_f64());
        let sent = hash_of(source, stop)?;
        let received = hash_of(target, stop)?;
        let is_same = sent == received;
        (report.sha256_sent, report.sha256_received) = (Some(sent), Some(received));
        ensure!(is_same, "the file that arrived is not the one that was sent");
        Ok(())
    })();
    report.ok = outcome.is_ok();
    report.error = outcome.err().map(|error| format!("{error:#}"));
    report
}

/// From connecting to the last byte written.
fn send_file(from: &Host, to: &Host, address: IpAddr, source: &Path, target: &Path, stop: &Stop) -> Result<Duration> {
    let listener =
        to.node.run(|| TcpListener::bind((address, 0))).with_context(|| format!("listening on {address}"))?;
    let address = listener.local_addr()?;
    let mut file = File::open(source)?;
    let mut copy = File::create(target)?;
    let started = Instant::now();
    let mut sender = from
        .node
        .run(|| TcpStream::connect_timeout(&address, STALL_TIMEOUT))
        .with_context(|| format!("connecting to {address}"))?;
    // The connection is in the queue of the listener by now.
    let (mut receiver, _) = listener.accept()?;
    for end in [&sender, &receiver] {
        end.set_read_timeout(Some(STALL_TIMEOUT))?;
        end.set_write_timeout(Some(STALL_TIMEOUT))?;
    }
    thread::scope(|scope| {
        let sending = scope.spawn(move || pump(&mut file, &mut sender, stop).context("sending"));
        let received = pump(&mut receiver, &mut copy, stop).context("receiving");
        drop(receiver); // A sender that is left alone ends.
        let sent = sending.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        received.and(sent)
    })?;
    Ok(started.elapsed())
}

/// Moves everything from one to the other.
fn pump(from: &mut impl Read, to: &mut impl Write, stop: &Stop) -> Result<u64> {
    let mut chunk = vec![0; CHUNK_LEN];
    let mut count = 0;
    loop {
        stop.check()?;
        match from.read(&mut chunk).with_context(|| format!("after {count} bytes"))? {
            0 => return Ok(count),
            len => {
                to.write_all(&chunk[..len]).with_context(|| format!("after {count} bytes"))?;
                count += len as u64;
            }
        }
    }
}

fn hash_of(path: &Path, stop: &Stop) -> Result<String> {
    let mut hash = Sha256::new();
    pump(&mut File::open(path)?, &mut HashWriter(&mut hash), stop)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_file_has_the_length_asked_for_and_a_known_form_of_hash() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        write_random_file(&path, 300_001, &Stop::default()).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 300_001);
        assert_eq!(hash_of(&path, &Stop::default()).unwrap().len(), 64);
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2 appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_of(&path, &Stop::default()).unwrap(), expected);
    }

    #[test]
    fn a_stopped_copy_says_so() {
        let stop = Stop::default();
        stop.raise();
        let directory = tempfile::tempdir().unwrap();
        let error = write_random_file(&directory.path().join("f"), 1 << 30, &stop).unwrap_err();
        assert!(error.is::<weft_lab::measure::Stopped>());
    }
}
