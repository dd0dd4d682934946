//! The parts of the page that are words and numbers.

use super::data::{self, OnLink};
use super::markup::Markup;
use super::ratios::{self, times};
use crate::distance;
use crate::metric::{self, ratio_digits};
use crate::result::{Report, Sample, SubjectReport};
use crate::targets::{self, Judged, Measured, Reached};

/// Title, warnings and what ran where.
pub fn headline(out: &mut Markup, report: &Report) {
    out.nest("header", &[], |out| {
        let baseline = report.plan.baseline.as_deref().map(ratios::subject_words);
        let title = match baseline {
            Some(baseline) => format!("weft, measured against {baseline}"),
            None => "weft-bench".to_owned(),
        };
        out.leaf("h1", &[], &title);
        let words = "Two hosts, made of network namespaces on one machine, joined by a veth cable; every subject takes its turn in \
            every round. Hosts, tunnels and the measuring programs share the cores: compare subjects within this report, and take \
            no absolute number elsewhere.";
        out.leaf("p", &[], words);
        alarms(out, report);
        out.nest("dl", &[("class", "facts".into())], |out| facts(out, report));
        out.leaf("p", &[], "To do it again, at this commit:");
        out.leaf("pre", &[], &command_line(&report.command));
    });
}

fn alarms(out: &mut Markup, report: &Report) {
    let mut alarms = Vec::new();
    if report.host.debug_build {
        alarms.push("Built without optimisation: the numbers mean nothing.".to_owned());
    }
    if report.interrupted {
        alarms.push("The run was interrupted: what was measured until then is here.".to_owned());
    }
    alarms.extend(report.failures.iter().cloned());
    if !report.ok && alarms.is_empty() {
        alarms.push("The run says of itself that it is not complete.".to_owned());
    }
    if alarms.is_empty() {
        return;
    }
    out.nest("div", &[("class", "alarm".into())], |out| {
        out.leaf("strong", &[], "Not everything in this run is as it was meant to be");
        out.nest("ul", &[], |out| {
            for alarm in &alarms {
                out.leaf("li", &[], alarm);
            }
        });
    });
}

fn facts(out: &mut Markup, report: &Report) {
    let host = &report.host;
    let mut fact = |name: &str, value: &str, aside: &str| {
        out.nest("div", &[], |out| {
            out.leaf("dt", &[], name);
            out.nest("dd", &[], |out| {
                out.text(value);
                if !aside.is_empty() {
                    out.leaf("small", &[], aside);
                }
            });
        });
    };
    let memory = format!("{} cores, {:.1} GiB", host.cores, host.memory as f64 / f64::from(1 << 30));
    fact("CPU", host.cpu.as_deref().unwrap_or("unknown"), &memory);
    let machine = match (&host.machine, host.virtualized) {
        (Some(machine), true) => format!("{machine}, virtual"),
        (Some(machine), false) => machine.clone(),
        (None, true) => "a virtual machine".to_owned(),
        (None, false) => String::new(),
    };
    fact("Kernel", &format!("Linux {}", host.kernel), &[host.architecture.as_str(), &machine].join(" "));
    let commit = report.commit.as_deref().map_or_else(|| "unknown".to_owned(), ratios::short);
    fact("weft", &format!("commit {commit}"), &format!("version {}", report.weft_version));
    let plan = &report.plan;
    let each = format!("{} s each after {} s of warm-up", plan.seconds, plan.warm_up);
    fact("Rounds", &plan.rounds.to_string(), &each);
    let took = format!("{:.0} s; {:.1} % of the machine busy before", report.elapsed_s, host.load * 100.0);
    fact("Begun", &report.started.replace('T', " ").replace('Z', " UTC"), &took);
    if let Some(distances) = distance::of_report(report) {
        fact("Cores", &distances.to_string(), "a line of memory from one to another");
    }
    let aside = plan.congestion_control.as_ref().map_or("congestion control", |_| "congestion control, as asked for");
    fact("TCP", host.congestion_control.as_deref().unwrap_or("unknown"), aside);
}

/// The command line as a shell takes it: what is not plain stands in single quotes.
fn command_line(command: &[String]) -> String {
    let is_plain = |text: &str| {
        !text.is_empty()
            && text.chars().all(|character| character.is_ascii_alphanumeric() || "-_=:,./+@%".contains(character))
    };
    let quoted: Vec<String> = command
        .iter()
        .map(|word| if is_plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) })
        .collect();
    quoted.join(" ")
}

