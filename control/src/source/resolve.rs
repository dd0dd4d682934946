//! Host names of peers -> underlay addresses, off the thread that owns the state: the system's resolver blocks for as long
//! as it likes.

use crate::config::{Host, Tunnel, endpoint_fault, is_local_address};
use crate::lease::Lease;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Names asked for at once: enough that a few dead ones do not hold up the others for long.
const THREADS_MAX: usize = 8;

/// What the resolver said about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name as the file has it.
    pub name: String,
    /// Its addresses, in the resolver's order, or why there are none.
    pub result: Result<Vec<IpAddr>, String>,
}

/// What is known about names. A name that stops resolving keeps its last addresses: a broken DNS server is no reason to
/// stop forwarding.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    addresses: Vec<IpAddr>,
    /// Why the latest question was not answered.
    failure: Option<String>,
}

/// A peer that cannot be reached yet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The peer.
    pub peer: String,
    /// A sentence with the endpoint and the reason.
    pub why: String,
}

impl Names {
    /// Takes in an answer. Returns a sentence if it is news.
    pub fn learn(&mut self, answer: Answer) -> Option<String> {
        let known = self.known.entry(answer.name.clone()).or_default();
        match answer.result {
            Ok(addresses) => {
                let recovered = known.failure.take().is_some();
                // Resolvers rotate their answers: as long as the address in use is among them, it stays in use.
                let in_use = known.addresses.first().filter(|address| addresses.contains(address)).copied();
                known.addresses = addresses;
                if let Some(in_use) = in_use {
                    known.addresses.retain(|address| *address != in_use);
                    known.addresses.insert(0, in_use);
                }
                let first = known.addresses.first().filter(|_| recovered || in_use.is_none())?;
                Some(format!("{} is at {first}", answer.name))
            }
            Err(why) => {
                let is_news = known.failure.as_ref() != Some(&why);
                let text = match known.addresses.first() {
                    Some(last) => {
                        format!("{} does not resolve ({why}); its last address {last} stays in use", answer.name)
                    }
                    None => format!("{} does not resolve ({why})", answer.name),
                };
                known.failure = Some(why);
                is_news.then_some(text)
            }
        }
    }

    /// The peers of `tunnel` whose place is known, as leases, and those whose place is not. An end listens on `listen`,
    /// which decides which family of addresses it can use.
    pub fn leases(&self, tunnel: &Tunnel, listen: SocketAddr) -> (Vec<Lease>, Vec<Unresolved>) {
        self.leases_where(tunnel, listen, &is_local_address)
    }

    fn leases_where(
        &self,
        tunnel: &Tunnel,
        listen: SocketAddr,
        is_local: &dyn Fn(IpAddr) -> bool,
    ) -> (Vec<Lease>, Vec<Unresolved>) {
        let mut leases = Vec::new();
        let mut unresolved = Vec::new();
        for peer in &tunnel.peers {
            let found = match &peer.endpoint.host {
                Host::Addr(address) => match endpoint_fault(*address, listen, is_local) {
                    None => Ok(*address),
                    Some(fault) => Err(fault.message),
                },
                Host::Name(name) => self.usable(name, listen, is_local),
            };
            match found {
                Ok(address) => leases.push(Lease {
                    name: peer.name.clone(),
                    subnets: peer.subnets.clone(),
                    next_hop: SocketAddr::new(address, peer.endpoint.port),
                    aliases: peer.aliases.clone(),
                }),
                Err(why) => unresolved.push(Unresolved { peer: peer.name.clone(), why }),
            }
        }
        (leases, unresolved)
    }

    fn usable(&self, name: &str, listen: SocketAddr, is_local: &dyn Fn(IpAddr) -> bool) -> Result<IpAddr, String> {
        let Some(known) = self.known.get(name) else { return Err(format!("{name} is not resolved yet")) };
        let mut faults = Vec::new();
        for address in &known.addresses {
            match endpoint_fault(*address, listen, is_local) {
                None => return Ok(*address),
                Some(fault) => faults.push(fault.message),
            }
        }
        match (&known.failure, faults.is_empty()) {
            (_, false) => Err(format!("{name} has no usable address: {}", faults.join("; "))),
            (Some(why), true) => Err(format!("{name} does not resolve: {why}")),
            (None, true) => Err(format!("{name} has no address")),
        }
    }
}

/// The host names among the endpoints of a tunnel.
pub fn names_of(tunnel: &Tunnel) -> BTreeSet<String> {
    let names = tunnel.peers.iter().filter_map(|peer| match &peer.endpoint.host {
        Host::Name(name) => Some(name.clone()),
        Host::Addr(_) => None,
    });
    names.collect()
}

/// Asks the system's resolver for each name, in threads of its own. Answers arrive one by one on the receiver, which ends
/// after the last; `told` is called after each was sent. A thread that hangs in the resolver ends with the process.
pub fn ask(names: BTreeSet<String>, told: impl Fn() + Send + Sync + Clone + 'static) -> Receiver<Answer> {
    let (sender, receiver) = mpsc::channel();
    let thread_count = names.len().min(THREADS_MAX);
    let queue: Arc<Mutex<Vec<String>>> = Arc::new(Mutex::new(names.into_iter().collect()));
    for _ in 0..thread_count {
        let (queue, sender, told) = (Arc::clone(&queue), sender.clone(), told.clone());
        std::thread::spawn(move || work(&queue, &sender, &told));
    }
    receiver
}

