//! What happens to a request before routes see it: Envoy's `ConnectionManagerUtility::mutateRequestHeaders` and its checks.

use std::net::{IpAddr, SocketAddr};

use wire::http1::{HeaderId, RequestHead, Version};

use super::config::{Config, StripPort, Underscores};
use super::path::{Canonical, canonicalize};
use super::scratch::Scratch;
use crate::route::RetryOn;

/// Says who the client of another proxy is; without mutual TLS nobody can vouch for it.
const CLIENT_CERTIFICATE: &[u8] = b"x-forwarded-client-cert";

/// What is known of a request once its head has been looked through.
pub(super) struct Prepared {
    /// Whether [`Scratch::path`] replaces the path received.
    pub(super) new_path: bool,
    /// Whether [`Scratch::authority`] replaces the authority received.
    pub(super) new_authority: bool,
    pub(super) scheme: &'static [u8],
    /// The client, trusted proxies looked through.
    pub(super) remote: SocketAddr,
    /// Whether the client asks to change the protocol.
    pub(super) upgrades: bool,
    /// Wishes of an internal client.
    pub(super) wishes: Wishes,
}

/// `x-envoy-*` request headers that are honoured from internal clients.
#[derive(Default)]
pub(super) struct Wishes {
    pub(super) timeout_ms: Option<u64>,
    pub(super) per_try_timeout_ms: Option<u64>,
    pub(super) expected_timeout_ms: Option<u64>,
    pub(super) retry_on: RetryOn,
    pub(super) max_retries: Option<u32>,
    pub(super) retriable_status_codes: Vec<u16>,
}

/// A request that is answered without looking for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    MissingHost,
    /// `OPTIONS *`: Envoy routes paths only.
    AbsolutePath,
    Path,
    /// Ask again under [`Scratch::path`].
    RedirectToCanonical,
    Underscore,
}

/// The connection's part of it.
pub(super) struct Peer {
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
}

