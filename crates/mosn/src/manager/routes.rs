//! RDS: route configurations by name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use api::envoy::config::route::v3::RouteConfiguration;
use api::google::protobuf::Any;

use super::{Compiled, Manager, Origin, Rejected, Source};
use crate::config;
use crate::route::Table;
use crate::worker::Command;

const ROUTE_CONFIGURATION: &str = "envoy.config.route.v3.RouteConfiguration";

/// A route configuration that came by RDS.
pub struct RouteEntry {
    /// Routes and what they were compiled from.
    pub table: Compiled<Table>,
}

impl Manager {
    /// Takes an RDS response whole, or refuses it whole.
    pub fn apply_routes(&mut self, version: &str, resources: &[Any]) -> Result<(), Rejected> {
        let wanted = self.rds_names();
        let mut compiled = Vec::new();
        for (i, any) in resources.iter().enumerate() {
            let fallback = |error| Rejected {
                resource: format!("resources[{i}]"),
                error,
            };
            let routes: RouteConfiguration =
                config::unpack(any, ROUTE_CONFIGURATION).map_err(fallback)?;
            let name = routes.name.clone();
            if self
                .routes
                .get(&name)
                .is_some_and(|e| e.table.source.resource.value == any.value)
            {
                continue;
            }
            let refused = |error| Rejected {
                resource: name.clone(),
                error,
            };
            api::validate::message::<RouteConfiguration>(&any.value).map_err(refused)?;
            let table = Table::compile(&routes, &self.context()).map_err(refused)?;
            if wanted.contains(&name) {
                compiled.push((name.clone(), Arc::new(table), any.clone()));
            }
        }
        for (name, table, resource) in compiled {
            let source = Source {
                origin: Origin::Dynamic,
                resource,
                version: version.to_owned(),
                updated: SystemTime::now(),
            };
            let slot: Arc<str> = name.as_str().into();
            let told = table.clone();
            self.tell(|| Command::SetRoutes(slot.clone(), told.clone()));
            self.routes.insert(
                name,
                RouteEntry {
                    table: Compiled {
                        config: table,
                        source,
                    },
                },
            );
        }
        self.start_warm_listeners();
        self.update_gauges();
        Ok(())
    }

    /// Names for which RDS is asked.
    pub fn rds_names(&self) -> BTreeSet<String> {
        let configs = self.listeners.values().flat_map(|l| l.configs());
        configs
            .flat_map(|c| c.rds_names().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    pub(super) fn drop_unwanted_routes(&mut self) {
        let wanted = self.rds_names();
        let gone: Vec<String> = self
            .routes
            .keys()
            .filter(|n| !wanted.contains(*n))
            .cloned()
            .collect();
        for name in gone {
            self.routes.remove(&name);
            let slot: Arc<str> = name.into();
            self.tell(|| Command::RemoveRoutes(slot.clone()));
        }
    }
}