/// must, aim, measured, verdict.
pub fn targets(out: &mut Markup, report: &Report, judged: &[Judged]) {
    let (shown, others) = targets::part_of_run(report, judged);
    if shown.is_empty() {
        return;
    }
    out.nest("section", &[], |out| {
        out.leaf("h2", &[], "Must, aim, measured");
        let words = format!(
            "Ratios of {} on its default settings to {}. For latency and CPU less is better. Idle, it is judged by its own \
             CPU time. The verdict is the median's; \u{201c}not in every round\u{201d} says that the spread reaches over the bound.",
            targets::SUBJECT,
            ratios::subject_words(targets::BASELINE)
        );
        out.leaf("p", &[], &words);
        if report.plan.rounds < 5 {
            out.leaf("p", &[], "Fewer than five rounds: a look, not a result.");
        }
        if !others.is_empty() {
            out.leaf("p", &[], &format!("{others}."));
        }
        let head = ["mode", "workload", "metric", "#must", "#aim", "#measured", "#spread", "verdict"];
        table(out, &head, |out| {
            for row in shown {
                out.nest("tr", &[], |out| {
                    let target = &row.target;
                    let bound = if data::less_is_better(target.metric) { "\u{2264}" } else { "\u{2265}" };
                    cell(out, "", target.mode.name());
                    cell(out, "", &data::workload_words(target.workload));
                    cell(out, "", target.metric);
                    cell(out, "number", &format!("{bound} {}", target.show_goal(target.must)));
                    cell(out, "number", &format!("{bound} {}", target.show_goal(target.aim)));
                    let show = |value| target.absolute().map_or_else(|| times(value), |metric| metric.show(value));
                    let (measured, spread) = match &row.measured {
                        Some(Measured { median, min, max }) => (show(*median), format!("{min:.2} \u{2013} {max:.2}")),
                        None => ("\u{2013}".to_owned(), String::new()),
                    };
                    cell(out, "number strong", &measured);
                    cell(out, "number", &spread);
                    let class = match row.reached {
                        Some(Reached::Aim) => "aim",
                        Some(Reached::Must) => "must",
                        Some(Reached::Neither) => "neither",
                        None => "none",
                    };
                    cell(out, class, row.words());
                });
            }
        });
    });
}

/// What ran for each subject.
pub fn subjects(out: &mut Markup, report: &Report) {
    if report.subjects.is_empty() {
        return;
    }
    out.nest("section", &[], |out| {
        out.leaf("h2", &[], "What ran");
        out.leaf("p", &[], "As the subject itself or the kernel says, after the measurements.");
        table(out, &["subject", "link", "ran as", "offloads in use", "#MTU inside", "drops", "notes"], |out| {
            for subject in &report.subjects {
                out.nest("tr", &[], |out| {
                    cell(out, "strong", &subject.name);
                    cell(out, "", &subject.link().label());
                    cell(out, "", &ran_as(subject));
                    cell(out, "words", &offloads(subject));
                    cell(out, "number", &subject.overlay_mtu.map(|mtu| mtu.to_string()).unwrap_or_default());
                    let drops: Vec<String> =
                        subject.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
                    cell(out, "words", &drops.join(", "));
                    let refused = subject.refused.iter().map(|why| format!("Not called measured: {why}"));
                    let notes: Vec<String> = refused.chain(subject.notes.iter().cloned()).collect();
                    cell(out, "words", &notes.join(" "));
                });
            }
        });
    });
}

