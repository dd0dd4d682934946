//! A host: an anonymous network namespace, the thread that holds it, and calls inside it.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use ipnet::IpNet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use weft_netlink::{Address, Link, Netlink, Route};

use crate::{Process, TIMEOUT, eventually, sys};

/// What every node is set to: routing decisions as written, IPv6 without waiting and without router solicitations.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// A host. Clones are the same host; it vanishes with the last clone and the last process on it.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    namespace: File,
    /// Jobs for the holder thread; `None` once the node is being dropped.
    jobs: Mutex<Option<Sender<Job>>>,
    holder: Mutex<Option<JoinHandle<()>>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Node {
    /// A new host with the loopback link up and nothing else.
    ///
    /// # Errors
    /// The kernel's, if it makes no namespace (`EPERM` without root).
    pub fn new(name: &str) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, opened) = mpsc::channel();
        let holder = thread::Builder::new().name(format!("node {name}")).spawn(move || {
            let namespace = sys::unshare_network().and_then(|()| File::open("/proc/thread-self/ns/net"));
            let failed = namespace.is_err();
            if ready.send(namespace).is_err() || failed {
                return;
            }
            queue.into_iter().for_each(|job| job());
        })?;
        let namespace = opened
            .recv()
            .map_err(|_| anyhow!("the thread of node {name} ended"))?
            .with_context(|| format!("making a network namespace for node {name}"))?;
        let inner =
            Inner { name: name.into(), namespace, jobs: Mutex::new(Some(jobs)), holder: Mutex::new(Some(holder)) };
        let node = Self { inner: Arc::new(inner) };
        for (key, value) in SYSCTLS {
            node.sysctl(key, value)?;
        }
        let mut netlink = node.netlink()?;
        let loopback = netlink.expect_link("lo")?;
        netlink.set_up(loopback.index)?;
        Ok(node)
    }

    /// The name for messages.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The namespace's inode number, by which the kernel calls it in `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.inner.namespace.metadata()?.ino())
    }

    /// Runs `work` on a thread inside the namespace and returns what it gave. Sockets that it opens stay in the namespace,
    /// wherever they are used later.
    ///
    /// # Panics
    /// With the panic of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter();
                work()
            });
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good. For threads that a test starts itself.
    ///
    /// # Panics
    /// If the kernel refuses, which needs the loss of privileges.
    pub fn enter(&self) {
        move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap_or_else(|error| panic!("entering the namespace of {}: {error}", self.name()));
    }

    /// Starts a program on the node. It gets no input; its output is kept in [`Process::log`].
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Process> {
        let name = format!("{command:?} on {}", self.name());
        let log = Process::redirect(&mut command)?;
        // The kernel sends the parent-death signal when the *thread* that started the process ends, so it is started by
        // the thread that lives as long as the node.
        sys::die_with_parent_thread(&mut command);
        let child = self.on_holder(move || command.spawn())?.with_context(|| format!("starting {name}"))?;
        Ok(Process::new(self.clone(), name, child, log))
    }

    /// A netlink connection to the namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn netlink(&self) -> Result<Netlink> {
        Ok(self.run(Netlink::open)?)
    }

    /// Looks up a link of the node.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn link(&self, name: &str) -> Result<Link> {
        self.netlink()?.expect_link(name).with_context(|| format!("on node {}", self.name()))
    }

    /// Writes a sysctl by its path below `/proc/sys`: `net/ipv4/ip_forward`. The kernel shows each thread the `net` tree
    /// of its own namespace (`net_ctl_header_lookup`, net/sysctl_net.c).
    ///
    /// # Errors
    /// If there is no such key, or it is not one of the namespace's own.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| fs::write(&path, value)).with_context(|| format!("writing {value} to {path} on {}", self.name()))
    }

    /// Reads a sysctl by its path below `/proc/sys`.
    ///
    /// # Errors
    /// If there is no such key.
    pub fn sysctl_value(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/{key}");
        let text =
            self.run(|| fs::read_to_string(&path)).with_context(|| format!("reading {path} on {}", self.name()))?;
        Ok(text.trim().to_owned())
    }

    /// Makes the node a router, for both families.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Gives a link an address such as `192.0.2.1/24`, and waits until the node answers to it, if the link is running.
    ///
    /// # Errors
    /// If the text is not an address with prefix length, or the kernel refuses.
    pub fn address(&self, link: &str, address: &str) -> Result<()> {
        let mut netlink = self.netlink()?;
        let link = netlink.expect_link(link)?;
        let address = Address::new(link.index, parse_net(address)?);
        netlink.add_address(&address)?;
        if !link.running {
            return Ok(());
        }
        // The kernel adds the local route of an IPv6 address later, in `addrconf_dad_work`.
        eventually(TIMEOUT, || {
            let found = netlink.route_to(address.ip())?;
            ensure!(found.is_some_and(|route| route.local), "{} has no local route on {}", address.ip(), self.name());
            Ok(())
        })
    }

    /// Waits until a link is running: up, with carrier, and with a queue. The kernel attaches the queue later than it
    /// reports the carrier (`linkwatch_do_dev`, net/core/link_watch.c) and drops what is sent before.
    ///
    /// # Errors
    /// If it is not running after [`TIMEOUT`].
    pub fn wait_running(&self, link: &str) -> Result<()> {
        let mut netlink = self.netlink()?;
        eventually(TIMEOUT, || {
            let link = netlink.expect_link(link)?;
            ensure!(link.running, "{} of {} is not running", link.name, self.name());
            Ok(())
        })
    }

    /// Routes a destination such as `10.9.0.0/16` or `default` onto a link.
    ///
    /// # Errors
    /// If the text is not a prefix, or the kernel refuses.
    pub fn route(&self, dst: &str, link: &str) -> Result<()> {
        let mut netlink = self.netlink()?;
        let link = netlink.expect_link(link)?;
        Ok(netlink.replace_route(&Route::via_link(parse_net(dst)?, link.index))?)
    }

    /// Routes a destination such as `10.9.0.0/16` to a gateway on a link.
    ///
    /// # Errors
    /// If a text is not a prefix or address, or the kernel refuses.
    pub fn route_via(&self, dst: &str, gateway: &str, link: &str) -> Result<()> {
        let mut netlink = self.netlink()?;
        let link = netlink.expect_link(link)?;
        let gateway: std::net::IpAddr = gateway.parse().with_context(|| format!("gateway `{gateway}`"))?;
        Ok(netlink.replace_route(&Route::via_gateway(parse_net(dst)?, link.index, gateway))?)
    }

    /// Prepares a TUN device as the control process would: MTU in bytes, addresses, up, and routes for whole overlay
    /// networks onto it.
    ///
    /// # Errors
    /// If there is no such link, a text is not a prefix, or the kernel refuses.
    pub fn set_up_tun(&self, link: &str, mtu: u32, addresses: &[&str], routes: &[&str]) -> Result<()> {
        let mut netlink = self.netlink()?;
        let index = netlink.expect_link(link)?.index;
        netlink.set_mtu(index, mtu)?;
        netlink.set_up(index)?;
        for address in addresses {
            self.address(link, address)?;
        }
        for route in routes {
            netlink.replace_route(&Route::via_link(parse_net(route)?, index))?;
        }
        Ok(())
    }

    /// Runs a job on the thread that starts the node's programs. What it does to that thread they inherit: a seccomp
    /// filter, an affinity, a priority.
    ///
    /// # Errors
    /// If the job panicked.
    pub fn on_holder<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move || {
            // The receiver waits below; it cannot be gone.
            let _ = answer.send(job());
        });
        let jobs = self.inner.jobs.lock().expect("no holder of this lock panics").clone();
        jobs.context("the node is being dropped")?.send(job).map_err(|_| anyhow!("the thread of the node ended"))?;
        answered.recv().map_err(|_| anyhow!("the thread of the node ended"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Ok(jobs) = self.jobs.get_mut() {
            *jobs = None;
        }
        if let Some(holder) = self.holder.get_mut().ok().and_then(Option::take) {
            // Jobs own no node, so this is never the holder itself; a job's panic was shown when it happened.
            let _ = holder.join();
        }
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.namespace.as_fd()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.inner.name).finish()
    }
}

/// Reads `ADDRESS/LEN`, an address alone as one host, or `default` as the IPv4 default route.
pub fn parse_net(text: &str) -> Result<IpNet> {
    let text = if text == "default" { "0.0.0.0/0" } else { text };
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.into());
    }
    text.parse().with_context(|| format!("`{text}` is not a prefix; expected something like 10.9.0.0/16"))
}
