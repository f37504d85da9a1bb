//! Filter chain match, in the order of `envoy.config.listener.v3.FilterChainMatch`: each criterion narrows the chains to
//! the most specific that match, and a later criterion never goes back.

use std::net::IpAddr;

use api::envoy::config::core::v3::CidrRange;
use api::envoy::config::listener::v3::{
    FilterChainMatch, filter_chain_match::ConnectionSourceType,
};
use base::FieldError;

use super::Downstream;
use super::config::{FilterChain, ListenerConfig};

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// From `envoy.config.core.v3.CidrRange`.
    pub fn compile(range: &CidrRange) -> Result<Cidr, FieldError> {
        let address: IpAddr = range.address_prefix.parse().map_err(|_| {
            FieldError::at(
                "address_prefix",
                format!("{:?} is not an IP address", range.address_prefix),
            )
        })?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = range.prefix_len.map_or(0, |v| v);
        let prefix = u8::try_from(prefix).ok().filter(|p| *p <= most);
        let prefix = prefix
            .ok_or_else(|| FieldError::at("prefix_len", format!("must be at most {most}")))?;
        Ok(Cidr { address, prefix })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix))
                    .unwrap_or(0);
                u32::from(net) & mask == u32::from(ip) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.prefix))
                    .unwrap_or(0);
                u128::from(net) & mask == u128::from(ip) & mask
            }
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceType {
    SameIpOrLoopback,
    External,
}

/// The criteria of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    destination_port: Option<u16>,
    prefix_ranges: Vec<Cidr>,
    transport_protocol: String,
    application_protocols: Vec<String>,
    direct_source_prefix_ranges: Vec<Cidr>,
    source_type: Option<SourceType>,
    source_prefix_ranges: Vec<Cidr>,
    source_ports: Vec<u16>,
}

impl Match {
    /// From Envoy's message.
    pub fn compile(m: &FilterChainMatch) -> Result<Match, FieldError> {
        crate::refuse_fields!(m; server_names, address_suffix, suffix_len);
        let cidrs = |name: &str, ranges: &[CidrRange]| -> Result<Vec<Cidr>, FieldError> {
            ranges
                .iter()
                .enumerate()
                .map(|(i, r)| Cidr::compile(r).map_err(|e| e.in_index(i).in_field(name)))
                .collect()
        };
        let port =
            |p: u32| u16::try_from(p).map_err(|_| FieldError::new(format!("{p} is above 65535")));
        Ok(Match {
            destination_port: m
                .destination_port
                .map(port)
                .transpose()
                .map_err(|e| e.in_field("destination_port"))?,
            prefix_ranges: cidrs("prefix_ranges", &m.prefix_ranges)?,
            transport_protocol: m.transport_protocol.clone(),
            application_protocols: m.application_protocols.clone(),
            direct_source_prefix_ranges: cidrs(
                "direct_source_prefix_ranges",
                &m.direct_source_prefix_ranges,
            )?,
            source_type: match m.source_type() {
                ConnectionSourceType::Any => None,
                ConnectionSourceType::SameIpOrLoopback => Some(SourceType::SameIpOrLoopback),
                ConnectionSourceType::External => Some(SourceType::External),
            },
            source_prefix_ranges: cidrs("source_prefix_ranges", &m.source_prefix_ranges)?,
            source_ports: m
                .source_ports
                .iter()
                .enumerate()
                .map(|(i, p)| port(*p).map_err(|e| e.in_index(i).in_field("source_ports")))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// How specific a criterion is for a connection: `None` excludes the chain, 0 is "does not ask".
type Score = Option<u16>;

fn cidr_score(ranges: &[Cidr], ip: IpAddr) -> Score {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges
        .iter()
        .filter(|r| r.contains(ip))
        .map(|r| u16::from(r.prefix) + 1)
        .max()
}

fn exact_score(asked: bool, matches: bool) -> Score {
    match (asked, matches) {
        (false, _) => Some(0),
        (true, true) => Some(1),
        (true, false) => None,
    }
}

/// The chain for a connection, or the default chain.
pub fn find<'a>(listener: &'a ListenerConfig, conn: &Downstream) -> Option<&'a FilterChain> {
    if let [only] = listener.filter_chains.as_slice()
        && only.matches == Match::default()
    {
        return Some(only);
    }
    let detected = conn.detected.map(|p| p.application_protocol());
    let same_host = conn.remote.ip().is_loopback() || conn.remote.ip() == conn.local.ip();
    let criteria: [&dyn Fn(&Match) -> Score; 8] = [
        &|m| {
            exact_score(
                m.destination_port.is_some(),
                m.destination_port == Some(conn.local.port()),
            )
        },
        &|m| cidr_score(&m.prefix_ranges, conn.local.ip()),
        &|m| {
            exact_score(
                !m.transport_protocol.is_empty(),
                m.transport_protocol == "raw_buffer",
            )
        },
        &|m| {
            let hit = detected.is_some_and(|d| m.application_protocols.iter().any(|p| p == d));
            exact_score(!m.application_protocols.is_empty(), hit)
        },
        &|m| cidr_score(&m.direct_source_prefix_ranges, conn.remote.ip()),
        &|m| {
            let hit = match m.source_type {
                Some(SourceType::SameIpOrLoopback) => same_host,
                Some(SourceType::External) => !same_host,
                None => true,
            };
            exact_score(m.source_type.is_some(), hit)
        },
        &|m| cidr_score(&m.source_prefix_ranges, conn.remote.ip()),
        &|m| {
            exact_score(
                !m.source_ports.is_empty(),
                m.source_ports.contains(&conn.remote.port()),
            )
        },
    ];
    let mut left: Vec<&FilterChain> = listener.filter_chains.iter().collect();
    for score in criteria {
        let best = left.iter().filter_map(|c| score(&c.matches)).max();
        left.retain(|c| best.is_some() && score(&c.matches) == best);
    }
    left.first()
        .copied()
        .or(listener.default_filter_chain.as_ref())
}
