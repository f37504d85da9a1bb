//! The rules that Envoy's `.proto` files give for a field's value (protoc-gen-validate), as the build script writes them.

/// What is demanded of a field.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The message must be there.
    pub(crate) required: bool,
    /// The rules inside of the message are not looked at.
    pub(crate) skip: bool,
    /// The type's default value is fine even if the check says otherwise.
    pub(crate) ignore_empty: bool,
    /// Envoy has withdrawn the field.
    pub(crate) disallowed: bool,
    /// What the value must be.
    pub(crate) check: Check,
}

/// What is demanded of a value.
#[derive(Debug)]
#[allow(
    dead_code,
    reason = "which checks are used depends on the .proto files"
)]
pub(crate) enum Check {
    Nothing,
    Unsigned(Bounds<u64>),
    Signed(Bounds<i64>),
    Float(Bounds<f64>),
    /// Seconds and nanoseconds.
    Duration(Bounds<(i64, i32)>),
    Bool(bool),
    Enum(Numbers),
    Text(Text),
    Bytes(Lengths),
    List(List),
    Map(Map),
    /// The type URLs that are allowed; none: all.
    Any(&'static [&'static str]),
}

/// Limits of a number.
#[derive(Debug)]
pub(crate) struct Bounds<T: 'static> {
    pub(crate) gt: Option<T>,
    pub(crate) gte: Option<T>,
    pub(crate) lt: Option<T>,
    pub(crate) lte: Option<T>,
    /// Empty: all.
    pub(crate) one_of: &'static [T],
    pub(crate) none_of: &'static [T],
}

/// Limits of an enum.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) defined_only: bool,
    /// Empty: all.
    pub(crate) one_of: &'static [i32],
    pub(crate) none_of: &'static [i32],
}

/// Limits of a string; lengths are in characters.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) min_len: Option<usize>,
    pub(crate) max_len: Option<usize>,
    pub(crate) min_bytes: Option<usize>,
    pub(crate) max_bytes: Option<usize>,
    pub(crate) prefix: &'static str,
    pub(crate) suffix: &'static str,
    pub(crate) class: Option<Class>,
    /// Empty: all.
    pub(crate) one_of: &'static [&'static str],
    pub(crate) none_of: &'static [&'static str],
}

/// The regular expressions that occur: those for headers, and those of single fields.
#[derive(Debug, Clone, Copy)]
#[allow(
    dead_code,
    reason = "which classes are used depends on the .proto files"
)]
pub(crate) enum Class {
    HeaderName,
    HeaderValue,
    /// What both are when not strict.
    OneLine,
    PathPrefix,
    /// One or more letters, digits and these.
    AlphanumericOr(&'static str),
}

/// Limits of a byte string.
#[derive(Debug)]
pub(crate) struct Lengths {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

/// Limits of a list.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) min: usize,
    pub(crate) max: usize,
    pub(crate) unique: bool,
    pub(crate) items: &'static Rules,
}

/// Limits of a map.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) min: usize,
    pub(crate) max: usize,
    pub(crate) keys: &'static Rules,
    pub(crate) values: &'static Rules,
}

impl Rules {
    pub(crate) const NONE: Self = Self {
        required: false,
        skip: false,
        ignore_empty: false,
        disallowed: false,
        check: Check::Nothing,
    };
}

impl<T> Bounds<T> {
    pub(crate) const ANY: Self = Self {
        gt: None,
        gte: None,
        lt: None,
        lte: None,
        one_of: &[],
        none_of: &[],
    };
}

impl Numbers {
    pub(crate) const ANY: Self = Self {
        defined_only: false,
        one_of: &[],
        none_of: &[],
    };
}

impl Text {
    pub(crate) const ANY: Self = Self {
        min_len: None,
        max_len: None,
        min_bytes: None,
        max_bytes: None,
        prefix: "",
        suffix: "",
        class: None,
        one_of: &[],
        none_of: &[],
    };
}

#[allow(dead_code, reason = "which rules are used depends on the .proto files")]
impl Lengths {
    pub(crate) const ANY: Self = Self {
        min: 0,
        max: usize::MAX,
    };
}

impl List {
    pub(crate) const ANY: Self = Self {
        min: 0,
        max: usize::MAX,
        unique: false,
        items: &Rules::NONE,
    };
}

impl Map {
    pub(crate) const ANY: Self = Self {
        min: 0,
        max: usize::MAX,
        keys: &Rules::NONE,
        values: &Rules::NONE,
    };
}
