//! Reading the vector files.
#![allow(dead_code, unreachable_pub)] // each test crate uses its part

use std::fs;
use std::path::{Path, PathBuf};

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

pub fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|char| char.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    assert_eq!(digits.len() % 2, 0, "odd hex: {text}");
    digits
        .chunks(2)
        .map(|pair| pair[0] * 16 + pair[1])
        .collect()
}

/// The frame of one vector file.
pub fn frame(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(folder().join(format!("{name}.hex"))).expect(name);
    let bytes: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect();
    unhex(&bytes)
}

/// Names of the vectors that start with `prefix`.
pub fn names(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .expect("vectors")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_suffix(".hex")?.to_owned()))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no vectors {prefix}");
    names
}

/// Name and bytes of the values of a Hessian table.
pub fn values(file: &str) -> Vec<(String, Vec<u8>)> {
    let text = fs::read_to_string(folder().join(file)).expect(file);
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut cells = line.split('\t');
            let name = cells.next()?;
            let hex = cells.nth(2)?;
            (hex != "-").then(|| (name.to_owned(), unhex(hex)))
        })
        .collect()
}
