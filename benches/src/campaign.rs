//! A run: every subject under every set of conditions, in rounds.
//!
//! ```text
//!   round 1:  MTU 1500, offload:  tcp1:  weft vxlan host-gw
//!                                 tcp4:  host-gw weft vxlan       dealt anew for each, so that none is always first,
//!                                 ...                             or always behind the same one
//!             MTU 1500, wire:     ...
//!   round 2:  ...
//! ```
//!
//! One run is dealt as the next one is.
//!
//! What ran is asked before and after each measurement; figures of what was not meant to run do not count.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_lab::measure::{Path, Run, Stop, Window, congestion_control};
use weft_lab::topology::Pair;
use weft_lab::{Lab, Ping, ping};

use crate::distance::{self, Nearness};
use crate::iperf3;
use crate::meter::Meter;
use crate::progress::Progress;
use crate::result::{Mode, Report, Sample, SubjectReport};
use crate::spec::SubjectSpec;
use crate::subject::peers::{self, Peer};
use crate::subject::{Facts, Site, Subject};
use crate::workload::{Outcome, Workload};

/// Rest between two measurements, for what is still under way.
const REST: Duration = Duration::from_millis(30);
/// Drops that are no sign of a wrong measurement: the kernel's back-pressure, and what hosts send unasked (multicast,
/// some of it with a TTL of 1).
const HARMLESS_DROPS: [&str; 3] = ["underlay_busy", "multicast", "ttl_exceeded"];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// How often each measurement is repeated.
    pub rounds: u32,
    /// When each counts.
    pub window: Window,
    /// The subjects.
    pub subjects: Vec<SubjectSpec>,
    /// How packets cross the link.
    pub modes: Vec<Mode>,
    /// MTUs of the underlay.
    pub mtus: Vec<u32>,
    /// Rate limits of the link, Mbit/s.
    pub rates_mbit: Vec<Option<u64>>,
    /// The workloads and their names.
    pub workloads: Vec<(String, Workload)>,
    /// Ask iperf3, too, after each TCP workload in one direction.
    pub cross_check: bool,
    /// The congestion control of TCP; `None`: the system's.
    pub congestion_control: Option<String>,
    /// How long to wait in all for cores that were moved; see [`Nearness`].
    pub patience: Duration,
}

/// Two hosts with every subject between them, for one MTU and rate limit.
struct Field {
    mtu: u32,
    rate_mbit: Option<u64>,
    /// In the order of the campaign; those that could not be set up are `None`. Dropped before the hosts.
    subjects: Vec<Option<Candidate>>,
    pair: Pair,
}

/// A run that is under way.
struct Underway<'a> {
    stop: &'a Stop,
    progress: &'a mut Progress,
    report: &'a mut Report,
    nearness: Nearness,
    /// Deals the order of the subjects.
    dealer: fastrand::Rng,
}

/// A subject that is up.
struct Candidate {
    subject: Box<dyn Subject>,
    /// Addresses of many peers, if there are any.
    peers: Vec<Ipv4Addr>,
}

impl Campaign {
    /// Number of measurements.
    pub fn extent(&self) -> u64 {
        let conditions = self.modes.len() * self.mtus.len() * self.rates_mbit.len() * self.workloads.len();
        (conditions * self.subjects.len()) as u64 * u64::from(self.rounds)
    }

    /// Whether there are many peers.
    fn has_peers(&self) -> bool {
        self.workloads.iter().any(|(_, workload)| *workload == Workload::Peers)
    }

    /// How long they take, about.
    pub fn time(&self) -> Duration {
        (self.window.warm_up + self.window.length + REST * 2) * u32::try_from(self.extent()).unwrap_or(u32::MAX)
    }

    /// Measures everything and puts it into the report.
    ///
    /// # Errors
    /// [`weft_lab::measure::Stopped`], or if the hosts cannot be made. What fails for one subject is in the report.
    pub fn run(&self, stop: &Stop, progress: &mut Progress, report: &mut Report) -> Result<()> {
        let lab = Lab::start().context("WEFT_LAB_SKIP is set: unset it to measure")?;
        let mut fields = Vec::new();
        for (mtu, rate_mbit) in self.mtus.iter().flat_map(|mtu| self.rates_mbit.iter().map(|rate| (*mtu, *rate))) {
            stop.check()?;
            fields.push(Field::new(self, &lab, mtu, rate_mbit, report)?);
        }
        let mut underway = Underway {
            stop,
            progress,
            report,
            nearness: Nearness::new(self.patience),
            dealer: fastrand::Rng::with_seed(0),
        };
        for round in 1..=self.rounds {
            for field in &fields {
                for mode in &self.modes {
                    underway.progress.part(&format!("round {round} of {}, {}", self.rounds, field.conditions(*mode)));
                    field.pair.link.set_mode(match mode {
                        Mode::Offload => weft_lab::Mode::Offload,
                        Mode::Wire => weft_lab::Mode::Wire,
                    })?;
                    self.round(round, field, *mode, &mut underway)?;
                }
            }
        }
        Ok(())
    }

