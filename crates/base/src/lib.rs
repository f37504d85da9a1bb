//! What every crate shares: kinds of errors, limits, small values. No I/O, no async, no protobuf.
//!
//! ```
//! use base::FieldError;
//!
//! let error = FieldError::new("must not be empty").in_field("name").in_index(1).in_field("clusters");
//! assert_eq!(error.to_string(), "clusters[1].name: must not be empty");
//! ```

pub mod field_error;

pub use field_error::FieldError;
