//! The command line from outside: names, variables, refusals, health, systemd, secrets.

use super::*;
use rustix::process::Signal;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

#[test]
fn as_flanneld_with_variables_it_tells_systemd_and_whoever_asks_for_its_health() -> Result<()> {
    let Some(mut cluster) = Cluster::new(1, r#"{"Network": "10.5.0.0/16"}"#)? else { return Ok(()) };
    const PASSWORD: &str = "correct-horse-battery";
    cluster.etcd.add_user("flannel", PASSWORD, PREFIX, true)?;
    cluster.etcd.enable_auth()?;
    let host = &cluster.hosts[0];
    let flanneld = host.path("flanneld");
    symlink(weft_lab::weft_binary()?, &flanneld)?;
    let socket = UnixDatagram::bind(host.path("notify"))?;
    socket.set_read_timeout(Some(JOIN_TIMEOUT))?;
    let subnet_file = host.path("subnet.env");
    let mut command = Command::new(&flanneld);
    command
        .args(["-healthz-port", "8081", "-v", "10", "--ip-masq=false"])
        .env("WEFTD", weft_lab::weftd_binary()?)
        .env("NOTIFY_SOCKET", host.path("notify"))
        .env("FLANNELD_ETCD_ENDPOINTS", cluster.etcd.url())
        .env("FLANNELD_ETCD_USERNAME", "flannel")
        .env("FLANNELD_ETCD_PASSWORD", PASSWORD)
        .env("FLANNELD_IFACE", "192.0.2.1")
        .env("FLANNELD_SUBNET_FILE", &subnet_file)
        .env("FLANNELD_RUN_DIR", host.run_dir())
        .env_remove("RUST_LOG");
    let process = host.node.spawn(command)?;
    let mut daemon = Daemon { process, node: host.node.clone(), subnet_file };
    daemon.joined()?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    assert_eq!(String::from_utf8_lossy(&buffer[..len]).trim(), "READY=1");
    let ok = |text: &str| ("HTTP/1.1 200 OK".to_owned(), text.to_owned());
    assert_eq!(http(&daemon.node, 8081, "/healthz")?, ok("flanneld is running"));
    assert_eq!(http(&daemon.node, 8081, "/readyz")?, ok("flanneld is ready"));
    daemon.end()?;
    let log = daemon.process.log();
    ensure!(!log.contains(PASSWORD), "the password is in the log");
    Ok(())
}

#[test]
fn it_waits_for_its_config_and_ends_when_asked_meanwhile() -> Result<()> {
    let Some(cluster) = Cluster::new(1, "")? else { return Ok(()) };
    let mut daemon = cluster.start(1, &["--healthz-port=8081"])?;
    daemon.says("waiting for the network config")?;
    assert_eq!(http(&daemon.node, 8081, "/healthz")?.1, "flanneld is running");
    let (status, body) = http(&daemon.node, 8081, "/readyz")?;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 503 Service Unavailable", "flanneld is not ready yet"));
    daemon.end()?;
    // A config that makes no sense is waited out as well, and named.
    cluster.etcd.put(&format!("{PREFIX}/config"), r#"{"Network": "10.5.0.0/33"}"#)?;
    let mut daemon = cluster.start(1, &[])?;
    daemon.says("10.5.0.0/33")?;
    cluster.etcd.put(&format!("{PREFIX}/config"), r#"{"Network": "10.5.0.0/16"}"#)?;
    daemon.joined()?;
    // A second signal does not wait for anything.
    daemon.end()
}

#[test]
fn what_cannot_be_is_said_in_a_sentence_and_by_the_exit_code() -> Result<()> {
    let Some(cluster) = Cluster::new(1, r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "WireGuard"}}"#)? else {
        return Ok(());
    };
    let host = &cluster.hosts[0];
    let run = |flags: &[&str]| host.run(&[&["flanneld", "--etcd-endpoints", &cluster.etcd.url()], flags].concat());
    run(&["--iface=u0"])?.exits(1)?.says(&["wireguard", "udp, vxlan and host-gw"])?;
    run(&["--kube-subnet-mgr"])?.exits(1)?.says(&["--kube-subnet-mgr is for Kubernetes"])?;
    run(&["--no-such-flag"])?.exits(2)?.says(&["there is no flag", "Usage: flanneld"])?;
    run(&["--subnet-lease-renew-margin=1440"])?.exits(2)?.says(&["1 to 1439 minutes"])?;
    run(&["--help"])?.exits(0)?.says(&["--etcd-endpoints", "FLANNELD_<FLAG>"])?;
    run(&["--version"])?.exits(0)?.says(&["weft "])?;
    run(&["--etcd-cafile=/nonexistent"])?.exits(1)?.says(&["/nonexistent"])?;
    cluster.etcd.put(&format!("{PREFIX}/config"), r#"{"Network": "10.5.0.0/16"}"#)?;
    run(&["--iface=nonesuch"])?.exits(1)?.says(&["nonesuch", "u0"])?;
    Ok(())
}

#[test]
fn a_second_signal_ends_it_at_once() -> Result<()> {
    let Some(cluster) = Cluster::new(1, "")? else { return Ok(()) };
    // An endpoint that swallows everything: the daemon is in the middle of waiting for an answer.
    cluster.etcd.pause()?;
    let mut daemon = cluster.start(1, &[])?;
    daemon.says("as flanneld")?;
    std::thread::sleep(Duration::from_millis(200));
    // The kernel joins signals that are pending at once. For an answer it would wait longer than this.
    let status = eventually(Duration::from_secs(4), || {
        daemon.process.signal(Signal::TERM)?;
        daemon.process.try_wait()?.context("it runs")
    })?;
    cluster.etcd.unpause()?;
    use std::os::unix::process::ExitStatusExt;
    ensure!(status.signal() == Some(15) || status.success(), "{status}");
    Ok(())
}
