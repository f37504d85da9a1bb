//! The error of a configuration: which field is wrong, and why.

use std::fmt;

/// One wrong field of a configuration. The path grows from the inside out as the error bubbles up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldError {
    /// Path from the document's root, as `filter_chains[0].filters[1].name`; empty for the root itself.
    pub path: String,
    /// What is wrong: lower case, no full stop, with the value that was wrong.
    pub message: String,
}

impl FieldError {
    /// An error of the value that is being looked at.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            message: message.into(),
        }
    }

    /// An error of a field of the value that is being looked at.
    pub fn at(field: &str, message: impl Into<String>) -> Self {
        Self::new(message).in_field(field)
    }

    /// The same error seen from the message that holds `field`.
    #[must_use]
    pub fn in_field(mut self, field: &str) -> Self {
        self.prefix(field);
        self
    }

    /// The same error seen from the list whose item `index` it is in.
    #[must_use]
    pub fn in_index(mut self, index: usize) -> Self {
        self.prefix(&format!("[{index}]"));
        self
    }

    /// The same error seen from the map whose entry `key` it is in.
    #[must_use]
    pub fn in_key(mut self, key: &str) -> Self {
        self.prefix(&format!("[{key:?}]"));
        self
    }

    fn prefix(&mut self, part: &str) {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{part}{dot}{}", self.path);
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for FieldError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_grows_outwards() {
        let error = FieldError::at("stat_prefix", "must not be empty")
            .in_field("typed_config")
            .in_index(1)
            .in_field("filters")
            .in_key("a.b")
            .in_field("chains");
        assert_eq!(
            error.to_string(),
            r#"chains["a.b"].filters[1].typed_config.stat_prefix: must not be empty"#
        );
        assert_eq!(
            FieldError::new("empty document").to_string(),
            "empty document"
        );
    }
}
