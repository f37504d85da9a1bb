//! Copies at Dubbo's application level: a consumer that finds one provider there takes no notice of the interface level.

use serde_json::{Value, json};

use super::Config;
use super::layout::service_instance;
use crate::model::Instance;
use crate::naming::dubbo_application::entry::Entry;
use crate::naming::{authority, dubbo};

/// The class of what Dubbo says of an application's instance.
const CLASS: &str = "org.apache.dubbo.registry.zookeeper.ZookeeperInstance";

/// What says a provider at Dubbo's application level.
pub(super) struct ApplicationNodes {
    /// Path and data of the node of the application.
    pub(super) node: (String, Vec<u8>),
    /// Path and data of its revision in the metadata centre.
    pub(super) info: (String, Vec<u8>),
}

/// The nodes that say an instance as a part of an application of Dubbo, if it can be said there.
pub(super) fn application_nodes(
    config: &Config,
    application: &str,
    instance: &Instance,
) -> Option<ApplicationNodes> {
    let Config {
        chroot,
        spring_root,
        ..
    } = config;
    let root = config.dubbo_roots.first()?;
    if spring_root.is_empty() {
        return None;
    }
    let Entry {
        metadata,
        revision,
        info,
        ..
    } = Entry::of(application, &[instance])?;
    let address = authority(&instance.address, instance.port);
    let id = dubbo::encode(&format!("{address}~{revision}"));
    let payload = json!({"@class": CLASS, "id": id, "name": application, "metadata": metadata});
    let data = service_instance((application, &id), instance, &payload, &Value::Null);
    let path = format!("{chroot}{spring_root}/{application}/{id}");
    Some(ApplicationNodes {
        node: (path, data),
        info: (
            format!("{chroot}{root}/metadata/{application}/{revision}"),
            info.into_bytes(),
        ),
    })
}
