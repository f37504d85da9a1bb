//! Checks of single values.

use std::collections::HashSet;
use std::fmt::Display;

use base::FieldError;

use crate::rules::{Bounds, Check, Class, Numbers, Rules, Text};
use crate::table::{self, Kind};
use crate::time;
use crate::wire::{Raw, Reader, malformed, unzigzag};

/// The value of a field that is not there.
pub(super) fn default(kind: Kind) -> Raw<'static> {
    match kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => Raw::Bytes(&[]),
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Raw::Fixed64(0),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Raw::Fixed32(0),
        _ => Raw::Varint(0),
    }
}

/// Checks a scalar.
pub(super) fn check(kind: Kind, rules: &Rules, raw: Raw<'_>) -> Result<(), FieldError> {
    let is_default = match raw {
        Raw::Varint(number) | Raw::Fixed64(number) => number == 0,
        Raw::Fixed32(number) => number == 0,
        Raw::Bytes(bytes) => bytes.is_empty(),
    };
    if rules.ignore_empty && is_default {
        return Ok(());
    }
    match (&rules.check, raw) {
        (Check::Nothing, _) => Ok(()),
        (Check::Unsigned(bounds), Raw::Varint(number) | Raw::Fixed64(number)) => {
            within(bounds, number, u64::to_string)
        }
        (Check::Unsigned(bounds), Raw::Fixed32(number)) => {
            within(bounds, u64::from(number), u64::to_string)
        }
        (Check::Signed(bounds), raw) => within(bounds, signed(kind, raw)?, i64::to_string),
        (Check::Float(bounds), Raw::Fixed64(bits)) => {
            within(bounds, f64::from_bits(bits), f64::to_string)
        }
        (Check::Float(bounds), Raw::Fixed32(bits)) => {
            within(bounds, f64::from(f32::from_bits(bits)), f64::to_string)
        }
        (Check::Bool(wanted), Raw::Varint(number)) if *wanted != (number != 0) => {
            Err(FieldError::new(format!("must be {wanted}")))
        }
        (Check::Enum(numbers), Raw::Varint(number)) => enumeration(kind, numbers, number as i32),
        (Check::Text(rules), Raw::Bytes(bytes)) => match str::from_utf8(bytes) {
            Ok(text) => check_text(rules, text),
            Err(_) => Err(FieldError::new("not UTF-8")),
        },
        (Check::Bytes(lengths), Raw::Bytes(bytes)) => {
            length(bytes.len(), Some(lengths.min), Some(lengths.max), "byte")
        }
        (Check::Bool(_), Raw::Varint(_)) => Ok(()),
        _ => Err(malformed()),
    }
}

/// Checks the bytes of a `google.protobuf.Duration`.
pub(super) fn duration(bounds: &Bounds<(i64, i32)>, bytes: &[u8]) -> Result<(), FieldError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Varint(value)) => seconds = value as i64,
            (2, Raw::Varint(value)) => nanos = value as i32,
            (1 | 2, _) => return Err(malformed()),
            _ => {}
        }
    }
    within(bounds, (seconds, nanos), |&(seconds, nanos)| {
        time::format_duration(seconds, nanos)
    })
}