/// Looks through the head in `scratch` and notes in its edits what must not be passed on and what must be added.
pub(super) fn prepare(
    config: &Config,
    peer: &Peer,
    scratch: &mut Scratch,
) -> Result<Prepared, Refusal> {
    let Scratch {
        received,
        request: head,
        request_edits: edits,
        path,
        authority,
        ..
    } = scratch;
    let buffer = received.as_slice();
    edits.clear();

    let mut prepared = Prepared {
        new_path: false,
        new_authority: false,
        scheme: b"http",
        remote: peer.remote,
        upgrades: is_upgrade(head, buffer),
        wishes: Wishes::default(),
    };
    let host = match head.authority {
        Some(host) => host.of(buffer),
        None if head.version == Version::Http10 && !config.default_host.is_empty() => {
            authority.clear();
            authority.extend_from_slice(&config.default_host);
            prepared.new_authority = true;
            config.default_host.as_ref()
        }
        None => return Err(Refusal::MissingHost),
    };
    let is_connect = head.method.of(buffer) == b"CONNECT";
    if !is_connect {
        let received = head.path.of(buffer);
        if received == b"*" {
            return Err(Refusal::AbsolutePath);
        }
        let rooted;
        let received = match received.first() {
            Some(b'/') => received,
            // an absolute target without a path
            _ => {
                rooted = [b"/", received].concat();
                path.clear();
                path.extend_from_slice(&rooted);
                prepared.new_path = true;
                &rooted
            }
        };
        match canonicalize(received, &config.path, path) {
            Canonical::Unchanged => {}
            Canonical::Changed => prepared.new_path = true,
            Canonical::Redirect => return Err(Refusal::RedirectToCanonical),
            Canonical::Rejected => return Err(Refusal::Path),
        }
    }
    if let Some(stripped) = strip_host(config, peer.local.port(), host) {
        let stripped = stripped.to_vec();
        authority.clear();
        authority.extend_from_slice(&stripped);
        prepared.new_authority = true;
    }

    let mut forwarded_for = None;
    let mut forwarded_proto = None;
    let mut request_id = None;
    let mut via = None;
    let connection = head.connection();
    let h2c = head
        .upgrade
        .is_some_and(|value| value.of(buffer).eq_ignore_ascii_case(b"h2c"));
    for (index, field) in head.headers.iter().enumerate() {
        match field.id {
            HeaderId::Host
            | HeaderId::KeepAlive
            | HeaderId::ProxyConnection
            | HeaderId::TransferEncoding => edits.remove_at(index),
            HeaderId::Connection | HeaderId::Upgrade if !prepared.upgrades => {
                edits.remove_at(index)
            }
            HeaderId::Http2Settings if h2c => edits.remove_at(index),
            HeaderId::Te if !is_te_trailers(field.value.of(buffer)) => edits.remove_at(index),
            HeaderId::Expect if head.expects_continue && !config.proxy_100_continue => {
                edits.remove_at(index)
            }
            HeaderId::XForwardedFor => forwarded_for = Some(index),
            HeaderId::XForwardedProto => forwarded_proto = Some(index),
            HeaderId::XRequestId => request_id = Some(index),
            HeaderId::Via => via = Some(index),
            HeaderId::Other | HeaderId::Trailer | HeaderId::UserAgent => {
                let name = field.name.of(buffer);
                let certificate = name.len() == CLIENT_CERTIFICATE.len()
                    && !config.keep_client_cert_header
                    && name.eq_ignore_ascii_case(CLIENT_CERTIFICATE);
                let underscore = config.underscores != Underscores::Allow && name.contains(&b'_');
                if underscore && config.underscores == Underscores::Reject {
                    return Err(Refusal::Underscore);
                }
                let nominated = connection.nominates && is_nominated(head, buffer, name);
                if nominated || certificate || underscore {
                    edits.remove_at(index);
                }
            }
            _ => {}
        }
    }

    let value_at = |index: Option<usize>| {
        index
            .and_then(|i| head.headers.get(i))
            .map(|field| field.value.of(buffer))
    };
    let chain = value_at(forwarded_for);
    let nearest = |skip: usize| chain.and_then(|chain| nth_last_address(chain, skip));
    let single;
    if config.use_remote_address {
        single = chain.is_none();
        if config.trusted_hops > 0
            && let Some(ip) = nearest(config.trusted_hops - 1)
        {
            prepared.remote = SocketAddr::new(ip, 0);
        }
    } else {
        single = chain.is_some_and(|chain| !chain.contains(&b','));
        if let Some(ip) = nearest(config.trusted_hops) {
            prepared.remote = SocketAddr::new(ip, 0);
        }
    }
    let internal = single && config.is_internal(prepared.remote.ip());
    let edge = config.use_remote_address && !internal;

    match value_at(forwarded_proto) {
        Some(proto) if !config.use_remote_address || config.trusted_hops > 0 => {
            if proto.eq_ignore_ascii_case(b"https") {
                prepared.scheme = b"https";
            }
        }
        existing => {
            if let (Some(index), Some(_)) = (forwarded_proto, existing) {
                edits.remove_at(index);
            }
            edits.add("x-forwarded-proto", b"http");
        }
    }
    if config.use_remote_address && !config.skip_xff_append {
        let ip = match peer.remote.ip() {
            loopback if loopback.is_loopback() => config.local_address,
            ip => ip,
        };
        let mut text = chain.map(<[u8]>::to_vec).unwrap_or_default();
        if !text.is_empty() {
            text.push(b',');
        }
        text.extend_from_slice(ip.to_string().as_bytes());
        if let Some(index) = forwarded_for {
            edits.remove_at(index);
        }
        edits.add("x-forwarded-for", &text);
    }
    envoy_headers(head, buffer, edits, internal, edge, &mut prepared.wishes);
    if internal {
        edits.add("x-envoy-internal", b"true");
    }
    if edge {
        edits.add(
            "x-envoy-external-address",
            prepared.remote.ip().to_string().as_bytes(),
        );
    }
    if !config.via.is_empty() {
        let text = match value_at(via) {
            Some(others) => [others, b", ", &config.via].concat(),
            None => config.via.to_vec(),
        };
        if let Some(index) = via {
            edits.remove_at(index);
        }
        edits.add("via", &text);
    }
    if config.generate_request_id {
        let foreign = edge && !config.preserve_external_request_id;
        if let (Some(index), true) = (request_id, foreign) {
            edits.remove_at(index);
        }
        if request_id.is_none() || foreign {
            edits.add("x-request-id", &random_uuid());
        }
    }
    Ok(prepared)
}

/// `Connection: upgrade` together with `Upgrade`; HTTP/2 in clear text is not offered, so that wish is overlooked.
fn is_upgrade(head: &RequestHead, buffer: &[u8]) -> bool {
    let wanted = head.upgrade.map(|value| value.of(buffer));
    head.connection().upgrade && wanted.is_some_and(|kind| !kind.eq_ignore_ascii_case(b"h2c"))
}

fn is_te_trailers(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"trailers")
}