fn ran_as(subject: &SubjectReport) -> String {
    let parts = [
        Some(subject.kind.clone()),
        subject.version.clone(),
        subject.engine.clone(),
        subject.opener.clone(),
        subject.workers.map(|workers| format!("{workers} worker{}", if workers == 1 { "" } else { "s" })),
        subject.spin_us.map(|spin| format!("spin {spin} us")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn offloads(subject: &SubjectReport) -> String {
    let all = subject.offloads.iter().map(|(name, used)| if *used { name.clone() } else { format!("no {name}") });
    all.collect::<Vec<_>>().join(", ")
}

/// Every metric of every subject over the rounds, folded.
pub fn medians(out: &mut Markup, report: &Report) {
    if report.medians.is_empty() {
        return;
    }
    out.nest("section", &[], |out| {
        out.leaf("h2", &[], "All figures");
        out.nest("details", &[], |out| {
            out.leaf("summary", &[], &format!("Medians and ratios over the rounds: {} rows", report.medians.len()));
            let head = [
                "link",
                "workload",
                "metric",
                "subject",
                "#median",
                "#smallest",
                "#largest",
                "#rounds",
                "#ratio",
                "#spread",
            ];
            table(out, &head, |out| {
                for summary in &report.medians {
                    let ratio = report.ratios.iter().find(|ratio| {
                        ratio.link() == summary.link()
                            && (&ratio.subject, &ratio.workload, &ratio.metric)
                                == (&summary.subject, &summary.workload, &summary.metric)
                    });
                    out.nest("tr", &[], |out| {
                        cell(out, "", &summary.link().label());
                        cell(out, "", &summary.workload);
                        cell(out, "", &summary.metric);
                        cell(out, "strong", &summary.subject);
                        for value in [summary.median, summary.min, summary.max] {
                            cell(out, "number", &data::show(&summary.metric, value));
                        }
                        cell(out, "number", &summary.samples.to_string());
                        let (ratio, spread) = ratio
                            .map(|ratio| {
                                (
                                    times(ratio.median),
                                    format!("{} \u{2013} {}", ratio_digits(ratio.min), ratio_digits(ratio.max)),
                                )
                            })
                            .unwrap_or_default();
                        cell(out, "number strong", &ratio);
                        cell(out, "number", &spread);
                    });
                }
            });
        });
    });
}

/// Every sample, folded.
pub fn samples(out: &mut Markup, report: &Report) {
    let count: usize = report.samples.iter().map(|sample| sample.metrics.len()).sum();
    out.nest("section", &[("class", "samples".into())], |out| {
        out.nest("details", &[], |out| {
            let words = format!("Every sample: {} measurements, {count} values", report.samples.len());
            out.leaf("summary", &[], &words);
            table(out, &["#round", "link", "workload", "subject", "values"], |out| {
                for sample in &report.samples {
                    out.nest("tr", &[("class", "sample".into())], |out| {
                        cell(out, "number", &sample.round.to_string());
                        cell(out, "", &sample.link().label());
                        cell(out, "", &sample.workload);
                        cell(out, "strong", &sample.subject);
                        cell(out, "words", &values(sample));
                    });
                }
            });
        });
    });
}

fn values(sample: &Sample) -> String {
    // In the order of the metrics that people look for first; what this version does not know follows.
    let known = metric::METRICS.iter().filter_map(|metric| sample.metrics.get_key_value(metric.name));
    let unknown = sample.metrics.iter().filter(|(name, _)| metric::find(name).is_none());
    let shown = known.chain(unknown).map(|(name, value)| format!("{name} {}", data::show(name, *value)));
    let failed = sample.error.iter().map(|error| format!("failed: {error}"));
    shown.chain(failed).collect::<Vec<_>>().join("; ")
}

/// What the words mean.
pub fn reading(out: &mut Markup, report: &Report) {
    out.nest("section", &[], |out| {
        out.leaf("h2", &[], "How to read it");
        out.nest("ul", &[], |out| {
            for words in [
                "A ratio is a subject's value divided by the baseline's of the same round, so that what slows the machine for a \
                 while slows both. The median is over the rounds' ratios; it is not the ratio of the medians.",
                "offload: super-packets of up to 64 KiB cross the cable whole, as between containers on one host. wire: every \
                 packet crosses at MTU size, as on a plain network card.",
                "A difference inside the spread is not a result. Five rounds are few; a handful of rows out of a hundred are out of \
                 line by chance.",
            ] {
                out.leaf("li", &[], words);
            }
        });
        out.nest("details", &[], |out| {
            out.leaf("summary", &[], "Metrics");
            table(out, &["metric", "unit", "what it is"], |out| {
                for metric in &metric::METRICS {
                    out.nest("tr", &[], |out| {
                        cell(out, "strong", metric.name);
                        cell(out, "", metric.unit);
                        cell(out, "words", metric.help);
                    });
                }
            });
        });
        out.leaf("p", &[], &format!("Made by weft-bench {} from schema {}.", env!("CARGO_PKG_VERSION"), report.schema));
    });
}

/// A table in a box that scrolls; a heading that begins with `#` is one of numbers.
fn table(out: &mut Markup, head: &[&str], rows: impl FnOnce(&mut Markup)) {
    out.nest("div", &[("class", "scroll".into())], |out| {
        out.nest("table", &[], |out| {
            out.nest("thead", &[], |out| {
                out.nest("tr", &[], |out| {
                    for name in head {
                        match name.strip_prefix('#') {
                            Some(name) => out.leaf("th", &[("class", "number".into())], name),
                            None => out.leaf("th", &[], name),
                        }
                    }
                });
            });
            out.nest("tbody", &[], rows);
        });
    });
}

fn cell(out: &mut Markup, class: &str, text: &str) {
    if class.is_empty() {
        out.leaf("td", &[], text);
    } else {
        out.leaf("td", &[("class", class.into())], text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_quoted_where_a_shell_needs_it() {
        let words = ["weft-bench", "run", "--subjects", "weft,external:x=./a b 'c'", ""].map(str::to_owned);
        assert_eq!(command_line(&words), r"weft-bench run --subjects 'weft,external:x=./a b '\''c'\''' ''");
    }
}
