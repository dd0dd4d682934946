//! The result for people: who ran, a table for each mode, a picture, and how to read them.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle, presets};
use weft_lab::measure::Distances;

use super::progress::{Progress, Style};
use super::report::{CableMode, HostReport, Measurement, Metric, PingReport, Report, Subject, TransferReport};

/// Columns of the longest bar.
const BAR_LEN: usize = 18;
/// Columns of the value behind a bar.
const VALUE_LEN: usize = 8;
/// Columns of a line of text.
const LINE_LEN: usize = 80;
/// Characters of a hash that are shown.
const HASH_LEN_SHOWN: usize = 8;
/// Above this spread between rounds, the reader is warned.
const SPREAD_NOTABLE: f64 = 0.2;

/// Lines above, below the header, and below.
const TABLE_STYLE: TableStyle = presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none());

/// What is drawn: CPU time stays in the table.
const DRAWN: [Metric; 6] =
    [Metric::Tcp1, Metric::Tcp4, Metric::UdpSmall, Metric::UdpSegmented, Metric::LatencyP50, Metric::LatencyP99];

/// A ping in a line.
pub fn ping_line(ping: &PingReport, progress: &Progress) -> String {
    let what = format!("ping {} from host {}", ping.address, ping.from);
    match (&ping.error, ping.rtt_us, ping.ttl) {
        (None, Some(rtt_us), Some(ttl)) => format!(
            "  {} {what:<30} {} of {} replies, {}, TTL {ttl}",
            progress.paint(Style::Green, "ok"),
            ping.received,
            ping.sent,
            milliseconds(rtt_us),
        ),
        (error, ..) => failed(&what, error.as_deref(), progress),
    }
}

/// A file in a line.
pub fn transfer_line(transfer: &TransferReport, progress: &Progress) -> String {
    let what = format!("{} MiB to {} from host {}", transfer.bytes >> 20, transfer.address, transfer.from);
    match (&transfer.error, transfer.seconds, &transfer.sha256_received) {
        (None, Some(seconds), Some(hash)) => format!(
            "  {} {what:<33} {seconds:.2} s, SHA-256 {}... is the same",
            progress.paint(Style::Green, "ok"),
            &hash[..HASH_LEN_SHOWN.min(hash.len())],
        ),
        (error, ..) => failed(&what, error.as_deref(), progress),
    }
}

fn failed(what: &str, error: Option<&str>, progress: &Progress) -> String {
    format!("  {} {what}: {}", progress.paint(Style::Red, "FAILED"), error.unwrap_or("no result"))
}

fn milliseconds(us: f64) -> String {
    format!("{:.3} ms", us / 1e3)
}

/// Everything that comes after the measurements.
pub fn result(report: &Report, progress: &Progress) -> String {
    let mut text = String::new();
    let mut section = |title: &str, body: String| {
        text.push_str(&format!("\n{}\n{body}", progress.paint(Style::Bold, title)));
    };
    section("What ran", what_ran(report));
    for mode in CableMode::ALL {
        let title = match mode {
            CableMode::Offload => "offload: large packets cross the cable whole, as between containers on one host",
            CableMode::Wire => "wire: every packet crosses at MTU size, as on a plain network card",
        };
        section(title, format!("{}\n", table(report, mode)));
    }
    section("The same as a picture (each group to the scale of its longest bar)", picture(report, progress));
    section("How to read this", how_to_read(report));
    text
}

/// Good, or why not.
pub fn verdict(report: &Report, progress: &Progress) -> String {
    if report.ok {
        let how = format!("every ping, hash and measurement succeeded, in {:.0} s", report.elapsed_s);
        return format!("\n{}: {how}.", progress.paint(Style::Green, "ok"));
    }
    let title = progress.paint(Style::Red, if report.interrupted { "Interrupted" } else { "FAILED" });
    report.failures.iter().fold(format!("\n{title}:"), |text, failure| format!("{text}\n  - {failure}"))
}

fn what_ran(report: &Report) -> String {
    let machine = &report.machine;
    let cpu = machine.cpu.as_ref().map(|cpu| format!(" ({cpu})")).unwrap_or_default();
    let cores = if machine.cores == 1 { "1 core".into() } else { format!("{} cores", machine.cores) };
    let mut lines = vec![format!("Linux {}, {cores}{cpu}", machine.kernel)];
    lines.extend(ran_on_hosts(&report.hosts));
    if let Some(distances) = Distances::of(report.core_to_core_ns.clone()) {
        lines.push(format!("cores {distances}"));
    }
    lines.push("VXLAN: the kernel's, set up as flannel does; routing: a route, no tunnel".into());
    if machine.debug_build {
        lines.push("THIS IS A DEBUG BUILD: its numbers say nothing. `cargo build --release`".into());
    }
    paragraphs(&lines) + "\n"
}

