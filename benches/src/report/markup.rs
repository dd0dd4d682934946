//! A small writer of HTML and SVG: what is text is escaped, what is opened is closed, and a coordinate is a number.

/// An attribute's value.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Text, escaped when written.
    Text(&'a str),
    /// A coordinate or length, written with two decimals at most.
    Number(f64),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Value<'a> {
        Value::Text(text)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Value<'a> {
        Value::Text(text)
    }
}

impl From<f64> for Value<'_> {
    fn from(number: f64) -> Self {
        Value::Number(number)
    }
}

/// Names and values of an element's attributes.
pub type Attributes<'a> = [(&'a str, Value<'a>)];

/// A growing piece of HTML or SVG.
#[derive(Debug, Default)]
pub struct Markup {
    text: String,
}

impl Markup {
    /// An empty piece.
    pub fn new() -> Markup {
        Markup::default()
    }

    /// The text so far.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Writes an element with what `inside` writes between its tags.
    pub fn nest(&mut self, name: &str, attributes: &Attributes<'_>, inside: impl FnOnce(&mut Markup)) {
        self.open(name, attributes, ">");
        inside(self);
        self.close(name);
    }

    /// Writes an element that holds text alone.
    pub fn leaf(&mut self, name: &str, attributes: &Attributes<'_>, text: &str) {
        self.nest(name, attributes, |out| out.text(text));
    }

    /// Writes an SVG element that holds nothing.
    pub fn empty(&mut self, name: &str, attributes: &Attributes<'_>) {
        self.open(name, attributes, "/>\n");
    }

    /// Writes text, escaped.
    pub fn text(&mut self, text: &str) {
        escape_into(text, &mut self.text);
    }

    /// Writes what is markup already: a style sheet or a piece made elsewhere by this writer.
    pub fn raw(&mut self, markup: &str) {
        self.text.push_str(markup);
    }

    fn open(&mut self, name: &str, attributes: &Attributes<'_>, end: &str) {
        self.text.push('<');
        self.text.push_str(name);
        for (key, value) in attributes {
            self.text.push(' ');
            self.text.push_str(key);
            self.text.push_str("=\"");
            match value {
                Value::Text(text) => escape_into(text, &mut self.text),
                Value::Number(number) => self.text.push_str(&coordinate(*number)),
            }
            self.text.push('"');
        }
        self.text.push_str(end);
    }

    fn close(&mut self, name: &str) {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push_str(">\n");
    }
}

/// A path through points, for the attribute `d`; empty without points.
pub fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        path.push(if path.is_empty() { 'M' } else { 'L' });
        path.push_str(&coordinate(x));
        path.push(' ');
        path.push_str(&coordinate(y));
    }
    path
}

/// A number as SVG takes it: two decimals at most, no exponent, never `NaN` or `inf`, for which it writes 0.
pub fn coordinate(number: f64) -> String {
    // Beyond this no drawing has a point, and the text would grow to 300 digits.
    const FAR: f64 = 1e6;
    if !number.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{:.2}", number.clamp(-FAR, FAR));
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Text for a place between tags or in an attribute in double quotes. Characters that XML forbids become U+FFFD.
fn escape_into(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(character),
            control if control.is_control() => out.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let mut out = Markup::new();
        out.leaf("b", &[("title", "\"a\" & 'b'".into())], "<script>\u{0}");
        assert_eq!(out.into_text(), "<b title=\"&quot;a&quot; &amp; &#39;b&#39;\">&lt;script&gt;\u{fffd}</b>\n");
    }

    #[test]
    fn coordinates_are_short_and_always_numbers() {
        let written = [
            (0.0, "0"),
            (-0.001, "0"),
            (12.0, "12"),
            (100.0, "100"),
            (1.005, "1"),
            (2.719, "2.72"),
            (-2.5, "-2.5"),
            (f64::NAN, "0"),
            (f64::INFINITY, "0"),
            (1e300, "1000000"),
        ];
        for (number, text) in written {
            assert_eq!(coordinate(number), text);
        }
    }

    #[test]
    fn a_path_moves_once_and_then_draws() {
        assert_eq!(path([(0.0, 1.0), (2.0, 3.5)]), "M0 1L2 3.5");
        assert_eq!(path([]), "");
    }
}