/// The index of the first item that is there for the second time.
pub(super) fn repeated(items: &[Raw<'_>]) -> Option<usize> {
    let mut numbers = HashSet::new();
    let mut texts = HashSet::new();
    items.iter().position(|item| match *item {
        Raw::Varint(number) | Raw::Fixed64(number) => !numbers.insert(number),
        Raw::Fixed32(number) => !numbers.insert(u64::from(number)),
        Raw::Bytes(bytes) => !texts.insert(bytes),
    })
}

fn signed(kind: Kind, raw: Raw<'_>) -> Result<i64, FieldError> {
    match (kind, raw) {
        (Kind::Sint32 | Kind::Sint64, Raw::Varint(number)) => Ok(unzigzag(number)),
        (_, Raw::Varint(number) | Raw::Fixed64(number)) => Ok(number as i64),
        (_, Raw::Fixed32(number)) => Ok(i64::from(number as i32)),
        (_, Raw::Bytes(_)) => Err(malformed()),
    }
}

fn within<T: PartialOrd + Copy>(
    bounds: &Bounds<T>,
    value: T,
    show: impl Fn(&T) -> String,
) -> Result<(), FieldError> {
    let wrong = |text: &str, limit: &T| {
        let text = format!("{} must be {text} {}", show(&value), show(limit));
        Err(FieldError::new(text))
    };
    match bounds {
        // Compared this way round, so that NaN is within no bounds.
        Bounds { gt: Some(gt), .. } if !matches_order(&value, gt, |o| o.is_gt()) => {
            wrong("greater than", gt)
        }
        Bounds { gte: Some(gte), .. } if !matches_order(&value, gte, |o| o.is_ge()) => {
            wrong("at least", gte)
        }
        Bounds { lt: Some(lt), .. } if !matches_order(&value, lt, |o| o.is_lt()) => {
            wrong("less than", lt)
        }
        Bounds { lte: Some(lte), .. } if !matches_order(&value, lte, |o| o.is_le()) => {
            wrong("at most", lte)
        }
        Bounds {
            one_of, none_of, ..
        } => {
            let listed = |values: &[T]| values.iter().map(&show).collect::<Vec<_>>();
            membership(
                one_of.is_empty() || one_of.contains(&value),
                !none_of.contains(&value),
                show(&value),
                || listed(one_of),
            )
        }
    }
}

fn matches_order<T: PartialOrd>(
    value: &T,
    limit: &T,
    wanted: fn(std::cmp::Ordering) -> bool,
) -> bool {
    value.partial_cmp(limit).is_some_and(wanted)
}

fn membership<T: Display>(
    is_listed: bool,
    is_allowed: bool,
    value: impl Display,
    listed: impl FnOnce() -> Vec<T>,
) -> Result<(), FieldError> {
    if !is_listed {
        let listed: Vec<String> = listed().iter().map(T::to_string).collect();
        let text = format!("{value} is not one of {}", listed.join(", "));
        return Err(FieldError::new(text));
    }
    if !is_allowed {
        return Err(FieldError::new(format!("{value} is not allowed")));
    }
    Ok(())
}

fn enumeration(kind: Kind, rules: &Numbers, number: i32) -> Result<(), FieldError> {
    let values = match kind {
        Kind::Enum(index) => Some(table::enumeration(index)),
        _ => None,
    };
    let name = |number: i32| {
        values
            .and_then(|values| values.value_name(number))
            .map_or_else(|| number.to_string(), str::to_owned)
    };
    if rules.defined_only && values.is_some_and(|values| values.value_name(number).is_none()) {
        return Err(FieldError::new(format!("{number} is no value of the enum")));
    }
    membership(
        rules.one_of.is_empty() || rules.one_of.contains(&number),
        !rules.none_of.contains(&number),
        name(number),
        || rules.one_of.iter().map(|&number| name(number)).collect(),
    )
}

fn check_text(rules: &Text, text: &str) -> Result<(), FieldError> {
    if rules.min_len.is_some() || rules.max_len.is_some() {
        length(
            text.chars().count(),
            rules.min_len,
            rules.max_len,
            "character",
        )?;
    }
    length(text.len(), rules.min_bytes, rules.max_bytes, "byte")?;
    if !text.starts_with(rules.prefix) {
        let wanted = rules.prefix;
        return Err(FieldError::new(format!("must begin with \"{wanted}\"")));
    }
    if !text.ends_with(rules.suffix) {
        let wanted = rules.suffix;
        return Err(FieldError::new(format!("must end with \"{wanted}\"")));
    }
    if let Some(class) = rules.class
        && !class.matches(text)
    {
        let wanted = class.name();
        return Err(FieldError::new(format!("{text:?} is no {wanted}")));
    }
    membership(
        rules.one_of.is_empty() || rules.one_of.contains(&text),
        !rules.none_of.contains(&text),
        format_args!("{text:?}"),
        || rules.one_of.to_vec(),
    )
}

fn length(
    length: usize,
    min: Option<usize>,
    max: Option<usize>,
    unit: &str,
) -> Result<(), FieldError> {
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    if let Some(min) = min
        && length < min
    {
        let text = match length {
            0 => "must not be empty".to_owned(),
            _ => format!("must have at least {min} {unit}{}", plural(min)),
        };
        return Err(FieldError::new(text));
    }
    if let Some(max) = max
        && length > max
    {
        let text = format!("has {length} {unit}s, at most {max} are allowed");
        return Err(FieldError::new(text));
    }
    Ok(())
}

impl Class {
    fn matches(self, text: &str) -> bool {
        match self {
            Class::HeaderName => {
                let name = text.strip_prefix(':').unwrap_or(text);
                !name.is_empty() && name.bytes().all(is_header_name_byte)
            }
            Class::HeaderValue => !text.contains(|c: char| c.is_ascii_control() && c != '\t'),
            Class::OneLine => !text.contains(['\0', '\n', '\r']),
            Class::PathPrefix => {
                !text.contains(['?', '#']) && !text.ends_with('/') && text.chars().nth(1).is_some()
            }
            Class::AlphanumericOr(extras) => {
                let is_fine = |c: char| c.is_ascii_alphanumeric() || extras.contains(c);
                !text.is_empty() && text.chars().all(is_fine)
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Class::HeaderName => "header name",
            Class::HeaderValue => "header value",
            Class::OneLine => "single line",
            Class::PathPrefix => {
                "path prefix of whole segments: \"?\", \"#\" and a final \"/\" are not allowed"
            }
            Class::AlphanumericOr(_) => "name that is allowed here",
        }
    }
}

fn is_header_name_byte(byte: u8) -> bool {
    // The comma is there because the expression says `+-.`, which is a range.
    byte.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(&byte)
}