/// What each weftd said of itself; one line if they say the same.
fn ran_on_hosts(hosts: &[HostReport]) -> Vec<String> {
    let lines: Vec<(String, String)> = hosts.iter().map(|host| (host.name.clone(), describe(host))).collect();
    match lines.as_slice() {
        [] => vec!["weft: nothing is known of what ran".into()],
        [(_, first), (_, second)] if first == second => vec![format!("weft on both hosts: {first}")],
        _ => lines.into_iter().map(|(name, line)| format!("weft on host {name}: {line}")).collect(),
    }
}

fn describe(host: &HostReport) -> String {
    let status = &host.weftd;
    let on: Vec<&str> = status.offloads.each().into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let workers = if status.workers == 1 { "1 worker".into() } else { format!("{} workers", status.workers) };
    let offloads = if on.is_empty() { "none".into() } else { on.join(" ") };
    // Why it is not the default engine belongs in the same breath as its name.
    let note = status.engine_note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
    format!("engine {}{note}, {workers}, MTU {}; offloads: {offloads}", status.engine, status.mtu)
}

fn table(report: &Report, mode: CableMode) -> Table {
    let mut table = Table::new();
    table.load_style(TABLE_STYLE).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["", "weft", "/ VXLAN", "VXLAN", "routing", "/ VXLAN", "unit", "better"]);
    for metric in Metric::ALL {
        let cell = |subject| report.cell(metric, mode, subject);
        table.add_row([
            metric.name().to_owned(),
            value(cell(Subject::Weft)),
            ratio(cell(Subject::Weft)),
            value(cell(Subject::Vxlan)),
            value(cell(Subject::Plain)),
            ratio(cell(Subject::Plain)),
            metric.shown_unit().to_owned(),
            if metric.less_is_better() { "less" } else { "more" }.to_owned(),
        ]);
    }
    for index in 1..=5 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn value(cell: Option<&Measurement>) -> String {
    match cell.and_then(|cell| Some((cell.metric, cell.value.filter(|_| cell.measured)?))) {
        Some((metric, value)) => metric.show(value),
        None => "not measured".into(),
    }
}

fn ratio(cell: Option<&Measurement>) -> String {
    let ratio = cell.filter(|cell| cell.measured).and_then(|cell| cell.ratio_to_vxlan);
    match ratio {
        None => "-".into(),
        Some(large) if large >= 100.0 => format!("{large:.0}x"),
        Some(medium) if medium >= 10.0 => format!("{medium:.1}x"),
        Some(small) => format!("{small:.2}x"),
    }
}

