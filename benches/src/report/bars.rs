//! Horizontal bars from a line (1 for ratios, 0 for amounts) to a median, with the spread and every round on top.
//!
//! ```text
//! title
//!              0.5        1        2             axis
//!  heading      |  <- better       |
//!  label        |   =====|         |    0.71x    bar: median; |---| smallest to largest; dots: rounds
//!  label        |        |=====    |    1.60x
//! ```

use super::markup::Markup;
use super::scale::Scale;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More.
    More,
    /// Less.
    Less,
}

/// What a value says about its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On the better side of the line in every round.
    Better,
    /// On the worse side of the line in every round.
    Worse,
    /// The line is within the spread.
    Same,
}

impl Side {
    /// Compares a spread with a line.
    pub fn of(min: f64, max: f64, line: f64, better: Better) -> Side {
        match better {
            Better::More if min > line => Side::Better,
            Better::More if max < line => Side::Worse,
            Better::Less if max < line => Side::Better,
            Better::Less if min > line => Side::Worse,
            _ => Side::Same,
        }
    }

    /// Name of its class in the style sheet.
    pub fn class(self) -> &'static str {
        match self {
            Side::Better => "better",
            Side::Worse => "worse",
            Side::Same => "same",
        }
    }
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Classes of its colour.
    pub class: String,
    /// What is shown when the pointer rests on it.
    pub title: String,
    /// Its end.
    pub median: f64,
    /// Smallest of the rounds.
    pub min: f64,
    /// Largest of the rounds.
    pub max: f64,
    /// Every round, with its number.
    pub rounds: Vec<(u32, f64)>,
    /// The figure behind it.
    pub figure: String,
    /// Class of that figure.
    pub figure_class: &'static str,
}

/// Bars of several subjects under one label.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub label: String,
    /// One bar per subject.
    pub bars: Vec<Bar>,
}

/// Rows under a heading.
#[derive(Clone, Debug)]
pub struct Group {
    /// What they have in common; empty for no heading.
    pub heading: String,
    /// Which side of the line is the better one; `None` marks none.
    pub better: Option<Better>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A whole figure.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Its title.
    pub title: String,
    /// The groups, from top to bottom.
    pub groups: Vec<Group>,
    /// The value at which bars begin.
    pub line: f64,
    /// Values of the axis and their labels.
    pub ticks: Vec<(f64, String)>,
}

/// Where a figure is drawn within an SVG, and how large.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Room for labels at the left; 0: no labels.
    pub label_width: f64,
    /// Room for the bars.
    pub plot_width: f64,
    /// Room for the figures at the right.
    pub figure_width: f64,
    /// Height of a bar.
    pub bar_height: f64,
}

const TITLE_HEIGHT: f64 = 26.0;
const AXIS_HEIGHT: f64 = 20.0;
const HEADING_HEIGHT: f64 = 24.0;
const BAR_GAP: f64 = 3.0;
const ROW_GAP: f64 = 9.0;
const GROUP_GAP: f64 = 10.0;

impl Frame {
    /// Left and right edge of the bars, for the scale.
    pub fn plot(&self) -> (f64, f64) {
        let left = self.left + self.label_width;
        (left, left + self.plot_width)
    }

    fn row_height(&self, row: &Row) -> f64 {
        row.bars.len() as f64 * (self.bar_height + BAR_GAP) - BAR_GAP + ROW_GAP
    }

    fn group_height(&self, group: &Group) -> f64 {
        let heading = if group.heading.is_empty() { 0.0 } else { HEADING_HEIGHT };
        heading + group.rows.iter().map(|row| self.row_height(row)).sum::<f64>() + GROUP_GAP
    }

    /// Height that a figure takes.
    pub fn height(&self, bars: &Bars) -> f64 {
        TITLE_HEIGHT + AXIS_HEIGHT + bars.groups.iter().map(|group| self.group_height(group)).sum::<f64>()
    }
}

/// Draws a figure.
pub fn draw(out: &mut Markup, bars: &Bars, scale: &Scale, frame: Frame) {
    let (left, right) = frame.plot();
    let bottom = frame.top + frame.height(bars) - GROUP_GAP / 2.0;
    let title_left = if frame.label_width > 0.0 { frame.left } else { left };
    out.leaf(
        "text",
        &[("class", "title".into()), ("x", title_left.into()), ("y", (frame.top + 16.0).into())],
        &bars.title,
    );

    let mut top = frame.top + TITLE_HEIGHT + AXIS_HEIGHT;
    for group in &bars.groups {
        if let Some(better) = group.better {
            shade(
                out,
                scale,
                bars.line,
                better,
                (left, right),
                (top, top + frame.group_height(group) - GROUP_GAP / 2.0),
            );
        }
        top += frame.group_height(group);
    }

    let axis = frame.top + TITLE_HEIGHT + AXIS_HEIGHT;
    for (value, label) in &bars.ticks {
        let x = scale.at(*value);
        out.empty(
            "line",
            &[("class", "grid".into()), ("x1", x.into()), ("x2", x.into()), ("y1", axis.into()), ("y2", bottom.into())],
        );
        out.leaf("text", &[("class", "tick middle".into()), ("x", x.into()), ("y", (axis - 6.0).into())], label);
    }

    let mut top = axis;
    for group in &bars.groups {
        if !group.heading.is_empty() {
            heading(out, group, scale, bars.line, frame, top);
            top += HEADING_HEIGHT;
        }
        for row in &group.rows {
            draw_row(out, row, scale, bars.line, frame, top);
            top += frame.row_height(row);
        }
        top += GROUP_GAP;
    }

    let x = scale.at(bars.line);
    out.empty(
        "line",
        &[("class", "one".into()), ("x1", x.into()), ("x2", x.into()), ("y1", axis.into()), ("y2", bottom.into())],
    );
}

