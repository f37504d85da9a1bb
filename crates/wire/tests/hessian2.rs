//! Hessian against the values that the Java libraries write, and against hostile bytes.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, missing_docs)]

mod common;

use proptest::prelude::*;
use wire::hessian2::{Decoder, Dialect, Encoder, Error, Limits, Skipper, Value};

const TABLES: [(&str, Dialect); 2] = [
    ("vectors-hessian-v2.tsv", Dialect::V2),
    ("vectors-hessian-sofa3.tsv", Dialect::Sofa),
];

fn decode_all(bytes: &[u8], dialect: Dialect) -> Result<Vec<Value>, Error> {
    let mut decoder = Decoder::new(bytes, dialect, Limits::DECODE);
    let mut values = Vec::new();
    while !decoder.is_empty() {
        values.push(decoder.value()?);
    }
    Ok(values)
}

fn skip_all(bytes: &[u8], dialect: Dialect) -> Result<usize, Error> {
    let mut skipper = Skipper::new(dialect, Limits::SKIP);
    let mut at = 0;
    while at < bytes.len() {
        at = skipper.skip(bytes, at)?;
    }
    Ok(at)
}

fn encode_all(values: &[Value], dialect: Dialect) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(dialect);
    for value in values {
        encoder.encode(value, &mut out);
    }
    out
}

#[test]
fn reads_and_skips_every_value_of_the_java_libraries_and_writes_the_same_bytes() {
    for (file, dialect) in TABLES {
        let table = common::values(file);
        let mut different = Vec::new();
        for (name, bytes) in &table {
            let values =
                decode_all(bytes, dialect).unwrap_or_else(|error| panic!("{file} {name}: {error}"));
            assert_eq!(skip_all(bytes, dialect), Ok(bytes.len()), "{file} {name}");
            let again = encode_all(&values, dialect);
            if again != *bytes {
                different.push(name.as_str());
                assert_eq!(decode_all(&again, dialect), Ok(values), "{file} {name}");
            }
        }
        assert!(
            different.len() <= 12,
            "{file}: {} of {} are written differently: {different:?}",
            different.len(),
            table.len()
        );
    }
}

#[test]
fn no_prefix_of_a_value_is_a_value() {
    for (file, dialect) in TABLES {
        for (name, bytes) in common::values(file).iter().filter(|(_, b)| b.len() < 300) {
            // A stream of several values has prefixes that are streams.
            let first = Skipper::new(dialect, Limits::SKIP).skip(bytes, 0).unwrap();
            for end in 0..first {
                let skipped = Skipper::new(dialect, Limits::SKIP).skip(&bytes[..end], 0);
                assert!(skipped.is_err(), "{file} {name} at {end}");
                let decoded = Decoder::new(&bytes[..end], dialect, Limits::DECODE).value();
                assert!(decoded.is_err(), "{file} {name} at {end}");
            }
        }
    }
}

#[test]
fn strings_keep_characters_outside_the_basic_plane_and_split_between_pairs() {
    for dialect in [Dialect::V2, Dialect::Sofa] {
        for text in [
            "😀".to_owned(),
            "é你好\0".to_owned(),
            "a".repeat(32769),
            format!("{}😀b", "a".repeat(32767)),
            "你".repeat(70_000),
        ] {
            let value = Value::String(text);
            let bytes = encode_all(std::slice::from_ref(&value), dialect);
            assert_eq!(decode_all(&bytes, dialect), Ok(vec![value]));
            assert_eq!(skip_all(&bytes, dialect), Ok(bytes.len()));
        }
    }
}

#[test]
fn refuses_hostile_streams() {
    let nested_lists = vec![0x57; 100_000];
    let many_fields = common::unhex("43 0161 49 7fffffff");
    // One class of one field, nested a million times.
    let mut nested_objects = common::unhex("43 0161 91 0162");
    nested_objects.extend(std::iter::repeat_n(0x60, 1_000_000));
    let cases: [(&str, &[u8]); 9] = [
        ("nested lists", &nested_lists),
        ("nested objects", &nested_objects),
        ("fields", &many_fields),
        (
            "list longer than the bytes",
            &[0x58, 0x49, 0x7f, 0xff, 0xff, 0xff],
        ),
        ("negative length", &[0x58, 0x8f]),
        ("class that was not defined", &[0x60]),
        ("end without a list", &[0x5a]),
        ("end where a map's value is due", &[0x48, 0x90, 0x5a]),
        ("unassigned tag", &[0x40]),
    ];
    for (name, bytes) in cases {
        let skipped = Skipper::new(Dialect::V2, Limits::SKIP).skip(bytes, 0);
        assert!(skipped.is_err(), "{name}");
        assert!(decode_all(bytes, Dialect::V2).is_err(), "{name}");
    }
    assert!(
        decode_all(&[0x51, 0x90], Dialect::V2).is_err(),
        "reference to nothing"
    );
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i32>().prop_map(Value::Int),
        any::<i64>().prop_map(Value::Long),
        any::<i32>().prop_map(|value| Value::Double(f64::from(value) / 8.0)),
        any::<i64>().prop_map(Value::Date),
        ".{0,40}".prop_map(Value::String),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Binary),
    ];
    leaf.prop_recursive(4, 64, 9, |inner| {
        let type_name = proptest::option::of("[a-c]{1,3}".prop_map(|name| name.into()));
        prop_oneof![
            (
                type_name.clone(),
                proptest::collection::vec(inner.clone(), 0..9)
            )
                .prop_map(|(type_name, items)| Value::List { type_name, items }),
            (
                type_name,
                proptest::collection::vec(("k.{0,3}".prop_map(Value::String), inner.clone()), 0..4)
            )
                .prop_map(|(type_name, entries)| Value::Map { type_name, entries }),
            ("[A-C]", proptest::collection::vec(("[a-c]", inner), 0..4)).prop_map(
                |(class, fields)| Value::Object {
                    class: class.into(),
                    fields: fields
                        .into_iter()
                        .map(|(name, value)| (name.into(), value))
                        .collect(),
                }
            ),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(values in proptest::collection::vec(any_value(), 1..4)) {
        for dialect in [Dialect::V2, Dialect::Sofa] {
            let bytes = encode_all(&values, dialect);
            prop_assert_eq!(skip_all(&bytes, dialect), Ok(bytes.len()));
            prop_assert_eq!(decode_all(&bytes, dialect), Ok(values.clone()));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for dialect in [Dialect::V2, Dialect::Sofa] {
            let skipped = skip_all(&bytes, dialect);
            let decoded = decode_all(&bytes, dialect);
            // Skipping looks at less, so what it refuses must not decode.
            if skipped.is_err() {
                prop_assert!(decoded.is_err());
            }
        }
    }

    #[test]
    fn flipped_bytes_of_real_streams_never_panic(pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for (file, dialect) in TABLES {
            let table = common::values(file);
            let (_, bytes) = &table[pick.index(table.len())];
            let mut bytes = bytes.clone();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = skip_all(&bytes, dialect);
            let _ = decode_all(&bytes, dialect);
        }
    }
}
