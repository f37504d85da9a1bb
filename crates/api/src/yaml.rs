//! YAML 1.2 into JSON values. A JSON document is read as well.

use serde_json::Value;
use thiserror::Error;

/// Values and keys of one text; more is refused rather than kept in memory.
const MAX_NODES: usize = 20_000_000;
/// Nesting of one document; deeper than any message may be.
const MAX_DEPTH: usize = 256;

/// A text that is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {message}")]
pub struct SyntaxError {
    /// From 1; 0 if the parser did not say.
    pub line: u64,
    /// From 1; 0 if the parser did not say.
    pub column: u64,
    /// What is wrong.
    pub message: String,
}

/// The only document of a text; an empty text is `null`.
pub fn to_value(text: &str) -> Result<Value, SyntaxError> {
    let mut documents = documents(text)?;
    match documents.len() {
        0 => Ok(Value::Null),
        1 => Ok(documents.remove(0)),
        count => Err(SyntaxError {
            line: 0,
            column: 0,
            message: format!("expected one document, found {count}"),
        }),
    }
}

/// All documents of a text, in order; those that are empty are left out.
pub fn documents(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_depth: MAX_DEPTH,
            max_documents: 100_000,
            max_total_scalar_bytes: 1 << 30,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let location = error.location();
        SyntaxError {
            line: location.map_or(0, |location| location.line()),
            column: location.map_or(0, |location| location.column()),
            message: error.to_string(),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_documents_with_json_types() {
        let text = "a: 1\nb: [true, ~, 'x']\nc: yes\nd: 1.5s\n---\n# nothing\n---\n{\"x\": {\"y\": 2.5}}\n";
        let expected = vec![
            json!({"a": 1, "b": [true, null, "x"], "c": "yes", "d": "1.5s"}),
            json!({"x": {"y": 2.5}}),
        ];
        assert_eq!(documents(text).unwrap(), expected);
        assert!(
            to_value(text)
                .unwrap_err()
                .to_string()
                .contains("expected one document")
        );
        assert_eq!(to_value("").unwrap(), Value::Null);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line) in [
            ("a: 1\nb: [1\n", 3),
            ("a: 1\na: 2\n", 2),
            ("a:\n  b: 1\n c: 2\n", 3),
        ] {
            let error = to_value(text).unwrap_err();
            assert!(
                error.line.abs_diff(line) <= 1 && error.line > 0,
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn refuses_deep_nesting_and_alias_bombs() {
        assert!(to_value(&"[".repeat(100_000)).is_err());
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let earlier = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!(
                "a{level}: &a{level} [{}]\n",
                earlier.trim_end_matches(',')
            ));
        }
        assert!(to_value(&bomb).is_err());
    }
}
