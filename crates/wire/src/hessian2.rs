//! Hessian 2 in the two dialects that RPC frameworks speak (`protocols/hessian2.md`).
//!
//! A proxy only needs [`skip::Skipper`]: it walks over values without building them, so that the map
//! behind the arguments of a Dubbo call can be found. [`Decoder`] and [`Encoder`] handle whole
//! values as data ([`Value`]); nothing ever instantiates a class.

pub mod decode;
pub mod encode;
pub mod skip;
pub mod text;
pub mod token;
pub mod value;

pub use decode::Decoder;
pub use encode::Encoder;
pub use skip::Skipper;
pub use text::Text;
pub use value::Value;

/// Which of the two incompatible grammars a stream is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Hessian 2.0 as published: Dubbo and sofa-hessian 4.
    V2,
    /// The 2007 draft: sofa-hessian 3, hence SOFARPC, sofa-bolt and SOFARegistry.
    Sofa,
}

/// What a stream may ask for before it is refused.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Containers and objects inside each other.
    pub depth: usize,
    /// Values in one stream.
    pub nodes: usize,
    /// Fields of one class definition.
    pub fields: usize,
    /// Class definitions in one stream.
    pub classes: usize,
    /// Distinct type names in one stream.
    pub types: usize,
}

impl Limits {
    /// For walking over values: it keeps 8 bytes for each level, so deep trees cost little.
    pub const SKIP: Limits = Limits {
        depth: 1024,
        nodes: 1_000_000,
        fields: 1024,
        classes: 4096,
        types: 4096,
    };
    /// For building values, which recurses.
    pub const DECODE: Limits = Limits {
        depth: 64,
        ..Limits::SKIP
    };
}

/// Why a stream is not Hessian, or is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end inside a value.
    #[error("hessian value ends early")]
    Truncated,
    /// No value starts with this byte here.
    #[error("unexpected hessian tag {0:#04x}")]
    Tag(u8),
    /// A length, count or table index that cannot be right.
    #[error("hessian {what} {value} is out of range")]
    Range {
        /// What was counted.
        what: &'static str,
        /// The value found.
        value: i64,
    },
    /// Text that is not UTF-8 in Java's form.
    #[error("hessian string is not utf-8")]
    Utf8,
    /// One of [`Limits`].
    #[error("hessian stream exceeds the limit of {0}")]
    Limit(&'static str),
    /// A value of another kind than the caller needs.
    #[error("hessian {0} expected")]
    Expected(&'static str),
}
