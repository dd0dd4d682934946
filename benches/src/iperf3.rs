//! iperf3 on the path of a subject, as a witness for what the built-in workloads find.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_lab::measure::{Path, Stop};
use weft_lab::{Process, eventually};

const PROGRAM: &str = "iperf3";
/// How long its server has to listen.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look whether it is done.
const LOOK: Duration = Duration::from_millis(20);

/// Whether iperf3 is installed.
///
/// # Errors
/// If it is not; the error says how to get it.
pub fn check_installed() -> Result<()> {
    let found = Command::new(PROGRAM).arg("--version").output();
    found.map(drop).with_context(|| format!("{PROGRAM} is not installed (on Debian: apt-get install {PROGRAM})"))
}

/// TCP throughput through so many connections, payload bits per second at the receiver.
///
/// # Errors
/// If iperf3 fails, with what it said, or [`weft_lab::measure::Stopped`].
pub fn tcp_throughput(
    path: &Path<'_>,
    flows: usize,
    length: Duration,
    congestion_control: Option<&str>,
    stop: &Stop,
) -> Result<f64> {
    let address = path.address.to_string();
    let mut server = Command::new(PROGRAM);
    server.args(["--server", "--one-off", "--bind", &address]);
    let mut server = path.to.spawn(server)?;
    server.quiet();
    let output = eventually(START_TIMEOUT, || {
        let mut client = client(path, path.address, flows, length, congestion_control)?;
        let status = loop {
            stop.check()?;
            match client.try_wait()? {
                Some(status) => break status,
                None => std::thread::sleep(LOOK),
            }
        };
        ensure!(status.success(), "{}", client.log());
        Ok(client.log())
    });
    stop.check()?;
    received(&output.with_context(|| format!("{PROGRAM} to {address}"))?)
}

fn client(
    path: &Path<'_>,
    address: IpAddr,
    flows: usize,
    length: Duration,
    congestion_control: Option<&str>,
) -> Result<Process> {
    let mut client = Command::new(PROGRAM);
    let seconds = length.as_secs().max(1).to_string();
    client.args(["--client", &address.to_string(), "--json", "--parallel", &flows.to_string(), "--time", &seconds]);
    client.args(congestion_control.into_iter().flat_map(|name| ["--congestion", name]));
    let mut client = path.from.spawn(client)?;
    client.quiet();
    Ok(client)
}

/// What the receiver counted, from the JSON of the client.
fn received(json: &str) -> Result<f64> {
    let value: serde_json::Value = serde_json::from_str(json).with_context(|| format!("{PROGRAM} said: {json}"))?;
    match value["end"]["sum_received"]["bits_per_second"].as_f64() {
        Some(bits) => Ok(bits),
        None => bail!("{PROGRAM} tells no end.sum_received.bits_per_second: {json}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receivers_count_is_read() {
        let json = r#"{"end": {"sum_sent": {"bits_per_second": 2e9}, "sum_received": {"bits_per_second": 1.5e9}}}"#;
        assert_eq!(received(json).unwrap(), 1.5e9);
        assert!(received(r#"{"error": "unable to connect"}"#).unwrap_err().to_string().contains("unable to connect"));
    }
}
