//! What is the same for everybody who speaks with SOFARegistry: how data are named, and what a publication of a framework says.

use std::fmt;

use crate::model::Instance;
use crate::naming::dubbo::{self, Url};
use crate::naming::{Malformed, shorten, sofarpc};

/// The group that SOFARPC and Dubbo publish under.
pub(crate) const SERVICE_GROUP: &str = "SOFA";
/// The instance id of those who configure none.
pub(crate) const DEFAULT_INSTANCE_ID: &str = "DEFAULT_INSTANCE_ID";
/// The zone of those who configure none.
pub(crate) const DEFAULT_ZONE: &str = "DEFAULT_ZONE";
/// The data centre of those who configure none.
pub(crate) const DEFAULT_DATA_CENTER: &str = "DefaultDataCenter";

/// Between the parts of a dataInfoId.
const SEPARATOR: &str = "#@#";
/// Ends the dataIds of Dubbo's providers, whatever their protocol.
const DUBBO: &str = "@dubbo";

/// The full name of what is published and subscribed: a dataInfoId.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DataInfoId {
    /// What the framework calls it.
    pub(crate) data_id: String,
    /// The tenant.
    pub(crate) instance_id: String,
    /// The kind of data.
    pub(crate) group: String,
}

impl DataInfoId {
    /// Reads `dataId#@#instanceId#@#group`.
    pub(crate) fn parse(text: &str) -> Result<DataInfoId, Malformed> {
        let mut parts = text.split(SEPARATOR);
        let mut part = || parts.next().filter(|part| !part.is_empty());
        match (part(), part(), part(), parts.next()) {
            (Some(data_id), Some(instance_id), Some(group), None) => Ok(DataInfoId {
                data_id: data_id.to_owned(),
                instance_id: instance_id.to_owned(),
                group: group.to_owned(),
            }),
            _ => Err(Malformed::new(format!(
                "`{}` is not dataId#@#instanceId#@#group",
                shorten(text)
            ))),
        }
    }
}

impl fmt::Display for DataInfoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DataInfoId {
            data_id,
            instance_id,
            group,
        } = self;
        write!(f, "{data_id}{SEPARATOR}{instance_id}{SEPARATOR}{group}")
    }
}

/// The instance that a DataBox of a dataId says. Dubbo's providers publish whole URLs (dubbo-registry-sofa), SOFARPC's have no
/// scheme, not even those that speak Dubbo's protocol.
pub(crate) fn instance(data_id: &str, data: &str) -> Result<Instance, Malformed> {
    let before_query = data.split_once('?').map_or(data, |(before, _)| before);
    if data_id.ends_with(DUBBO) && before_query.contains("://") {
        return dubbo::instance(&Url::parse(data)?);
    }
    sofarpc::instance(&sofarpc::parse_data_id(data_id)?, data)
}

/// DataId and DataBox of an instance, as its framework's consumers look for it.
pub(crate) fn publication(instance: &Instance) -> (String, String) {
    if !is_dubbo(instance) {
        return (sofarpc::data_id(instance), sofarpc::data(instance));
    }
    let mut data_id = instance.service.name.to_string();
    for part in [&instance.version, &instance.group] {
        if !part.is_empty() {
            data_id.push(':');
            data_id.push_str(part);
        }
    }
    data_id.push_str(DUBBO);
    (data_id, dubbo::url(instance).to_string())
}

/// SOFARPC speaks Dubbo's protocols too; its providers say which version of it they are.
fn is_dubbo(instance: &Instance) -> bool {
    matches!(&*instance.service.protocol, "dubbo" | "tri")
        && instance.metadata.get(sofarpc::VERSION_OF_SOFARPC).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;
    use proptest::prelude::*;

    #[test]
    fn each_framework_finds_its_own_again() -> Result<(), Malformed> {
        let cases = [
            (
                "com.foo.Order:1.0:uid@DEFAULT",
                "10.0.0.1:12200?rpcVer=51302&weight=7",
                ("bolt", "1.0", "uid"),
            ),
            (
                "com.foo.Order:2.0:blue@dubbo",
                "tri://10.0.0.1:50051/com.foo.Order?group=blue&interface=com.foo.Order&version=2.0&weight=7",
                ("tri", "2.0", "blue"),
            ),
            // In a dataId alone this group would be a version.
            (
                "com.foo.Order:blue@dubbo",
                "dubbo://10.0.0.1:20880/com.foo.Order?group=blue&interface=com.foo.Order&weight=7",
                ("dubbo", "", "blue"),
            ),
            (
                "com.foo.Order:1.0@dubbo",
                "10.0.0.1:20880?rpcVer=51302&weight=7",
                ("dubbo", "1.0", ""),
            ),
        ];
        for (data_id, data, (protocol, version, group)) in cases {
            let read = instance(data_id, data)?;
            assert_eq!(read.service, ServiceKey::new(protocol, "com.foo.Order"));
            assert_eq!(
                (&*read.version, &*read.group, read.weight),
                (version, group, 7)
            );
            let (again_id, again) = publication(&read);
            assert_eq!(again_id, data_id);
            let again = instance(&again_id, &again)?;
            assert_eq!((again.service, again.port), (read.service, read.port));
        }
        Ok(())
    }

    #[test]
    fn a_data_info_id_is_the_same_after_reading() {
        let text = "com.foo.Order:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
        let read = DataInfoId::parse(text).map(|id| id.to_string());
        assert_eq!(read.as_deref(), Ok(text));
        assert!(DataInfoId::parse("a#@#b").is_err());
        assert!(DataInfoId::parse("a#@#b#@#c#@#d").is_err());
        assert!(DataInfoId::parse("#@##@#").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(id in "\\PC*", text in "\\PC*") {
            // What is refused is refused with a reason.
            let _ = (instance(&id, &text), instance("a:1@dubbo", &text), DataInfoId::parse(&id));
        }
    }
}