/// Whether `Connection` names this field, so that it ends here. Fields that say who the client is cannot be taken away.
fn is_nominated(head: &RequestHead, buffer: &[u8], name: &[u8]) -> bool {
    let tokens = head
        .headers
        .iter()
        .filter(|field| field.id == HeaderId::Connection);
    tokens
        .flat_map(|field| field.value.of(buffer).split(|b| *b == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(name))
}

/// Takes Envoy's own headers off: those of strangers say nothing, those of internal clients are noted first.
fn envoy_headers(
    head: &RequestHead,
    buffer: &[u8],
    edits: &mut super::headers::Edits,
    internal: bool,
    edge: bool,
    wishes: &mut Wishes,
) {
    for (index, field) in head.headers.iter().enumerate() {
        if field.id != HeaderId::XEnvoy {
            continue;
        }
        let name = field
            .name
            .of(buffer)
            .get(8..)
            .unwrap_or_default()
            .to_ascii_lowercase();
        let value = std::str::from_utf8(field.value.of(buffer)).unwrap_or_default();
        let gone = match name.as_slice() {
            b"upstream-rq-timeout-ms" => {
                wishes.timeout_ms = value.parse().ok();
                true
            }
            b"upstream-rq-per-try-timeout-ms" => {
                wishes.per_try_timeout_ms = value.parse().ok();
                true
            }
            b"expected-rq-timeout-ms" => {
                wishes.expected_timeout_ms = value.parse().ok();
                true
            }
            b"retry-on" | b"retry-grpc-on" => {
                wishes.retry_on |= RetryOn::parse(value);
                true
            }
            b"max-retries" => {
                wishes.max_retries = value.parse().ok();
                true
            }
            b"retriable-status-codes" => {
                wishes.retriable_status_codes = value
                    .split(',')
                    .filter_map(|code| code.trim().parse().ok())
                    .collect();
                true
            }
            b"retriable-header-names"
            | b"upstream-alt-stat-name"
            | b"upstream-rq-timeout-alt-response"
            | b"hedge-on-per-try-timeout"
            | b"internal" => true,
            b"force-trace" | b"ip-tags" | b"original-url" => !internal,
            b"decorator-operation"
            | b"downstream-service-cluster"
            | b"downstream-service-node"
            | b"original-path"
            | b"external-address" => edge,
            _ => false,
        };
        if gone {
            edits.remove_at(index);
        }
    }
    if !internal {
        *wishes = Wishes::default();
    }
}

/// The address that stands so many places before the last in `x-forwarded-for`.
fn nth_last_address(chain: &[u8], skip: usize) -> Option<IpAddr> {
    let text = chain.rsplit(|b| *b == b',').nth(skip)?;
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The host without its port or final dot, if one of them is to go.
fn strip_host<'a>(config: &Config, local_port: u16, host: &'a [u8]) -> Option<&'a [u8]> {
    let mut rest = host;
    if config.strip_port != StripPort::Never
        && let Some((name, port)) = split_port(rest)
        && (config.strip_port == StripPort::Any || port == local_port)
    {
        rest = name;
    }
    if config.strip_trailing_dot {
        rest = rest.strip_suffix(b".").unwrap_or(rest);
    }
    (rest.len() != host.len()).then_some(rest)
}

fn split_port(host: &[u8]) -> Option<(&[u8], u16)> {
    let colon = host.iter().rposition(|b| *b == b':')?;
    let (name, port) = host.split_at(colon);
    let port = std::str::from_utf8(port.get(1..)?).ok()?.parse().ok()?;
    Some((name, port))
}

/// A version 4 UUID.
fn random_uuid() -> [u8; 36] {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62);
    let mut text = [b'-'; 36];
    let places = text
        .iter_mut()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 8 | 13 | 18 | 23));
    for (nibble, (_, place)) in places.enumerate() {
        let digit = (bits >> (124 - 4 * nibble)) & 0xf;
        *place = b"0123456789abcdef"
            .get(digit as usize)
            .copied()
            .unwrap_or(b'0');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_4_uuids() {
        let id = String::from_utf8(random_uuid().to_vec()).unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        assert_eq!(
            id.match_indices('-').map(|(at, _)| at).collect::<Vec<_>>(),
            [8, 13, 18, 23]
        );
    }

    #[test]
    fn ports_are_found_behind_any_host() {
        assert_eq!(split_port(b"[::1]:80"), Some((&b"[::1]"[..], 80)));
        assert_eq!(split_port(b"a:8080"), Some((&b"a"[..], 8080)));
        assert_eq!(split_port(b"[::1]"), None);
        assert_eq!(split_port(b"a"), None);
    }
}
