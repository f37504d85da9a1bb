//! Names of lists, and what of the model they are.

use std::sync::Arc;

use wire::sofaregistry::Register;

use crate::limits::Limits;
use crate::model::{Instance, ServiceKey};
use crate::naming::{Malformed, sofarpc};
use crate::sofaregistry::{
    DEFAULT_INSTANCE_ID, DEFAULT_ZONE, SERVICE_GROUP, instance, publication,
};

/// The label that a publisher's zone becomes.
const ZONE: &str = "zone";
/// Ids of what is registered here end so.
pub(super) const SUFFIX: &str = "@sofaregistry";

/// Names a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DataInfo {
    pub(super) data_id: Arc<str>,
    pub(super) group: Arc<str>,
    pub(super) instance_id: Arc<str>,
}

impl DataInfo {
    /// What a registration is about, with the defaults filled in; an error names the field that is missing.
    pub(super) fn of(register: &mut Register) -> Result<DataInfo, &'static str> {
        for (field, name) in [
            (&register.data_id, "dataId"),
            (&register.group, "group"),
            (&register.regist_id, "registId"),
        ] {
            if field.trim().is_empty() {
                return Err(name);
            }
        }
        for (field, default) in [
            (&mut register.instance_id, DEFAULT_INSTANCE_ID),
            (&mut register.zone, DEFAULT_ZONE),
        ] {
            if field.trim().is_empty() {
                default.clone_into(field);
            }
        }
        Ok(DataInfo {
            data_id: register.data_id.as_str().into(),
            group: register.group.as_str().into(),
            instance_id: register.instance_id.as_str().into(),
        })
    }

    /// Whether it is a list of providers; data of other names are for its subscribers here only.
    fn is_of_services(&self) -> bool {
        *self.group == *SERVICE_GROUP && *self.instance_id == *DEFAULT_INSTANCE_ID
    }

    /// The services whose instances can be in it.
    pub(super) fn services(&self) -> Vec<ServiceKey> {
        let id = match sofarpc::parse_data_id(&self.data_id) {
            Ok(id) if self.is_of_services() => id,
            Ok(_) | Err(_) => return Vec::new(),
        };
        // Dubbo has one list for the providers of both its protocols.
        let protocols = match id.protocol.as_str() {
            "dubbo" => vec!["dubbo", "tri"],
            other => vec![other],
        };
        let keys = protocols.into_iter();
        keys.map(|protocol| ServiceKey::new(protocol, &id.interface))
            .collect()
    }

    /// The instance that a publisher says; `None` if lists of this name say none.
    pub(super) fn instance(
        &self,
        data: &str,
        zone: &str,
        limits: &Limits,
    ) -> Option<Result<Instance, Malformed>> {
        if !self.is_of_services() {
            return None;
        }
        let read = instance(&self.data_id, data).and_then(|mut instance| {
            if zone != DEFAULT_ZONE && instance.metadata.get(ZONE).is_none() {
                let words = instance.metadata.iter().chain([(ZONE, zone)]);
                instance.metadata = words.collect();
            }
            instance.id = format!("{}{SUFFIX}", instance.default_id()).into();
            let checked = limits.check(&instance);
            checked.map_err(|error| Malformed::new(error.to_string()))?;
            Ok(instance)
        });
        Some(read)
    }

    /// What an instance of its services is in this list; `None` if it is in another one, of another version.
    pub(super) fn data(&self, instance: &Instance) -> Option<Arc<str>> {
        if !instance.healthy {
            return None;
        }
        let (data_id, data) = publication(instance);
        (data_id == *self.data_id).then(|| data.into())
    }
}