    fn round(&self, round: u32, field: &Field, mode: Mode, underway: &mut Underway<'_>) -> Result<()> {
        for (name, workload) in &self.workloads {
            let mut order: Vec<usize> = (0..self.subjects.len()).collect();
            underway.dealer.shuffle(&mut order);
            for index in order {
                let (spec, candidate) = (&self.subjects[index], &field.subjects[index]);
                let Some(candidate) = candidate else {
                    underway.progress.advance();
                    continue;
                };
                underway.progress.step(&format!("{name}, {spec}"));
                let measured = field.measure_near(candidate, *workload, self, underway);
                let Underway { stop, progress, report, .. } = &mut *underway;
                let (outcome, error) = match measured {
                    Ok((outcome, facts)) => {
                        field.note(spec, mode, &facts, report);
                        (outcome, None)
                    }
                    Err(error) => {
                        stop.check()?;
                        let error = format!("{error:#}");
                        progress.say(&format!("{spec}, {name}, {}: {error}", field.conditions(mode)));
                        report
                            .failures
                            .push(format!("{spec}, {name}, {}, round {round}: {error}", field.conditions(mode)));
                        if ["WRONG PAYLOAD", "WRONG PEER"].iter().any(|wrong| error.contains(wrong)) {
                            field.subject_report(spec, mode, report).refused.get_or_insert(error.clone());
                        }
                        (Outcome::default(), Some(error))
                    }
                };
                report.samples.push(Sample {
                    round,
                    mode,
                    mtu: field.mtu,
                    rate_mbit: field.rate_mbit,
                    subject: spec.name.clone(),
                    workload: name.clone(),
                    metrics: outcome.metrics,
                    latency_cdf: outcome.latency_cdf,
                    over_time: outcome.over_time,
                    error,
                });
                progress.advance();
                stop.sleep(REST)?;
            }
        }
        Ok(())
    }
}

impl Field {
    /// Makes the hosts and sets every subject up. One that cannot be had is refused, with the reason in the report.
    fn new(campaign: &Campaign, lab: &Lab, mtu: u32, rate_mbit: Option<u64>, report: &mut Report) -> Result<Field> {
        let pair = Pair::new(lab, mtu)?;
        if campaign.has_peers() {
            peers::set_up_underlay(&pair.link)?;
        }
        pair.link.set_rate(rate_mbit.map(|rate| rate * 1_000_000))?;
        for node in [&pair.a, &pair.b] {
            let used = node.run(|| congestion_control(campaign.congestion_control.as_deref()))?;
            report.host.congestion_control = Some(used);
        }
        let mut field = Field { mtu, rate_mbit, subjects: Vec::new(), pair };
        for (number, spec) in (0..).zip(&campaign.subjects) {
            let site = Site { lab, link: &field.pair.link, mtu, number, has_peers: campaign.has_peers() };
            let peers = site.peers().iter().map(Peer::address).collect();
            let subject = site.set_up(spec).and_then(|subject| {
                let address = subject.addresses()[1];
                ping(&field.pair.a, &Ping::to(address))
                    .and_then(|outcome| outcome.reply())
                    .context("host b does not answer")?;
                let facts = subject.facts()?;
                Ok((subject, facts))
            });
            for mode in &campaign.modes {
                let subject_report = field.subject_report(spec, *mode, report);
                match &subject {
                    Ok((_, facts)) => fill(subject_report, facts),
                    Err(error) => subject_report.refused = Some(format!("{error:#}")),
                }
            }
            if let Err(error) = &subject {
                report.failures.push(format!("{spec}, MTU {mtu}: not measured: {error:#}"));
            }
            field.subjects.push(subject.ok().map(|(subject, _)| Candidate { subject, peers }));
        }
        Ok(field)
    }

    fn conditions(&self, mode: Mode) -> String {
        let rate = self.rate_mbit.map_or(String::new(), |rate| format!(", {rate} Mbit/s"));
        format!("{mode}, MTU {}{rate}", self.mtu)
    }

    /// One measurement while cores are where they usually are, if that can be had, with what ran.
    fn measure_near(
        &self,
        candidate: &Candidate,
        workload: Workload,
        campaign: &Campaign,
        underway: &mut Underway<'_>,
    ) -> Result<(Outcome, Facts)> {
        let Underway { stop, progress, nearness, .. } = underway;
        loop {
            let before = nearness.wait(stop, || progress.wait("cores that were moved"))?;
            let started = Instant::now();
            let (mut outcome, facts) = self.measure(candidate, workload, campaign, stop)?;
            let (after, is_void) = nearness.look_again(started.elapsed())?;
            if let (Some(before), Some(after)) = (before, after) {
                outcome.add(distance::METRIC, (before + after) / 2.0);
            }
            if !is_void {
                return Ok((outcome, facts));
            }
        }
    }

