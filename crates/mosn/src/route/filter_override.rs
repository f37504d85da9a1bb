//! `typed_per_filter_config`: what a route says to a filter.

use std::collections::BTreeMap;

use api::any;
use api::envoy::config::route::v3::FilterConfig;
use api::envoy::extensions::filters::http::fault::v3::HttpFault;
use api::google::protobuf::Any;
use base::FieldError;

use crate::fault;

/// What one level of a route configuration says to the fault filter.
#[derive(Debug, Default)]
pub(super) enum FaultSetting {
    /// Nothing.
    #[default]
    Inherit,
    Disabled,
    Config(Box<fault::Config>),
}

/// What a route says to the fault filter.
#[derive(Debug, Clone, Copy)]
pub enum FaultOverride<'t> {
    /// Nothing: the filter's own configuration counts.
    Inherit,
    /// The filter is off.
    Disabled,
    /// This instead of the filter's own configuration.
    Config(&'t fault::Config),
}

impl FaultSetting {
    pub(super) fn compile(configs: &BTreeMap<String, Any>) -> Result<Self, FieldError> {
        let mut setting = Self::Inherit;
        for (name, config) in configs {
            let compiled = compile_one(config)
                .map_err(|error| error.in_key(name).in_field("typed_per_filter_config"))?;
            if !matches!(compiled, Self::Inherit) {
                setting = compiled;
            }
        }
        Ok(setting)
    }

    pub(super) fn get(&self) -> Option<FaultOverride<'_>> {
        match self {
            Self::Inherit => None,
            Self::Disabled => Some(FaultOverride::Disabled),
            Self::Config(config) => Some(FaultOverride::Config(config)),
        }
    }
}

fn compile_one(config: &Any) -> Result<FaultSetting, FieldError> {
    if any::is::<FilterConfig>(config) {
        let wrapper: FilterConfig = any::unpack(config)?;
        return match &wrapper.config {
            _ if wrapper.disabled => Ok(FaultSetting::Disabled),
            Some(inner) if any::is::<HttpFault>(&*any::resolve(inner)?) => {
                compile_fault(inner).map_err(|error| error.in_field("config"))
            }
            _ if wrapper.is_optional => Ok(FaultSetting::Inherit),
            Some(inner) => Err(unknown(inner).in_field("config")),
            None => Err(FieldError::at("config", "is required")),
        };
    }
    if any::is::<HttpFault>(&*any::resolve(config)?) {
        return compile_fault(config);
    }
    Err(unknown(config))
}

fn compile_fault(config: &Any) -> Result<FaultSetting, FieldError> {
    let fault: HttpFault = any::unpack(config)?;
    Ok(FaultSetting::Config(Box::new(fault::Config::compile(
        &fault,
    )?)))
}

fn unknown(config: &Any) -> FieldError {
    FieldError::at(
        "@type",
        format!("{} is not supported", any::type_name(config)),
    )
}
