//! Why a response is what it is: Envoy's response flags with their short and long names
//! (`StreamInfo::CoreResponseFlag`).

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResponseFlag {
    /// `LH`: the local service failed its health check.
    FailedLocalHealthCheck,
    /// `UH`: no healthy host in the upstream cluster.
    NoHealthyUpstream,
    /// `UT`: the request timed out upstream.
    UpstreamRequestTimeout,
    /// `LR`: reset locally.
    LocalReset,
    /// `UR`: reset by the upstream.
    UpstreamRemoteReset,
    /// `UF`: no connection to the upstream could be had.
    UpstreamConnectionFailure,
    /// `UC`: the upstream closed its connection.
    UpstreamConnectionTermination,
    /// `UO`: a circuit breaker was open.
    UpstreamOverflow,
    /// `NR`: no route or filter chain matched.
    NoRouteFound,
    /// `DI`: a delay was injected.
    DelayInjected,
    /// `FI`: an abort was injected.
    FaultInjected,
    /// `RL`: rate limited.
    RateLimited,
    /// `UAEX`: refused by the external authorisation service.
    UnauthorizedExternalService,
    /// `RLSE`: the rate limit service failed.
    RateLimitServiceError,
    /// `DC`: the downstream closed its connection.
    DownstreamConnectionTermination,
    /// `URX`: the limit of retries or of connection attempts was reached.
    UpstreamRetryLimitExceeded,
    /// `SI`: the stream was idle for too long.
    StreamIdleTimeout,
    /// `IH`: a header of Envoy's own had an invalid value.
    InvalidEnvoyRequestHeaders,
    /// `DPE`: the downstream broke its protocol.
    DownstreamProtocolError,
    /// `UMSDR`: the upstream stream lasted longer than allowed.
    UpstreamMaxStreamDurationReached,
    /// `RFCF`: served from a cache.
    ResponseFromCacheFilter,
    /// `NFCF`: a filter's configuration never came.
    NoFilterConfigFound,
    /// `DT`: the request or connection lasted longer than allowed.
    DurationTimeout,
    /// `UPE`: the upstream broke its protocol.
    UpstreamProtocolError,
    /// `NC`: the route's cluster does not exist.
    NoClusterFound,
    /// `OM`: ended by overload protection.
    OverloadManagerTerminated,
    /// `DF`: a name could not be resolved.
    DnsResolutionFailed,
    /// `DO`: dropped as `drop_overloads` says.
    DropOverload,
    /// `DR`: reset by the downstream.
    DownstreamRemoteReset,
    /// `UDO`: dropped as a `drop_overloads` of 100 % says.
    UnconditionalDropOverload,
}

use ResponseFlag as F;

/// Every flag with its short and long name, in the order in which Envoy prints them.
const NAMES: [(ResponseFlag, &str, &str); 30] = [
    (F::FailedLocalHealthCheck, "LH", "FailedLocalHealthCheck"),
    (F::NoHealthyUpstream, "UH", "NoHealthyUpstream"),
    (F::UpstreamRequestTimeout, "UT", "UpstreamRequestTimeout"),
    (F::LocalReset, "LR", "LocalReset"),
    (F::UpstreamRemoteReset, "UR", "UpstreamRemoteReset"),
    (
        F::UpstreamConnectionFailure,
        "UF",
        "UpstreamConnectionFailure",
    ),
    (
        F::UpstreamConnectionTermination,
        "UC",
        "UpstreamConnectionTermination",
    ),
    (F::UpstreamOverflow, "UO", "UpstreamOverflow"),
    (F::NoRouteFound, "NR", "NoRouteFound"),
    (F::DelayInjected, "DI", "DelayInjected"),
    (F::FaultInjected, "FI", "FaultInjected"),
    (F::RateLimited, "RL", "RateLimited"),
    (
        F::UnauthorizedExternalService,
        "UAEX",
        "UnauthorizedExternalService",
    ),
    (F::RateLimitServiceError, "RLSE", "RateLimitServiceError"),
    (
        F::DownstreamConnectionTermination,
        "DC",
        "DownstreamConnectionTermination",
    ),
    (
        F::UpstreamRetryLimitExceeded,
        "URX",
        "UpstreamRetryLimitExceeded",
    ),
    (F::StreamIdleTimeout, "SI", "StreamIdleTimeout"),
    (
        F::InvalidEnvoyRequestHeaders,
        "IH",
        "InvalidEnvoyRequestHeaders",
    ),
    (F::DownstreamProtocolError, "DPE", "DownstreamProtocolError"),
    (
        F::UpstreamMaxStreamDurationReached,
        "UMSDR",
        "UpstreamMaxStreamDurationReached",
    ),
    (
        F::ResponseFromCacheFilter,
        "RFCF",
        "ResponseFromCacheFilter",
    ),
    (F::NoFilterConfigFound, "NFCF", "NoFilterConfigFound"),
    (F::DurationTimeout, "DT", "DurationTimeout"),
    (F::UpstreamProtocolError, "UPE", "UpstreamProtocolError"),
    (F::NoClusterFound, "NC", "NoClusterFound"),
    (
        F::OverloadManagerTerminated,
        "OM",
        "OverloadManagerTerminated",
    ),
    (F::DnsResolutionFailed, "DF", "DnsResolutionFailed"),
    (F::DropOverload, "DO", "DropOverload"),
    (F::DownstreamRemoteReset, "DR", "DownstreamRemoteReset"),
    (
        F::UnconditionalDropOverload,
        "UDO",
        "UnconditionalDropOverload",
    ),
];

