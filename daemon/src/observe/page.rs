//! A page of text for a terminal: no line is longer than [`WIDTH`], and nothing in it is obeyed.

use std::fmt::Write;

/// Columns.
pub const WIDTH: usize = 100;

/// The lines so far.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Adds `text` behind `indent` blanks; what does not fit goes on in further lines, behind `hang` blanks.
    pub fn line(&mut self, indent: usize, hang: usize, text: &str) {
        let text = printable(text.trim_end());
        let (mut blanks, mut rest) = (indent, &*text);
        loop {
            let (now, later) = split(rest, WIDTH - blanks);
            // Into a string: that cannot fail.
            let _ = writeln!(self.0, "{}{now}", " ".repeat(blanks));
            if later.is_empty() {
                return;
            }
            (blanks, rest) = (hang, later);
        }
    }

    /// Adds an empty line.
    pub fn gap(&mut self) {
        self.0.push('\n');
    }

    /// All of it, with a line feed at the end of each line.
    pub fn into_text(self) -> String {
        self.0
    }
}

/// As much of `text` as fits into `width` columns, cut at a blank if there is one, and the rest.
fn split(text: &str, width: usize) -> (&str, &str) {
    let Some((end, _)) = text.char_indices().nth(width) else {
        return (text, "");
    };
    // A blank right behind what fits will do as well.
    let within = text.char_indices().take(width + 1);
    match within.filter(|(_, character)| *character == ' ').last() {
        Some((blank, _)) if !text[..blank].trim().is_empty() => {
            (text[..blank].trim_end(), text[blank..].trim_start())
        }
        _ => text.split_at(end),
    }
}

/// `text` without anything that a terminal would obey: names of files and processes are whatever their owners like.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::{Page, WIDTH, printable};

    fn page(indent: usize, hang: usize, text: &str) -> String {
        let mut page = Page::default();
        page.line(indent, hang, text);
        page.into_text()
    }

    #[test]
    fn a_long_line_goes_on_where_it_is_told_to() {
        let word = "x".repeat(30);
        let text = format!("{word} {word} {word} {word}");
        let expected = format!("  {word} {word} {word}\n    {word}\n");
        assert_eq!(page(2, 4, &text), expected);
        // Exactly as much as fits.
        let full = "y".repeat(WIDTH - 2);
        assert_eq!(page(2, 4, &full), format!("  {full}\n"));
        assert_eq!(page(2, 4, &format!("{full} z")), format!("  {full}\n    z\n"));
        assert_eq!(page(2, 4, "short  "), "  short\n");
    }

    #[test]
    fn a_word_that_is_too_long_is_cut_and_columns_are_characters() {
        let page = page(0, 10, &"ä".repeat(250));
        let widths: Vec<_> = page.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [100, 100, 70]);
    }

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        assert_eq!(printable("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(printable("Kamera ä"), "Kamera ä");
        // C1 as well.
        assert_eq!(printable("\u{9b}31m"), "\\u{9b}31m");
    }
}
