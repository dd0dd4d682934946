//! Counters beside a measurement: read when its window opens and when it closes.

use std::time::Instant;

use anyhow::Result;
use weft_lab::Node;
use weft_lab::measure::Watch;

use crate::proc::{self, NetCounters};
use crate::subject::{Subject, Work};
use crate::workload::Outcome;

/// Watches one measurement of a subject.
pub struct Meter<'a> {
    subject: &'a dyn Subject,
    nodes: [&'a Node; 2],
    opened: Option<Reading>,
    closed: Option<Reading>,
}

struct Reading {
    at: Instant,
    context_switches: u64,
    net: [NetCounters; 2],
    work: Option<Work>,
    resident: u64,
}

impl<'a> Meter<'a> {
    /// A meter for a subject between two hosts.
    pub fn new(subject: &'a dyn Subject, nodes: [&'a Node; 2]) -> Self {
        Self { subject, nodes, opened: None, closed: None }
    }

    fn read(&self) -> Result<Reading> {
        let [a, b] = self.nodes.map(NetCounters::of);
        Ok(Reading {
            at: Instant::now(),
            context_switches: proc::context_switches()?,
            net: [a?, b?],
            work: self.subject.work()?,
            resident: self.subject.pids().into_iter().filter_map(proc::resident).sum(),
        })
    }

    /// Adds what was counted to the outcome of the measurement.
    pub fn add_to(&self, outcome: &mut Outcome) {
        let (Some(opened), Some(closed)) = (&self.opened, &self.closed) else { return };
        let seconds = (closed.at - opened.at).as_secs_f64();
        let net = |value: fn(&NetCounters) -> u64| {
            let sum = |reading: &Reading| reading.net.iter().map(value).sum::<u64>();
            sum(closed).saturating_sub(sum(opened)) as f64 / seconds
        };
        outcome.add("retransmits", net(|counters| counters.retransmits));
        // Beside what the workload itself has counted.
        let reordered = outcome.metrics.get("reordered").copied().unwrap_or(0.0);
        outcome.add("reordered", reordered + net(|counters| counters.reordered));
        outcome.add("receiver_drops", net(|counters| counters.receiver_drops));
        let switches = closed.context_switches.saturating_sub(opened.context_switches);
        outcome.add("context_switches", switches as f64 / seconds);
        if let (Some(before), Some(after)) = (opened.work, closed.work) {
            let (syscalls, packets) = (after.syscalls - before.syscalls, after.packets - before.packets);
            outcome.add("syscalls_per_packet", syscalls as f64 / packets as f64);
            outcome.add("workers_in_use", after.workers_in_use.into());
        }
        if closed.resident > 0 {
            outcome.add("rss", closed.resident as f64);
        }
    }
}

impl Watch for Meter<'_> {
    fn open(&mut self) -> Result<()> {
        self.opened = Some(self.read()?);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.closed = Some(self.read()?);
        Ok(())
    }
}
