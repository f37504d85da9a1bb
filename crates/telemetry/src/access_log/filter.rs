//! Which requests are logged (`envoy.config.accesslog.v3.AccessLogFilter`).

use api::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use api::envoy::config::accesslog::v3::comparison_filter::Op;
use api::envoy::config::accesslog::v3::{AccessLogFilter, ComparisonFilter, RuntimeFilter};
use base::FieldError;

use crate::request_info::RequestInfo;
use crate::response_flags::{ResponseFlag, ResponseFlags};

/// A compiled filter.
pub(super) enum Filter {
    StatusCode(Op, u64),
    /// Milliseconds.
    Duration(Op, u64),
    NotHealthCheck,
    AnyFlag,
    Flags(ResponseFlags),
    /// This many in a million.
    Sampled(u64),
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

const MILLION: u64 = 1_000_000;

impl Filter {
    pub(super) fn compile(filter: &AccessLogFilter) -> Result<Self, FieldError> {
        use FilterSpecifier as F;
        let refused = |name: &str| Err(FieldError::at(name, "is not supported"));
        match &filter.filter_specifier {
            None => Err(FieldError::new("is empty")),
            Some(F::StatusCodeFilter(filter)) => {
                let (op, value) = comparison(filter.comparison.as_ref())
                    .map_err(|error| error.in_field("status_code_filter"))?;
                Ok(Self::StatusCode(op, value))
            }
            Some(F::DurationFilter(filter)) => {
                let (op, value) = comparison(filter.comparison.as_ref())
                    .map_err(|error| error.in_field("duration_filter"))?;
                Ok(Self::Duration(op, value))
            }
            Some(F::NotHealthCheckFilter(_)) => Ok(Self::NotHealthCheck),
            Some(F::ResponseFlagFilter(filter)) => flags(&filter.flags)
                .map_err(|error| error.in_field("flags").in_field("response_flag_filter")),
            Some(F::RuntimeFilter(filter)) => {
                sampled(filter).map_err(|error| error.in_field("runtime_filter"))
            }
            Some(F::AndFilter(filter)) => list(&filter.filters)
                .map(Self::All)
                .map_err(|error| error.in_field("and_filter")),
            Some(F::OrFilter(filter)) => list(&filter.filters)
                .map(Self::Any)
                .map_err(|error| error.in_field("or_filter")),
            Some(F::TraceableFilter(_)) => refused("traceable_filter"),
            Some(F::HeaderFilter(_)) => refused("header_filter"),
            Some(F::GrpcStatusFilter(_)) => refused("grpc_status_filter"),
            Some(F::ExtensionFilter(_)) => refused("extension_filter"),
            Some(F::MetadataFilter(_)) => refused("metadata_filter"),
            Some(F::LogTypeFilter(_)) => refused("log_type_filter"),
        }
    }

    pub(super) fn passes(&self, info: &RequestInfo<'_>) -> bool {
        match self {
            Self::StatusCode(op, value) => {
                compare(*op, u64::from(info.response_code.unwrap_or(0)), *value)
            }
            // A request that never completed has no duration to compare.
            Self::Duration(op, value) => info.timing.complete.is_some_and(|total| {
                compare(
                    *op,
                    u64::try_from(total.as_millis()).unwrap_or(u64::MAX),
                    *value,
                )
            }),
            Self::NotHealthCheck => !info.health_check,
            Self::AnyFlag => !info.flags.is_empty(),
            Self::Flags(flags) => info.flags.intersects(*flags),
            Self::Sampled(share) => fastrand::u64(0..MILLION) < *share,
            Self::All(filters) => filters.iter().all(|filter| filter.passes(info)),
            Self::Any(filters) => filters.iter().any(|filter| filter.passes(info)),
        }
    }
}

fn compare(op: Op, value: u64, with: u64) -> bool {
    match op {
        Op::Eq => value == with,
        Op::Ge => value >= with,
        Op::Le => value <= with,
        Op::Ne => value != with,
    }
}

/// There is no runtime to look keys up in: the default value holds.
fn comparison(filter: Option<&ComparisonFilter>) -> Result<(Op, u64), FieldError> {
    let filter = filter.ok_or_else(|| FieldError::at("comparison", "is required"))?;
    let op = Op::try_from(filter.op).map_err(|_| {
        FieldError::at("op", format!("{} is not known", filter.op)).in_field("comparison")
    })?;
    let value = filter
        .value
        .as_ref()
        .map_or(0, |value| u64::from(value.default_value));
    Ok((op, value))
}

fn flags(names: &[String]) -> Result<Filter, FieldError> {
    if names.is_empty() {
        return Ok(Filter::AnyFlag);
    }
    let mut flags = ResponseFlags::NONE;
    for (at, name) in names.iter().enumerate() {
        let flag = ResponseFlag::from_short(name)
            .ok_or_else(|| FieldError::new(format!("{name:?} is no response flag")).in_index(at))?;
        flags.set(flag);
    }
    Ok(Filter::Flags(flags))
}

fn sampled(filter: &RuntimeFilter) -> Result<Filter, FieldError> {
    use api::envoy::r#type::v3::fractional_percent::DenominatorType as D;
    let Some(percent) = &filter.percent_sampled else {
        return Ok(Filter::Sampled(0));
    };
    let scale = match D::try_from(percent.denominator) {
        Ok(D::Hundred) => MILLION / 100,
        Ok(D::TenThousand) => MILLION / 10_000,
        Ok(D::Million) => 1,
        Err(_) => {
            return Err(FieldError::at("denominator", "is not known").in_field("percent_sampled"));
        }
    };
    Ok(Filter::Sampled(u64::from(percent.numerator) * scale))
}

fn list(filters: &[AccessLogFilter]) -> Result<Vec<Filter>, FieldError> {
    if filters.len() < 2 {
        return Err(FieldError::at("filters", "must have at least 2 items"));
    }
    let filters = filters.iter().enumerate();
    filters
        .map(|(at, filter)| {
            Filter::compile(filter).map_err(|error| error.in_index(at).in_field("filters"))
        })
        .collect()
}