fn work(queue: &Mutex<Vec<String>>, sender: &Sender<Answer>, told: &impl Fn()) {
    let next = || queue.lock().expect("no holder of this lock can panic").pop();
    while let Some(name) = next() {
        let result = match (name.as_str(), 0).to_socket_addrs() {
            Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
            Err(error) => Err(resolver_error(&error)),
        };
        if sender.send(Answer { name, result }).is_err() {
            return;
        }
        told();
    }
}

/// Asks for each name and waits for the answers, but no longer than `limit` in all; a name without an answer by then has
/// failed.
pub fn answers_within(names: BTreeSet<String>, limit: Duration) -> Vec<Answer> {
    let deadline = Instant::now() + limit;
    let mut waiting = names.clone();
    let mut all = Vec::new();
    let answers = ask(names, || ());
    while let Ok(answer) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        waiting.remove(&answer.name);
        all.push(answer);
    }
    let late = |name| Answer { name, result: Err(format!("no answer within {} s", limit.as_secs())) };
    all.extend(waiting.into_iter().map(late));
    all
}

/// As [`answers_within`], taken in.
pub fn ask_within(names: BTreeSet<String>, limit: Duration) -> Names {
    let mut known = Names::default();
    for answer in answers_within(names, limit) {
        known.learn(answer);
    }
    known
}

/// std's text begins with what the caller knows anyhow.
fn resolver_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn tunnel(endpoint: &str) -> Tunnel {
        let text = format!(
            "address = \"10.9.0.1/24\"\n[[peer]]\nname = \"b\"\nsubnets = [\"10.9.0.2/32\"]\nendpoint = \"{endpoint}\"\n"
        );
        config::parse("t.toml", "t", &text, &|_| false).unwrap().tunnel
    }

    fn answer(addresses: &[&str]) -> Answer {
        Answer { name: "b.example".into(), result: Ok(addresses.iter().map(|text| text.parse().unwrap()).collect()) }
    }

    fn next_hop(names: &Names) -> Result<String, String> {
        let listen = "0.0.0.0:8285".parse().unwrap();
        let (leases, unresolved) = names.leases_where(&tunnel("b.example"), listen, &|_| false);
        match leases.first() {
            Some(lease) => Ok(lease.next_hop.to_string()),
            None => Err(unresolved[0].why.clone()),
        }
    }

    #[test]
    fn a_name_that_does_not_resolve_concerns_its_peer_alone() {
        let mut names = Names::default();
        names.learn(Answer { name: "b.example".into(), result: Err("Name or service not known".into()) });
        assert_eq!(next_hop(&names), Err("b.example does not resolve: Name or service not known".into()));
        let (leases, unresolved) = names.leases(&tunnel("192.0.2.77"), "0.0.0.0:8285".parse().unwrap());
        assert_eq!((leases.len(), unresolved.len()), (1, 0));
    }

    #[test]
    fn a_name_that_stops_resolving_keeps_its_address() {
        let mut names = Names::default();
        assert_eq!(names.learn(answer(&["192.0.2.5"])).as_deref(), Some("b.example is at 192.0.2.5"));
        let said = names.learn(Answer { name: "b.example".into(), result: Err("timeout".into()) });
        assert!(said.unwrap().contains("192.0.2.5 stays in use"));
        assert_eq!(next_hop(&names).as_deref(), Ok("192.0.2.5:8285"));
    }

    #[test]
    fn a_rotated_answer_changes_nothing() {
        let mut names = Names::default();
        names.learn(answer(&["192.0.2.5", "192.0.2.6"]));
        assert_eq!(names.learn(answer(&["192.0.2.6", "192.0.2.5"])), None);
        assert_eq!(next_hop(&names).as_deref(), Ok("192.0.2.5:8285"));
        assert!(names.learn(answer(&["192.0.2.6"])).is_some());
        assert_eq!(next_hop(&names).as_deref(), Ok("192.0.2.6:8285"));
    }

    #[test]
    fn addresses_that_the_socket_cannot_reach_are_passed_over() {
        let mut names = Names::default();
        names.learn(answer(&["2001:db8::5", "127.0.0.1", "192.0.2.5"]));
        assert_eq!(next_hop(&names).as_deref(), Ok("192.0.2.5:8285"));
        names.learn(answer(&["2001:db8::5"]));
        assert!(next_hop(&names).unwrap_err().contains("`listen` is IPv4"));
    }

    #[test]
    fn a_written_address_that_the_socket_cannot_reach_concerns_its_peer_alone() {
        let listen = "[2001:db8::9]:8285".parse().unwrap();
        let (leases, unresolved) = Names::default().leases_where(&tunnel("192.0.2.77"), listen, &|_| false);
        assert!(leases.is_empty() && unresolved[0].why.contains("192.0.2.77 is IPv4"), "{unresolved:?}");
    }

    #[test]
    fn every_name_gets_an_answer() {
        let names: BTreeSet<String> = ["localhost".to_owned()].into();
        let answers: Vec<Answer> = ask(names, || ()).iter().collect();
        assert_eq!(answers.len(), 1);
        assert!(answers[0].result.as_ref().unwrap().iter().all(IpAddr::is_loopback));
    }
}
