//! The fault filter: delays and aborts on purpose (`envoy.extensions.filters.http.fault.v3.HTTPFault`), for HTTP and RPC.

use std::time::Duration;

use api::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use api::envoy::extensions::filters::http::fault::v3::{HttpFault, fault_abort::ErrorType};
use api::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use base::FieldError;
use telemetry::stats::{Counter, Gauge, Registry};

use crate::config::duration;
use crate::refuse_fields;
use crate::route::{HeaderMatcher, RequestView};

/// Compiled faults.
#[derive(Debug)]
pub struct Config {
    delay: Option<Delay>,
    abort: Option<Abort>,
    cluster: Option<Box<str>>,
    headers: Vec<HeaderMatcher>,
}

#[derive(Debug)]
struct Delay {
    /// `None` if the caller's header says how long.
    fixed: Option<Duration>,
    percent: Percent,
}

#[derive(Debug)]
struct Abort {
    /// `None` if the caller's header says which.
    status: Option<Status>,
    percent: Percent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Percent {
    numerator: u32,
    denominator: u32,
}

/// What an aborted request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u32),
}

/// What is to happen to a request, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Wait so long.
    pub delay: Option<Duration>,
    /// Then answer with this instead of going on.
    pub abort: Option<Status>,
}

/// Statistics below `http.<stat_prefix>.fault.`.
pub struct Stats {
    /// Requests answered with an error on purpose.
    pub aborts_injected: Counter,
    /// Requests held back on purpose.
    pub delays_injected: Counter,
    /// Requests that are held back right now.
    pub active_faults: Gauge,
}

impl Stats {
    /// Registers the names.
    pub fn new(registry: &Registry, stat_prefix: &str) -> Stats {
        let of = |name: &str| format!("http.{}.fault.{name}", stat_prefix.replace(':', "_"));
        Stats {
            aborts_injected: registry.counter(&of("aborts_injected")),
            delays_injected: registry.counter(&of("delays_injected")),
            active_faults: registry.gauge(&of("active_faults")),
        }
    }
}

impl Config {
    /// Compiles the filter's configuration; every error has the field's path.
    pub fn compile(fault: &HttpFault) -> Result<Config, FieldError> {
        refuse_fields!(fault; downstream_nodes, max_active_faults, response_rate_limit, delay_percent_runtime,
            abort_percent_runtime, delay_duration_runtime, abort_http_status_runtime, max_active_faults_runtime,
            response_rate_limit_percent_runtime, abort_grpc_status_runtime);
        let delay = fault.delay.as_ref().map(|delay| {
            let fixed = match &delay.fault_delay_secifier {
                Some(FaultDelaySecifier::FixedDelay(fixed)) => {
                    Some(duration(fixed).map_err(|e| e.in_field("fixed_delay"))?)
                }
                Some(FaultDelaySecifier::HeaderDelay(_)) => None,
                None => {
                    return Err(FieldError::new(
                        "one of fixed_delay and header_delay is required",
                    ));
                }
            };
            Ok(Delay {
                fixed,
                percent: Percent::compile(delay.percentage.as_ref()),
            })
        });
        let abort = fault.abort.as_ref().map(|abort| {
            refuse_fields!(abort; response_body);
            let status = match &abort.error_type {
                Some(ErrorType::HttpStatus(status)) => match u16::try_from(*status) {
                    Ok(status @ 200..=599) => Some(Status::Http(status)),
                    _ => return Err(FieldError::at("http_status", "must be from 200 to 599")),
                },
                Some(ErrorType::GrpcStatus(status)) => Some(Status::Grpc(*status)),
                Some(ErrorType::HeaderAbort(_)) => None,
                None => {
                    return Err(FieldError::new(
                        "one of http_status, grpc_status and header_abort is required",
                    ));
                }
            };
            Ok(Abort {
                status,
                percent: Percent::compile(abort.percentage.as_ref()),
            })
        });
        let headers = fault.headers.iter().enumerate();
        let headers = headers
            .map(|(i, h)| HeaderMatcher::compile(h).map_err(|e| e.in_index(i).in_field("headers")));
        Ok(Config {
            delay: delay.transpose().map_err(|e| e.in_field("delay"))?,
            abort: abort.transpose().map_err(|e| e.in_field("abort"))?,
            cluster: Some(fault.upstream_cluster.as_str())
                .filter(|name| !name.is_empty())
                .map(Into::into),
            headers: headers.collect::<Result<_, _>>()?,
        })
    }

    /// Decides what happens to a request to `cluster`; `random` gives a fresh number for each question.
    pub fn decide<R: RequestView>(
        &self,
        request: &R,
        cluster: Option<&str>,
        mut random: impl FnMut() -> u32,
    ) -> Injected {
        let applies = self
            .cluster
            .as_deref()
            .is_none_or(|wanted| Some(wanted) == cluster)
            && self
                .headers
                .iter()
                .all(|matcher| matcher.matches(|name| request.header(name)));
        if !applies {
            return Injected::default();
        }
        let number = |name: &str| request.header(name).and_then(|value| parse(&value));
        let delay = self.delay.as_ref().and_then(|delay| {
            let (time, percent) = match delay.fixed {
                Some(fixed) => (fixed, delay.percent),
                None => {
                    let time =
                        Duration::from_millis(u64::from(number("x-envoy-fault-delay-request")?));
                    (
                        time,
                        delay
                            .percent
                            .lowered(number("x-envoy-fault-delay-request-percentage")),
                    )
                }
            };
            (!time.is_zero() && percent.hits(random())).then_some(time)
        });
        let abort = self.abort.as_ref().and_then(|abort| {
            let (status, percent) = match abort.status {
                Some(status) => (status, abort.percent),
                None => {
                    let status = match number("x-envoy-fault-abort-request") {
                        Some(status @ 200..=599) => Status::Http(status as u16),
                        Some(_) => return None,
                        None => Status::Grpc(number("x-envoy-fault-abort-grpc-request")?),
                    };
                    (
                        status,
                        abort
                            .percent
                            .lowered(number("x-envoy-fault-abort-request-percentage")),
                    )
                }
            };
            percent.hits(random()).then_some(status)
        });
        Injected { delay, abort }
    }
}

impl Percent {
    fn compile(percent: Option<&FractionalPercent>) -> Percent {
        let Some(percent) = percent else {
            return Percent {
                numerator: 0,
                denominator: 100,
            };
        };
        let denominator = match percent.denominator() {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Percent {
            numerator: percent.numerator,
            denominator,
        }
    }

    /// A caller may ask for less than what is configured, not for more.
    fn lowered(self, numerator: Option<u32>) -> Percent {
        Percent {
            numerator: numerator.map_or(self.numerator, |n| n.min(self.numerator)),
            ..self
        }
    }

    fn hits(self, random: u32) -> bool {
        random % self.denominator < self.numerator
    }
}

fn parse(value: &[u8]) -> Option<u32> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}
