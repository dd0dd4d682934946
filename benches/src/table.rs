//! The result on a terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle, presets};

use crate::distance;
use crate::metric::{METRICS, Metric, ratio_digits};
use crate::result::{Ratio, Report, SubjectReport, Summary};

const TABLE_STYLE: TableStyle = presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none());

/// The tables of a report, one per mode, MTU and rate limit, and below each what ran.
pub fn show(report: &Report) -> String {
    let mut text = String::new();
    let mut seen: Vec<&SubjectReport> = Vec::new();
    for subject in &report.subjects {
        if seen.iter().any(|other| same_field(other, subject)) {
            continue;
        }
        seen.push(subject);
        let rate = subject.rate_mbit.map_or(String::new(), |rate| format!(", {rate} Mbit/s"));
        text += &format!("\n{}, underlay MTU {}{rate}\n", subject.mode, subject.mtu);
        text += &format!("{}\n", table(report, subject));
        for other in report.subjects.iter().filter(|other| same_field(other, subject)) {
            text += &format!("  {}\n", what_ran(other));
        }
    }
    if let Some(distances) = distance::of_report(report) {
        text += &format!("\nCores: {distances}\n");
    }
    text
}

fn same_field(a: &SubjectReport, b: &SubjectReport) -> bool {
    (a.mode, a.mtu, a.rate_mbit) == (b.mode, b.mtu, b.rate_mbit)
}

/// Rows are workloads and their metrics, columns are subjects.
fn table(report: &Report, field: &SubjectReport) -> Table {
    let mut table = Table::new();
    table.load_style(TABLE_STYLE).set_content_arrangement(ContentArrangement::Disabled);
    let plan = &report.plan;
    let mut subjects: Vec<&String> = plan.subjects.iter().collect();
    // The baseline first: everything stands beside it.
    subjects.sort_by_key(|subject| plan.baseline.as_ref() != Some(*subject));
    let head = |subject: &&String| match &plan.baseline {
        Some(baseline) if baseline != *subject => format!("{subject}\n(x {baseline}, min to max)"),
        _ => (*subject).clone(),
    };
    table.set_header(["workload", "metric"].map(str::to_owned).into_iter().chain(subjects.iter().map(head)));
    for workload in &plan.workloads {
        let mut first = true;
        for metric in METRICS.iter().filter(|metric| metric.is_chief) {
            let is_it = |row: &&Summary| {
                row.workload == *workload
                    && row.metric == metric.name
                    && (row.mode, row.mtu, row.rate_mbit) == (field.mode, field.mtu, field.rate_mbit)
            };
            let rows: Vec<&Summary> = report.medians.iter().filter(is_it).collect();
            if rows.is_empty() {
                continue;
            }
            let name = if std::mem::take(&mut first) { workload.as_str() } else { "" };
            let mut cells = vec![Cell::new(name), Cell::new(metric.name)];
            for subject in &subjects {
                let row = rows.iter().find(|row| row.subject == **subject);
                let ratio = report.ratios.iter().find(|ratio| {
                    let Ratio { mode, mtu, rate_mbit, .. } = ratio;
                    ratio.subject == **subject
                        && ratio.workload == *workload
                        && ratio.metric == metric.name
                        && (*mode, *mtu, *rate_mbit) == (field.mode, field.mtu, field.rate_mbit)
                });
                cells.push(Cell::new(cell(metric, row.copied(), ratio)).set_alignment(CellAlignment::Right));
            }
            table.add_row(cells);
        }
    }
    table
}

fn cell(metric: &Metric, row: Option<&Summary>, ratio: Option<&Ratio>) -> String {
    let Some(row) = row else { return "not measured".to_owned() };
    let value = metric.show(row.median);
    match ratio {
        None => value,
        Some(Ratio { median, min, max, .. }) => {
            let spread = format!("({} to {})", ratio_digits(*min), ratio_digits(*max));
            format!("{value}  {}x {spread}", ratio_digits(*median))
        }
    }
}

/// One line on what a subject really was.
fn what_ran(subject: &SubjectReport) -> String {
    if let Some(why) = &subject.refused {
        return format!("{}: NOT MEASURED: {why}", subject.name);
    }
    let mut parts = Vec::new();
    parts.extend(subject.version.as_ref().map(|version| format!("version {version}")));
    parts.extend(subject.engine.as_ref().map(|engine| format!("engine {engine}")));
    parts.extend(subject.opener.as_ref().map(|opener| format!("TUN {opener}")));
    parts.extend(subject.workers.map(|workers| format!("{workers} worker{}", if workers == 1 { "" } else { "s" })));
    parts.extend(subject.spin_us.map(|spin| format!("spin {spin} us")));
    parts.extend(subject.overlay_mtu.map(|mtu| format!("MTU {mtu}")));
    let names = |wanted: bool| {
        let names = subject.offloads.iter().filter(|(_, on)| **on == wanted).map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(" ")
    };
    if !subject.offloads.is_empty() {
        let (on, off) = (names(true), names(false));
        parts.push(format!("offloads {}", if on.is_empty() { "none" } else { &on }));
        if !off.is_empty() {
            parts.push(format!("without {off}"));
        }
    }
    let drops = subject.drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>();
    if !drops.is_empty() {
        parts.push(format!("dropped {}", drops.join(", ")));
    }
    parts.extend(subject.command.as_ref().filter(|_| subject.kind == "external").cloned());
    parts.extend(subject.notes.iter().cloned());
    format!("{}: {}", subject.name, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary;

    #[test]
    fn a_cell_has_the_value_the_ratio_and_its_spread() {
        let mut report = summary::tests::report();
        summary::conclude(&mut report);
        let text = show(&report);
        assert!(text.contains("wire, underlay MTU 1500"), "{text}");
        let row = text.lines().find(|line| line.contains("throughput")).unwrap();
        assert!(row.contains("2.00 Gbit/s") && row.contains("6.00 Gbit/s  2.00x (1.00 to 4.00)"), "{row}");
    }

    #[test]
    fn a_refused_subject_is_named_with_the_reason() {
        let mut report = summary::tests::report();
        report.subjects[0].refused = Some("the wrong engine ran".into());
        summary::conclude(&mut report);
        let text = show(&report);
        assert!(text.contains("not measured") && text.contains("weft: NOT MEASURED: the wrong engine ran"), "{text}");
    }
}