fn picture(report: &Report, progress: &Progress) -> String {
    let heads = CableMode::ALL.map(|mode| format!("{:<width$}", mode.name(), width = BAR_LEN + VALUE_LEN + 1));
    let mut text = format!("{:26}{}\n", "", heads.concat()).trim_end().to_owned() + "\n";
    for (number, metric) in DRAWN.into_iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        let largest = CableMode::ALL.map(|mode| {
            let values = Subject::ALL.iter().filter_map(|subject| report.cell(metric, mode, *subject)?.value);
            values.fold(0.0, f64::max)
        });
        for subject in Subject::ALL {
            let title = match subject {
                Subject::Weft => metric.name(),
                Subject::Vxlan => metric.shown_unit(),
                Subject::Plain if metric.less_is_better() => "shorter is better",
                Subject::Plain => "longer is better",
            };
            let mut line = format!("  {title:<17} {:<7} ", subject.name());
            for (mode, largest) in CableMode::ALL.into_iter().zip(largest) {
                let cell = report.cell(metric, mode, subject).filter(|cell| cell.measured);
                let value = cell.and_then(|cell| cell.value);
                let bar = value.map_or_else(String::new, |value| bar(value / largest));
                let padding = " ".repeat(BAR_LEN - bar.chars().count());
                let bar = if subject == Subject::Weft { progress.paint(Style::Cyan, &bar) } else { bar };
                let shown = value.map_or_else(|| "-".into(), |value| metric.show(value));
                line.push_str(&format!("{bar}{padding} {shown:<VALUE_LEN$}"));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

/// A bar of at most [`BAR_LEN`] characters, exact to an eighth of one; never empty.
fn bar(part: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let count = ((part.clamp(0.0, 1.0) * BAR_LEN as f64 * 8.0).round() as usize).max(1);
    format!("{}{}", "█".repeat(count / 8), EIGHTHS[count % 8])
}

fn how_to_read(report: &Report) -> String {
    let cores = report.machine.cores;
    let mut sentences = vec![
        format!(
            "Both hosts, their kernels, the tunnels and the programs that measure share {} of this machine, and the \
             cable is a veth pair. So compare within a row, and do not take the absolute numbers elsewhere: \
             1.00x is as fast as kernel VXLAN in the same run.",
            if cores == 1 { "the one core".into() } else { format!("the {cores} cores") },
        ),
        format!(
            "{} {} s; the subjects took turns. Latency is the round trip of a 64-byte request and its response, one at \
             a time, on an otherwise idle tunnel.",
            match report.plan.rounds {
                1 => "Each number is one measurement of".into(),
                rounds => format!("Each number is the median of {rounds} measurements of"),
            },
            report.plan.seconds,
        ),
        "UDP senders send what the kernel takes. Weft makes them wait; elsewhere what the path does not carry is lost. \
         What arrived is counted. Routing has no tunnel at all: it is what the cable and the kernel give on their own."
            .to_owned(),
        "Payload was checked on arrival in every measurement.".to_owned(),
    ];
    if Distances::of(report.core_to_core_ns.clone()).is_some_and(|distances| distances.moved > 0) {
        sentences.push(
            "The hypervisor moved the cores for a while: where they are far from each other, what passes packets between \
             them is slower, tunnels in user space more so than the rest."
                .to_owned(),
        );
    }
    if let Some(spread) = report.spread() {
        let warning = if spread > SPREAD_NOTABLE {
            " That is a lot: the machine was busy with something else, or measure longer with --seconds and --rounds."
        } else {
            ""
        };
        sentences.push(format!("Between rounds, a typical number differed by {:.0} %.{warning}", spread * 100.0));
    } else {
        sentences.push("One round only: a difference of a fifth may be chance. Use --rounds for more.".to_owned());
    }
    paragraphs(&sentences)
}

/// One paragraph below the other.
fn paragraphs(texts: &[String]) -> String {
    texts.iter().map(|text| wrap(text)).collect::<Vec<_>>().join("\n")
}

/// Breaks a paragraph into lines, indented by two.
fn wrap(paragraph: &str) -> String {
    let mut lines = vec![String::from(" ")];
    for word in paragraph.split(' ') {
        let line = lines.last_mut().expect("there is one");
        if line.chars().count() + 1 + word.chars().count() > LINE_LEN {
            lines.push(format!("  {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::small_report;
    use super::*;

    fn concluded() -> Report {
        let mut report = small_report();
        report.conclude([0, 0, 3]);
        report
    }

    #[test]
    fn a_row_has_values_ratios_and_unit() {
        let text = table(&concluded(), CableMode::Offload).to_string();
        let row = text.lines().find(|line| line.contains("TCP, 1 flow")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words, ["TCP,", "1", "flow", "3.00", "1.50x", "2.00", "4.00", "2.00x", "Gbit/s", "more"], "{text}");
    }

    #[test]
    fn what_was_not_measured_is_not_shown_as_a_number() {
        let mut report = small_report();
        report.hosts[0].degraded.push("the kernel refused udp_gso at run time".into());
        report.conclude([0, 0, 3]);
        let text = table(&report, CableMode::Offload).to_string();
        let row = text.lines().find(|line| line.contains("TCP, 1 flow")).unwrap();
        assert!(row.contains("not measured") && row.contains("2.00") && !row.contains("3.00"), "{row}");
        let verdict = verdict(&report, &Progress::new(true));
        assert!(verdict.contains("FAILED") && verdict.contains("udp_gso"), "{verdict}");
    }

    #[test]
    fn bars_are_in_proportion() {
        assert_eq!(bar(1.0), "█".repeat(BAR_LEN));
        assert_eq!(bar(0.5), "█".repeat(BAR_LEN / 2));
        assert_eq!(bar(0.0), "▏");
        assert!(bar(f64::NAN).chars().count() <= 1);
    }

    #[test]
    fn the_whole_result_fits_a_terminal_of_eighty_columns() {
        let mut report = small_report();
        report.measurements.clear();
        for metric in Metric::ALL {
            for mode in CableMode::ALL {
                for subject in Subject::ALL {
                    let value = match metric.unit() {
                        "bit/s" => 198_765_432_100.0,
                        "packet/s" => 98_765_432.0,
                        _ => 12_345.0,
                    };
                    let cell = &small_report().measurements[0];
                    report.measurements.push(Measurement { metric, mode, subject, value: Some(value), ..cell.clone() });
                }
            }
        }
        report.conclude([0, 0, 42]);
        let text = result(&report, &Progress::new(true));
        for line in text.lines() {
            assert!(line.chars().count() <= LINE_LEN, "{} columns: {line}", line.chars().count());
        }
    }
}
