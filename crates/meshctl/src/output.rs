//! Printing: aligned columns, JSON and YAML, colours where they are wanted, and errors.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use serde_json::Value;

use crate::cli::Format;

/// Writes to standard output at once; whether the other end has closed it is the caller's to judge
/// ([`is_broken_pipe`]).
pub(crate) fn write(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()?;
    Ok(())
}

/// Whether the error is that nobody reads the output any more, as with `meshctl ... | head`.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints an error with its causes to standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let label = if colours(&io::stderr()) {
        "\x1b[1;31merror:\x1b[0m"
    } else {
        "error:"
    };
    // Nothing is left to do when even this cannot be written.
    let _ = writeln!(io::stderr(), "{label} {error:#}");
}

/// Whether colours may be written there: a terminal, and `NO_COLOR` is not set.
pub(crate) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A colour for a word of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// As it should be.
    Green,
    /// On its way.
    Yellow,
    /// Wrong.
    Red,
}

/// The text in a colour.
pub(crate) fn paint(text: &str, colour: Colour) -> String {
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Rows under headings, as wide as what is in them.
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new<const N: usize>(headings: [&'static str; N]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.headings.len());
        self.rows.push(cells.into());
    }

    /// Sorts by the cells from left to right, the numbers in them by their value.
    pub(crate) fn sort(&mut self) {
        self.rows
            .sort_by_cached_key(|row| row.iter().map(|cell| pieces(cell)).collect::<Vec<_>>());
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text; `colour` says how a cell of a column is painted.
    pub(crate) fn render(&self, colour: impl Fn(usize, &str) -> Option<Colour>) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|text| text.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        let headings: Vec<String> = self.headings.iter().map(|&h| h.to_owned()).collect();
        push_row(&mut text, &headings, &widths, |_, _| None);
        for row in &self.rows {
            push_row(&mut text, row, &widths, &colour);
        }
        text
    }
}

/// A run of digits, or of anything else.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Number(u64),
    Text(String),
}

fn pieces(cell: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = cell;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest
            .find(|c: char| c.is_ascii_digit() != digits)
            .unwrap_or(rest.len());
        let (piece, tail) = rest.split_at(end);
        pieces.push(match piece.parse() {
            Ok(number) => Piece::Number(number),
            Err(_) => Piece::Text(piece.to_owned()),
        });
        rest = tail;
    }
    pieces
}

fn push_row(
    text: &mut String,
    cells: &[String],
    widths: &[usize],
    colour: impl Fn(usize, &str) -> Option<Colour>,
) {
    let last = cells.len().saturating_sub(1);
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        match colour(column, cell) {
            Some(colour) => text.push_str(&paint(cell, colour)),
            None => text.push_str(cell),
        }
        if column < last {
            let padding = width - cell.chars().count() + 3;
            text.extend(std::iter::repeat_n(' ', padding));
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

/// Prints a table, with colours if standard output takes them.
pub(crate) fn table(
    table: &Table,
    colour: impl Fn(usize, &str) -> Option<Colour>,
) -> anyhow::Result<()> {
    if colours(&io::stdout()) {
        write(&table.render(colour))
    } else {
        write(&table.render(|_, _| None))
    }
}

/// Prints a document as JSON or YAML.
pub(crate) fn document(value: &Value, format: Format) -> anyhow::Result<()> {
    let mut text = match format {
        Format::Yaml => serde_saphyr::to_string(value).context("cannot write YAML")?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value)?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    write(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_spaces() {
        let mut table = Table::new(["NAME", "PORT"]);
        table.row(["a-long-name".into(), "8080".into()]);
        table.row(["b".into(), "80".into()]);
        assert_eq!(
            table.render(|_, _| None),
            "NAME          PORT\na-long-name   8080\nb             80\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut table = Table::new(["STATE", "NAME"]);
        table.row(["ok".into(), "x".into()]);
        let text = table.render(|column, _| (column == 0).then_some(Colour::Green));
        assert_eq!(text, "STATE   NAME\n\x1b[32mok\x1b[0m      x\n");
    }

    #[test]
    fn numbers_are_sorted_by_their_value() {
        let mut table = Table::new(["ENDPOINT"]);
        for cell in ["127.0.0.11:80", "127.0.0.1:10080", "127.0.0.1:80"] {
            table.row([cell.into()]);
        }
        table.sort();
        assert_eq!(
            table.render(|_, _| None),
            "ENDPOINT\n127.0.0.1:80\n127.0.0.1:10080\n127.0.0.11:80\n"
        );
    }

    #[test]
    fn a_closed_pipe_is_recognised_behind_other_errors() {
        let broken = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_broken_pipe(&broken.context("cannot print")));
        assert!(!is_broken_pipe(&anyhow::anyhow!("something else")));
    }
}
