//! How frameworks write their services into registries, and what that is in the model: one reading for all registries.

pub mod dubbo;
pub mod dubbo_application;
pub mod nacos;
pub mod sofarpc;
pub mod spring;

/// Why an entry cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) String);

impl Malformed {
    /// Says what is wrong.
    pub fn new(what: impl Into<String>) -> Malformed {
        Malformed(what.into())
    }
}

/// `host:port`; an IPv6 address stands in brackets.
pub(crate) fn host_port(text: &str) -> Result<(String, u16), Malformed> {
    let wrong = || Malformed::new(format!("`{}` is not host:port", shorten(text)));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

/// The opposite of `host_port`.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Highest weight in the model.
const WEIGHT_MAX: u64 = 65_535;

/// A weight of which a registry wants so many per cent; what is to be called at all stays so.
pub(crate) fn scaled_weight(weight: u32, percent: u32) -> u32 {
    let least = u64::from(weight > 0 && percent > 0);
    let scaled = (u64::from(weight) * u64::from(percent) + 50) / 100;
    // It is not more than WEIGHT_MAX.
    scaled.clamp(least, WEIGHT_MAX) as u32
}

pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// An id that can stand in a path: servers refuse slashes and what is not ASCII there, encoded or not.
pub(crate) fn path_word(id: &str) -> String {
    let keeps =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '_' | '-' | '@' | '~');
    if id.chars().all(keeps) {
        return id.to_owned();
    }
    // What was replaced could make two ids one: a number of the whole (FNV-1a) tells them apart.
    let number = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let kept: String = id.chars().map(|c| if keeps(c) { c } else { '_' }).collect();
    format!("{kept}-{number:016x}")
}
