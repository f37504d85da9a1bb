//! Times in access logs: Envoy's default form, and `strftime` with Envoy's `%f`, `%3f`, … for fractions.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Datelike as _, Local, Timelike as _, Utc};

use super::FormatError;
use crate::request_info::RequestInfo;

/// Which time, and in which zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Start,
    StartLocal,
    Emit,
    EmitLocal,
}

/// A compiled time format; without pieces it is Envoy's default, `2016-04-15T20:17:00.310Z`.
#[derive(Debug)]
pub(crate) struct TimeFormat {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// What `strftime` knows.
    Items(Vec<Item<'static>>),
    /// This many digits of the fraction of a second.
    Fraction(usize),
    EpochSeconds,
}

impl TimeFormat {
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            let (before, specifier) = rest.split_at(at);
            plain.push_str(before);
            let mut chars = specifier.chars();
            chars.next();
            let after = chars.as_str();
            let digit = after
                .chars()
                .next()
                .and_then(|c| c.to_digit(10))
                .filter(|digit| *digit > 0);
            let special = if let Some(after) = after.strip_prefix('f') {
                Some((Piece::Fraction(9), after))
            } else if let Some(after) = after.strip_prefix('s') {
                Some((Piece::EpochSeconds, after))
            } else if let Some(digit) = digit {
                after
                    .get(1..)
                    .and_then(|after| after.strip_prefix('f'))
                    .map(|after| (Piece::Fraction(digit as usize), after))
            } else {
                None
            };
            if let Some((piece, after)) = special {
                flush(&mut plain, &mut pieces)?;
                pieces.push(piece);
                rest = after;
                continue;
            }
            // Modifiers (`%-d`, `%Ez`) stay together with their letter.
            let length = after
                .find(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'E' | 'O'))
                .map_or(0, |at| at + 1);
            let length = if after.starts_with('%') { 1 } else { length };
            let (specifier, after) = after.split_at_checked(length).unwrap_or((after, ""));
            if specifier.ends_with('n') {
                return Err(FormatError(
                    "Invalid header configuration. Format string contains newline.".to_owned(),
                ));
            }
            plain.push('%');
            plain.push_str(specifier);
            rest = after;
        }
        plain.push_str(rest);
        flush(&mut plain, &mut pieces)?;
        Ok(Self { pieces })
    }

    pub(super) fn write(&self, clock: Clock, info: &RequestInfo<'_>, out: &mut Vec<u8>) {
        let time = match clock {
            Clock::Start | Clock::StartLocal => info.start,
            Clock::Emit | Clock::EmitLocal => SystemTime::now(),
        };
        let utc = DateTime::<Utc>::from(time);
        if self.pieces.is_empty() {
            return match clock {
                Clock::Start | Clock::Emit => write_default(&utc, 'Z', out),
                Clock::StartLocal | Clock::EmitLocal => {
                    let local = utc.with_timezone(&Local);
                    write_default(&local, None, out);
                    // Writing to a vector cannot fail.
                    let _ = write!(out, "{}", local.format("%z"));
                }
            };
        }
        for piece in &self.pieces {
            match piece {
                Piece::Fraction(digits) => {
                    let all = format!("{:09}", utc.nanosecond() % 1_000_000_000);
                    out.extend_from_slice(all.get(..*digits).unwrap_or(&all).as_bytes());
                }
                Piece::EpochSeconds => {
                    let seconds = time
                        .duration_since(UNIX_EPOCH)
                        .unwrap_or_default()
                        .as_secs();
                    let _ = write!(out, "{seconds}");
                }
                Piece::Items(items) => {
                    let mut text = String::new();
                    let written = match clock {
                        Clock::Start | Clock::Emit => {
                            write!(text, "{}", utc.format_with_items(items.iter()))
                        }
                        Clock::StartLocal | Clock::EmitLocal => {
                            write!(
                                text,
                                "{}",
                                utc.with_timezone(&Local).format_with_items(items.iter())
                            )
                        }
                    };
                    if written.is_ok() {
                        out.extend_from_slice(text.as_bytes());
                    }
                }
            }
        }
    }
}

fn flush(plain: &mut String, pieces: &mut Vec<Piece>) -> Result<(), FormatError> {
    if plain.is_empty() {
        return Ok(());
    }
    let items = StrftimeItems::new(plain)
        .parse_to_owned()
        .map_err(|_| FormatError(format!("Invalid time format: {plain}")))?;
    pieces.push(Piece::Items(items));
    plain.clear();
    Ok(())
}

/// `YYYY-MM-DDTHH:MM:SS.mmm` and the zone letter, without going through a format.
fn write_default<T: chrono::TimeZone>(
    time: &DateTime<T>,
    zone: impl Into<Option<char>>,
    out: &mut Vec<u8>,
) {
    let mut number = |value: u32, width: usize, end: u8| {
        let mut digits = [b'0'; 4];
        let mut value = value;
        for digit in digits.iter_mut().rev() {
            // A remainder of ten fits a byte.
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
        out.extend_from_slice(digits.get(4 - width..).unwrap_or_default());
        out.push(end);
    };
    number(time.year().clamp(0, 9999).unsigned_abs(), 4, b'-');
    number(time.month(), 2, b'-');
    number(time.day(), 2, b'T');
    number(time.hour(), 2, b':');
    number(time.minute(), 2, b':');
    number(time.second(), 2, b'.');
    number(time.nanosecond() % 1_000_000_000 / 1_000_000, 3, b'Z');
    if zone.into().is_none() {
        out.pop();
    }
}