/// Marks the better side.
fn shade(
    out: &mut Markup,
    scale: &Scale,
    line: f64,
    better: Better,
    (left, right): (f64, f64),
    (top, bottom): (f64, f64),
) {
    let (from, to) = match better {
        Better::More => (scale.at(line), right),
        Better::Less => (left, scale.at(line)),
    };
    out.empty(
        "rect",
        &[
            ("class", "good".into()),
            ("x", from.into()),
            ("y", top.into()),
            ("width", (to - from).into()),
            ("height", (bottom - top).into()),
        ],
    );
}

fn heading(out: &mut Markup, group: &Group, scale: &Scale, line: f64, frame: Frame, top: f64) {
    let y = top + 16.0;
    if frame.label_width > 0.0 {
        out.leaf("text", &[("class", "heading".into()), ("x", frame.left.into()), ("y", y.into())], &group.heading);
    }
    let x = scale.at(line);
    let (class, x, words) = match group.better {
        Some(Better::More) => ("hint", x + 7.0, "better \u{2192}"),
        Some(Better::Less) => ("hint end", x - 7.0, "\u{2190} better"),
        None => return,
    };
    out.leaf("text", &[("class", class.into()), ("x", x.into()), ("y", y.into())], words);
}

fn draw_row(out: &mut Markup, row: &Row, scale: &Scale, line: f64, frame: Frame, top: f64) {
    let (left, right) = frame.plot();
    if frame.label_width > 0.0 {
        let y = top + ROW_GAP / 2.0 + frame.bar_height / 2.0 + 4.0;
        out.leaf("text", &[("class", "label end".into()), ("x", (left - 10.0).into()), ("y", y.into())], &row.label);
    }
    for (index, bar) in row.bars.iter().enumerate() {
        let top = top + ROW_GAP / 2.0 + index as f64 * (frame.bar_height + BAR_GAP);
        let middle = top + frame.bar_height / 2.0;
        out.nest("g", &[("class", "bar".into())], |out| {
            out.leaf("title", &[], &bar.title);
            // The whole width answers the pointer, not the thin bar alone.
            out.empty(
                "rect",
                &rect(
                    "touch",
                    left,
                    top - BAR_GAP / 2.0,
                    right - left + frame.figure_width,
                    frame.bar_height + BAR_GAP,
                ),
            );
            let (from, to) = (scale.at(line), scale.at(bar.median));
            out.empty("rect", &rect(&bar.class, from.min(to), top, (from - to).abs(), frame.bar_height));
            spread(out, bar, scale, middle, frame.bar_height);
            if scale.is_outside(bar.median) {
                beyond(out, bar.median > line, (left, right), middle);
            }
            let classes = format!("figure end {}", bar.figure_class);
            let x = right + frame.figure_width;
            out.leaf(
                "text",
                &[("class", (&classes).into()), ("x", x.into()), ("y", (middle + 4.0).into())],
                &bar.figure,
            );
        });
    }
}

fn rect<'a>(class: &'a str, x: f64, y: f64, width: f64, height: f64) -> [(&'static str, super::markup::Value<'a>); 5] {
    [("class", class.into()), ("x", x.into()), ("y", y.into()), ("width", width.into()), ("height", height.into())]
}

fn spread(out: &mut Markup, bar: &Bar, scale: &Scale, middle: f64, height: f64) {
    let (min, max) = (scale.at(bar.min), scale.at(bar.max));
    let cap = height * 0.3;
    let path = format!(
        "{}{}{}",
        super::markup::path([(min, middle - cap), (min, middle + cap)]),
        super::markup::path([(min, middle), (max, middle)]),
        super::markup::path([(max, middle - cap), (max, middle + cap)]),
    );
    out.empty("path", &[("class", "spread".into()), ("d", (&path).into())]);
    for (_, value) in &bar.rounds {
        let x = scale.at(*value);
        out.empty("circle", &[("class", "dot".into()), ("cx", x.into()), ("cy", middle.into()), ("r", 2.0.into())]);
    }
}

/// A tip at the edge: the bar goes on beyond the axis.
fn beyond(out: &mut Markup, rightwards: bool, (left, right): (f64, f64), middle: f64) {
    let (edge, tip) = if rightwards { (right, right + 7.0) } else { (left, left - 7.0) };
    let path = super::markup::path([(edge, middle - 5.0), (tip, middle), (edge, middle + 5.0)]);
    out.empty("path", &[("class", "beyond".into()), ("d", (&path).into())]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_that_holds_the_line_is_neither_better_nor_worse() {
        let sides = [
            (1.1, 1.3, Better::More, Side::Better),
            (0.7, 0.9, Better::More, Side::Worse),
            (0.9, 1.3, Better::More, Side::Same),
            (0.7, 0.9, Better::Less, Side::Better),
            (1.1, 1.3, Better::Less, Side::Worse),
            (1.0, 1.3, Better::Less, Side::Same),
        ];
        for (min, max, better, side) in sides {
            assert_eq!(Side::of(min, max, 1.0, better), side, "{min}..{max} {better:?}");
        }
    }
}