    /// One measurement, with what ran.
    fn measure(
        &self,
        candidate: &Candidate,
        workload: Workload,
        campaign: &Campaign,
        stop: &Stop,
    ) -> Result<(Outcome, Facts)> {
        let Pair { a, b, .. } = &self.pair;
        let subject = candidate.subject.as_ref();
        let [address_a, address_b] = subject.addresses();
        let there = Path { from: a, to: b, address: address_b };
        let back = Path { from: b, to: a, address: address_a };
        let before = subject.facts()?;
        let mut meter = Meter::new(subject, [a, b]);
        let congestion_control = campaign.congestion_control.as_deref();
        let mut run = Run { window: campaign.window, stop, watch: &mut meter, congestion_control };
        let mut outcome = workload.run(there, back, &candidate.peers, &subject.pids(), &mut run)?;
        meter.add_to(&mut outcome);
        if let (true, Workload::Tcp { flows, both: false }) = (campaign.cross_check, workload) {
            let found = iperf3::tcp_throughput(&there, flows, campaign.window.length, congestion_control, stop)?;
            outcome.add("iperf3_throughput", found);
        }
        let after = subject.facts()?;
        check(&before, &after)?;
        Ok((outcome, after))
    }

    /// Writes down what ran.
    fn note(&self, spec: &SubjectSpec, mode: Mode, facts: &Facts, report: &mut Report) {
        let refused = facts
            .violation
            .as_ref()
            .map(|why| format!("{spec}, {}: not called measured: {why}", self.conditions(mode)));
        let subject_report = self.subject_report(spec, mode, report);
        fill(subject_report, facts);
        let is_new = subject_report.refused.is_none();
        if let Some(refused) = refused.filter(|_| is_new) {
            subject_report.refused.clone_from(&facts.violation);
            report.failures.push(refused);
        }
    }

    /// The entry of a subject in this field.
    fn subject_report<'r>(&self, spec: &SubjectSpec, mode: Mode, report: &'r mut Report) -> &'r mut SubjectReport {
        let is_it = |subject: &SubjectReport| {
            subject.name == spec.name
                && (subject.mode, subject.mtu, subject.rate_mbit) == (mode, self.mtu, self.rate_mbit)
        };
        let index = report.subjects.iter().position(is_it).unwrap_or_else(|| {
            report.subjects.push(SubjectReport {
                name: spec.name.clone(),
                kind: spec.kind.word().to_owned(),
                mode,
                mtu: self.mtu,
                rate_mbit: self.rate_mbit,
                overlay_mtu: None,
                engine: None,
                opener: None,
                workers: None,
                spin_us: None,
                offloads: Default::default(),
                version: None,
                command: None,
                drops: Default::default(),
                notes: Vec::new(),
                refused: None,
            });
            report.subjects.len() - 1
        });
        &mut report.subjects[index]
    }
}

fn fill(report: &mut SubjectReport, facts: &Facts) {
    let facts = facts.clone();
    report.overlay_mtu = facts.overlay_mtu;
    (report.engine, report.opener, report.workers) = (facts.engine, facts.opener, facts.workers);
    (report.spin_us, report.offloads) = (facts.spin_us, facts.offloads);
    (report.version, report.command) = (facts.version, facts.command);
    (report.drops, report.notes) = (facts.drops, facts.notes);
}

/// What ran has to be the same before and after a measurement, and may not have dropped what was measured.
fn check(before: &Facts, after: &Facts) -> Result<()> {
    let known = Facts { drops: Default::default(), violation: None, ..before.clone() };
    let found = Facts { drops: Default::default(), violation: None, ..after.clone() };
    ensure!(known == found, "what ran changed meanwhile: {known:?} before, {found:?} after");
    for (reason, count) in &after.drops {
        let count = count - before.drops.get(reason).unwrap_or(&0);
        let is_harmless = HARMLESS_DROPS.iter().any(|harmless| reason.ends_with(harmless));
        ensure!(count == 0 || is_harmless, "weftd dropped {count} packets: {reason}");
    }
    Ok(())
}

/// An empty report knows when it began.
pub fn rfc3339_now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}

/// Measures, and ends with what it found: medians, ratios, whether all is well.
pub fn perform(campaign: &Campaign, stop: &Stop, progress: &mut Progress, report: &mut Report) {
    let started = Instant::now();
    if let Err(error) = campaign.run(stop, progress, report) {
        if stop.is_raised() {
            report.interrupted = true;
            report.failures.push("stopped by a signal before its end".into());
        } else {
            report.failures.push(format!("{error:#}"));
        }
    }
    report.elapsed_s = started.elapsed().as_secs_f64();
    crate::summary::conclude(report);
    report.ok = report.failures.is_empty();
}