/// A set of reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

impl ResponseFlag {
    /// The flag of this short name, as access log filters name it.
    #[must_use]
    pub fn from_short(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .find(|(_, short, _)| *short == name)
            .map(|(flag, ..)| *flag)
    }

    fn bit(self) -> u32 {
        1 << self as u8
    }
}

impl ResponseFlags {
    /// No reason.
    pub const NONE: Self = Self(0);

    /// Adds a reason.
    pub fn set(&mut self, flag: ResponseFlag) {
        self.0 |= flag.bit();
    }

    /// This set and one more reason.
    #[must_use]
    pub fn with(self, flag: ResponseFlag) -> Self {
        Self(self.0 | flag.bit())
    }

    /// Whether the reason is in the set.
    #[must_use]
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & flag.bit() != 0
    }

    /// Whether the two sets share a reason.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no reason at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Appends the short names, comma separated; `-` if there are none.
    pub fn write_short(self, out: &mut Vec<u8>) {
        self.write(out, |(_, short, _)| short);
    }

    /// Appends the long names, comma separated; `-` if there are none.
    pub fn write_long(self, out: &mut Vec<u8>) {
        self.write(out, |(_, _, long)| long);
    }

    fn write(
        self,
        out: &mut Vec<u8>,
        name: fn(&(ResponseFlag, &'static str, &'static str)) -> &'static str,
    ) {
        if self.is_empty() {
            out.push(b'-');
            return;
        }
        let mut first = true;
        for entry in &NAMES {
            if self.contains(entry.0) {
                if !first {
                    out.push(b',');
                }
                first = false;
                out.extend_from_slice(name(entry).as_bytes());
            }
        }
    }
}

impl From<ResponseFlag> for ResponseFlags {
    fn from(flag: ResponseFlag) -> Self {
        Self(flag.bit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printed_in_envoys_order() {
        let flags =
            ResponseFlags::from(F::UpstreamRetryLimitExceeded).with(F::UpstreamConnectionFailure);
        let (mut short, mut long) = (Vec::new(), Vec::new());
        flags.write_short(&mut short);
        flags.write_long(&mut long);
        assert_eq!(short, b"UF,URX");
        assert_eq!(
            long,
            b"UpstreamConnectionFailure,UpstreamRetryLimitExceeded"
        );
        short.clear();
        ResponseFlags::NONE.write_short(&mut short);
        assert_eq!(short, b"-");
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (at, (flag, short, _)) in NAMES.iter().enumerate() {
            assert_eq!(*flag as usize, at);
            assert_eq!(ResponseFlag::from_short(short), Some(*flag));
        }
        assert_eq!(ResponseFlag::from_short("XX"), None);
    }
}
